"""Split of a dataset into a training part, a validation part and a test part."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from glia_rt.errors import UsageError
from glia_train.datasets.base import COLUMNS, Dataset, LabelledPicture, Part

TRAIN_FRACTION: Final = 0.8
#: Share of the training part that the validation part is cut from it with.
VALIDATION_FRACTION: Final = 0.1
#: Least number of references (or pictures) that can be split.
MIN_GROUPS: Final = 5


@dataclass(frozen=True)
class Split:
    """The three parts of a dataset, each sorted by name.

    Attributes:
        train: What the weights are trained on.
        validation: What every choice is made with. It is cut from the training part.
        test: What is measured once, at the end.
        by: How the test part was made: "official", or drawn by "reference", "group" or "picture".
    """

    train: tuple[LabelledPicture, ...]
    validation: tuple[LabelledPicture, ...]
    test: tuple[LabelledPicture, ...]
    by: Literal["official", "reference", "group", "picture"]

    @property
    def parts(self) -> dict[Part, tuple[LabelledPicture, ...]]:
        """Return the three parts by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def rescaled(self, old: tuple[float, float], new: tuple[float, float]) -> Split:
        """Return the split with its scores mapped from one scale to another, each given as (least, greatest)."""

        def mapped(pictures: tuple[LabelledPicture, ...]) -> tuple[LabelledPicture, ...]:
            shares = ((picture, (picture.score - old[0]) / (old[1] - old[0])) for picture in pictures)
            return tuple(replace(picture, score=new[0] + share * (new[1] - new[0])) for picture, share in shares)

        return Split(mapped(self.train), mapped(self.validation), mapped(self.test), self.by)

    def to_csv(self) -> str:
        """Return the split as a CSV of path,score,reference,split; the last column is the name of the part."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow([*COLUMNS, "split"])
        for part, pictures in self.parts.items():
            writer.writerows([p.name, p.score, p.reference, part] for p in pictures)
        return table.getvalue()


def split_dataset(dataset: Dataset, seed: int) -> Split:
    """Split a dataset at random into training, validation and test parts, or take its official split.

    Pictures that are to be kept together are in one part: those of one reference, and near-duplicates. A fifth of them
    is the test part, and a tenth of the rest is the validation part. An official split decides the test part, and the
    validation part if it has one. The parts are drawn from sorted names, so that only the seed decides.

    Args:
        dataset: The dataset. A picture without a reference and a group is a content of its own.
        seed: At least 0.

    Raises:
        UsageError: There are too few groups, references or pictures, some pictures are in no part of the official
            split, a part of it is empty, or all training pictures have the same score.
    """
    pictures = sorted(dataset.pictures, key=lambda picture: picture.name)
    rng = np.random.default_rng(seed)
    by = _split_by(dataset.name, pictures)
    if by == "official":
        official: dict[str | None, list[LabelledPicture]] = {"train": [], "validation": [], "test": []}
        for picture in pictures:
            official[picture.part].append(picture)
        train, validation, test = official["train"], official["validation"], official["test"]
    else:
        count = len({picture.kept_together for picture in pictures})
        if count < MIN_GROUPS:
            advice = "; without the reference column the split is by picture" if by == "reference" else ""
            raise UsageError(f"an 80/20 split by {by} needs at least {MIN_GROUPS}, the labels have {count}{advice}")
        train, test = _draw(pictures, TRAIN_FRACTION, rng)
        validation = []
    if not validation:
        if len({picture.kept_together for picture in train}) < 2:
            raise UsageError(
                f"{dataset.name}: the training part of its split shows one content, and the validation part is to show "
                "others: give pictures the split validation, too"
            )
        train, validation = _draw(train, 1 - VALIDATION_FRACTION, rng)
    if len({picture.score for picture in train}) == 1:
        raise UsageError(
            f"every training picture has the score {train[0].score:g}: give another --seed, or more pictures"
        )
    return Split(tuple(train), tuple(validation), tuple(test), by)


def _split_by(name: str, pictures: Sequence[LabelledPicture]) -> Literal["official", "reference", "group", "picture"]:
    if not pictures:
        raise UsageError(f"{name}: no rows")
    placed = [picture.part for picture in pictures if picture.part is not None]
    if len(placed) == len(pictures):
        for part in ("train", "test"):
            if part not in placed:
                raise UsageError(f"{name}: no picture has the split {part}: give some pictures that, or drop the split")
        return "official"
    if placed:
        lost = next(picture for picture in pictures if picture.part is None)
        raise UsageError(f"{name}: {lost.name} is in no part of the split, and others are: give every picture one")
    if any(picture.group for picture in pictures):
        return "group"
    return "reference" if any(picture.reference for picture in pictures) else "picture"


def _draw(
    pictures: Sequence[LabelledPicture], fraction: float, rng: np.random.Generator
) -> tuple[list[LabelledPicture], list[LabelledPicture]]:
    """Return a share of the groups of pictures, and the rest, which has at least one group."""
    groups = sorted({picture.kept_together for picture in pictures})
    order = rng.permutation(len(groups))
    drawn = {groups[i] for i in order[: min(round(fraction * len(groups)), len(groups) - 1)]}
    inside = [picture for picture in pictures if picture.kept_together in drawn]
    return inside, [picture for picture in pictures if picture.kept_together not in drawn]
