"""benchmarks/training.py on a few small pictures: each way of training is measured in its parts, and printed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.slow
def test_every_way_is_measured_in_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    training = importlib.import_module("training")
    options = ["--backbone", "vit_tiny_r_s16_p8_224", "--batch-size", "4", "--micro-batch-size", "2"]
    options += ["--pictures", "4", "--steps", "1", "--rounds", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["training.py", *options])
    training.main()
    [file] = tmp_path.iterdir()
    result = json.loads(file.read_text())
    printed = capsys.readouterr().out
    cached, base, tuned = (result["ways"][way] for way in training.WAYS)
    for way in (cached, base, tuned):
        assert way["crops_per_s"] > 0
        assert 0 <= way["waiting"] < 1
        assert 0.1 < way["peak_memory_gb"] < 20
        assert all(ms > 0 for ms in way["ms_per_crop"].values())
        assert sum(way["share_of_operators"].values()) == pytest.approx(1, abs=0.3)
        assert f"{way['crops_per_s']:.3g}" in printed
    assert base["ratio"] == 1
    assert cached["cache"]["mb_per_array"] == pytest.approx(2 * 50 * 192 / 1e6)  # halves; 7 x 7 patches and a cls token
    assert "frozen stream" in base["ms_per_crop"]
    assert "frozen stream" not in cached["ms_per_crop"].keys() | tuned["ms_per_crop"].keys()
