"""-v and --debug, before a command's name or after it."""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from glia_rt.cli.main import main

GliaRt = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("args", [["-v", "score"], ["score", "-v"], ["score", "--verbose"]])
def test_each_step_is_said_with_its_time(
    args: list[str], plain_bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*args, str(plain_bundle), str(pictures / "00.jpg"), "--backend", "onnxruntime"]) == 0
    said = capsys.readouterr().err.splitlines()
    for step in (
        f"open {plain_bundle}",
        f"load {plain_bundle.name} into onnxruntime",
        "list what is to be scored",
        "score",
    ):
        begun, ended = (i for i, line in enumerate(said) if line.startswith((f"{step} ...", f"{step}: ")))
        assert begun < ended
        assert re.fullmatch(r".*: \d+\.\d\d s", said[ended])


def test_steps_are_not_said_unasked_nor_by_the_next_call(
    plain_bundle: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", str(plain_bundle), str(pictures / "00.jpg"), "--backend", "onnxruntime"]
    assert main([*command, "-v"]) == 0
    capsys.readouterr()
    assert main(command) == 0
    assert "list what is to be scored" not in capsys.readouterr().err
    assert logging.getLogger("glia_rt").handlers == []


@pytest.mark.parametrize("args", [["--debug", "info"], ["info", "--debug"]])
def test_the_traceback_behind_an_error(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*args, "gone"]) == 5
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert said.splitlines()[-1] == "glia-rt: gone: no such bundle or checkpoint"


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_the_environment_asks_for_it_as_well(
    value: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLIA_DEBUG", value)
    assert main(["info", "gone"]) == 5
    assert ("Traceback" in capsys.readouterr().err) == shown
