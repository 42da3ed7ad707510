"""Triton's own schema of config.pbtxt, as tritonclient ships it, reads what is written here."""

from __future__ import annotations

import runpy
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format

from glia_engines.triton import CONFIG, write_repository
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import GraphKind
from glia_rt.errors import BundleError, OutputExistsError, UsageError

PLAN = b"not a plan, but Triton's files around it are the same"
# By its path: the package it lies in imports grpcio, and the schema needs protobuf alone.
SCHEMA = runpy.run_path(str(files("tritonclient") / "grpc" / "model_config_pb2.py"))
ONNX_TYPES = {SCHEMA["TYPE_UINT8"]: onnx.TensorProto.UINT8, SCHEMA["TYPE_FP32"]: onnx.TensorProto.FLOAT}


def read_config(model: Path) -> Any:
    return text_format.Parse((model / CONFIG).read_text(), SCHEMA["ModelConfig"]())


@pytest.fixture
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.engine"
    path.write_bytes(PLAN)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def shape_of(value: onnx.ValueInfoProto) -> list[int]:
    """Beside the batch; -1 where it is dynamic."""
    batch, *rest = value.type.tensor_type.shape.dim
    assert batch.dim_param
    return [-1 if dim.dim_param else dim.dim_value for dim in rest]


# What is written


@pytest.mark.parametrize("with_engine", [False, True])
@pytest.mark.parametrize("input", ["views", "image"])
def test_configuration_agrees_with_the_graph(
    bundle: Bundle, engine: Path, folder: Path, input: GraphKind, with_engine: bool
) -> None:
    model = write_repository(folder, bundle, input=input, engine=engine if with_engine else None, max_batch=48)
    graph = onnx.load(bundle.path / GRAPHS[input, "fp16"]).graph
    config = read_config(model)
    assert config.name == model.name == "tiny"
    assert config.max_batch_size == 48
    assert [(i.name, ONNX_TYPES[i.data_type], list(i.dims)) for i in config.input] == [
        (i.name, i.type.tensor_type.elem_type, shape_of(i)) for i in graph.input
    ]
    [score], [computed] = config.output, graph.output
    assert (score.name, ONNX_TYPES[score.data_type]) == (computed.name, computed.type.tensor_type.elem_type)
    assert list(score.dims) == [1]
    assert score.HasField("reshape")
    assert list(score.reshape.shape) == shape_of(computed) == []


@pytest.mark.parametrize("input", ["views", "image"])
def test_onnx_for_triton_s_onnx_runtime(bundle: Bundle, folder: Path, input: GraphKind) -> None:
    model = write_repository(folder, bundle, input=input)
    assert contents(folder) == {"tiny/config.pbtxt", "tiny/1/model.onnx"}
    assert (model / "1/model.onnx").read_bytes() == (bundle.path / GRAPHS[input, "fp16"]).read_bytes()
    config = read_config(model)
    assert (config.backend, config.platform) == ("onnxruntime", "")
    [cuda] = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})


def test_precision_chooses_the_onnx_file(bundle: Bundle, folder: Path) -> None:
    model = write_repository(folder, bundle, precision="fp32")
    assert (model / "1/model.onnx").read_bytes() == (bundle.path / "scorer.onnx").read_bytes()


@pytest.mark.parametrize("input", ["views", "image"])
def test_plan_for_triton_s_tensorrt(bundle: Bundle, engine: Path, folder: Path, input: GraphKind) -> None:
    model = write_repository(folder, bundle, input=input, engine=engine)
    assert contents(folder) == {"tiny/config.pbtxt", "tiny/1/model.plan"}
    assert (model / "1/model.plan").read_bytes() == PLAN
    config = read_config(model)
    assert (config.backend, config.platform) == ("", "tensorrt_plan")
    assert not config.HasField("optimization")  # an engine's arithmetic was settled when it was built


def test_requests_are_batched_on_the_gpu(bundle: Bundle, engine: Path, folder: Path) -> None:
    config = read_config(write_repository(folder, bundle, engine=engine))
    assert config.max_batch_size == 64
    assert config.HasField("dynamic_batching")
    assert 0 < config.dynamic_batching.max_queue_delay_microseconds <= 1000
    assert not config.dynamic_batching.preferred_batch_size
    [group] = config.instance_group
    assert group.kind == group.KIND_GPU


def test_configuration_names_the_bundle(bundle: Bundle, engine: Path, folder: Path) -> None:
    assert bundle.identity in (write_repository(folder, bundle, engine=engine) / CONFIG).read_text()


# Names


@pytest.mark.parametrize(
    ("name", "safe"),
    [("my-net_2.glia", "my-net_2"), ('v1.5 "final".glia', "v1_5__final_"), ("größe.glia", "gr__e")],
)
def test_name_is_made_safe(tiny_bundle: Path, tmp_path: Path, engine: Path, folder: Path, name: str, safe: str) -> None:
    (tmp_path / name).symlink_to(tiny_bundle)
    model = write_repository(folder, Bundle.open(tmp_path / name), engine=engine)
    assert model == folder / safe
    assert read_config(model).name == safe


def test_bundle_opened_as_the_current_folder(
    tiny_bundle: Path, folder: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_bundle)
    assert write_repository(folder, Bundle.open("."), engine=engine).name == "tiny"


# Replacing


def test_model_that_exists_is_kept(bundle: Bundle, engine: Path, folder: Path) -> None:
    write_repository(folder, bundle, engine=engine)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write_repository(folder, bundle)
    assert contents(folder) == {"tiny/config.pbtxt", "tiny/1/model.plan"}


def test_overwrite_leaves_nothing_of_the_old_model(bundle: Bundle, engine: Path, folder: Path) -> None:
    write_repository(folder, bundle)
    (folder / "other").mkdir()
    model = write_repository(folder, bundle, engine=engine, overwrite=True)
    assert contents(folder) == {"tiny/config.pbtxt", "tiny/1/model.plan"}
    assert read_config(model).platform == "tensorrt_plan"
    assert {path.name for path in folder.iterdir()} == {"tiny", "other"}


def test_folder_that_is_no_model_is_not_replaced(bundle: Bundle, engine: Path, folder: Path) -> None:
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no Triton model"):
        write_repository(folder, bundle, engine=engine, overwrite=True)
    assert contents(folder) == {"tiny/notes.txt"}


# Refusals


def test_damaged_onnx_is_refused(tiny_bundle: Path, tmp_path: Path, folder: Path, engine: Path) -> None:
    copy = shutil.copytree(tiny_bundle, tmp_path / "tiny.glia")
    bundle = Bundle.open(copy)
    write_repository(folder, bundle, engine=engine)
    with (copy / "scorer.fp16.onnx").open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)[0]
        file.seek(1000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(BundleError, match="sha256 differs"):
        write_repository(folder, bundle, overwrite=True)
    assert contents(folder) == {"tiny/config.pbtxt", "tiny/1/model.plan"}  # the old model still stands


def test_missing_engine_is_refused(bundle: Bundle, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BundleError, match="glia-rt build"):
        write_repository(folder, bundle, engine=tmp_path / "none.engine")
    assert not folder.exists()


def test_missing_parent_is_refused(bundle: Bundle, engine: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make it first"):
        write_repository(tmp_path / "no" / "models", bundle, engine=engine)


def test_repository_that_is_a_file_is_refused(bundle: Bundle, engine: Path, folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_repository(folder, bundle, engine=engine)


@pytest.mark.parametrize(
    ("wrong", "says"), [({"max_batch": 0}, "max_batch is 0"), ({"precision": "int8"}, "fp16 or fp32")]
)
def test_what_no_model_can_have_is_refused(
    bundle: Bundle, engine: Path, folder: Path, wrong: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        write_repository(folder, bundle, engine=engine, **wrong)
