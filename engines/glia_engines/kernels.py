"""The kernels of an engine, read from its file.

An engine can be loaded, and so inspected, only on a GPU. But its file carries the compiled program as text, one
instruction a kernel with the ONNX layers it stands for:

    runtime_fusion={ name=__myl_FcAdd input_args={ "a" "b" } ... layers="[ONNX Layer: node_linear_8]" backbone=gemm }
    function={ name=_gemm_mha_v2 ... args={ "a" "b" } ... layers="[ONNX Layer: node_attention]" ... }

and one line a tensor with its type. `runtime_fusion` are matrix products with what follows them, `fully_connected` and
`corrltn` products and convolutions on their own; `function` is all else: fused attention, normalisation, and the moves
and casts that a good export has few of.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

# A product on its own has memory to work in; one without is the inside of a fusion, listed apart.
_KERNEL: Final = re.compile(
    rb"(?P<kind>function|runtime_fusion|(?:fully_connected|corrltn)(?=[^\n]* scratchspace=))"
    rb'=\{ name=(?P<name>\S+) (?P<body>[^\n]*?)layers="(?P<layers>[^"]*)"',
    re.DOTALL,
)
# Regions that hold nothing but literals have names of their own.
_TENSOR: Final = re.compile(
    rb'tensor=\{ [^\n]*?name="(?P<name>[^"]+)" [^\n]*?region="(?:devmem\w*)?" [^\n]*type=(?P<type>\w+)'
)
_ARGUMENTS: Final = re.compile(rb"(?:args|input|output)=\{ ?([^}]*)\}")
_LAYER: Final = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: As TensorRT has it, made of what it does: "__myl_MoveReshTran" moves, reshapes and transposes.
        product: Whether it is a matrix product.
        layers: Names of the ONNX nodes it computes.
        types: Type of each tensor it reads or writes, literals left out, "half" or "float" say, by name.
    """

    name: str
    product: bool
    layers: tuple[str, ...]
    types: dict[str, str]

    @property
    def attention(self) -> bool:
        """Whether it is a fused attention: scores, softmax and weighted sum in one kernel."""
        return "_mha_" in self.name


def read_kernels(engine: bytes) -> list[Kernel]:
    """The kernels of an engine in the order they run; empty where the file holds no text."""
    types = {found["name"]: found["type"].decode() for found in _TENSOR.finditer(engine)}
    return [
        Kernel(
            name=found["name"].decode().strip('"'),
            product=found["kind"] != b"function",
            layers=tuple(_LAYER.findall(found["layers"].decode())),
            types={
                name.decode(): types[name]
                for arguments in _ARGUMENTS.findall(found["body"])
                for name in re.findall(rb'"([^"]+)"', arguments)
                if name in types
            },
        )
        for found in _KERNEL.finditer(engine)
    ]


def summary(kernels: list[Kernel]) -> dict[str, Any]:
    """Counts for an engine's record: matrix products, attentions, and the others by name, most frequent first.

    Nothing for an engine whose file holds no text.
    """
    if not kernels:
        return {}
    others = [kernel for kernel in kernels if not kernel.product]
    return {
        "matrix_products": len(kernels) - len(others),
        "other_kernels": len(others),
        "attention_kernels": sum(kernel.attention for kernel in others),
        "others_by_name": dict(Counter(kernel.name for kernel in others).most_common()),
    }
