"""The contract of a model: how a picture becomes its inputs, and what its score means.

These facts live here only. The contract is written into the checkpoint, into the metadata of each ONNX file and into
the manifest of the bundle, and is read back from there, so that training and scoring cannot drift apart.

An input is a name and a rule. A rule is one way to turn a picture into an array; its parameters are the fields of a
class below. `glia_rt.pixels.views` computes every rule with numpy, `glia_export.views` states it in torch for tracing,
and `glia_rt.backends.cuda.views` computes some of them on a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol

from glia_rt import upgrades
from glia_rt.errors import BundleError

SCHEMA: Final = 2

#: The input of a graph that takes decoded pictures and computes the contract's inputs itself.
IMAGE: Final = "image"
#: The output of every graph.
SCORE: Final = "score"
#: The type of every input, as numpy calls it.
DTYPE: Final = "uint8"
#: What a graph takes: the contract's inputs ("views"), or decoded pictures, and then it makes the inputs ("image").
GraphKind = Literal["views", "image"]

#: Longest side of a picture, pixels. Beyond it the whole numbers of the traced rules would overflow, the grids of CUDA
#: would end, and the first pass of a resize, height x size, could take many times the memory of the picture.
MAX_SIDE: Final = 65_535


class Rule(Protocol):
    """One way to turn a picture into an array. Its fields are its parameters, JSON types all."""

    #: The name of the rule in the contract.
    rule: ClassVar[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of one picture; the last three dimensions are height, width and RGB."""


@dataclass(frozen=True)
class Resize:
    """The whole picture at size x size pixels; the aspect is not kept.

    Attributes:
        size: Height and width of the result, pixels.
        filter: Pillow's antialiased bicubic, horizontally first.
    """

    rule: ClassVar[str] = "resize"
    size: int
    filter: str = "pillow-bicubic-antialias"

    def __post_init__(self) -> None:
        """Refuse parameters that this version cannot follow."""
        _require_whole(self, "size")
        _require_known(self, "filter")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of one picture."""
        return (self.size, self.size, 3)


@dataclass(frozen=True)
class Fragments:
    """A mosaic of fragments at full resolution, FAST-VQA's and GLIANet's (arXiv 2605.17748, Eq. 1 and 2).

    The picture is cut into grid x grid cells. The fragment x fragment pixels at the top left of each cell stand side by
    side in the mosaic.

    Attributes:
        size: Height and width of the mosaic, pixels: grid * fragment.
        grid: Cells along each side.
        fragment: Height and width of one fragment, pixels.
        small: What is done where the shorter side of the picture is under `size`: the fragments are read from the
            picture as if enlarged bilinearly to `size` on its shorter side.
    """

    rule: ClassVar[str] = "fragments"
    size: int
    grid: int
    fragment: int
    small: str = "bilinear-enlargement"

    def __post_init__(self) -> None:
        """Refuse parameters that this version cannot follow."""
        for name in ("size", "grid", "fragment"):
            _require_whole(self, name)
        if self.size != self.grid * self.fragment:
            _refuse(self, "size", f"grid {self.grid} x fragment {self.fragment}")
        _require_known(self, "small")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of one picture."""
        return (self.size, self.size, 3)


#: Every rule, by its name.
RULES: Final[Mapping[str, type[Resize] | type[Fragments]]] = {rule.rule: rule for rule in (Resize, Fragments)}


@dataclass(frozen=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: The input's name in the graphs, the engines and `Scorer.score_views`.
        rule: How it is made from a picture.
    """

    name: str
    rule: Rule

    def __post_init__(self) -> None:
        """Refuse names that a graph could not tell from its other inputs and outputs."""
        if not isinstance(self.name, str) or not self.name.isidentifier() or self.name in (IMAGE, SCORE):
            raise BundleError(
                f"contract: an input's name is letters, digits and _, and not {IMAGE} or {SCORE}; it is {self.name!r}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array of one picture, of type `DTYPE`; a batch has N in front."""
        return self.rule.shape

    def to_dict(self) -> dict[str, Any]:
        """Return the input as JSON types: name, rule and the rule's parameters."""
        return {"name": self.name, "rule": self.rule.rule, **dataclasses.asdict(self.rule)}  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], written_by: str | None = None) -> ModelInput:
        """Read an input back; `written_by` as in `Contract.from_dict`.

        Raises:
            BundleError: An unknown rule or parameter, a missing one, or a value that the rule does not take.
        """
        if not isinstance(record, Mapping) or not {"name", "rule"} <= set(record):
            raise BundleError(
                f"contract: inputs: each has a name and a rule, not {record!r}; the file is damaged: make it again"
            )
        parameters = dict(record)
        name, rule_name = parameters.pop("name"), parameters.pop("rule")
        rule = RULES.get(rule_name) if isinstance(rule_name, str) else None
        if rule is None:
            needed = f"glia-rt {written_by}" if written_by else "a newer glia-rt"
            raise BundleError(
                f"contract: an input, {name}, is made by the rule {rule_name!r}, and this version knows "
                f"{', '.join(RULES)}: upgrade to {needed}, which wrote it"
            )
        fields = {field.name for field in dataclasses.fields(rule)}
        upgrades.require_fields(parameters, f"contract: input {name}", fields, written_by=written_by)
        return cls(name, rule(**parameters))


@dataclass(frozen=True)
class Score:
    """What a model's score means.

    Attributes:
        range: Least and greatest score of the model's scale, which is that of the labels unless training mapped them to
            another. None for a model that was never calibrated, whose score has no unit. Every parity limit is a share
            of its width.
        name: What the score measures.
        higher_is_better: The direction of the score. It is always true, since labels are turned on reading.
    """

    range: tuple[float, float] | None = None
    name: str = "quality"
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if self.range is not None and not (_is_finite(self.range, 2) and self.range[0] < self.range[1]):
            _refuse(self, "range", "two finite numbers that rise")
        if not isinstance(self.name, str):
            _refuse(self, "name", "text")
        if self.higher_is_better is not True:
            _refuse(self, "higher_is_better", "true")

    @property
    def span(self) -> float | None:
        """Width of the range; None without a range."""
        return None if self.range is None else self.range[1] - self.range[0]


@dataclass(frozen=True)
class Contract:
    """Facts shared by training, export and scoring.

    Attributes:
        inputs: The model's inputs, in the order of its arguments. Each is uint8 (N, *shape), RGB.
        mean: Per channel, of pixels in [0, 1]. The model normalises inside: (v / 255 - mean) / std.
        std: Per channel, likewise.
        score: What the score means.
    """

    inputs: tuple[ModelInput, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    score: Score = Score()

    def __post_init__(self) -> None:
        """Refuse a record that nothing could follow."""
        names = [one.name for one in self.inputs]
        if not names or len(set(names)) < len(names):
            raise BundleError(f"contract: inputs must be one or more, of different names, not {names}")
        if not _is_finite(self.mean, 3):
            _refuse(self, "mean", "three finite numbers")
        if not (_is_finite(self.std, 3) and min(self.std) > 0):
            _refuse(self, "std", "three finite numbers over 0")

    def with_range(self, low: float, high: float) -> Contract:
        """Return the contract of the same model once it is calibrated to scores from low to high."""
        return dataclasses.replace(self, score=dataclasses.replace(self.score, range=(low, high)))

    def shapes(self, kind: GraphKind) -> dict[str, tuple[int | None, ...]]:
        """Return the shape of each input of a graph, without N; None stands for a side of any length."""
        if kind == "image":
            return {IMAGE: (None, None, 3)}
        return {one.name: one.shape for one in self.inputs}

    def to_dict(self) -> dict[str, Any]:
        """Return the contract as JSON types."""
        score = dataclasses.asdict(self.score)
        return {
            "schema": SCHEMA,
            "inputs": [one.to_dict() for one in self.inputs],
            "mean": list(self.mean),
            "std": list(self.std),
            "score": score | {"range": None if self.score.range is None else list(self.score.range)},
        }

    def to_json(self) -> str:
        """Return the contract as one line of JSON, keys sorted."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], written_by: str | None = None) -> Contract:
        """Read a contract back, also one of schema 1.

        Args:
            record: As `to_dict` gives it.
            written_by: The version of glia-rt that wrote it, where the file around it says so.

        Raises:
            BundleError: A newer schema, an unknown field, a missing field, or a value of the wrong kind.
        """
        record = upgrades.upgrade(record, "contract", SCHEMA, upgrades.CONTRACT, written_by)
        upgrades.require_fields(record, "contract", {"schema", "inputs", "mean", "std", "score"}, written_by=written_by)
        inputs, score = record["inputs"], record["score"]
        if not isinstance(inputs, Sequence) or not isinstance(score, Mapping):
            raise BundleError("contract: inputs are a list and score an object; the file is damaged: make it again")
        fields = {field.name for field in dataclasses.fields(Score)}
        upgrades.require_fields(score, "contract: score", fields, written_by=written_by)
        return cls(
            inputs=tuple(ModelInput.from_dict(one, written_by) for one in inputs),
            mean=_as_tuple(record["mean"]),
            std=_as_tuple(record["std"]),
            score=Score(**{key: _as_tuple(value) for key, value in score.items()}),
        )

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """Read a contract back from JSON; raises as `from_dict` does."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"contract: not JSON ({error}); the file is damaged: make it again") from error
        return cls.from_dict(record)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_finite(values: object, count: int) -> bool:
    """Return whether the values are `count` finite numbers."""
    try:
        return isinstance(values, tuple) and len(values) == count and all(map(math.isfinite, values))
    except (TypeError, OverflowError):  # no number, or a whole number that no float can hold
        return False


def _require_whole(record: Any, name: str) -> None:
    value = getattr(record, name)
    if type(value) is not int or not 1 <= value <= MAX_SIDE:
        _refuse(record, name, f"a whole number from 1 to {MAX_SIDE}")


def _require_known(record: Any, name: str) -> None:
    known = type(record).__dataclass_fields__[name].default
    if getattr(record, name) != known:
        _refuse(record, name, f"{known!r}, which this version knows")


def _refuse(record: Any, name: str, must_be: str) -> None:
    where = getattr(record, "rule", None) or {"Score": "score"}.get(type(record).__name__)
    raise BundleError(
        f"contract: {f'{where}.' if where else ''}{name} must be {must_be}, not {getattr(record, name)!r}"
    )
