"""The wheel: what is in it, and that it scores in an environment that has nothing else of this project."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from glia_rt import Scorer, __version__
from glia_rt.versions import install_command

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "glia_rt": "glia_rt",
    "glia_train": "train/glia_train",
    "glia_export": "export/glia_export",
    "glia_engines": "engines/glia_engines",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_packages_whole(names: set[str]) -> None:
    for package, folder in PACKAGES.items():
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        expected = {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in files}
        assert {name for name in names if name.startswith(f"{package}/")} == expected
        assert f"{package}/py.typed" in expected


def test_the_wheel_holds_data_and_licence(names: set[str]) -> None:
    photographs = {name for name in names if name.startswith("glia_export/selftest/") and name.endswith(".png")}
    assert len(photographs) == 6
    files = {"glia_export/selftest/SOURCES.md", "glia_export/demo/page.html", "glia_rt/html/style.css"}
    assert files | {"glia_rt/runs/page.html", "glia_rt/backends/cuda/views.cu"} <= names
    assert f"glia_rt-{__version__}.dist-info/licenses/LICENSE" in names


def test_the_wheel_holds_nothing_else(names: set[str]) -> None:
    # `train` or `export` would collide with a user's own train.py.
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, f"glia_rt-{__version__}.dist-info"}


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the wheel and its `cpu` extra alone."""

    folder: Path

    def run(self, program: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / program), *map(str, args)]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        # Not the root of the repository, which would be importable from there.
        return subprocess.run(
            command, cwd=self.folder, env=clean, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--no-compile", f"{wheel}[cpu]"]
    subprocess.run(install, check=True, capture_output=True, timeout=600)
    yield Environment(folder)
    shutil.rmtree(folder)  # 0.5 GB


@pytest.mark.slow
def test_the_environment_has_no_torch(environment: Environment) -> None:
    program = "import glia_rt, importlib.util as u; print([m for m in ('torch', 'timm', 'onnx') if u.find_spec(m)])"
    done = environment.run("python", "-c", program)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.slow
def test_doctor_finds_both_backends(environment: Environment) -> None:
    done = environment.run("glia-rt", "doctor")
    assert done.returncode == 0, done.stderr
    works = [line.split()[:2] for line in done.stdout.splitlines()]
    assert ["onnxruntime", "yes"] in works
    assert ["openvino", "yes"] in works


@pytest.mark.slow
def test_scores_are_those_of_this_environment(environment: Environment, tiny_bundle: Path, pictures: Path) -> None:
    for backend in ("onnxruntime", "openvino"):
        args = ("score", tiny_bundle, pictures, "--json", "--backend", backend, "--precision", "fp32")
        done = environment.run("glia-rt", *args)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        with Scorer.open(tiny_bundle, backend, precision="fp32") as scorer:
            expected = [(result.path, result.score) for result in scorer.score_files([pictures])]
        assert [row["path"] for row in rows] == [path for path, _ in expected]
        assert [row["score"] for row in rows] == pytest.approx([score for _, score in expected], abs=1e-5)


@pytest.mark.slow
def test_the_bundle_passes_its_selftest_there(environment: Environment, tiny_bundle: Path) -> None:
    done = environment.run("glia-rt", "verify", tiny_bundle)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("export", "x.pt"), "export"),
        (("train", "--data", "labels.csv", "--out", "run", "--backbone-weights", "random"), "train"),
        (("demo",), "demo"),
        (("build", "x.glia", "--target", "tensorrt-rtx"), "rtx"),
    ],
)
def test_what_is_missing_is_named_with_the_command_that_installs_it(
    command: tuple[str, ...], extra: str, environment: Environment
) -> None:
    done = environment.run("glia-rt", *command)
    assert (done.returncode, done.stdout) == (6, "")
    [line] = done.stderr.splitlines()
    assert line.endswith(f" is not installed: {install_command(extra)}")
