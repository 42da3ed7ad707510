"""Fixtures that every folder of tests shares, made once a session by the real code.

- `cache_home`: the user's cache folder, moved to an empty one, so that no test reads or writes the home.
- `selftest_pictures`: the six photographs that export measures parity on; public domain, of six sizes, some under 224.
- `telling_model`: makes a GLIANet whose scores tell the six photographs apart, from 1 to 5; see glia_export.telling.
- `tiny_model`: such a model on ViT-Ti.
- `tiny_checkpoint`: that model's checkpoint.pt.
- `tiny_bundle`: what `glia-rt export` makes of it. Shared: copy it before changing anything in it.
- `plain_model` and `plain_bundle`: a linear model on 16x16 pixels, which scores thousands of pictures a second. They
  are for tests to which the model does not matter. Its scores of the six photographs go from 1 to 5, too. Shared.
- `edited_bundle`: a copy of `tiny_bundle` after a change, with a manifest that fits: whole, but another model.
- `shifted_bundle`: such a copy whose scores are all off by so much.
- `pictures`: a folder of 32 small JPEGs of many sizes, named 00.jpg to 31.jpg; shared, too.
- `many`: a folder of 3,000 pictures, more than anything waits for.
- `glia_rt_command`: runs `glia-rt ARGS...` in a process of its own.
- `tiny_engine`: a copy of tiny_bundle with its FP16 views engine of tensorrt_rtx. Shared, too.
- `plain_engine`: likewise of plain_bundle.
- `gpu_machine`: os.environ of a machine with NVIDIA GPUs, as far as the driver's own answers go.
- `without_packages`: os.environ for an environment like this one that lacks packages; for `python -S`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from glia_rt.contract import Contract
    from glia_train.models.base import Model
    from glia_train.models.glianet import GLIANet

BACKBONE = "vit_tiny_patch16_224"
#: How many seconds a process that a test starts may take before it is taken to hang.
PROCESS_LIMIT = 120

GliaRt = Callable[..., "subprocess.CompletedProcess[str]"]
#: edited_bundle(edit) calls edit(folder, manifest), which changes either in place, and returns the new bundle.
EditedBundle = Callable[[Callable[[Path, "dict[str, Any]"], None]], Path]
WithoutPackages = Callable[..., dict[str, str]]
#: gpu_machine(("NVIDIA L4", 89), cuda=13000)
GpuMachine = Callable[..., dict[str, str]]
TellingModel = Callable[[str], "tuple[GLIANet, Contract]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz", type=int, default=200, help="damaged copies of each kind that end_to_end/test_fuzz.py reads"
    )


@pytest.fixture(scope="session", autouse=True)
def _listening_to_ctrl_c() -> None:
    """A shell that runs the tests in the background has them, and all they start, ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def selftest_pictures() -> list[Path]:
    from glia_export.parity import selftest_pictures

    return selftest_pictures()


@pytest.fixture(scope="session")
def telling_model() -> TellingModel:
    import telling

    return telling.telling_model


@pytest.fixture(scope="session")
def _tiny(telling_model: TellingModel) -> tuple[GLIANet, Contract]:
    return telling_model(BACKBONE)


@pytest.fixture(scope="session")
def tiny_model(_tiny: tuple[GLIANet, Contract]) -> GLIANet:
    return _tiny[0]


@pytest.fixture(scope="session")
def tiny_checkpoint(_tiny: tuple[GLIANet, Contract], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from glia_train.checkpoint import make_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    make_checkpoint(*_tiny, "random").save(path)
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from glia_export.export import export

    return export(tiny_checkpoint, tmp_path_factory.mktemp("bundle") / "tiny.glia").path


@pytest.fixture(scope="session")
def _plain() -> tuple[Model, Contract]:
    import torch
    from helpers.linear import Linear, LinearConfig

    from glia_export.parity import read_pictures, run_model
    from glia_train.models.table import FAMILIES, untrained

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, Linear.family, Linear)
        model, contract = untrained(LinearConfig())
    raw = run_model(model, read_pictures([], contract)).scores
    scale = 4 / float(np.ptp(raw))
    model.calibration.copy_(torch.tensor([scale, 1 - scale * float(raw.min())]))
    return model, contract.with_range(1.0, 5.0)


@pytest.fixture(scope="session")
def plain_model(_plain: tuple[Model, Contract]) -> Model:
    return _plain[0]


@pytest.fixture(scope="session")
def plain_bundle(_plain: tuple[Model, Contract], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.linear import Linear

    from glia_export.export import export
    from glia_train.checkpoint import make_checkpoint
    from glia_train.models.table import FAMILIES

    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, Linear.family, Linear)
        make_checkpoint(*_plain, "random").save(folder / "plain.pt")
        return export(folder / "plain.pt", folder / "plain.glia").path


@pytest.fixture
def edited_bundle(tiny_bundle: Path, tmp_path: Path) -> EditedBundle:
    from glia_rt.bundle import MANIFEST, write_manifest

    def edited(edit: Callable[[Path, dict[str, Any]], None]) -> Path:
        folder = shutil.copytree(tiny_bundle, tmp_path / "edited.glia")
        record = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).unlink()
        del record["files"], record["schema"]
        edit(folder, record)
        write_manifest(folder, record)
        return folder

    return edited


@pytest.fixture
def shifted_bundle(edited_bundle: EditedBundle) -> Callable[[float], Path]:
    import onnx
    from onnx import numpy_helper

    def shifted(by: float) -> Path:
        def edit(folder: Path, _manifest: dict[str, Any]) -> None:
            for path in (folder / "scorer.onnx", folder / "image_scorer.onnx"):
                graph = onnx.load(path)
                [last] = [node for node in graph.graph.node if "score" in node.output]
                [offset] = [value for value in graph.graph.initializer if value.name in last.input]
                moved = numpy_helper.to_array(offset) + np.float32(by)
                offset.CopyFrom(numpy_helper.from_array(moved, offset.name))
                onnx.save(graph, path)

        return edited_bundle(edit)

    return shifted


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(32):
        height, width = 60 + 11 * i, 400 - 7 * i
        coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{i:02}.jpg", quality=60)
    return folder


@pytest.fixture
def many(pictures: Path, tmp_path: Path) -> Path:
    """More pictures than anything here waits for."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(3000):
        os.link(pictures / "00.jpg", folder / f"{i:04}.jpg")
    return folder


@pytest.fixture(scope="session")
def glia_rt_command() -> GliaRt:
    def run(*args: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        program = "import sys; from glia_rt.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-c", program, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=PROCESS_LIMIT, check=False, env=env)

    return run


@pytest.fixture(scope="session")
def tiny_engine(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from glia_engines.build import build

    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("engine") / "tiny.glia")
    build(folder, "tensorrt-rtx")
    return folder


@pytest.fixture(scope="session")
def plain_engine(plain_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from glia_engines.build import build

    folder = shutil.copytree(plain_bundle, tmp_path_factory.mktemp("engine") / "plain.glia")
    build(folder, "tensorrt-rtx")
    return folder


@pytest.fixture
def gpu_machine(tmp_path: Path) -> GpuMachine:
    """A driver of the test's own, compiled, which answers what is asked before anything runs."""

    def environment(*gpus: tuple[str, int], cuda: int = 13000, init: int = 0) -> dict[str, str]:
        compiler = shutil.which("g++")
        assert compiler, "these tests compile C++: install g++"
        names = ", ".join(f'"{name}"' for name, _ in gpus) or '""'
        capabilities = ", ".join(str(capability) for _, capability in gpus) or "0"
        (tmp_path / "driver.cc").write_text(f"""
            #include <cstring>
            static const char* names[] = {{{names}}};
            static const int capabilities[] = {{{capabilities}}};
            extern "C" {{
            int cuInit(unsigned) {{ return {init}; }}
            int cuDriverGetVersion(int* version) {{ *version = {cuda}; return 0; }}
            int cuDeviceGetCount(int* count) {{ *count = {len(gpus)}; return 0; }}
            int cuDeviceGet(int* device, int index) {{ *device = index; return 0; }}
            int cuDeviceGetName(char* name, int, int device) {{ strcpy(name, names[device]); return 0; }}
            int cuDeviceGetAttribute(int* value, int attribute, int device) {{
                *value = attribute == 75 ? capabilities[device] / 10 : capabilities[device] % 10;
                return 0;
            }}
            }}""")
        command = [compiler, "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "driver.cc")]
        subprocess.run(command, check=True, timeout=PROCESS_LIMIT)
        return os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}

    return environment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Exporting ViT-Ti takes a minute, so that whatever needs it is slow."""
    for item in items:
        if {"tiny_bundle", "tiny_engine"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    from glia_rt.backends.cuda.device import why_no_gpu

    if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
        pytest.skip(reason)


@pytest.fixture
def without_packages(tmp_path: Path) -> WithoutPackages:
    """A folder of links to all that is installed but the packages named, with what pip knows of them."""

    def environment(*missing: str) -> dict[str, str]:
        folder, installed = tmp_path / "site", sysconfig.get_path("purelib")
        folder.mkdir()
        for entry in Path(installed).iterdir():
            if entry.name.partition("-")[0] not in missing:
                (folder / entry.name).symlink_to(entry)
        rest = [path for path in sys.path if path not in ("", installed)]
        return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *rest])}

    return environment
