"""Records of older versions, turned into those of this one: a function for each step from a schema to the next.

A record is a dictionary of JSON types with a whole number under `schema`. Four kinds have one: the contract, the
manifest of a bundle, checkpoint.pt (whose weights are tensors) and the record of an engine. A change that an older
version could not read raises the schema by one and adds a step here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from glia_rt.errors import BundleError
from glia_rt.versions import __version__

Record = dict[str, Any]
#: The step that starts at each older schema.
Steps = Mapping[int, Callable[[Record], Record]]


def upgrade(record: Mapping[str, Any], what: str, newest: int, steps: Steps, written_by: str | None = None) -> Record:
    """Return a record in the newest schema; the one given is not changed.

    Args:
        record: As it was read.
        what: What messages call it: "contract".
        newest: The schema that this version writes.
        steps: How to get there from each older one.
        written_by: The version of glia-rt that wrote the record, where a file around it says so.

    Raises:
        BundleError: It is no record, has no schema that this version knows, or comes from a newer version.
    """
    if not isinstance(record, Mapping):
        raise BundleError(f"{what}: not a JSON object; the file is damaged: make it again")
    schema = record.get("schema")
    if type(schema) is not int or not (schema == newest or schema in steps or schema > newest):
        raise BundleError(f"{what}: schema {schema!r} is not a schema of glia-rt; the file is damaged: make it again")
    if schema > newest:
        named = isinstance(written_by, str) and written_by != __version__
        needed = f"glia-rt {written_by}" if named else f"a glia-rt that reads schema {schema}"
        raise BundleError(
            f"{what}: schema {schema} is newer than {newest}, the last that glia-rt {__version__} reads; "
            f"upgrade to {needed}, or make it again with this version"
        )
    current = dict(record)
    while current["schema"] != newest:
        try:
            current = steps[current["schema"]](current) | {"schema": current["schema"] + 1}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{what}: a value is of the wrong kind ({error!r}); the file is damaged") from error
    return current


def require_fields(
    record: Mapping[str, Any],
    what: str,
    required: set[str],
    optional: set[str] = frozenset(),  # type: ignore[assignment]
    written_by: str | None = None,
) -> None:
    """Refuse a record that lacks a field, or has one that this version does not know.

    Raises:
        BundleError: It names the fields, and the version that reads them.
    """
    if unknown := sorted(set(record) - required - optional):
        needed = f"glia-rt {written_by}" if written_by and written_by != __version__ else "a newer glia-rt"
        raise BundleError(f"{what}: unknown field {', '.join(unknown)}; {needed} wrote it: upgrade to read it")
    if missing := sorted(required - set(record)):
        raise BundleError(f"{what}: missing field {', '.join(missing)}; the file is damaged: make it again")


def _contract_1(record: Record) -> Record:
    """Return a contract of schema 1 in schema 2. Schema 1 had GLIANet's two views and no others."""
    fields = {"schema", "mean", "std", "score_range", "score_name", "higher_is_better"}
    views = {"view_size", "grid", "fragment", "resize", "small_image"}
    require_fields(record, "contract", fields | views)
    small = record["small_image"]
    if small == "fragments-from-bilinear-enlargement":
        small = "bilinear-enlargement"
    size = record["view_size"]
    return {
        "inputs": [
            {"name": "global_view", "rule": "resize", "size": size, "filter": record["resize"]},
            {
                "name": "fragments",
                "rule": "fragments",
                "size": size,
                "grid": record["grid"],
                "fragment": record["fragment"],
                "small": small,
            },
        ],
        "mean": record["mean"],
        "std": record["std"],
        "score": {
            "name": record["score_name"],
            "range": record["score_range"],
            "higher_is_better": record["higher_is_better"],
        },
    }


def _backbone_1(record: Mapping[str, Any]) -> Record:
    """Return the backbones of a record of schema 1, which had one."""
    return {"backbone": {"source": record["backbone_source"], "sha256": record["backbone_sha256"]}}


def _checkpoint_1(record: Record) -> Record:
    """Return a checkpoint of schema 1 in schema 2. Schema 1 had one family, and the calibration among the weights."""
    fields = {"config", "contract", "weights", "backbone_source", "backbone_sha256", "trained_on", "metrics"}
    require_fields(record, "checkpoint", fields | {"schema"})
    weights = dict(record["weights"])
    calibration = weights.pop("calibration", None)
    return {
        "glia_rt": "0.1.0",
        "family": "glianet",
        "config": record["config"],
        "contract": record["contract"],
        "weights": weights,
        "calibration": [1.0, 0.0] if calibration is None else [float(value) for value in calibration],
        "backbones": _backbone_1(record),
        "trained_on": record["trained_on"],
        "metrics": record["metrics"],
    }


def _manifest_1(record: Record) -> Record:
    """Return a manifest of schema 1 in schema 2. Schema 1 had one backbone."""
    checkpoint = dict(record.get("checkpoint", {}))
    if {"backbone_source", "backbone_sha256"} <= set(checkpoint):
        backbones = _backbone_1(checkpoint)
        del checkpoint["backbone_source"], checkpoint["backbone_sha256"]
        checkpoint["backbones"] = backbones
    return record | {"checkpoint": checkpoint}


def selftest_1(row: Record) -> Record:
    """Return a picture of a selftest of schema 1 in schema 2. Schema 1 had no `inputs` around the names of inputs."""
    inputs = {name: file for name, file in row.items() if name not in ("picture", "score")}
    return {"picture": row["picture"], "inputs": inputs, "score": row["score"]}


def _engine_1(record: Record) -> Record:
    """Return the record of an engine of schema 1 in schema 2. Schema 1 did not say which version wrote it."""
    return record | {"glia_rt": "0.1.0"}


CONTRACT: Final[Steps] = {1: _contract_1}
CHECKPOINT: Final[Steps] = {1: _checkpoint_1}
MANIFEST: Final[Steps] = {1: _manifest_1}
ENGINE: Final[Steps] = {1: _engine_1}
