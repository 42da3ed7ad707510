from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import glia_rt
from glia_rt.backends.choose import BACKENDS, CPU_BACKENDS, default_precision
from glia_rt.doctor import examine
from glia_rt.versions import install_command

EXAMINE = """
import dataclasses, json
from glia_rt.doctor import examine
print(json.dumps(dataclasses.asdict(examine())))
"""


@pytest.fixture
def examine_without(without_packages: Callable[..., dict[str, str]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """What doctor finds in an environment that lacks packages, and has the metadata of others."""

    def run(*missing: str, besides: str | None = None) -> dict[str, Any]:
        environment = without_packages(*missing)
        if besides:
            metadata = tmp_path / "site" / f"{besides.replace('-', '_')}-9.9.dist-info" / "METADATA"
            metadata.parent.mkdir()
            metadata.write_text(f"Metadata-Version: 2.1\nName: {besides}\nVersion: 9.9\n")
        command = [sys.executable, "-S", "-c", EXAMINE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def test_every_backend_on_the_cpu_works_here() -> None:
    findings = examine()
    cpu = [row for row in findings.backends if row[0] in CPU_BACKENDS]
    assert cpu == [[name, "yes", default_precision(name), ""] for name in CPU_BACKENDS]
    assert [row[0] for row in findings.backends] == list(BACKENDS)
    assert findings.warnings == []


def test_packages_are_those_installed() -> None:
    packages = dict(examine().packages)
    assert packages["glia-rt"] == glia_rt.__version__
    assert packages["openvino"] == importlib.metadata.version("openvino")
    assert "onnxruntime-gpu" not in packages


def test_what_is_missing_is_said_with_its_cure(examine_without: Callable[..., dict[str, Any]]) -> None:
    found = examine_without("openvino", "torch")
    assert found["backends"][-2:] == [
        ["openvino", "no", "", f"openvino is not installed: {install_command('cpu')}"],
        ["onnxruntime", "yes", "fp32", ""],
    ]
    packages = dict(found["packages"])
    assert "onnxruntime" in packages
    assert "openvino" not in packages
    assert "torch" not in packages


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        ("ImportError('libtbb.so.12: cannot open')", "libtbb.so.12: cannot open"),
        ("RuntimeError('no such CPU')", "no such CPU"),
        ("SystemExit(3)", "3"),
        ("ZeroDivisionError", "ZeroDivisionError"),
        ("type('PanicException', (BaseException,), {})('no such device')", "no such device"),
    ],
)
def test_a_package_that_does_not_import_is_said_to_be_broken(
    without_packages: Callable[..., dict[str, str]], tmp_path: Path, plain_bundle: Path, raised: str, reason: str
) -> None:
    environment = without_packages("openvino")
    (tmp_path / "site" / "openvino").mkdir()
    (tmp_path / "site" / "openvino" / "__init__.py").write_text(f"raise {raised}")
    command = [sys.executable, "-S", "-c", EXAMINE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    openvino, onnxruntime = json.loads(done.stdout)["backends"][-2:]
    message = f"openvino is installed but cannot be imported ({reason}): install it again"
    assert openvino == ["openvino", "no", "", message]
    assert onnxruntime[1] == "yes"
    program = "import sys; from glia_rt import Scorer; scorer = Scorer.open(sys.argv[1]); "
    program += "print(scorer.backend.name, scorer.passed_over[-1])"
    command = [sys.executable, "-S", "-c", program, str(plain_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    assert done.stdout == f"onnxruntime openvino: {message}\n"


@pytest.mark.parametrize("package", ["openvino", "onnxruntime"])
def test_a_package_that_is_there_in_half_is_passed_over(
    without_packages: Callable[..., dict[str, str]], tmp_path: Path, plain_bundle: Path, package: str
) -> None:
    environment = without_packages(package)
    (tmp_path / "site" / package).mkdir()
    (tmp_path / "site" / package / "__init__.py").touch()
    command = [sys.executable, "-S", "-c", EXAMINE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    found = {row[0]: row for row in json.loads(done.stdout)["backends"]}
    assert found[package][1] == "no"
    assert f"{package} is installed but cannot be imported (module" in found[package][3]
    [other] = {"openvino", "onnxruntime"} - {package}
    program = "import sys; from glia_rt import Scorer; print(Scorer.open(sys.argv[1]).backend.name)"
    command = [sys.executable, "-S", "-c", program, str(plain_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    assert done.stdout == f"{other}\n"


def test_a_package_that_fails_when_it_is_used_is_passed_over(
    without_packages: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    environment = without_packages("openvino")
    (tmp_path / "site" / "openvino").mkdir()
    (tmp_path / "site" / "openvino" / "__init__.py").write_text(
        "def Core():\n    raise RuntimeError('plugins.xml is missing')\n"
    )
    command = [sys.executable, "-S", "-c", EXAMINE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    openvino = json.loads(done.stdout)["backends"][-2]
    reason = "its package does not work (plugins.xml is missing): install it again"
    assert openvino == ["openvino", "no", "", reason]


def test_two_packages_that_overwrite_each_other_are_a_warning(examine_without: Callable[..., dict[str, Any]]) -> None:
    found = examine_without(besides="onnxruntime-gpu")
    assert dict(found["packages"])["onnxruntime-gpu"] == "9.9"
    [warning] = found["warnings"]
    assert "onnxruntime and onnxruntime-gpu are both installed" in warning
    assert "pip uninstall onnxruntime onnxruntime-gpu" in warning
