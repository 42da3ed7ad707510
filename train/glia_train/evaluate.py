"""Evaluation: a model's scores of a part of a dataset, held against the labels."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from glia_rt.errors import UsageError
from glia_rt.results import Result
from glia_rt.runs.outputs import format_score
from glia_rt.steps import step
from glia_train.bootstrap import LEVEL, RESAMPLES, Difference, Interval, intervals, srcc_difference
from glia_train.datasets.base import PARTS, Dataset, LabelledPicture, Part
from glia_train.datasets.splits import split_dataset
from glia_train.metrics import NAMES, Metrics, ScoreMapping, compare, fit_mapping
from glia_train.scorer import AnyScorer, Engine, open_scorer, score_labelled, trained_on

#: A part of a dataset, or "all" of it.
Choice: TypeAlias = Part | Literal["all"]
CHOICES: Final[tuple[Choice, ...]] = (*PARTS, "all")
#: The seed of the split and of the bootstrap.
SEED: Final = 3407
COLUMNS: Final = ("path", "score", "label", "subset", "distortion", "group", "split")

OnOpen: TypeAlias = Callable[[AnyScorer], None]
OnPicture: TypeAlias = Callable[[Result], None]


@dataclass(frozen=True)
class Selection:
    """The pictures that a model is evaluated on.

    Attributes:
        dataset: The dataset's name.
        part: The part, or "all".
        seed: The seed of the split.
        by: How the test part was made, as in `Split.by`; None for "all", which needs no split.
        pictures: The pictures, sorted by name.
        labels_sha256: `Dataset.labels_sha256`.
        leaking: Names of the test pictures that have a near-duplicate in another part of the official split.
    """

    dataset: str
    part: Choice
    seed: int
    by: str | None
    pictures: tuple[LabelledPicture, ...]
    labels_sha256: str
    leaking: frozenset[str]

    def part_of(self, picture: LabelledPicture) -> str | None:
        """Return the part that a picture is in; None if all pictures are taken and there is no official split."""
        return picture.part if self.part == "all" else self.part


@dataclass(frozen=True)
class Prediction:
    """A picture, and the score that the model gave it, on the model's scale."""

    picture: LabelledPicture
    score: float


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be read, and why."""

    picture: LabelledPicture
    error: str


@dataclass(frozen=True)
class Scored:
    """A model's scores of a selection.

    Attributes:
        model: The checkpoint or bundle.
        engine: How the scores were computed, as `Scorer.resolved` says it.
        predictions: The pictures that could be read, in the order of the selection.
        unreadable: The others, likewise.
        warning: Why the figures would be too good; empty if nothing speaks for it.
    """

    model: str
    engine: dict[str, Any]
    predictions: tuple[Prediction, ...]
    unreadable: tuple[Unreadable, ...]
    warning: str = ""


@dataclass(frozen=True)
class Agreement:
    """The metrics of some pictures.

    Attributes:
        pictures: Number of pictures.
        metrics: Their metrics.
        intervals: 95 % intervals of metrics, by name. The whole part has those of all metrics, a share of it that of
            SRCC.
    """

    pictures: int
    metrics: Metrics
    intervals: dict[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Return this as JSON types. Metrics that are not defined are left out."""
        record: dict[str, Any] = {"pictures": self.pictures, **self.metrics.to_dict()}
        if "plcc" in record:
            record["mapping"] = self.metrics.mapping
        if self.metrics.note:
            record["note"] = self.metrics.note
        record["intervals"] = {name: [found.low, found.high] for name, found in self.intervals.items()}
        return record


@dataclass(frozen=True)
class Evaluation:
    """A model's agreement with the labels of a selection.

    Attributes:
        selection: The pictures.
        scored: Their scores.
        overall: Agreement on all pictures that could be read.
        without_leaking: Agreement without the test pictures that have a near-duplicate in another part; None where
            there are none of these.
        subsets: Agreement by subset, where there are several.
        distortions: Agreement by distortion, likewise.
    """

    selection: Selection
    scored: Scored
    overall: Agreement
    without_leaking: Agreement | None = None
    subsets: dict[str, Agreement] = field(default_factory=dict)
    distortions: dict[str, Agreement] = field(default_factory=dict)

    @property
    def mapping(self) -> ScoreMapping | None:
        """Return the mapping of scores to label units behind PLCC and RMSE; None where these are not defined."""
        if "plcc" not in self.overall.metrics.to_dict():
            return None
        return fit_mapping(*_columns(self.scored.predictions))

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as JSON types, without the predictions."""
        chosen, scored = self.selection, self.scored
        record: dict[str, Any] = {
            "model": scored.model,
            "dataset": chosen.dataset,
            "split": chosen.part,
            "split_by": chosen.by,
            "seed": chosen.seed,
            "overall": self.overall.to_dict(),
        }
        if self.without_leaking is not None:
            record["without_leaking"] = self.without_leaking.to_dict()
        for name, parts in (("subsets", self.subsets), ("distortions", self.distortions)):
            if parts:
                record[name] = {key: agreement.to_dict() for key, agreement in parts.items()}
        record["unreadable"] = [{"path": one.picture.name, "error": one.error} for one in scored.unreadable]
        record["bootstrap"] = {"level": LEVEL, "resamples": RESAMPLES}
        if scored.warning:
            record["warning"] = scored.warning
        return record | {"scored_with": scored.engine}

    def to_csv(self) -> str:
        """Return the predictions as a CSV with the columns `COLUMNS`. Unreadable pictures have no row."""
        table = io.StringIO()
        # As in `glia_rt.runs.outputs`: CRLF, because Python 3.11 leaves a lone CR unquoted where lines end in LF.
        writer = csv.writer(table, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        for one in self.scored.predictions:
            picture = one.picture
            facts = [picture.subset, picture.distortion, picture.kept_together, self.selection.part_of(picture)]
            writer.writerow([picture.name, format_score(one.score), picture.score, *facts])
        return table.getvalue()


def evaluate(
    model: str | os.PathLike[str],
    dataset: Dataset,
    part: Choice = "test",
    seed: int = SEED,
    engine: Engine | None = None,
    *,
    on_open: OnOpen | None = None,
    on_picture: OnPicture | None = None,
) -> Evaluation:
    """Score a part of a dataset and hold the scores against the labels.

    Args:
        model: A checkpoint.pt, which PyTorch scores with, or a bundle, which any backend scores with.
        dataset: The dataset.
        part: The part, as `split_dataset` makes it; or "all". The official test part of a dataset is there for one last
            measurement. Choices are made with the validation part.
        seed: The seed of the split, which must be that of the training, and of the bootstrap.
        engine: What computes the scores.
        on_open: Called once the model is open.
        on_picture: Called for each picture.

    Raises:
        UsageError: The dataset cannot be split, or some options do not go together.
        BundleError: The checkpoint or bundle is missing or damaged.
        BackendError: The backend cannot be used here, or it failed.
        SourceError: The folder of the pictures has gone.
    """
    chosen = select(dataset, part, seed)
    return judge(chosen, score(model, chosen, engine, on_open=on_open, on_picture=on_picture))


def select(dataset: Dataset, part: Choice, seed: int) -> Selection:
    """Return the pictures of a part of a dataset.

    Raises:
        UsageError: There is no such part, the dataset cannot be split, or the part has no pictures.
    """
    if part not in CHOICES:
        raise UsageError(f"there is no part {part!r}: give one of {', '.join(CHOICES)}")
    if part == "all":
        by, pictures = None, tuple(sorted(dataset.pictures, key=lambda picture: picture.name))
    else:
        split = split_dataset(dataset, seed)
        by, pictures = str(split.by), split.parts[part]
    if not pictures:
        raise UsageError(f"{dataset.name}: the {part} part has no pictures")
    return Selection(dataset.name, part, seed, by, pictures, dataset.labels_sha256, dataset.leaking)


def score(
    model: str | os.PathLike[str],
    chosen: Selection,
    engine: Engine | None = None,
    *,
    on_open: OnOpen | None = None,
    on_picture: OnPicture | None = None,
) -> Scored:
    """Return a model's scores of a selection; arguments and errors as for `evaluate`."""
    engine = engine or Engine()
    predictions: list[Prediction] = []
    unreadable: list[Unreadable] = []
    with open_scorer(model, engine) as scorer:
        if on_open is not None:
            on_open(scorer)
        with step(f"score {len(chosen.pictures)} pictures"):
            results = score_labelled(scorer, chosen.pictures, workers=engine.workers)
            for picture, result in zip(chosen.pictures, results, strict=True):
                if result.score is None:
                    unreadable.append(Unreadable(picture, result.error or ""))
                else:
                    predictions.append(Prediction(picture, result.score))
                if on_picture is not None:
                    on_picture(result)
        warning = _other_split(trained_on(scorer), chosen)
        return Scored(os.fspath(model), scorer.resolved, tuple(predictions), tuple(unreadable), warning)


def judge(chosen: Selection, scored: Scored) -> Evaluation:
    """Return the agreement of scores with labels."""
    predictions = scored.predictions
    apart = None
    if chosen.part == "test" and any(one.picture.name in chosen.leaking for one in predictions):
        apart = [one for one in predictions if one.picture.name not in chosen.leaking]
    with step("bootstrap"):
        return Evaluation(
            chosen,
            scored,
            _agreement(predictions, chosen.seed, NAMES),
            None if apart is None else _agreement(apart, chosen.seed, ("srcc",)),
            _by(predictions, chosen.seed, lambda picture: picture.subset),
            _by(predictions, chosen.seed, lambda picture: picture.distortion),
        )


def difference(chosen: Selection, first: Scored, second: Scored) -> Difference:
    """Return the difference of two models' SRCC on the pictures that both could read."""
    others = {one.picture.name: one.score for one in second.predictions}
    both = [one for one in first.predictions if one.picture.name in others]
    scores, labels = _columns(both)
    return srcc_difference(
        scores,
        [others[one.picture.name] for one in both],
        labels,
        [one.picture.kept_together for one in both],
        seed=chosen.seed,
        resamples=RESAMPLES,
    )


def _columns(predictions: Sequence[Prediction]) -> tuple[list[float], list[float]]:
    """Return scores and labels."""
    return [one.score for one in predictions], [one.picture.score for one in predictions]


def _agreement(predictions: Sequence[Prediction], seed: int, with_intervals: Sequence[str]) -> Agreement:
    scores, labels = _columns(predictions)
    groups = [one.picture.kept_together for one in predictions]
    metrics = compare(scores, labels)
    defined = [name for name in with_intervals if name in metrics.to_dict()]
    found = intervals(scores, labels, groups, seed=seed, names=defined, resamples=RESAMPLES) if defined else {}
    return Agreement(len(predictions), metrics, found)


def _by(
    predictions: Sequence[Prediction], seed: int, name: Callable[[LabelledPicture], str | None]
) -> dict[str, Agreement]:
    """Return the agreement of the pictures of each name; empty if they do not have several names."""
    shares: dict[str, list[Prediction]] = {}
    for one in predictions:
        if (key := name(one.picture)) is not None:
            shares.setdefault(key, []).append(one)
    if len(shares) < 2:
        return {}
    return {key: _agreement(shares[key], seed, ("srcc",)) for key in sorted(shares)}


def _other_split(record: Any, chosen: Selection) -> str:
    """Return a warning if the model was trained on another split of the same labels, so that parts mix."""
    options = record.get("options")
    seed = options.get("seed") if isinstance(options, dict) else None
    # An official split fixes the test part, whatever the seed.
    if chosen.part == "all" or (chosen.by == "official" and chosen.part == "test"):
        return ""
    known = record.get("labels_sha256") == chosen.labels_sha256 or record.get("labels") == chosen.dataset
    if known and chosen.part == "validation" and isinstance(options, dict) and options.get("train_on_validation"):
        return "the model was trained on the validation part, too"
    if record.get("labels_sha256") == chosen.labels_sha256:
        if seed is None or seed == chosen.seed:
            return ""
        return (
            f"the model was trained on these labels, split with seed {seed}: some pictures of this part were trained "
            f"on; give --seed {seed}"
        )
    if record.get("labels") != chosen.dataset:
        return ""
    return (
        f"the model was trained on {chosen.dataset} when it had other labels, or with other columns: its split was "
        "another one, and some pictures of this part may have been trained on"
    )
