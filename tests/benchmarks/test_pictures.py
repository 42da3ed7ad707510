"""benchmarks/pictures.py on a few small pictures: all of it runs, and what it prints is what it measured."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def pictures_py(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("pictures")
    monkeypatch.setattr("common.SECONDS", 0.05)
    sizes = {"768x512": (96, 64, 24, 4), "1024x768": (128, 96, 12, 4), "4000x3000": (1900, 1200, 4, 1)}
    monkeypatch.setattr(module, "SETS", sizes)
    monkeypatch.setattr(module, "MEMORY", (8, 16))
    monkeypatch.setattr(module, "STARTS", 1)
    return module


@pytest.mark.slow
def test_every_part_runs_and_is_printed(
    pictures_py: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(pictures_py.Bench, "bundle", lambda *_: tiny_bundle)
    out = tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--out", str(out)])
    pictures_py.main()
    result = json.loads((out / "pictures.json").read_text())
    printed = capsys.readouterr().out
    for size, kinds in result["end_to_end"].items():
        for kind in ("files", "tar", "Parquet"):
            assert kinds[kind]["share_of_ceiling"] > 0
            assert f"JPEGs of {size}, {kinds['mean_bytes'] / 1e6:.2f} MB each, {kind} | " in printed
    assert result["decoders"]["baseline 4:2:0"]["simplejpeg"]["pixels_of_pillow"]
    assert set(result["feeding"]["per_s"]) == {"768x512", "16x16"}
    assert f"{result['feeding']['per_s']['16x16']:.0f} of 16x16" in printed
    assert {"1 threads"} <= set(result["views_of_large"])
    assert list(result["peak_memory"]) == ["8 files", "16 files", "24 in tar", "24 in Parquet"]
    assert all(50 < peak < 5_000 for peak in result["peak_memory"].values())
    stages = result["cold_start"]["stages"]
    assert set(stages) == {"start Python", "import", "open", "score", "load compiled graphs"}
    assert all(seconds > 0 for seconds in stages.values())


def test_parts_of_other_machines_are_not_kept(
    pictures_py: Any, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures_py, "PARTS", {"a": lambda bench: {"x": 1}, "b": lambda bench: {"y": 2}})
    monkeypatch.setattr(pictures_py, "markdown", lambda result: "")

    def run(part: str, hardware: str) -> set[str]:
        monkeypatch.setattr(pictures_py, "hardware", lambda: hardware)
        monkeypatch.setattr(sys, "argv", ["pictures.py", "--out", str(tmp_path), "--only", part])
        pictures_py.main()
        return {"a", "b"} & set(json.loads((tmp_path / "pictures.json").read_text()))

    assert run("a", "this") == {"a"}
    assert run("b", "this") == {"a", "b"}
    assert run("a", "that") == {"a"}
