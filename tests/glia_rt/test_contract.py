from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import onnx
import pytest

from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import SCHEMA, Contract
from glia_rt.errors import BundleError
from glia_train.checkpoint import Checkpoint

CONTRACT = Contract(mean=(0.1, 0.2, 1 / 3), std=(0.4, 0.5, 0.6), score_range=(0.0, 100.0), score_name="MOS")


@pytest.mark.parametrize("contract", [CONTRACT, dataclasses.replace(CONTRACT, score_range=None)])
def test_round_trip(contract: Contract) -> None:
    record = contract.to_dict()
    assert json.loads(json.dumps(record)) == record
    assert Contract.from_dict(record) == contract
    assert Contract.from_json(contract.to_json()) == contract
    assert "\n" not in contract.to_json()


def test_equal_contracts_have_equal_json() -> None:
    turned = dict(reversed(CONTRACT.to_dict().items()))
    assert Contract.from_dict(turned).to_json() == CONTRACT.to_json()


def test_one_contract_travels_from_the_checkpoint_into_everything_in_the_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path
) -> None:
    contract = Checkpoint.load(tiny_checkpoint).contract
    assert contract.score_range == (1.0, 5.0)
    bundle = Bundle.open(tiny_bundle)
    assert bundle.contract == contract
    for name in GRAPHS.values():
        metadata = {p.key: p.value for p in onnx.load(tiny_bundle / name, load_external_data=False).metadata_props}
        assert Contract.from_json(metadata["glia.contract"]) == contract
    scores = json.loads((tiny_bundle / "selftest/scores.json").read_text())
    assert Contract.from_dict(scores["contract"]) == contract


def test_span() -> None:
    assert dataclasses.replace(CONTRACT, score_range=(1.0, 5.0)).score_span == 4
    assert dataclasses.replace(CONTRACT, score_range=None).score_span is None


def test_an_unknown_field_asks_for_an_upgrade() -> None:
    with pytest.raises(BundleError, match=r"unknown field colour_space; .* upgrade"):
        Contract.from_dict(CONTRACT.to_dict() | {"colour_space": "sRGB"})


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Contract) if field.name != "schema"])
def test_a_missing_field_is_named(name: str) -> None:
    record = CONTRACT.to_dict()
    del record[name]
    with pytest.raises(BundleError, match=f"missing field {name}; .*export it again"):
        Contract.from_dict(record)


@pytest.mark.parametrize("schema", [SCHEMA + 1, str(SCHEMA), None])
def test_another_schema_asks_for_an_upgrade_whatever_else_it_holds(schema: object) -> None:
    with pytest.raises(BundleError, match=rf"schema {schema!r} is not {SCHEMA}, .*upgrade glia-rt"):
        Contract.from_dict({"schema": schema, "new": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, math.nan, 0.5]),
        ("mean", None),
        ("mean", "abc"),
        ("std", [0.5, math.inf, 0.5]),
        ("std", [0.5, 0.0, 0.5]),
        ("score_range", [5, 1]),
        ("score_range", [1, 1]),
        ("score_range", [0, math.inf]),
        ("score_range", [1, 2, 3]),
        ("score_range", 5),
        ("score_name", None),
        ("higher_is_better", False),
        ("view_size", 225),
        ("view_size", 224.0),
        ("grid", 8),
        ("grid", "7"),
        ("fragment", 16),
        ("resize", "pillow-lanczos"),
        ("small_image", "pad"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(BundleError, match=f"contract: .*{name}"):
        Contract.from_dict(CONTRACT.to_dict() | {name: value})


def test_sizes_that_multiply_to_the_view_yet_are_none() -> None:
    with pytest.raises(BundleError, match="grid"):
        Contract.from_dict(CONTRACT.to_dict() | {"grid": -7, "fragment": -32})


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"contract"'])
def test_other_text_is_no_contract(text: str) -> None:
    with pytest.raises(BundleError, match=r"contract: not .*export it again"):
        Contract.from_json(text)


def test_a_record_that_is_no_object_is_no_contract() -> None:
    with pytest.raises(BundleError, match="contract: not a JSON object"):
        Contract.from_dict(None)  # type: ignore[arg-type]
