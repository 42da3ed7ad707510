"""Split of a dataset into a training part and a held-out part."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from glia_rt.errors import UsageError
from glia_train.datasets.base import COLUMNS, LabelledPicture

TRAIN_FRACTION: Final = 0.8
#: Least number of references (or pictures) that can be split 80 to 20.
MIN_GROUPS: Final = 5


@dataclass(frozen=True)
class Split:
    """The two parts of a dataset, each sorted by name.

    Attributes:
        train: About 80 % of the references, or of the pictures where there are no references.
        test: The held-out rest.
        by: What was drawn. If it is "reference", no content is in both parts.
    """

    train: tuple[LabelledPicture, ...]
    test: tuple[LabelledPicture, ...]
    by: Literal["reference", "picture"]

    def to_csv(self) -> str:
        """Return the split as a CSV of path,score,reference,split; the last column is "train" or "test"."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow([*COLUMNS, "split"])
        for part, pictures in (("train", self.train), ("test", self.test)):
            writer.writerows([p.name, p.score, p.reference, part] for p in pictures)
        return table.getvalue()


def split_pictures(pictures: Iterable[LabelledPicture], seed: int) -> Split:
    """Split pictures at random into a training part and a held-out part, 80 to 20.

    The parts are drawn from sorted names, so that only the seed decides.

    Args:
        pictures: Either all have a reference, or none has.
        seed: At least 0.

    Raises:
        UsageError: There are too few references or pictures, or all training pictures have the same score.
    """
    pictures = sorted(pictures, key=lambda picture: picture.name)
    by: Literal["reference", "picture"] = "reference" if pictures[0].reference is not None else "picture"
    groups = sorted({picture.reference or picture.name for picture in pictures})
    if len(groups) < MIN_GROUPS:
        advice = "; without the reference column the split is by picture" if by == "reference" else ""
        raise UsageError(f"an 80/20 split by {by} needs at least {MIN_GROUPS}, the labels have {len(groups)}{advice}")
    order = np.random.default_rng(seed).permutation(len(groups))
    drawn = {groups[i] for i in order[: round(TRAIN_FRACTION * len(groups))]}
    train = tuple(picture for picture in pictures if (picture.reference or picture.name) in drawn)
    test = tuple(picture for picture in pictures if (picture.reference or picture.name) not in drawn)
    if len({picture.score for picture in train}) == 1:
        raise UsageError(
            f"every training picture has the score {train[0].score:g}: give another --seed, or more pictures"
        )
    return Split(train, test, by)
