"""Metrics of the agreement of scores with labels: SRCC, KRCC, and PLCC and RMSE after VQEG's logistic."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit
from scipy.stats import kendalltau, pearsonr, spearmanr

from glia_rt.errors import UsageError

Floats = npt.NDArray[np.float64]

#: Least number of pictures that the logistic is fitted to. It has four parameters, so it would fit four pictures or
#: fewer exactly, and its metrics would mean nothing.
MIN_PICTURES: Final = 5
#: Evaluations of the logistic after which a fit is given up.
MAX_EVALUATIONS: Final = 10_000


@dataclass(frozen=True)
class Metrics:
    """Agreement of scores with labels.

    A metric that is not defined is NaN, and `note` says why.

    Attributes:
        srcc: Spearman's rank correlation of labels and scores; the logistic is not applied.
        krcc: Kendall's tau-b of labels and scores; the logistic is not applied.
        plcc: Pearson's correlation of labels and scores after the logistic.
        rmse: Root mean squared error of the scores after the logistic, in label units.
        note: Why metrics are NaN; empty where all are defined.
    """

    srcc: float = math.nan
    krcc: float = math.nan
    plcc: float = math.nan
    rmse: float = math.nan
    note: str = ""

    def to_dict(self) -> dict[str, float]:
        """Return the metrics that are defined, by name."""
        figures = {"srcc": self.srcc, "krcc": self.krcc, "plcc": self.plcc, "rmse": self.rmse}
        return {name: value for name, value in figures.items() if not math.isnan(value)}


def compare(scores: npt.ArrayLike, labels: npt.ArrayLike) -> Metrics:
    """Return the metrics of scores against labels. Both rise with quality.

    Args:
        scores: (N,), finite or not.
        labels: (N,), finite.

    Raises:
        UsageError: `scores` and `labels` are not two lists of the same length.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise UsageError(f"scores {x.shape} and labels {y.shape} must be two lists of one length")
    if not np.isfinite(x).all():
        return Metrics(note="a score is not finite")
    if len(x) < 2:
        return Metrics(note="fewer than 2 pictures")
    for what, values in (("score", x), ("label", y)):
        if np.ptp(values) == 0:
            return Metrics(note=f"every picture has the same {what}")
    srcc, krcc = float(spearmanr(x, y).statistic), float(kendalltau(x, y).statistic)
    if len(x) < MIN_PICTURES:
        return Metrics(srcc, krcc, note=f"the logistic needs {MIN_PICTURES} pictures or more")
    try:
        mapped = fit_logistic(x, y)
    except RuntimeError as error:
        return Metrics(srcc, krcc, note=f"the logistic was not fitted: {error}")
    return Metrics(srcc, krcc, float(pearsonr(mapped, y).statistic), float(np.sqrt(np.mean((mapped - y) ** 2))))


def fit_logistic(scores: Floats, labels: Floats) -> Floats:
    """Return scores (N,) mapped to label units (N,) by VQEG's 4-parameter logistic, fitted by least squares.

    The logistic is b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)). The fit starts from [max label, min label, mean score,
    0.5].

    Raises:
        RuntimeError: The fit does not converge, or it ends in a constant.
    """
    start = [labels.max(), labels.min(), scores.mean(), 0.5]
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        # Where scores fit a straight line, the four parameters are not unique, and SciPy warns. Only the curve is used.
        warnings.simplefilter("ignore", OptimizeWarning)
        found, _ = curve_fit(_logistic, scores, labels, p0=start, maxfev=MAX_EVALUATIONS)
        mapped = _logistic(scores, *found)
    if not np.isfinite(mapped).all() or np.ptp(mapped) == 0:
        raise RuntimeError("it ended in a constant")
    return mapped


def _logistic(x: Floats, b1: float, b2: float, b3: float, b4: float) -> Floats:
    step: Floats = expit((x - b3) / np.abs(b4))
    return b2 + (b1 - b2) * step
