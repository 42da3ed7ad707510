"""The kernels of an engine, read from its file.

TensorRT can load and inspect an engine only on a GPU. The file of an engine, however, holds the compiled program as
text. Each kernel is one instruction with the ONNX layers that it computes:

    runtime_fusion={ name=__myl_FcAdd input_args={ "a" "b" } ... layers="[ONNX Layer: node_linear_8]" backbone=gemm }
    function={ name=_gemm_mha_v2 ... args={ "a" "b" } ... layers="[ONNX Layer: node_attention]" ... }

Each tensor is one line with its type. The kinds of instruction are:

- `runtime_fusion`: a matrix product together with what follows it.
- `fully_connected`, `corrltn`: a product or a convolution by itself.
- `function`: everything else, which is fused attention, normalisation, moves and casts. A good export has few moves and
  casts.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

# A product by itself has scratch space. A product without scratch space is the inside of a fusion, listed separately.
_KERNEL: Final = re.compile(
    rb"(?P<kind>function|runtime_fusion|(?:fully_connected|corrltn)(?=[^\n]* scratchspace=))"
    rb'=\{ name=(?P<name>\S+) (?P<body>[^\n]*?)layers="(?P<layers>[^"]*)"',
    re.DOTALL,
)
# Only regions with these names are taken. Regions that hold nothing but literals have other names.
_TENSOR: Final = re.compile(
    rb'tensor=\{ [^\n]*?name="(?P<name>[^"]+)" [^\n]*?region="(?:devmem\w*)?" [^\n]*type=(?P<type>\w+)'
)
_ARGUMENTS: Final = re.compile(rb"(?:args|input|output)=\{ ?([^}]*)\}")
_LAYER: Final = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        name: TensorRT's name, made of what the kernel does: "__myl_MoveReshTran" moves, reshapes and transposes.
        product: Whether it is a matrix product.
        layers: Names of the ONNX nodes that it computes.
        types: Type of each tensor that it reads or writes, by the tensor's name, for example "half" or "float".
            Literals are left out.
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
    """Return the kernels of an engine in the order they run; empty if the file holds no text."""
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
    """Return the counts of kernels for an engine's record.

    Returns:
        The number of matrix products, of other kernels and of fused attentions, and the other kernels by name, most
        frequent first. Empty for an engine whose file holds no text.
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
