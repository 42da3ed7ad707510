"""Writes out the attention of a graph for TensorRT, which fuses it again and needs no kernels that transpose heads.

The engines of tensorrt_rtx 1.7 show why (docs/tensorrt.md). Each Attention operator costs a kernel that transposes the
heads of its output. The same attention written as matrix products and a softmax becomes the same fused kernel, and the
transposes disappear into its neighbours. This needs two things. Queries and keys share the scale, each multiplied by
its square root, as ONNX defines Attention. One node transposes the keys.

The bundle's files keep the operator, because ONNX Runtime has a kernel for it.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

from glia_rt.errors import BundleError


def write_out_attention(model: ModelProto) -> ModelProto:
    """Return a copy of a graph with each Attention operator written out in its parts.

    Args:
        model: A bundle's graph. Its Attention operators take q (N, heads, Tq, d), k and v (N, heads, Tk, d), and no
            mask.

    Raises:
        BundleError: The graph has an attention of another kind. No bundle of this version holds one.
    """
    if not any(node.op_type == "Attention" for node in model.graph.node):
        return model
    shapes = {value.name: value.type.tensor_type for value in shape_inference.infer_shapes(model).graph.value_info}
    written = ModelProto()
    written.CopyFrom(model)
    del written.graph.node[:]
    for node in model.graph.node:
        if node.op_type != "Attention":
            written.graph.node.append(node)
            continue
        query = shapes.get(node.input[0])
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        scale = attributes.pop("scale", None)
        # Every other attribute is 0, unless it asks for a mask, a cap or a second output.
        if query is None or len(query.shape.dim) != 4 or len(node.input) != 3 or any(attributes.values()):
            raise BundleError(f"{node.name}: an attention of a kind that this version does not know; export again")
        root = math.sqrt(scale or 1 / math.sqrt(query.shape.dim[3].dim_value))
        dtype = helper.tensor_dtype_to_np_dtype(query.elem_type)
        written.graph.initializer.append(numpy_helper.from_array(np.asarray(root, dtype), f"{node.name}/root"))
        written.graph.node.extend(_parts(node))
    return written


def _parts(node: NodeProto) -> list[NodeProto]:
    query, key, value = node.input
    root, q, k, k_transposed, scores, weights, out = (
        f"{node.name}/{what}" for what in ("root", "q", "k", "kT", "scores", "weights", "out")
    )
    return [
        helper.make_node("Mul", [query, root], [q], q),
        helper.make_node("Mul", [key, root], [k], k),
        helper.make_node("Transpose", [k], [k_transposed], k_transposed, perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", [q, k_transposed], [scores], scores),
        helper.make_node("Softmax", [scores], [weights], weights, axis=-1),
        helper.make_node("MatMul", [weights, value], [node.output[0]], out),
    ]
