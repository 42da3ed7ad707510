"""Counted arithmetic: exact for each operator and for a whole GLIANet, and refused where it would be a guess."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import pytest
from flops import count_flops
from onnx import TensorProto, helper

from glia_rt.errors import UsageError

Shape = list[Any]  # of numbers, and "N"


def one_node(op: str, inputs: dict[str, Shape], output: Shape, domain: str = "", **attributes: Any) -> onnx.ModelProto:
    def value(name: str, shape: Shape) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    node = helper.make_node(op, list(inputs), ["y"], name="product", domain=domain, **attributes)
    # An initializer is no input of the graph: its first dimension is not N.
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, [0.0] * math.prod(shape))
        for name, shape in inputs.items()
        if name == "w"
    ]
    given = [value(name, shape) for name, shape in inputs.items() if name != "w"]
    graph = helper.make_graph([node], "g", given, [value("y", output)], weights)
    domains = {"": 23} | ({domain: 1} if domain else {})
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*pair) for pair in domains.items()])


def vit_ti_flops() -> int:
    """By hand: ViT-Ti/16 in both streams, with a GLIA block of latent width 48 before each block of the local one."""
    depth, d, t, r, patches = 12, 192, 197, 48, 196
    embedding = patches * (16 * 16 * 3) * d
    attention = 2 * t * t * d  # q k^T and weights v
    block = t * 3 * d * d + attention + t * d * d + 2 * t * d * 4 * d
    # Keys and values of all tokens; query, attention, projection and MLP of the cls row alone.
    last_block = t * 2 * d * d + d * d + 2 * t * d + d * d + 2 * d * 4 * d
    projection = t * d * r + t * r * r
    down_and_up = 2 * (t * d * r + t * r * r)
    cross_attention = t * 4 * r * r + 2 * t * t * r  # query, key and value, output
    multiply_adds = (
        2 * embedding
        + (2 * depth - 1) * block
        + last_block
        + projection
        + depth * down_and_up
        + (2 * depth - 1) * cross_attention  # the last block has no refinement
    )
    return 2 * multiply_adds


@pytest.mark.parametrize("file", ["scorer.onnx", "scorer.fp16.onnx"])
def test_a_whole_model_is_counted_exactly(file: str, tiny_bundle: Path) -> None:
    assert count_flops(tiny_bundle / file) == vit_ti_flops()


def test_the_count_grows_with_the_batch(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "scorer.onnx")
    assert count_flops(graph, batch=256) == 256 * vit_ti_flops()
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"  # not changed


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (one_node("MatMul", {"x": ["N", 3, 5], "w": [5, 7]}, ["N", 3, 7]), 2 * 2 * 3 * 5 * 7),
        (one_node("MatMul", {"x": ["N", 4, 3, 5], "k": ["N", 4, 5, 3]}, ["N", 4, 3, 3]), 2 * 2 * 4 * 3 * 5 * 3),
        (one_node("Gemm", {"x": ["N", 5], "w": [5, 7]}, ["N", 7]), 2 * 2 * 5 * 7),
        (one_node("Gemm", {"x": ["N", 5], "w": [2, 7]}, [5, 7], transA=1), 2 * 5 * 2 * 7),
        # 6 channels in two groups, 3x3 on 8x8 without padding
        (one_node("Conv", {"x": ["N", 6, 8, 8], "w": [4, 3, 3, 3]}, ["N", 4, 6, 6], group=2), 2 * 2 * 4 * 36 * 27),
        # q k^T takes heads of width 5, the sum over 9 values heads of width 7
        (
            one_node("Attention", {"q": ["N", 4, 3, 5], "k": ["N", 4, 9, 5], "v": ["N", 4, 9, 7]}, ["N", 4, 3, 7]),
            2 * 2 * 4 * 3 * 9 * (5 + 7),
        ),
        (
            one_node(
                "Attention",
                {"q": ["N", 3, 20], "k": ["N", 9, 20], "v": ["N", 9, 28]},
                ["N", 3, 28],
                q_num_heads=4,
                kv_num_heads=4,
            ),
            2 * 2 * 4 * 3 * 9 * (5 + 7),
        ),
        (one_node("Relu", {"x": ["N", 3]}, ["N", 3]), 0),
    ],
    ids=["MatMul", "batched MatMul", "Gemm", "Gemm transposed", "Conv", "Attention", "Attention of rank 3", "Relu"],
)
def test_each_operator(model: onnx.ModelProto, expected: int) -> None:
    assert count_flops(model, batch=2) == expected


def test_an_unknown_shape_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"MatMul .* does not follow from the batch size; count .* scorer\.onnx"):
        count_flops(tiny_bundle / "image_scorer.onnx")


@pytest.mark.parametrize(
    ("op", "domain"), [("ConvTranspose", ""), ("FusedMatMul", "com.microsoft")], ids=["standard", "contributed"]
)
def test_a_product_of_another_kind_is_refused(op: str, domain: str) -> None:
    inputs: dict[str, Shape] = {"x": ["N", 3, 5, 5], "w": [3, 5, 5, 5]}
    with pytest.raises(UsageError, match=f"{op} product: its floating-point operations cannot be counted"):
        count_flops(one_node(op, inputs, ["N", 5, 9, 9], domain))


def test_a_body_inside_a_node_is_refused() -> None:
    body = "body () => (float[2, 2] z) { z = MatMul(a, a) }"
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 23]>
        g (bool[N] c, float[N, 2] a) => (float[2, 2] y) {{ y = If(c) <then_branch = {body}, else_branch = {body}> }}"""
    )
    with pytest.raises(UsageError, match=r"If .* cannot be counted"):
        count_flops(model, batch=2)
