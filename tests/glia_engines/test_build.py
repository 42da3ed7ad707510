"""Engines are built by the real tensorrt_rtx; that they run takes a GPU, that they are what they should be does not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import tensorrt_rtx
from helpers.contracts import CONTRACT

from glia_engines import build as building
from glia_engines.build import build, capability_names, make_profile
from glia_engines.kernels import Kernel, read_kernels, summary
from glia_rt.backends.cuda.device import why_no_gpu
from glia_rt.backends.cuda.engine import LEAST_PORTABLE, EngineRecord, find_engines, record_path, system
from glia_rt.bundle import Bundle
from glia_rt.cli.main import main
from glia_rt.contract import GraphKind
from glia_rt.errors import BackendError, BundleError, OutputExistsError, UsageError
from glia_rt.versions import __version__, install_command

GliaRt = Callable[..., "subprocess.CompletedProcess[str]"]
EditedBundle = Callable[[Callable[[Path, "dict[str, Any]"], None]], Path]
Capture = pytest.CaptureFixture[str]

#: Fused attentions: 12 blocks of either stream, a fusion in every GLIA block and a refinement in all but the last.
ATTENTIONS = 12 + 12 + 12 + 11
#: Kernels besides the matrix products that the export was tuned to; docs/tensorrt.md has what else was tried.
OTHER_KERNELS = 150
#: The library's own set of portable capabilities.
PORTABLE = tuple(sorted((one for one in capability_names(tensorrt_rtx) if float(one) >= LEAST_PORTABLE), key=float))


@pytest.fixture(scope="module")
def engine(tiny_engine: Path) -> Path:
    [(path, _)] = find_engines(Bundle.open(tiny_engine), "tensorrt-rtx", "views", "fp16")
    return path


@pytest.fixture(scope="module")
def kernels(engine: Path) -> list[Kernel]:
    return read_kernels(engine.read_bytes())


@pytest.fixture(scope="module")
def graph(tiny_engine: Path) -> onnx.GraphProto:
    return onnx.load(tiny_engine / "scorer.fp16.onnx").graph


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "tiny.glia")


# The kernels of an FP16 engine


@pytest.mark.slow
def test_every_attention_is_fused(kernels: list[Kernel], graph: onnx.GraphProto) -> None:
    ops = Counter(node.op_type for node in graph.node)
    assert ops["Attention"] + ops["Softmax"] == ATTENTIONS, "the last block's single query is written out"
    fused = Counter(kernel.name for kernel in kernels if kernel.attention)
    assert sum(fused.values()) == ATTENTIONS
    assert set(fused) <= {"_gemm_mha_v2", "_gemv_mha_v1"}
    layers = {layer for kernel in kernels if kernel.attention for layer in kernel.layers}
    assert {f"{node.name}/scores" for node in graph.node if node.op_type == "Attention"} <= layers


@pytest.mark.slow
def test_the_kernels_besides_the_products_are_few(kernels: list[Kernel], graph: onnx.GraphProto) -> None:
    found = summary(kernels)
    assert found["other_kernels"] == OTHER_KERNELS
    assert found["attention_kernels"] == ATTENTIONS
    assert sum(found["others_by_name"].values()) == OTHER_KERNELS
    products = [node for node in graph.node if node.op_type in ("MatMul", "Conv")]
    assert found["matrix_products"] == len(products) - 2  # the single query's own are inside its kernel


NORMALISATION = "CastMeanSubMulMeanAddSqrtDivMulCast"


@pytest.mark.slow
def test_layernorm_computes_in_float32(kernels: list[Kernel], graph: onnx.GraphProto) -> None:
    """Half in, a cast, the moments in float, a cast, half out; cut in two kernels at most once, and then in float."""
    norms = {node.name for node in graph.node if node.op_type == "LayerNormalization"}
    assert len(norms) == 4 * 12 + 2
    doing = {norm: [kernel for kernel in kernels if norm in kernel.layers] for norm in norms}
    for norm, its in doing.items():
        arithmetic = re.sub("__myl_", "", "".join(kernel.name for kernel in its))
        assert NORMALISATION in arithmetic, (norm, arithmetic)
    cut = [its for its in doing.values() if not any(NORMALISATION in kernel.name for kernel in its)]
    assert len(cut) <= 1
    for first, second in cut:
        shared = set(first.types) & set(second.types)
        assert {first.types[name] for name in shared} - {"int64"} == {"float"}


@pytest.mark.slow
def test_activations_do_not_change_their_type_back_and_forth(kernels: list[Kernel]) -> None:
    """Only the pixels come in as bytes, only the score leaves as float, and casts are inside of what needs them."""
    for kernel in kernels:
        if kernel.product:
            assert "float" not in kernel.types.values(), kernel
        elif "Cast" in kernel.name:
            pixels = "uint8" in kernel.types.values()
            assert pixels or "MeanSubMul" in kernel.name or "SqrtDivMulCast" in kernel.name, kernel
    floats = [kernel for kernel in kernels if "float" in kernel.types.values()]
    assert len(floats) <= 3  # the norm in two parts, and the head
    assert "float" in kernels[-1].types.values()


# The record


@pytest.mark.slow
def test_the_record_says_what_was_built(tiny_engine: Path, engine: Path, kernels: list[Kernel]) -> None:
    bundle = Bundle.open(tiny_engine)
    record = EngineRecord.read(record_path(engine))
    content = engine.read_bytes()
    assert record.target == "tensorrt-rtx"
    assert record.library_version == tensorrt_rtx.__version__
    assert (record.capabilities, record.system) == (PORTABLE, system())
    assert record.glia_rt == __version__
    assert (record.input, record.precision, record.onnx) == ("views", "fp16", "scorer.fp16.onnx")
    view = (224, 224, 3)
    shapes = ((1, *view), (32, *view), (64, *view))
    assert record.profile == {"global_view": shapes, "fragments": shapes}
    assert record.onnx_sha256 == hashlib.sha256((tiny_engine / record.onnx).read_bytes()).hexdigest()
    assert record.bundle_identity == bundle.identity
    assert (record.engine_size, record.engine_sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert record.layers == summary(kernels)
    assert record.build_seconds > 0
    gpus = "-".join(f"sm{capability.replace('.', '')}" for capability in PORTABLE)
    name = f"tensorrt-rtx.views.fp16.{gpus}.{tensorrt_rtx.__version__}"
    assert sorted(path.name for path in engine.parent.iterdir()) == [f"{name}.engine", f"{name}.json"]


@pytest.mark.slow
def test_an_engine_does_not_change_the_bundles_identity(tiny_engine: Path, tiny_bundle: Path) -> None:
    assert Bundle.open(tiny_engine).identity == Bundle.open(tiny_bundle).identity


@pytest.mark.slow
def test_info_lists_engines(tiny_engine: Path, capsys: Capture) -> None:
    assert main(["info", str(tiny_engine), "--json"]) == 0
    [record] = json.loads(capsys.readouterr().out)["engines"]
    assert record["layers"]["attention_kernels"] == ATTENTIONS


# Other engines


@pytest.mark.slow
def test_the_image_graph_builds_with_its_sampler(bundle: Path, glia_rt_command: GliaRt) -> None:
    args = ["--input", "image", "--size", "224x224:768x1024:1500x2000", "--batch", "1:2:4"]
    done = glia_rt_command("build", bundle, "--target", "tensorrt-rtx", *args)
    assert done.returncode == 0, done.stderr
    assert "image    1x224x224x3 to 4x1500x2000x3" in done.stdout
    [(_, record)] = find_engines(Bundle.open(bundle), "tensorrt-rtx", "image", "fp16")
    assert record.profile == {"image": ((1, 224, 224, 3), (2, 768, 1024, 3), (4, 1500, 2000, 3))}
    assert record.layers["attention_kernels"] == ATTENTIONS


@pytest.mark.slow
def test_fp32_builds_from_the_other_file(bundle: Path) -> None:
    done = build(bundle, "tensorrt-rtx", precision="fp32", batch=(1, 4, 8))
    assert done.path.name.startswith("tensorrt-rtx.views.fp32.sm80-")
    assert done.record.onnx == "scorer.onnx"
    types = {kind for kernel in read_kernels(done.path.read_bytes()) for kind in kernel.types.values()}
    assert "half" not in types
    assert done.record.layers["attention_kernels"] == 0  # there is none for float32


@pytest.mark.slow
def test_a_capability_that_has_to_be_asked_for(bundle: Path, glia_rt_command: GliaRt) -> None:
    done = glia_rt_command("build", bundle, "--target", "tensorrt-rtx", "--capability", "7.5,8.9")
    assert done.returncode == 0, done.stderr
    assert re.search(r"GPUs +7\.5, 8\.9", done.stdout)
    [(path, record)] = find_engines(Bundle.open(bundle), "tensorrt-rtx", "views", "fp16")
    assert ".sm75-sm89." in path.name
    assert record.capabilities == ("7.5", "8.9")
    assert record.layers["attention_kernels"] == ATTENTIONS


def test_capabilities_are_the_librarys_own() -> None:
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(capability_names(tensorrt_rtx))


# Refusals


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ([], "give --target tensorrt-rtx or tensorrt for an engine, or --triton DIR"),
        (["--target", "tensorrt-rtx", "--batch", "8"], "--batch 8 is not MIN:OPT:MAX, as 1:32:64"),
        (["--target", "tensorrt-rtx", "--batch", "8:4:16"], "--batch 8:4:16: give MIN:OPT:MAX, rising"),
        (["--target", "tensorrt-rtx", "--batch", "0:4:16"], "rising from 1 or more"),
        (["--target", "tensorrt-rtx", "--size", "1x1:2x2:3x3"], "--size is for --input image"),
        (["--target", "tensorrt-rtx", "--input", "image"], "--input image needs --size MINHxMINW:OPTHxOPTW:MAXHxMAXW"),
        (["--target", "tensorrt-rtx", "--input", "image", "--size", "4x4"], "--size 4x4 is not MINHxMINW"),
        (["--target", "tensorrt-rtx", "--input", "image", "--size", "9x9:8x8:9x9"], "must rise"),
        (["--target", "tensorrt", "--capability", "8.9"], "--capability is for tensorrt-rtx"),
        (["--target", "tensorrt-rtx", "--device", "1"], "--device is for tensorrt: tensorrt-rtx builds without a GPU"),
        (["--triton", "x", "--capability", "8.9"], "--size, --capability and --device are for an engine"),
        (["--triton", "x", "--batch", "2:4:8"], "Triton sends batches from 1 up, so MIN must be 1"),
        (["--target", "tensorrt-rtx", "--triton", "x"], "Triton cannot serve TensorRT for RTX engines"),
    ],
)
def test_options_that_cannot_be(tiny_bundle: Path, args: list[str], reason: str, capsys: Capture) -> None:
    assert main(["build", str(tiny_bundle), *args]) == 2
    captured = capsys.readouterr()
    assert reason in captured.err
    assert captured.out == ""
    assert not list(tiny_bundle.glob("engines/*"))


def test_a_capability_that_the_library_does_not_know(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"builds for compute capability 7\.5, 8\.0, .*, not 9\.0"):
        build(tiny_bundle, "tensorrt-rtx", capabilities=["8.9", "9.0"])
    for odd in ("foo", "", "8.9 "):
        with pytest.raises(UsageError, match="builds for compute capability"):
            build(tiny_bundle, "tensorrt-rtx", capabilities=["8.9", odd])
    assert not list(tiny_bundle.glob("engines/*"))


def test_unknown_targets_and_graphs(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="no target 'trt'; there are tensorrt-rtx, tensorrt"):
        build(tiny_bundle, "trt")
    with pytest.raises(UsageError, match="no graph of input 'views' in precision 'int8'"):
        build(tiny_bundle, "tensorrt-rtx", precision="int8")


@pytest.mark.slow
def test_an_engine_is_not_replaced_unasked(tiny_engine: Path, engine: Path) -> None:
    before = engine.stat().st_mtime_ns
    with pytest.raises(OutputExistsError, match=r"tensorrt-rtx\.views.fp16\..*\.engine exists; give --overwrite"):
        build(tiny_engine, "tensorrt-rtx")
    assert engine.stat().st_mtime_ns == before


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_tensorrt_builds_on_its_gpu_only(tiny_bundle: Path, capsys: Capture) -> None:
    assert main(["build", str(tiny_bundle), "--target", "tensorrt"]) == 6
    assert "target tensorrt builds on the GPU it is for: " in capsys.readouterr().err


def test_a_missing_library_names_its_extra(tiny_bundle: Path, without_packages: Callable[..., dict[str, str]]) -> None:
    program = "import sys; from glia_rt.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-S", "-c", program, "build", str(tiny_bundle), "--target", "tensorrt-rtx"]
    env = without_packages("tensorrt_rtx")
    paths = os.pathsep.join([env["PYTHONPATH"], str(Path(building.__file__).parents[1])])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=env | {"PYTHONPATH": paths}, check=False
    )
    assert done.returncode == 6, done.stderr
    assert done.stderr == f"glia-rt: tensorrt_rtx is not installed: {install_command('rtx')}\n"


def test_a_damaged_graph_is_not_built(bundle: Path) -> None:
    graph = bundle / "scorer.fp16.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(BundleError, match="is not the file that was exported"):
        build(bundle, "tensorrt-rtx")
    assert not list(bundle.glob("engines/*"))


def test_a_graph_that_the_library_cannot_read(edited_bundle: EditedBundle) -> None:
    def edit(folder: Path, _manifest: dict[str, Any]) -> None:
        graph = onnx.load(folder / "scorer.fp16.onnx")
        graph.graph.node[5].op_type = "NoSuchOperator"
        onnx.save(graph, folder / "scorer.fp16.onnx")

    with pytest.raises(BundleError, match=r"tensorrt_rtx \S+ cannot read .*scorer\.fp16\.onnx: .*NoSuchOperator"):
        build(edited_bundle(edit), "tensorrt-rtx")


def test_a_graph_that_the_library_cannot_build(edited_bundle: EditedBundle) -> None:
    """Views of another size than the contract's: parsed, and then refused because the profile does not fit."""

    def edit(folder: Path, _manifest: dict[str, Any]) -> None:
        node, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
        nodes = [
            node("Cast", ["global_view"], ["g"], to=onnx.TensorProto.FLOAT),
            node("Cast", ["fragments"], ["f"], to=onnx.TensorProto.FLOAT),
            node("Add", ["g", "f"], ["both"]),
            node("ReduceSum", ["both", "axes"], ["score"], keepdims=0),
        ]
        views = [value(name, onnx.TensorProto.UINT8, ["N", 100, 100, 3]) for name in ("global_view", "fragments")]
        score = value("score", onnx.TensorProto.FLOAT, ["N"])
        axes = onnx.helper.make_tensor("axes", onnx.TensorProto.INT64, [3], [1, 2, 3])
        graph = onnx.helper.make_graph(nodes, "small", views, [score], [axes])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])
        onnx.save(model, folder / "scorer.fp16.onnx")

    folder = edited_bundle(edit)
    with pytest.raises(BackendError, match=r"tensorrt_rtx \S+ built no engine from .*: \S+"):
        build(folder, "tensorrt-rtx")
    assert not list(folder.glob("engines/*"))


def test_a_bundle_that_cannot_be_written(bundle: Path) -> None:
    (bundle / "engines").touch()  # root writes where others may not, but not into a file
    with pytest.raises(UsageError, match=r"engines cannot be written .*; copy the bundle to a folder that can"):
        build(bundle, "tensorrt-rtx")


def test_engines_of_a_read_only_bundle_are_in_the_users_data_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root writes everywhere, so the system's answer is changed here."""
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != bundle and allowed(path, mode))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    opened = Bundle.open(bundle)
    built = build(bundle, "tensorrt-rtx")
    assert built.path.parent == tmp_path / "data" / "glia-rt" / opened.identity / "engines"
    assert not (bundle / "engines").exists()
    [(path, record)] = find_engines(opened, "tensorrt-rtx", "views", "fp16")
    assert (path, record) == (built.path, built.record)
    with pytest.raises(OutputExistsError):
        build(bundle, "tensorrt-rtx")


@pytest.mark.parametrize("input", ["views", "image"])
def test_profiles(input: GraphKind) -> None:
    sizes = ((32, 32), (64, 96), (128, 256)) if input == "image" else None
    profile = make_profile(CONTRACT, (1, 2, 3), input, sizes)
    if input == "views":
        assert profile == dict.fromkeys(("global_view", "fragments"), tuple((n, 224, 224, 3) for n in (1, 2, 3)))
    else:
        assert profile == {"image": ((1, 32, 32, 3), (2, 64, 96, 3), (3, 128, 256, 3))}


# Triton, through the command line


def test_a_triton_model_without_an_engine(tiny_bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["build", str(tiny_bundle), "--triton", str(tmp_path / "models"), "--batch", "1:8:16"]) == 0
    assert f"tritonserver --model-repository {tmp_path / 'models'}" in capsys.readouterr().out
    model = tmp_path / "models" / "tiny"
    assert (model / "1" / "model.onnx").read_bytes() == (tiny_bundle / "scorer.fp16.onnx").read_bytes()
    assert "max_batch_size: 16" in (model / "config.pbtxt").read_text()


def test_a_triton_model_in_the_way_is_found_before_the_engine_is_built(
    tiny_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    args = ["build", str(tiny_bundle), "--triton", str(tmp_path / "models")]
    assert main(args) == 0
    # Without TensorRT the build itself would be refused, with exit status 6.
    assert main([*args, "--target", "tensorrt"]) == 2
    assert "exists; give --overwrite to replace it, or another --triton" in capsys.readouterr().err
