from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import helper

from glia_engines.rewrite import write_out_attention
from glia_rt.errors import BundleError

RNG = np.random.default_rng(0)


def attention(kind: int = onnx.TensorProto.FLOAT, *, rank: int = 4, **attributes: Any) -> onnx.ModelProto:
    """One attention over 5 queries and 7 keys, two heads of width 8; in three dimensions the heads are side by side."""
    shapes = {"q": ["N", 2, 5, 8], "k": ["N", 2, 7, 8], "v": ["N", 2, 7, 8]}
    if rank == 3:
        shapes = {name: ["N", shape[2], 16] for name, shape in shapes.items()}
        attributes |= {"q_num_heads": 2, "kv_num_heads": 2}
    inputs = [helper.make_tensor_value_info(f"{name}_in", kind, shape) for name, shape in shapes.items()]
    nodes = [helper.make_node("Identity", [f"{name}_in"], [name]) for name in shapes]
    nodes.append(helper.make_node("Attention", list(shapes), ["out"], "here", **attributes))
    output = helper.make_tensor_value_info("out", kind, shapes["q"])
    graph = helper.make_graph(nodes, "attention", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def run(model: onnx.ModelProto, inputs: dict[str, npt.NDArray[Any]]) -> npt.NDArray[Any]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    output: npt.NDArray[Any] = session.run(None, inputs)[0]
    return output


@pytest.mark.parametrize("scale", [None, 0.3])
def test_the_parts_compute_what_the_operator_does(scale: float | None) -> None:
    model = attention(**({} if scale is None else {"scale": scale}))
    inputs = {
        f"{name}_in": RNG.standard_normal((3, 2, tokens, 8), np.float32)
        for name, tokens in [("q", 5), ("k", 7), ("v", 7)]
    }
    written = write_out_attention(model)
    assert Counter(node.op_type for node in written.graph.node) == {
        "Identity": 3, "Mul": 2, "Transpose": 1, "MatMul": 2, "Softmax": 1,
    }  # fmt: skip
    q, k, v = (inputs[f"{name}_in"] for name in "qkv")
    weights = np.exp(q @ k.swapaxes(-1, -2) * (1 / math.sqrt(8) if scale is None else scale))
    by_hand = (weights / weights.sum(-1, keepdims=True)) @ v
    np.testing.assert_allclose(run(written, inputs), by_hand, rtol=0, atol=1e-5)
    np.testing.assert_allclose(run(written, inputs), run(model, inputs), rtol=0, atol=1e-5)


def test_the_types_stay(tiny_bundle: Path) -> None:
    written = write_out_attention(attention(onnx.TensorProto.FLOAT16))
    onnx.checker.check_model(written, full_check=True)
    [root] = written.graph.initializer
    assert root.data_type == onnx.TensorProto.FLOAT16


def test_the_graph_given_is_not_changed() -> None:
    model = attention()
    before = model.SerializeToString(deterministic=True)
    write_out_attention(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_whole_graph_scores_the_same(tiny_bundle: Path) -> None:
    """In half precision, so not to the bit; a head's root scale in the wrong place would be off by far more."""
    model = onnx.load(tiny_bundle / "scorer.fp16.onnx")
    written = write_out_attention(model)
    assert not [node for node in written.graph.node if node.op_type == "Attention"]
    views = {name: RNG.integers(0, 256, (2, 224, 224, 3), np.uint8) for name in ("global_view", "fragments")}
    np.testing.assert_allclose(run(written, views), run(model, views), rtol=0, atol=0.005 * 4)


def test_a_graph_without_the_operator_is_left_alone(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "scorer.onnx")
    assert write_out_attention(model) is model


@pytest.mark.parametrize(
    "model",
    [attention(is_causal=1), attention(softcap=2.0), attention(rank=3)],
    ids=["causal", "capped", "three dimensions"],
)
def test_other_attentions_are_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(BundleError, match="here: an attention of a kind that this version does not know"):
        write_out_attention(model)
