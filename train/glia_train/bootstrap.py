"""Bootstrap of metrics: intervals of one model's metrics, and of the difference of two models' SRCC.

A resample draws groups of pictures with replacement, as many as there are. A group is what a split keeps together: the
pictures of one reference, or near-duplicates. The pictures of a group resemble each other, so that single pictures,
drawn one by one, would give intervals that are too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from glia_rt.errors import UsageError
from glia_train.metrics import NAMES, Floats, compare, fit_mapping

#: Number of resamples. The ends of an interval then vary by about a tenth of its width from seed to seed.
RESAMPLES: Final = 1_000
#: Share of the resamples that an interval holds.
LEVEL: Final = 0.95
#: Least number of groups. The resamples of fewer are too few and too alike.
MIN_GROUPS: Final = 5
#: Least share of the resamples on which a metric must be defined.
_DEFINED: Final = 0.9


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval.

    Attributes:
        low: The lower end; 2.5 % of the resamples are below.
        high: The upper end; 2.5 % of the resamples are above.
    """

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Return whether 0 lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """The difference of two models' SRCC on the same pictures.

    Attributes:
        pictures: Number of pictures.
        first: SRCC of the first model; NaN where it is not defined.
        second: SRCC of the second model, likewise.
        interval: Interval of `first` - `second`; None where there is none, as for `intervals`.
    """

    pictures: int
    first: float
    second: float
    interval: Interval | None

    @property
    def value(self) -> float:
        """Return `first` - `second`."""
        return self.first - self.second


def intervals(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: Sequence[str],
    *,
    seed: int,
    names: Sequence[str] = NAMES,
    resamples: int = RESAMPLES,
) -> dict[str, Interval]:
    """Return the intervals of metrics, by name.

    The logistic is fitted anew to each resample, starting from the curve of all pictures. A resample to which it cannot
    be fitted takes a straight line. Every resample takes one if all pictures together do.

    Args:
        scores: (N,), finite.
        labels: (N,), finite.
        groups: Name of the group of each picture, N of them.
        seed: Fixes what is drawn.
        names: Which metrics, of `metrics.NAMES`.
        resamples: Number of resamples.

    Returns:
        The intervals. A metric has none if there are fewer than `MIN_GROUPS` groups, or if it is not defined on a tenth
        of the resamples.

    Raises:
        UsageError: The three are not of one length.
    """
    x, y = _paired(scores, labels, groups)
    values: dict[str, list[float]] = {name: [] for name in names}
    if len(x) and np.ptp(x) > 0 and np.ptp(y) > 0:
        start = fit_mapping(x, y) if {"plcc", "rmse"} & set(names) else None
        for drawn in _resamples(groups, seed, resamples):
            if set(names) == {"srcc"}:
                values["srcc"].append(srcc(x[drawn], y[drawn]))
                continue
            metrics = compare(x[drawn], y[drawn], start=start)
            for name in names:
                values[name].append(float(getattr(metrics, name)))
    found = {name: _interval(np.array(column), resamples) for name, column in values.items()}
    return {name: one for name, one in found.items() if one is not None}


def srcc_difference(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: Sequence[str],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Difference:
    """Return the difference of two models' SRCC on the same pictures, with its interval.

    The bootstrap is paired: both models are measured on the same resample. Pictures that are hard for both models then
    do not widen the interval.

    Args:
        first: (N,), finite, scores of the first model.
        second: (N,), finite, scores of the second model.
        labels: (N,), finite.
        groups: Name of the group of each picture, N of them.
        seed: Fixes what is drawn.
        resamples: Number of resamples.

    Raises:
        UsageError: The four are not of one length.
    """
    a, y = _paired(first, labels, groups)
    b, _ = _paired(second, labels, groups)
    found = interval(lambda at: srcc(a[at], y[at]) - srcc(b[at], y[at]), groups, seed=seed, resamples=resamples)
    return Difference(len(y), srcc(a, y), srcc(b, y), found)


def interval(
    statistic: Callable[[npt.NDArray[np.intp]], float],
    groups: Sequence[str],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Return the interval of any statistic of some pictures.

    Args:
        statistic: Takes the indices (M,) of the pictures of a resample, some of them several times, and returns the
            statistic, or NaN where it is not defined.
        groups: Name of the group of each picture.
        seed: Fixes what is drawn.
        resamples: Number of resamples.

    Returns:
        The interval, or None where there is none, as for `intervals`.
    """
    values = [statistic(drawn) for drawn in _resamples(groups, seed, resamples)]
    return _interval(np.array(values), resamples)


def _paired(scores: npt.ArrayLike, labels: npt.ArrayLike, groups: Sequence[str]) -> tuple[Floats, Floats]:
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(groups) != len(x):
        raise UsageError(f"scores {x.shape}, labels {y.shape} and {len(groups)} groups must be lists of one length")
    return x, y


def _resamples(groups: Sequence[str], seed: int, count: int) -> Iterator[npt.NDArray[np.intp]]:
    """Yield the pictures of each resample, by index. A picture may be there several times.

    There are no resamples if there are fewer than `MIN_GROUPS` groups.
    """
    # scipy.stats.bootstrap is passed over. It resamples single observations and knows no groups, and one resample on
    # which a metric is not defined makes its whole interval NaN.
    names, numbers = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < MIN_GROUPS:
        return
    members, sizes = np.argsort(numbers, kind="stable"), np.bincount(numbers)
    starts = np.cumsum(sizes) - sizes
    rng = np.random.default_rng(seed)
    for _ in range(count):
        drawn = rng.integers(len(names), size=len(names))
        ends = np.cumsum(sizes[drawn])
        # Place i of the resample is in a group that begins at `starts` of the members and at `ends - sizes` of it.
        yield members[np.arange(ends[-1]) + np.repeat(starts[drawn] - ends + sizes[drawn], sizes[drawn])]


def srcc(x: Floats, y: Floats) -> float:
    """Return Spearman's rank correlation, or NaN where it is not defined. SciPy's would warn of that."""
    mean = (len(x) + 1) / 2
    a, b = rankdata(x) - mean, rankdata(y) - mean
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def _interval(values: Floats, resamples: int) -> Interval | None:
    defined = values[np.isfinite(values)]
    if len(defined) < max(1, _DEFINED * resamples):
        return None
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
