"""Nothing is sent, and nothing is left in the user's home but glia-rt's own cache."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import no_network

from glia_rt.backends.choose import CPU_BACKENDS
from glia_rt.starter.paths import STARTER

SCORE = "from glia_rt.cli.main import main; import sys; sys.exit(main())"


def run(home: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code with a home of its own, and without the variables by which telemetry keeps still in CI."""
    home.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, str(no_network.__file__), code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def left_in(home: Path) -> list[str]:
    found = (str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    return [name for name in found if not name.startswith(".cache/glia-rt/")]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_scoring_sends_nothing_and_leaves_nothing(backend: str, tmp_path: Path, pictures: Path) -> None:
    done = run(tmp_path / "home", SCORE, "score", STARTER, str(pictures), "--backend", backend)
    assert done.returncode == 0, done.stderr
    assert left_in(tmp_path / "home") == []


def test_a_report_sends_nothing_and_leaves_nothing(tmp_path: Path, pictures: Path) -> None:
    """Matplotlib's list of fonts goes into glia-rt's cache."""
    files = ["-o", str(tmp_path / "scores.csv"), "--report", str(tmp_path / "report.html")]
    done = run(tmp_path / "home", SCORE, "score", STARTER, str(pictures), "--backend", "onnxruntime", *files)
    assert done.returncode == 0, done.stderr
    assert left_in(tmp_path / "home") == []


def test_doctor_sends_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    """It imports every engine that is installed."""
    done = run(tmp_path / "home", SCORE, "doctor")
    assert done.returncode == 0, done.stderr
    assert left_in(tmp_path / "home") == []


def test_a_name_look_up_would_be_seen(tmp_path: Path) -> None:
    done = run(tmp_path / "home", "import socket; socket.getaddrinfo('example.org', 80)")
    assert done.returncode == -signal.SIGSYS


def test_the_program_can_still_import_what_is_hidden(tmp_path: Path) -> None:
    code = "from glia_rt.backends.quiet import import_engine; import_engine('openvino'); import openvino_telemetry"
    assert run(tmp_path / "home", code).returncode == 0
