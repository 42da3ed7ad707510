"""The traced graphs: what they take, what they hold, and what they leave out."""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, shape_inference
from onnxscript.rewriter.rules.common import slice_split_rule
from timm.layers.std_conv import StdConv2d, StdConv2dSame

from glia_export import half, trace
from glia_export.forms.table import export_form
from glia_rt.bundle import GRAPHS
from glia_rt.contract import IMAGE, SCORE, Contract
from glia_rt.pixels.views import make_inputs
from glia_train.models.glianet import FRAGMENTS, GLOBAL_VIEW, GLIANet, ModelConfig
from glia_train.models.table import untrained

#: timm's smallest ViT, for graphs that this file traces itself.
SMALL = ModelConfig(backbone="test_vit", heads=2)
HYBRID = ModelConfig(backbone="vit_tiny_r_s16_p8_224")
DEPTH, WIDTH, TOKENS = 12, 192, 197  # of ViT-Ti, which tiny_bundle holds

FILES = [(kind, precision, name) for (kind, precision), name in GRAPHS.items()]


@pytest.fixture(scope="module")
def bundled(tiny_bundle: Path) -> dict[str, ModelProto]:
    return {name: onnx.load(tiny_bundle / name) for name in GRAPHS.values()}


@pytest.fixture(scope="module")
def small() -> tuple[GLIANet, Contract]:
    return untrained(SMALL)


@pytest.fixture(scope="module")
def traced(small: tuple[GLIANet, Contract]) -> ModelProto:
    return trace.trace_views(*small)


def random_views(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    views = torch.randint(0, 256, (2, count, 224, 224, 3), dtype=torch.uint8, generator=generator)
    return views[0], views[1]


def run(model: ModelProto, feeds: dict[str, npt.NDArray[np.uint8]]) -> dict[str, npt.NDArray[np.float32]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def dimensions(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_hybrids_stem_is_rewritten_and_scores_the_same() -> None:
    model, _ = untrained(HYBRID)
    assert any(isinstance(module, StdConv2d | StdConv2dSame) for module in model.modules())
    rewritten = export_form(model)
    assert not any(isinstance(module, StdConv2d | StdConv2dSame) for module in rewritten.modules())
    views = random_views(2)
    with torch.inference_mode():
        expected, found = model.features(*views), rewritten.features(*views)
    assert float((found - expected).norm(dim=1).div(expected.norm(dim=1)).max()) < 2e-6


def test_the_model_itself_is_not_rewritten() -> None:
    model, _ = untrained(HYBRID)
    before = copy.deepcopy(model.state_dict())
    export_form(model)
    assert any(isinstance(module, StdConv2d | StdConv2dSame) for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_trace_scores_as_the_model_does(small: tuple[GLIANet, Contract], traced: ModelProto) -> None:
    model, _ = small
    views = random_views(3)
    with torch.inference_mode():
        feature = model.features(*views)
        score = model.calibrated(model.raw_score(feature))
    found = run(traced, {GLOBAL_VIEW: views[0].numpy(), FRAGMENTS: views[1].numpy()})
    np.testing.assert_allclose(found[trace.FEATURES], feature, atol=1e-5)
    np.testing.assert_allclose(found[SCORE], score, atol=1e-5)


def test_weights_that_are_halves_are_stored_so(small: tuple[GLIANet, Contract]) -> None:
    """The scores are those of the same graph with float32 weights, but for the order of sums (9e-8 measured)."""
    model = copy.deepcopy(small[0])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(parameter.half())
    graphs, views = {}, random_views(2)
    for name, one in (("plain", small[0]), ("rounded", model)):
        graphs[name] = trace.trace_views(one, small[1]), trace.finish(trace.trace_views(one, small[1]), small[1])
    sizes = {name: len(finished.SerializeToString()) for name, (_, finished) in graphs.items()}
    assert sizes["rounded"] < 0.6 * sizes["plain"]
    feeds = {GLOBAL_VIEW: views[0].numpy(), FRAGMENTS: views[1].numpy()}
    before, after = (run(graph, feeds)[SCORE] for graph in graphs["rounded"])
    np.testing.assert_allclose(before, after, rtol=0, atol=1e-6)
    types = {weight.data_type for weight in graphs["plain"][1].graph.initializer}
    assert TensorProto.FLOAT16 not in types


def test_either_input_alone_changes_the_score(traced: ModelProto) -> None:
    (first, other), (moved, _) = random_views(1), random_views(1, seed=1)
    base = run(traced, {GLOBAL_VIEW: first.numpy(), FRAGMENTS: other.numpy()})
    for name in (GLOBAL_VIEW, FRAGMENTS):
        feeds = {GLOBAL_VIEW: first.numpy(), FRAGMENTS: other.numpy()} | {name: moved.numpy()}
        assert abs(run(traced, feeds)[SCORE] - base[SCORE]) > 1e-4, name


def test_a_joined_graph_samples_and_scores(small: tuple[GLIANet, Contract], traced: ModelProto) -> None:
    _, contract = small
    joined = trace.join(trace.trace_rules(contract), traced)
    image = np.random.default_rng(0).integers(0, 256, (250, 333, 3), dtype=np.uint8)
    views = make_inputs(image, contract)
    found = run(joined, {IMAGE: image[None]})
    score, _, global_view, fragments = found.values()  # as _session in export.py reads them
    np.testing.assert_array_equal(fragments[0], views["fragments"])
    assert np.abs(global_view[0] - views["global_view"]).max() <= 1
    seen = {GLOBAL_VIEW: global_view.astype(np.uint8), FRAGMENTS: fragments.astype(np.uint8)}
    np.testing.assert_allclose(score, run(traced, seen)[SCORE], atol=1e-6)


@pytest.mark.parametrize(("kind", "precision", "name"), FILES)
def test_inputs_and_outputs_of_the_bundles_graphs(
    kind: str, precision: str, name: str, bundled: dict[str, ModelProto]
) -> None:
    graph = bundled[name].graph
    inputs = {value.name: dimensions(value) for value in graph.input}
    views = {GLOBAL_VIEW: ["N", 224, 224, 3], FRAGMENTS: ["N", 224, 224, 3]}
    assert inputs == (views if kind == "views" else {IMAGE: ["N", "H", "W", 3]})
    assert {value.type.tensor_type.elem_type for value in graph.input} == {TensorProto.UINT8}
    [score] = graph.output
    assert (score.name, dimensions(score), score.type.tensor_type.elem_type) == (SCORE, ["N"], TensorProto.FLOAT)


@pytest.mark.parametrize(("kind", "precision", "name"), FILES)
def test_only_casts_read_the_pixels(kind: str, precision: str, name: str, bundled: dict[str, ModelProto]) -> None:
    # TensorRT takes uint8 where a Cast comes first; Shape looks at no pixel.
    graph = bundled[name].graph
    inputs = {value.name for value in graph.input}
    readers = {(value, node.op_type) for node in graph.node for value in node.input if value in inputs}
    assert {value for value, reader in readers if reader == "Cast"} == inputs
    assert {reader for _, reader in readers} <= {"Cast", "Shape"}


@pytest.mark.parametrize(("kind", "precision", "name"), FILES)
def test_the_contract_travels_inside(
    kind: str, precision: str, name: str, bundled: dict[str, ModelProto], tiny_model: GLIANet
) -> None:
    model = bundled[name]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert set(metadata) == {"glia.contract"}
    contract = Contract.from_json(metadata["glia.contract"])
    assert contract.score.range == (1.0, 5.0)
    assert contract.mean == pytest.approx(tiny_model.mean.tolist())
    assert model.producer_name == "glia-rt"


@pytest.mark.parametrize(("kind", "precision", "name"), FILES)
def test_nothing_of_the_exporting_machine_travels_along(
    kind: str, precision: str, name: str, bundled: dict[str, ModelProto]
) -> None:
    model = ModelProto()
    model.CopyFrom(bundled[name])
    for value in model.graph.initializer:
        value.ClearField("raw_data")  # weights: bytes that may spell anything
    text = model.SerializeToString()
    assert len(text) < 1_000_000
    assert not re.search(rb"site-packages|\.py\b|glia_train|glia_export", text)
    for part in Path(__file__).resolve().parents[:-1]:
        assert str(part).encode() not in text
    assert not model.doc_string
    assert not model.graph.doc_string
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize(("kind", "precision", "name"), FILES)
def test_operators_of_the_bundles_graphs(kind: str, precision: str, name: str, bundled: dict[str, ModelProto]) -> None:
    model = bundled[name]
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 20 if precision == "fp32" else 23)}
    counts = operators(model)
    # Two streams of blocks with two norms each, and the final norm of either.
    assert counts["LayerNormalization"] == 2 * (2 * DEPTH + 1)
    # Self-attention in two streams, fusion in all blocks and refinement in all but the last. The local stream's last
    # one has a single query and is written out, as all attention is in FP32.
    attentions = 2 * DEPTH + DEPTH + DEPTH - 1
    written_out = attentions if precision == "fp32" else 1
    assert (counts["Attention"], counts["Softmax"]) == (attentions - written_out, written_out)
    assert counts["Resize"] == 0


@pytest.mark.parametrize(("kind", "precision", "name"), FILES)
def test_layer_normalisation_computes_in_float32(
    kind: str, precision: str, name: str, bundled: dict[str, ModelProto]
) -> None:
    norms = [node for node in bundled[name].graph.node if node.op_type == "LayerNormalization"]
    stash = [attribute.i for node in norms for attribute in node.attribute if attribute.name == "stash_type"]
    assert stash == [TensorProto.FLOAT] * len(norms)


def weights_by_type(model: ModelProto) -> dict[int, int]:
    """How many numbers of each type the views part of a graph holds; equal tensors, zeros mostly, are held once."""
    counts: Counter[int] = Counter()
    for value in model.graph.initializer:
        if not value.name.startswith("rules/"):
            counts[value.data_type] += math.prod(value.dims)
    return counts


@pytest.mark.parametrize("kind", ["views", "image"])
def test_types_of_the_weights(kind: str, bundled: dict[str, ModelProto], tiny_model: GLIANet) -> None:
    parameters = sum(p.numel() for p in tiny_model.parameters())
    normalisation = 2 * 3  # gain and shift of three channels
    head, calibration = WIDTH + 1, 2

    single = weights_by_type(bundled[GRAPHS[kind, "fp32"]])  # type: ignore[index]
    assert single[TensorProto.FLOAT16] == 0
    assert single[TensorProto.FLOAT] == pytest.approx(parameters, rel=0.01)

    mixed = weights_by_type(bundled[GRAPHS[kind, "fp16"]])  # type: ignore[index]
    assert mixed[TensorProto.FLOAT] == normalisation + head + calibration
    assert mixed[TensorProto.FLOAT16] == pytest.approx(parameters, rel=0.01)


def test_the_rules_stay_in_float32(bundled: dict[str, ModelProto]) -> None:
    graph = bundled[GRAPHS["image", "fp16"]].graph
    types = {value.data_type for value in graph.initializer if value.name.startswith("rules/")}
    assert types == {TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL} & types
    casts = {
        attribute.i
        for node in graph.node
        if node.op_type == "Cast" and node.name.startswith("rules/")
        for attribute in node.attribute
    }
    assert TensorProto.FLOAT in casts
    assert TensorProto.FLOAT16 not in casts


def multiplications(model: ModelProto) -> int:
    """Multiplications of the matrix products, the convolutions and the attention that one picture takes."""
    inferred = ModelProto()
    inferred.CopyFrom(model)
    for value in [*inferred.graph.input, *inferred.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(inferred, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output, *graph.value_info]
    } | {value.name: list(value.dims) for value in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "MatMul":
            total += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            total += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "Attention":
            total += 2 * math.prod(shapes[node.input[0]]) * shapes[node.input[1]][-2]
    return total


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nothing_is_computed_that_no_score_needs(precision: str, bundled: dict[str, ModelProto]) -> None:
    t, d, r = TOKENS, WIDTH, WIDTH // 4
    embedding = (t - 1) * 3 * 16 * 16 * d
    block = 4 * t * d * d + 2 * t * t * d + 2 * t * d * 4 * d
    last_block = 2 * t * d * d + (2 * d * d + 2 * t * d + 2 * d * 4 * d)  # all keys and values; the cls row of the rest
    projection = t * d * r + t * r * r
    cross_attention = 4 * t * r * r + 2 * t * t * r
    refined = DEPTH - 1  # nothing reads what the last block would refine
    needed = 2 * embedding + (2 * DEPTH - 1) * block + last_block
    needed += projection + DEPTH * (2 * projection + cross_attention) + refined * cross_attention
    assert multiplications(bundled[GRAPHS["views", precision]]) == needed


def test_one_block_in_float32_asks_for_the_opset_without_attention(small: tuple[GLIANet, Contract]) -> None:
    model, _ = small
    assert trace.opset_for(model) == 20
    assert trace.opset_for(half.half_copy(model)) == 23
    assert trace.opset_for(half.half_copy(model, ["embedding", "projection"])) == 23
    assert trace.opset_for(half.half_copy(model, ["block 2"])) == 20


@pytest.mark.slow
def test_the_rule_that_is_left_out_changes_nothing(
    traced: ModelProto, small: tuple[GLIANet, Contract], monkeypatch: pytest.MonkeyPatch
) -> None:
    with trace._no_rule_for_pairs():
        assert slice_split_rule.try_rewrite(None, None, None) is None  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        slice_split_rule.try_rewrite(None, None, None)  # type: ignore[arg-type]
    monkeypatch.setattr(trace, "_no_rule_for_pairs", contextlib.nullcontext)
    whole = trace.trace_views(*small)
    for graph in (whole.graph, mine := copy.deepcopy(traced).graph):
        del graph.value_info[:], graph.metadata_props[:]
        for node in graph.node:
            del node.metadata_props[:]
    assert whole.graph == mine


@pytest.mark.slow
def test_tracing_leaves_warnings_and_logs_as_they_were(
    small: tuple[GLIANet, Contract], capfd: pytest.CaptureFixture[str]
) -> None:
    import logging
    import warnings

    logger, filters = logging.getLogger("torch.onnx"), list(warnings.filters)
    level = logger.level
    trace.trace_rules(small[1])
    assert (logger.level, list(warnings.filters)) == (level, filters)
    assert capfd.readouterr() == ("", "")
