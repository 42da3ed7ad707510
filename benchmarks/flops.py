"""The amount of arithmetic in a graph: the floating-point operations of its matrix products."""

from __future__ import annotations

import math
import os
from typing import Final

import onnx
from onnx import NodeProto, helper, shape_inference

from glia_rt.errors import UsageError

#: Operators that are matrix products too. They are refused, because the count would leave them out. GLIANet has none.
UNCOUNTED: Final = {"ConvInteger", "ConvTranspose", "Einsum", "MatMulInteger", "QLinearConv", "QLinearMatMul"}


def count_flops(graph: str | os.PathLike[str] | onnx.ModelProto, batch: int = 1) -> int:
    """Return the floating-point operations of one run: two for each multiply-add of the graph's matrix products.

    MatMul, Gemm, Conv and Attention are counted. Element-wise operators are not.

    Args:
        graph: An ONNX file, or a model in memory. All its shapes must follow from N.
        batch: N, the first dimension of every input.

    Raises:
        UsageError: A product's shape does not follow from N, or the graph holds an operator that is not counted here.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph if isinstance(graph, onnx.ModelProto) else onnx.load(graph))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    # data_prop is needed, because reshapes take their shapes from what other nodes compute.
    inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in [*inferred.input, *inferred.value_info, *inferred.output]}
    shapes |= {value.name: tuple(value.dims) for value in inferred.initializer}
    return sum(_node_flops(node, shapes) for node in inferred.node)


def _node_flops(node: NodeProto, shapes: dict[str, tuple[int, ...] | None]) -> int:
    def shape(name: str) -> tuple[int, ...]:
        if (found := shapes.get(name)) is None:
            raise UsageError(
                f"{node.op_type} {node.name}: the shape of {name} does not follow from the batch size; count a graph "
                "whose other sizes are fixed, such as scorer.onnx"
            )
        return found

    has_body = any(attribute.HasField("g") for attribute in node.attribute)  # If, Loop, Scan
    if node.op_type in UNCOUNTED or node.domain not in ("", "ai.onnx") or has_body:
        raise UsageError(f"{node.op_type} {node.name}: its floating-point operations cannot be counted")
    match node.op_type:
        case "MatMul":
            depth = shape(node.input[0])[-1]
        case "Gemm":
            transposed = any(a.name == "transA" and helper.get_attribute_value(a) for a in node.attribute)
            depth = shape(node.input[0])[0 if transposed else 1]
        case "Conv":
            depth = math.prod(shape(node.input[1])[1:])  # (C_out, C_in / groups, height, width)
        case "Attention":
            # Each value of q, (N, h, Tq, d) or (N, Tq, h * d), is multiplied once for every key. Each output is a sum
            # over the keys.
            keys = shape(node.input[1])[-2]
            return 2 * keys * (math.prod(shape(node.input[0])) + math.prod(shape(node.output[0])))
        case _:
            return 0
    return 2 * math.prod(shape(node.output[0])) * depth


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)
