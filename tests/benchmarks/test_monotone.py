"""benchmarks/monotone.py with a model whose scores are known: the brightness of the picture."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from helpers.linear import Linear, LinearConfig

from glia_export.demo.data import PHOTOGRAPHS, read_photograph
from glia_train.checkpoint import make_checkpoint
from glia_train.distortions import DISTORTIONS, UNORDERED
from glia_train.models.table import FAMILIES, untrained
from glia_train.ranking import HELD_OUT

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_brightness_falls_only_as_a_photograph_is_darkened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(FAMILIES, Linear.family, Linear)
    model, contract = untrained(LinearConfig())
    with torch.no_grad():
        model.get_parameter("linear.weight").fill_(1.0)
    make_checkpoint(model, contract, "random").save(tmp_path / "bright.pt")
    [coffee] = (one for one in PHOTOGRAPHS if one.name == "coffee")
    script = importlib.import_module("monotone")
    scores = script.score_levels(str(tmp_path / "bright.pt"), [read_photograph(coffee)])
    found = script.figures(scores)
    assert sorted(found) == sorted(set(DISTORTIONS) - set(UNORDERED))
    assert found["darken"]["correlation"] == pytest.approx(-1)
    assert found["darken"]["falling"] == 1
    assert found["darken"]["not_lower"] == 0
    assert found["brighten"]["correlation"] == pytest.approx(1)
    assert found["brighten"]["falling"] == 0
    assert found["brighten"]["not_lower"] == 1
    assert {name for name, facts in found.items() if facts["held_out"]} == set(HELD_OUT)
    assert all(rows.shape == (1, 6) for rows in scores.values())
