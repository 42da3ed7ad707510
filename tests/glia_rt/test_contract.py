from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from helpers.contracts import FRAGMENTS, RESIZE, make_contract

from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import RULES, SCHEMA, Contract, Fragments, ModelInput, Resize, Score
from glia_rt.errors import BundleError
from glia_rt.pixels import views
from glia_train.checkpoint import Checkpoint

CONTRACT = make_contract(mean=(0.1, 0.2, 1 / 3), std=(0.4, 0.5, 0.6), score=Score((0.0, 100.0), "MOS"))


def changed(path: str, value: Any) -> dict[str, Any]:
    """CONTRACT's record with another value at a dotted path; a number is a place in a list."""
    record = json.loads(CONTRACT.to_json())
    *way, last = path.split(".")
    place: Any = record
    for step in way:
        place = place[int(step)] if step.isdecimal() else place[step]
    place[last] = value
    return record


@pytest.mark.parametrize("contract", [CONTRACT, make_contract()])
def test_round_trip(contract: Contract) -> None:
    record = contract.to_dict()
    assert json.loads(json.dumps(record)) == record
    assert Contract.from_dict(record) == contract
    assert Contract.from_json(contract.to_json()) == contract
    assert "\n" not in contract.to_json()


def test_the_record_is_the_one_that_is_documented() -> None:
    assert CONTRACT.to_dict() == {
        "schema": 2,
        "inputs": [
            {"name": "global_view", "rule": "resize", "size": 224, "filter": "pillow-bicubic-antialias"},
            {
                "name": "fragments", "rule": "fragments", "size": 224, "grid": 7, "fragment": 32,
                "small": "bilinear-enlargement",
            },
        ],
        "mean": [0.1, 0.2, 1 / 3],
        "std": [0.4, 0.5, 0.6],
        "score": {"name": "MOS", "range": [0.0, 100.0], "higher_is_better": True},
    }  # fmt: skip


def test_equal_contracts_have_equal_json() -> None:
    turned = dict(reversed(CONTRACT.to_dict().items()))
    assert Contract.from_dict(turned).to_json() == CONTRACT.to_json()


def test_one_contract_travels_from_the_checkpoint_into_everything_in_the_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path
) -> None:
    contract = Checkpoint.load(tiny_checkpoint).contract
    assert contract.score.range == (1.0, 5.0)
    bundle = Bundle.open(tiny_bundle)
    assert bundle.contract == contract
    for name in GRAPHS.values():
        metadata = {p.key: p.value for p in onnx.load(tiny_bundle / name, load_external_data=False).metadata_props}
        assert Contract.from_json(metadata["glia.contract"]) == contract
    scores = json.loads((tiny_bundle / "selftest/scores.json").read_text())
    assert Contract.from_dict(scores["contract"]) == contract


def test_span() -> None:
    assert CONTRACT.with_range(1.0, 5.0).score.span == 4
    assert make_contract().score.span is None


def test_with_range_changes_the_range_alone() -> None:
    assert CONTRACT.with_range(1.0, 5.0).with_range(0.0, 100.0) == CONTRACT


def test_shapes_are_those_of_the_rules() -> None:
    contract = make_contract(inputs=(ModelInput("small", Resize(64)), ModelInput("mosaic", Fragments(96, 3, 32))))
    assert contract.shapes("views") == {"small": (64, 64, 3), "mosaic": (96, 96, 3)}
    assert contract.shapes("image") == {"image": (None, None, 3)}


@pytest.mark.parametrize("place", ["", "score.", "inputs.0.", "inputs.1."])
def test_an_unknown_field_asks_for_an_upgrade(place: str) -> None:
    with pytest.raises(BundleError, match=r"unknown field colour_space; .* upgrade"):
        Contract.from_dict(changed(f"{place}colour_space", "sRGB"))


@pytest.mark.parametrize("name", ["inputs", "mean", "std", "score"])
def test_a_missing_field_is_named(name: str) -> None:
    record = CONTRACT.to_dict()
    del record[name]
    with pytest.raises(BundleError, match=f"missing field {name}; .*make it again"):
        Contract.from_dict(record)


@pytest.mark.parametrize(("place", "name"), [("score", "range"), ("score", "name"), (1, "grid"), (0, "filter")])
def test_a_missing_field_within_is_named(place: str | int, name: str) -> None:
    record = CONTRACT.to_dict()
    within: Any = record[place] if isinstance(place, str) else record["inputs"][place]
    del within[name]
    with pytest.raises(BundleError, match=f"missing field {name}; .*make it again"):
        Contract.from_dict(record)


def test_a_newer_schema_names_the_version_that_reads_it_whatever_else_it_holds() -> None:
    with pytest.raises(BundleError, match=rf"schema {SCHEMA + 1} is newer than {SCHEMA}, .*upgrade to glia-rt 9\.1"):
        Contract.from_dict({"schema": SCHEMA + 1, "new": 1}, written_by="9.1")
    with pytest.raises(BundleError, match=rf"upgrade to a glia-rt that reads schema {SCHEMA + 1}"):
        Contract.from_dict({"schema": SCHEMA + 1, "new": 1})


@pytest.mark.parametrize("schema", [str(SCHEMA), None, 0, -1, 1.0, True])
def test_what_is_no_schema(schema: object) -> None:
    with pytest.raises(BundleError, match=rf"schema {schema!r} is not a schema of glia-rt; .*make it again"):
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
        ("score", 5),
        ("score.range", [5, 1]),
        ("score.range", [1, 1]),
        ("score.range", [0, math.inf]),
        ("score.range", [1, 2, 3]),
        ("score.range", 5),
        ("score.name", None),
        ("score.higher_is_better", False),
        ("inputs", []),
        ("inputs", None),
        ("inputs", [5]),
        ("inputs.0.name", "fragments"),  # twice
        ("inputs.0.name", "image"),
        ("inputs.0.name", "score"),
        ("inputs.0.name", "a view"),
        ("inputs.0.name", 5),
        ("inputs.0.rule", "crops-of-a-later-version"),
        ("inputs.0.size", 0),
        ("inputs.0.filter", "pillow-lanczos"),
        ("inputs.1.size", 225),
        ("inputs.1.size", 224.0),
        ("inputs.1.grid", 8),
        ("inputs.1.grid", "7"),
        ("inputs.1.fragment", 16),
        ("inputs.1.small", "pad"),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(BundleError, match=rf"contract: .*\b{name.rpartition('.')[2]}s?\b"):
        Contract.from_dict(changed(name, value))


def test_an_unknown_rule_asks_for_an_upgrade() -> None:
    with pytest.raises(BundleError, match=r"fragments, is made by the rule 'spiral', .*resize, fragments: upgrade"):
        Contract.from_dict(changed("inputs.1.rule", "spiral"))


def test_sizes_that_multiply_to_the_view_yet_are_none() -> None:
    record = changed("inputs.1.grid", -7)
    record["inputs"][1]["fragment"] = -32
    with pytest.raises(BundleError, match="grid"):
        Contract.from_dict(record)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"contract"'])
def test_other_text_is_no_contract(text: str) -> None:
    with pytest.raises(BundleError, match=r"contract: not .*make it again"):
        Contract.from_json(text)


def test_a_record_that_is_no_object_is_no_contract() -> None:
    with pytest.raises(BundleError, match="contract: not a JSON object"):
        Contract.from_dict(None)  # type: ignore[arg-type]


def test_rules_of_this_version() -> None:
    assert (RESIZE.shape, FRAGMENTS.shape) == ((224, 224, 3), (224, 224, 3))
    assert set(RULES) == set(views.RULES) == {"resize", "fragments"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.update(mean=[10**400, 0, 0]), "mean must be three finite numbers"),
        (lambda r: r["score"].update(range=[0, 10**400]), "score.range must be two finite numbers"),
        (lambda r: r["inputs"][0].update(size=10**30), "resize.size must be a whole number from 1 to 65535"),
        (lambda r: r["inputs"][0].update(size=0), "resize.size must be a whole number from 1 to 65535"),
    ],
)
def test_numbers_that_nothing_can_hold(change: Callable[[dict[str, Any]], object], reason: str) -> None:
    record = CONTRACT.to_dict()
    change(record)
    with pytest.raises(BundleError, match=reason):
        Contract.from_dict(record)
