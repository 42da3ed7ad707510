"""Check of a dataset as it lies on disk: what its labels say, and whether every picture is there and can be read."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from glia_rt.errors import BadImageError, UsageError
from glia_rt.pipeline import ordered_map
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.names import display_name
from glia_train.datasets.base import PARTS, Dataset, LabelledPicture, missing_pictures

#: Bars of the histogram of scores.
BINS: Final = 10

#: Width and height.
Size: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Scores:
    """The scores of some pictures.

    Attributes:
        pictures: Number of pictures.
        least: Least score.
        mean: Mean score.
        greatest: Greatest score.
    """

    pictures: int
    least: float
    mean: float
    greatest: float


@dataclass(frozen=True)
class Histogram:
    """Counts of scores.

    Attributes:
        edges: Ends of the bars, one more than there are counts.
        counts: Pictures in each bar. A score on an edge counts for the bar above it; the last bar has both its ends.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the pictures that can be read, ordered by their number of pixels.

    Attributes:
        least: The smallest.
        median: The lower median.
        greatest: The largest.
        distinct: Number of different sizes.
    """

    least: Size
    median: Size
    greatest: Size
    distinct: int


@dataclass(frozen=True)
class Lost:
    """A picture that is missing or cannot be read.

    Attributes:
        name: Its name in the dataset.
        reason: What is wrong, with the file.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Check:
    """What a dataset is.

    Attributes:
        dataset: Its name.
        pictures: Number of rows.
        scores: The scores of all.
        score_range: The scale that people rated on, where the dataset declares it.
        histogram: Counts of scores, over the declared range or else over that of the scores.
        parts: Scores by part of the official split; empty without one.
        subsets: Scores by subset; empty where the dataset has none.
        distortions: Scores by distortion; empty where the dataset has none.
        references: Number of references.
        groups: Number of groups of pictures that a split must not part.
        grouped: Number of pictures in these groups.
        leaking: Pictures of the official test part that have a near-duplicate in another part.
        sizes: The sizes; None if no picture can be read.
        missing: Pictures whose files are not there.
        unreadable: Pictures that are there, and cannot be read.
    """

    dataset: str
    pictures: int
    scores: Scores
    score_range: tuple[float, float] | None
    histogram: Histogram
    parts: dict[str, Scores]
    subsets: dict[str, Scores]
    distortions: dict[str, Scores]
    references: int
    groups: int
    grouped: int
    leaking: int
    sizes: Sizes | None
    missing: tuple[Lost, ...]
    unreadable: tuple[Lost, ...]

    @property
    def is_whole(self) -> bool:
        """Return whether every picture is there and can be read."""
        return not (self.missing or self.unreadable)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return {**asdict(self), "is_whole": self.is_whole}


def check_dataset(dataset: Dataset, workers: int, done: Callable[[], object] = lambda: None) -> Check:
    """Decode every picture of a dataset once, in threads, and return what was found.

    Args:
        dataset: The dataset.
        workers: Number of threads.
        done: Is called after each picture.

    Raises:
        UsageError: The dataset has no rows.
    """
    pictures = dataset.pictures
    if not pictures:
        raise UsageError(f"{dataset.name}: no rows")
    lost = {picture.name for picture in missing_pictures(pictures)}
    missing, unreadable = [], []
    sizes: Counter[Size] = Counter()
    with (
        ThreadPoolExecutor(workers, "glia-read") as readers,
        closing(ordered_map(readers, lambda one: None if one.name in lost else _look(one), pictures, ahead=2 * workers))
        as looks,
    ):  # fmt: skip
        for picture, found in zip(pictures, looks, strict=True):
            if found is None:
                missing.append(Lost(picture.name, f"{display_name(picture.path or picture.name)}: no such file"))
            elif isinstance(found, str):
                unreadable.append(Lost(picture.name, found))
            else:
                sizes[found] += 1
            done()
    groups = Counter(picture.group for picture in pictures if picture.group)
    return Check(
        dataset=dataset.name,
        pictures=len(pictures),
        scores=_scores(pictures),
        score_range=dataset.score_range,
        histogram=_histogram(dataset),
        parts=_by(pictures, lambda picture: picture.part, PARTS),
        subsets=_by(pictures, lambda picture: picture.subset),
        distortions=_by(pictures, lambda picture: picture.distortion),
        references=len({picture.reference for picture in pictures if picture.reference}),
        groups=len(groups),
        grouped=groups.total(),
        leaking=len(dataset.leaking),
        sizes=_sizes(sizes),
        missing=tuple(missing),
        unreadable=tuple(unreadable),
    )


def _look(picture: LabelledPicture) -> Size | str:
    """Return the size of a picture, or why it cannot be read."""
    try:
        height, width = read_image(picture.source()).shape[:2]
    except BadImageError as error:
        return str(error) if picture.cell is None else f"{display_name(picture.name)}: {error.reason}"
    return width, height


def _scores(pictures: Sequence[LabelledPicture]) -> Scores:
    scores = [picture.score for picture in pictures]
    return Scores(len(scores), min(scores), statistics.fmean(scores), max(scores))


def _by(
    pictures: Sequence[LabelledPicture],
    key: Callable[[LabelledPicture], str | None],
    order: Sequence[str] = (),
) -> dict[str, Scores]:
    """Return the scores of the pictures by a fact of theirs, in an order, or that of the names."""
    found: dict[str, list[LabelledPicture]] = {}
    for picture in pictures:
        if (name := key(picture)) is not None:
            found.setdefault(name, []).append(picture)
    return {name: _scores(found[name]) for name in order or sorted(found) if name in found}


def _histogram(dataset: Dataset) -> Histogram:
    scores = [picture.score for picture in dataset.pictures]
    least, greatest = dataset.score_range or (min(scores), max(scores))
    whole = Histogram((least, greatest), (len(scores),))
    if not math.isfinite(greatest - least):
        return whole
    try:
        counts, edges = np.histogram(scores, BINS, (least, greatest))
    except ValueError:  # the range is too narrow to be divided in float64
        return whole
    return Histogram(tuple(map(float, edges)), tuple(map(int, counts)))


def _sizes(sizes: Counter[Size]) -> Sizes | None:
    if not sizes:
        return None
    ordered = sorted(sizes.elements(), key=lambda size: (size[0] * size[1], size))
    return Sizes(ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1], len(sizes))
