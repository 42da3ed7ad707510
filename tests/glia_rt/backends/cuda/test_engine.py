"""What is refused before TensorRT sees an engine. The engine is a real one; no GPU is needed to refuse it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glia_rt.backends.base import BackendOptions
from glia_rt.backends.choose import AUTO, open_backend
from glia_rt.backends.cuda.engine import (
    EngineRecord,
    build_command,
    checked_engine,
    engine_path,
    engines,
    find_engines,
    record_path,
    require_in_profile,
    system,
)
from glia_rt.bundle import MANIFEST, Bundle
from glia_rt.errors import BackendError, EngineError
from glia_rt.versions import install_command

GpuMachine = Callable[..., dict[str, str]]
GliaRt = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bundle(plain_engine: Path, tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(plain_engine, tmp_path / "plain.glia"))


@pytest.fixture
def engine(bundle: Bundle) -> Path:
    [(path, _)] = find_engines(bundle, "tensorrt-rtx", "views", "fp16")
    return path


@pytest.fixture
def version(engine: Path) -> str:
    return EngineRecord.read(record_path(engine)).library_version


def check(bundle: Bundle, version: str, target: str = "tensorrt-rtx", capability: str = "8.9") -> None:
    checked_engine(bundle, target, "views", "fp16", library_version=version, capability=capability)


def edit_record(engine: Path, **changes: Any) -> None:
    record = json.loads(record_path(engine).read_text())
    record_path(engine).write_text(json.dumps(record | changes))


def test_a_whole_engine_is_taken(bundle: Bundle, engine: Path, version: str) -> None:
    content, record = checked_engine(bundle, "tensorrt-rtx", "views", "fp16", library_version=version, capability="8.9")
    assert content == engine.read_bytes()
    assert record == EngineRecord.read(record_path(engine))
    assert engines(bundle) == [(engine, record)]
    assert (record.max_batch, record.bundle_identity) == (64, bundle.identity)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[: len(content) // 2], "has .* bytes, its record says .*; copy it again, or build"),
        (lambda content: b"", "has 0 bytes"),
        (lambda content: b"hello\n", "has 6 bytes"),
        (lambda content: b"#" * len(content), r"is not the file that was built \(sha256 differs\)"),
        (flipped, r"is not the file that was built \(sha256 differs\); copy it again, or build"),
    ],
    ids=["truncated", "empty", "text", "text of the same size", "one bit"],
)
def test_a_damaged_engine(
    bundle: Bundle, engine: Path, version: str, damage: Callable[[bytes], bytes], reason: str
) -> None:
    engine.write_bytes(damage(engine.read_bytes()))
    with pytest.raises(EngineError, match=reason):
        check(bundle, version)


def test_no_engine(bundle: Bundle, engine: Path, version: str) -> None:
    engine.unlink()
    command = f"glia-rt build {bundle.path} --target tensorrt-rtx"
    with pytest.raises(
        EngineError, match=rf"engines holds no engine of tensorrt-rtx for views in fp16: {re.escape(command)}$"
    ):
        check(bundle, version)
    assert "--input image --batch 1:4:8 --size" in build_command(bundle, "tensorrt-rtx", "image", "fp16")
    assert build_command(bundle, "tensorrt", "views", "fp32").endswith("--target tensorrt --precision fp32")


@pytest.mark.parametrize("record", [None, "", "[]", "{}", '{"schema": 1}', '{"schema": 2}'])
def test_an_engine_without_its_record(bundle: Bundle, engine: Path, version: str, record: str | None) -> None:
    record_path(engine).unlink()
    if record is not None:
        record_path(engine).write_text(record)
    with pytest.raises(EngineError, match=r"tensorrt-rtx\.views\.fp16\..*\.json.*with glia-rt build and --overwrite"):
        check(bundle, version)


def test_a_record_with_a_field_from_the_future(bundle: Bundle, engine: Path, version: str) -> None:
    edit_record(engine, colour="blue")
    with pytest.raises(EngineError, match=r"unknown field colour; .* upgrade to read it; or build the engine again"):
        check(bundle, version)


def test_a_record_of_a_newer_schema(bundle: Bundle, engine: Path, version: str) -> None:
    edit_record(engine, schema=3, glia_rt="9.1")
    with pytest.raises(EngineError, match=r"schema 3 is newer than 2.*upgrade to glia-rt 9\.1.*or build"):
        check(bundle, version)


def test_a_record_whose_fields_are_of_other_types(bundle: Bundle, engine: Path, version: str) -> None:
    edit_record(engine, capabilities=None)
    with pytest.raises(EngineError, match="is damaged"):
        check(bundle, version)


def test_the_record_of_another_engine(bundle: Bundle, engine: Path, version: str) -> None:
    edit_record(engine, precision="fp32")
    with pytest.raises(EngineError, match="describes another engine"):
        check(bundle, version)


def test_a_bundle_that_was_exported_again(bundle: Bundle, engine: Path, version: str) -> None:
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    (bundle.path / MANIFEST).write_text(json.dumps(manifest | {"parity": []}))
    with pytest.raises(EngineError, match=r"was built from another export of plain\.glia; build the engine again"):
        check(Bundle.open(bundle.path), version)


def test_an_onnx_file_that_changed(bundle: Bundle, engine: Path, version: str) -> None:
    edit_record(engine, onnx_sha256="0" * 64)
    with pytest.raises(EngineError, match="was built from another export"):
        check(bundle, version)


def test_another_version_of_the_library(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match=r"was built by tensorrt-rtx 1\.\S+, here is 9\.9, .*build the engine again"):
        check(bundle, "9.9")


@pytest.fixture
def plan(bundle: Bundle, engine: Path) -> Path:
    """The engine as one of `tensorrt`, as far as its record goes."""
    record = dataclasses.replace(
        EngineRecord.read(record_path(engine)), target="tensorrt", library_version="11.4", capabilities=("9.0",)
    )
    record_path(engine).unlink()
    return place(bundle, record, engine.rename(engine.with_suffix(".moved")).read_bytes())


def place(bundle: Bundle, record: EngineRecord, content: bytes) -> Path:
    """Lay an engine and its record where they belong."""
    path = engine_path(record, bundle)
    path.write_bytes(content)
    record_path(path).write_text(record.to_json())
    return path


# One bundle for several machines


def test_names_say_what_an_engine_is_for(engine: Path, version: str) -> None:
    gpus = "-".join(f"sm{one.replace('.', '')}" for one in EngineRecord.read(record_path(engine)).capabilities)
    assert gpus.startswith("sm80-")
    assert engine.name == f"tensorrt-rtx.views.fp16.{gpus}.{version}.engine"


def test_the_name_of_an_engine_for_one_gpu(plan: Path) -> None:
    assert plan.name == "tensorrt.views.fp16.sm90.11.4.engine"


def test_every_machine_takes_its_own_engine(bundle: Bundle, plan: Path) -> None:
    content, record = plan.read_bytes(), EngineRecord.read(record_path(plan))
    place(bundle, dataclasses.replace(record, capabilities=("8.0",)), content)
    place(bundle, dataclasses.replace(record, library_version="11.5"), content)
    for version, capability in (("11.4", "9.0"), ("11.4", "8.0"), ("11.5", "9.0")):
        _, found = checked_engine(bundle, "tensorrt", "views", "fp16", library_version=version, capability=capability)
        assert (found.library_version, found.capabilities) == (version, (capability,))
    with pytest.raises(EngineError, match=r"built on a GPU of compute capability 9\.0, this one has 8\.0"):
        check(bundle, "11.5", "tensorrt", "8.0")
    with pytest.raises(EngineError, match=r"was built by tensorrt 11\.\d, here is 12\.0"):
        check(bundle, "12.0", "tensorrt", "9.0")


def test_a_portable_engine_that_names_the_gpu_comes_first(bundle: Bundle, engine: Path, version: str) -> None:
    record = dataclasses.replace(EngineRecord.read(record_path(engine)), capabilities=("7.5",))
    place(bundle, record, engine.read_bytes())

    def taken(capability: str) -> tuple[str, ...]:
        found = checked_engine(bundle, "tensorrt-rtx", "views", "fp16", library_version=version, capability=capability)[
            1
        ]
        return found.capabilities

    assert taken("7.5") == ("7.5",)
    assert "8.9" in taken("8.9")
    assert "8.0" in taken("13.0")  # the library says whether it runs


def test_an_engine_of_the_older_name_is_found(bundle: Bundle, engine: Path, version: str) -> None:
    old = engine.with_name("tensorrt-rtx.views.fp16.engine")
    engine.rename(old)
    found = json.loads(record_path(engine).read_text()) | {"schema": 1, "capabilities": []}
    del found["glia_rt"]
    record_path(engine).unlink()
    record_path(old).write_text(json.dumps(found))
    check(bundle, version)
    assert [(path, one.capabilities) for path, one in engines(bundle) if isinstance(one, EngineRecord)] == [(old, ())]


def test_a_new_engine_comes_before_one_of_the_older_name(bundle: Bundle, plan: Path) -> None:
    old = plan.with_name("tensorrt.views.fp16.engine")
    old.write_bytes(b"old")
    record_path(old).write_text(record_path(plan).read_text())
    content, _ = checked_engine(bundle, "tensorrt", "views", "fp16", library_version="11.4", capability="9.0")
    assert content == plan.read_bytes()


@pytest.mark.parametrize("neighbour", [None, "", "[]", '{"schema": 2}'])
def test_an_engine_that_is_being_built_keeps_no_other_from_its_machine(
    bundle: Bundle, plan: Path, neighbour: str | None
) -> None:
    other = plan.with_name("tensorrt.views.fp16.sm80.11.4.engine")
    other.write_bytes(b"half of it")
    if neighbour is not None:
        record_path(other).write_text(neighbour)
    check(bundle, "11.4", "tensorrt", "9.0")
    assert isinstance(dict(engines(bundle))[other], EngineError)


def test_an_engine_for_this_gpu_alone_comes_before_a_portable_one(bundle: Bundle, engine: Path, version: str) -> None:
    record = EngineRecord.read(record_path(engine))
    profile = {name: (least, usual, (128, *most[1:])) for name, (least, usual, most) in record.profile.items()}
    place(bundle, dataclasses.replace(record, capabilities=("8.9",), profile=profile), engine.read_bytes())

    def taken(capability: str, batch_size: int) -> int:
        return checked_engine(
            bundle,
            "tensorrt-rtx",
            "views",
            "fp16",
            library_version=version,
            capability=capability,
            batch_size=batch_size,
        )[1].max_batch

    assert taken("8.9", 1) == 128
    assert taken("8.6", 1) == 64
    place(bundle, record, engine.read_bytes())
    place(bundle, dataclasses.replace(record, capabilities=("8.6",)), engine.read_bytes())
    assert taken("8.6", 128) == 64  # none takes so many; the caller says what to build
    assert taken("8.9", 128) == 128


@pytest.mark.parametrize(
    "changes",
    [
        {"profile": {}},
        {"profile": {"pixels": [[1, 2], [1, 2]]}},
        {"profile": {"pixels": ["abc", "abc", "abc"]}},
        {"profile": {"pixels": [[], [], []]}},
        {"profile": 5},
        {"capabilities": [None]},
        {"capabilities": ["wide"]},
        {"engine_size": "large"},
    ],
)
def test_a_record_of_values_that_are_none(bundle: Bundle, engine: Path, version: str, changes: dict[str, Any]) -> None:
    edit_record(engine, **changes)
    with pytest.raises(EngineError, match="is damaged"):
        check(bundle, version)


def test_a_plan_for_another_gpu(bundle: Bundle, plan: Path) -> None:
    check(bundle, "11.4", "tensorrt", "9.0")
    with pytest.raises(EngineError, match=r"built on a GPU of compute capability 9\.0, this one has 8\.9; build"):
        check(bundle, "11.4", "tensorrt", "8.9")


def test_a_plan_from_another_operating_system(bundle: Bundle, plan: Path) -> None:
    edit_record(plan, system="Windows AMD64")
    with pytest.raises(EngineError, match=f"was built on Windows AMD64, this is {system()}; build .* on this machine"):
        check(bundle, "11.4", "tensorrt", "9.0")


# Shapes


def test_sizes_outside_the_profile(bundle: Bundle, engine: Path) -> None:
    record = EngineRecord.read(record_path(engine))
    image = {"image": ((1, 224, 224, 3), (8, 768, 1024, 3), (16, 3000, 4000, 3))}
    record = dataclasses.replace(record, input="image", profile=image)
    for inside in [(1, 224, 224, 3), (16, 3000, 4000, 3), (3, 500, 3999, 3)]:
        require_in_profile(record, {"image": inside})
    for outside in [(1, 223, 224, 3), (1, 224, 4001, 3), (17, 300, 300, 3)]:
        count, height, width, _ = outside
        with pytest.raises(
            BackendError,
            match=f"a batch of {count} of {height}x{width} is not what the engine was built for: 1 to 16 of height 224 "
            "to 3000 and width 224 to 4000; build it with another --batch or --size",
        ):
            require_in_profile(record, {"image": outside})


# The same through the command line, on a machine whose driver answers as one with a GPU would


def test_an_explicit_backend_ends_with_the_engines_fault(
    bundle: Bundle, engine: Path, gpu_machine: GpuMachine, glia_rt_command: GliaRt
) -> None:
    engine.write_bytes(flipped(engine.read_bytes()))
    env = gpu_machine(("NVIDIA L4", 89))
    done = glia_rt_command("verify", bundle.path, "--backend", "tensorrt-rtx", env=env)
    assert done.returncode == 5
    assert "sha256 differs" in done.stderr
    assert done.stderr.startswith("glia-rt: ")


def test_a_batch_over_the_engines_largest(
    bundle: Bundle, pictures: Path, gpu_machine: GpuMachine, glia_rt_command: GliaRt
) -> None:
    env = gpu_machine(("NVIDIA L4", 89))
    done = glia_rt_command("score", bundle.path, pictures, "--backend", "tensorrt-rtx", "--batch-size", "65", env=env)
    assert done.returncode == 6
    assert "batches of 65 are over the engine's largest, 64: take --batch-size 64, or build with --batch 1:65:65" in (
        done.stderr
    )


def test_auto_says_what_would_be_faster(
    plain_bundle: Path, pictures: Path, gpu_machine: GpuMachine, glia_rt_command: GliaRt
) -> None:
    """A GPU without an engine: the command that builds one is in the answer, and the scores come from the CPU."""
    picture = next(pictures.iterdir())
    done = glia_rt_command("score", plain_bundle, picture, env=gpu_machine(("NVIDIA L4", 89)))
    assert done.returncode == 0
    assert done.stderr.startswith("backend openvino")
    assert f"glia-rt build {plain_bundle} --target tensorrt-rtx" in done.stderr
    assert f"not tensorrt: tensorrt is not installed: {install_command('tensorrt')}" in done.stderr


def test_without_a_gpu_every_gpu_backend_is_refused(
    bundle: Bundle, gpu_machine: GpuMachine, glia_rt_command: GliaRt
) -> None:
    env = gpu_machine(init=100)
    for name in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda"):
        done = glia_rt_command("verify", bundle.path, "--backend", name, env=env)
        assert done.returncode == 6
        assert done.stderr.startswith(f"glia-rt: backend {name}: there is an NVIDIA driver but no GPU")


def test_a_precision_that_no_engine_has(bundle: Bundle, gpu_machine: GpuMachine, glia_rt_command: GliaRt) -> None:
    env = gpu_machine(("NVIDIA L4", 89))
    done = glia_rt_command("verify", bundle.path, "--backend", "tensorrt-rtx", "--precision", "bf16", env=env)
    assert done.returncode == 6
    assert "computes in fp16 or fp32, not bf16" in done.stderr


def test_auto_with_a_device_takes_no_cpu(plain_bundle: Path) -> None:
    with pytest.raises(BackendError, match=r"no backend works here\..*; without --device the CPU is taken$"):
        open_backend(AUTO, Bundle.open(plain_bundle), BackendOptions(device=0))
