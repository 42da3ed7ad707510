"""The contract: how pixels become views, and what the score means.

These facts live here only. The contract is written into the checkpoint, into each ONNX file's metadata and into the
bundle's manifest, and is read back from there, so that training and scoring cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from glia_rt.errors import BundleError

SCHEMA: Final = 1

#: Names of the graph's inputs and output; `views` graphs take the first two, `image` graphs the third.
GLOBAL_VIEW: Final = "global_view"
FRAGMENTS: Final = "fragments"
IMAGE: Final = "image"
SCORE: Final = "score"

#: Longest side of a picture, pixels. Beyond it the traced sampler's whole numbers would overflow, CUDA's grids end, and
#: the global view's first pass, height x 224, may take many times the memory of the picture.
MAX_SIDE: Final = 65_535


@dataclass(frozen=True)
class Contract:
    """Facts shared by training, export and scoring.

    Both views are uint8 (N, view_size, view_size, 3), RGB. The model normalises inside: (v / 255 - mean) / std.

    Attributes:
        mean: Per channel, of pixels in [0, 1]; the backbone's own.
        std: Per channel, of pixels in [0, 1]; the backbone's own.
        score_range: Least and greatest score in label units, or None for a model that was never calibrated, whose
            raw score has no unit. Every parity limit is a share of its width.
        score_name: What the score measures.
        higher_is_better: Direction of the score; always true, since labels are turned on reading.
        view_size: Height and width of both views, pixels.
        grid: The fragment mosaic has grid x grid cells.
        fragment: Height and width of one fragment, pixels.
        resize: How the global view is made: Pillow's antialiased bicubic, aspect not kept.
        small_image: What happens when the shorter side is under view_size: the fragments are read from the picture
            as if enlarged bilinearly to view_size on its shorter side; the global view is not affected.
        schema: Version of this record.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    score_range: tuple[float, float] | None = None
    score_name: str = "quality"
    higher_is_better: bool = True
    view_size: int = 224
    grid: int = 7
    fragment: int = 32
    resize: str = "pillow-bicubic-antialias"
    small_image: str = "fragments-from-bilinear-enlargement"
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        """Refuse a record that no sampler of this version could follow."""
        if self.schema != SCHEMA:
            raise BundleError(_schema_message(self.schema))

        def need(name: str, holds: bool, what: str) -> None:
            if not holds:
                raise BundleError(f"contract: {name} must be {what}, not {getattr(self, name)!r}")

        need("mean", _finite(self.mean, 3), "three finite numbers")
        need("std", _finite(self.std, 3) and min(self.std) > 0, "three finite numbers over 0")
        rises = self.score_range is None or (_finite(self.score_range, 2) and self.score_range[0] < self.score_range[1])
        need("score_range", rises, "two finite numbers that rise")
        need("score_name", isinstance(self.score_name, str), "text")
        need("higher_is_better", self.higher_is_better is True, "true")
        for name in ("view_size", "grid", "fragment"):
            size = getattr(self, name)
            need(name, type(size) is int and size > 0, "a whole number over 0")
        need("view_size", self.view_size == self.grid * self.fragment, f"grid {self.grid} x fragment {self.fragment}")
        for name in ("resize", "small_image"):
            known = Contract.__dataclass_fields__[name].default
            need(name, getattr(self, name) == known, f"{known!r}, which this version knows")

    @property
    def score_span(self) -> float | None:
        """Width of the score range in label units; None without a range."""
        return None if self.score_range is None else self.score_range[1] - self.score_range[0]

    def to_dict(self) -> dict[str, Any]:
        """The contract as plain JSON types."""
        record = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}

    def to_json(self) -> str:
        """The contract as one line of JSON, keys sorted."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Contract:
        """Read a contract back.

        Raises:
            BundleError: A newer schema, an unknown field, a missing field, or a value of the wrong kind.
        """
        if not isinstance(record, Mapping):
            raise BundleError("contract: not a JSON object; the file is damaged: export it again")
        schema = record.get("schema")
        if schema != SCHEMA:
            raise BundleError(_schema_message(schema))
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(set(record) - set(fields)):
            raise BundleError(
                f"contract: unknown field {', '.join(unknown)}; a newer glia-rt wrote it: upgrade to read it"
            )
        if missing := sorted(set(fields) - set(record)):
            raise BundleError(f"contract: missing field {', '.join(missing)}; the file is damaged: export it again")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Read a contract back from JSON; raises as `from_dict` does."""
        try:
            record = json.loads(text)
        except ValueError as error:
            raise BundleError(f"contract: not JSON ({error}); the file is damaged: export it again") from error
        return cls.from_dict(record)


def _finite(values: object, count: int) -> bool:
    """Whether the values are `count` finite numbers."""
    return (
        isinstance(values, tuple)
        and len(values) == count
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def _schema_message(schema: object) -> str:
    return f"contract: schema {schema!r} is not {SCHEMA}, the one this version reads; upgrade glia-rt, or export again"
