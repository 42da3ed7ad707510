"""Records of schema 1, as the version that made them wrote them, are read as this version's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.contracts import make_contract

from glia_rt.backends.cuda.engine import EngineRecord
from glia_rt.bundle import Bundle
from glia_rt.contract import Contract
from glia_rt.errors import BundleError
from glia_rt.runs.journal import upgraded
from glia_rt.upgrades import upgrade
from glia_train.checkpoint import Checkpoint
from glia_train.models.glianet import ModelConfig

RECORDS = Path(__file__).parents[1] / "records" / "schema-1"


def read(name: str) -> Any:
    return json.loads((RECORDS / name).read_text())


def test_contract() -> None:
    assert read("contract.json")["schema"] == 1
    assert Contract.from_dict(read("contract.json")) == make_contract((1.0, 5.0))


def test_contract_with_a_missing_field() -> None:
    record = read("contract.json")
    del record["grid"]
    with pytest.raises(BundleError, match="contract: missing field grid"):
        Contract.from_dict(record)


def test_a_run_that_an_older_version_began() -> None:
    """It is the run of now, if nothing else has changed: `--resume` goes on with it."""
    before = {"contract": read("contract.json"), "batch_size": 4}
    now = {"contract": make_contract((1.0, 5.0)).to_dict(), "batch_size": 4}
    assert upgraded(before) == json.loads(json.dumps(now))
    assert upgraded({"batch_size": 4}) == {"batch_size": 4}
    assert upgraded({"contract": 5}) == {"contract": 5}


def test_bundle(tmp_path: Path) -> None:
    manifest = read("manifest.json")
    for name, entry in manifest["files"].items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if name == "selftest/scores.json":
            path.write_bytes((RECORDS / "selftest-scores.json").read_bytes())
        else:
            with path.open("wb") as file:  # of the right size, which is all that opening looks at
                file.truncate(entry["size"])
    (tmp_path / "manifest.json").write_bytes((RECORDS / "manifest.json").read_bytes())
    bundle = Bundle.open(tmp_path)
    assert bundle.manifest["schema"] == 2
    assert bundle.manifest["model"]["family"] == "glianet"
    assert bundle.contract == make_contract((1.0, 5.0))
    before = manifest["checkpoint"]
    assert bundle.manifest["checkpoint"]["backbones"] == {
        "backbone": {"source": "random", "sha256": before["backbone_sha256"]}
    }
    assert "backbone_source" not in bundle.manifest["checkpoint"]
    for row, old in zip(bundle.selftest(), read("selftest-scores.json")["pictures"], strict=True):
        assert row == {
            "picture": old["picture"],
            "inputs": {name: old[name] for name in ("global_view", "fragments")},
            "score": old["score"],
        }


def test_checkpoint(tmp_path: Path) -> None:
    record = read("checkpoint.json")
    assert record["schema"] == 1
    shapes = record["weights"]
    assert shapes["calibration"] == [2]
    generator = torch.Generator().manual_seed(0)
    record["weights"] = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    torch.save(record, tmp_path / "old.pt")
    checkpoint = Checkpoint.load(tmp_path / "old.pt")
    assert checkpoint.config == ModelConfig(backbone="vit_tiny_patch16_224")
    assert checkpoint.contract == make_contract((1.0, 5.0))
    assert checkpoint.calibration == tuple(record["weights"]["calibration"].tolist())
    assert checkpoint.backbones["backbone"] == {"source": "random", "sha256": record["backbone_sha256"]}
    assert checkpoint.metrics == record["metrics"]
    assert not checkpoint.left_out
    model = checkpoint.build_model()  # whose keys and shapes are those of schema 1, without the calibration
    assert set(model.state_dict()) == set(shapes) - {"calibration"}
    assert model.calibration.tolist() == list(checkpoint.calibration)


def test_engine() -> None:
    record = EngineRecord.read(RECORDS / "engine.json")
    before = read("engine.json")
    assert before["schema"] == 1
    assert (record.capabilities, record.glia_rt) == ((), "0.1.0")
    assert record.engine_sha256 == before["engine_sha256"]
    assert record.max_batch == 64


def test_steps_are_taken_one_after_the_other() -> None:
    steps = {1: lambda record: {"a": record["a"] + 1}, 2: lambda record: {"a": record["a"] * 10}}
    record = {"schema": 1, "a": 1}
    assert upgrade(record, "thing", 3, steps) == {"schema": 3, "a": 20}
    assert upgrade({"schema": 2, "a": 1}, "thing", 3, steps) == {"schema": 3, "a": 10}
    assert upgrade({"schema": 3, "a": 1}, "thing", 3, steps) == {"schema": 3, "a": 1}
    assert record == {"schema": 1, "a": 1}
