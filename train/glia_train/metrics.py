"""Metrics of the agreement of scores with labels: SRCC, KRCC, and PLCC and RMSE after VQEG's logistic."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.special import expit
from scipy.stats import kendalltau, pearsonr, spearmanr

from glia_rt.errors import UsageError

Floats = npt.NDArray[np.float64]

#: The metrics, in the order in which they are shown.
NAMES: Final = ("srcc", "krcc", "plcc", "rmse")
#: Least number of pictures that the logistic is fitted to. It has four parameters, so it would fit four pictures or
#: fewer exactly, and its metrics would mean nothing.
MIN_PICTURES: Final = 5
_TOO_FEW: Final = f"the logistic needs {MIN_PICTURES} pictures or more"
#: Evaluations of the logistic after which a fit is given up; a tenth of them where a fit starts from another.
MAX_EVALUATIONS: Final = 10_000
#: Relative tolerance of the squared error at which a fit ends: that of a fit of its own, and that of one which starts
#: from a mapping of similar pictures. Labels that follow a straight line would cost five times the steps for the last
#: digits, and a bootstrap fits a thousand times.
_FINE: Final = 1.5e-8
_COARSE: Final = 1e-6
#: A logistic comes as near to a straight line as one likes. A fit whose squared error is over the line's by more than
#: this share of the labels' variance has ended in a local minimum.
_TOLERANCE: Final = 1e-4


@dataclass(frozen=True)
class Metrics:
    """Agreement of scores with labels.

    A metric that is not defined is NaN, and `note` says why.

    Attributes:
        srcc: Spearman's rank correlation of labels and scores, which are not mapped.
        krcc: Kendall's tau-b of labels and scores, which are not mapped.
        plcc: Pearson's correlation of labels and mapped scores.
        rmse: Root mean squared error of the mapped scores, in label units.
        mapping: How scores were mapped to label units for PLCC and RMSE. It is "linear", a straight line, where the
            logistic could not be fitted. PLCC is then Pearson's correlation of the scores themselves.
        note: Why metrics are NaN, or why the mapping is linear; otherwise empty.
    """

    srcc: float = math.nan
    krcc: float = math.nan
    plcc: float = math.nan
    rmse: float = math.nan
    mapping: Literal["logistic", "linear"] = "logistic"
    note: str = ""

    def to_dict(self) -> dict[str, float]:
        """Return the metrics that are defined, by name."""
        figures = {name: float(getattr(self, name)) for name in NAMES}
        return {name: value for name, value in figures.items() if not math.isnan(value)}


@dataclass(frozen=True)
class ScoreMapping:
    """A curve from scores to label units, fitted by least squares.

    Attributes:
        kind: "logistic", VQEG's b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)); or "linear", slope * x + offset.
        parameters: (b1, b2, b3, b4), or (slope, offset).
        note: Why the logistic was not fitted; empty if it was.
    """

    kind: Literal["logistic", "linear"]
    parameters: tuple[float, ...]
    note: str = ""

    def apply(self, scores: npt.ArrayLike) -> Floats:
        """Return scores (N,) in label units (N,)."""
        x = np.asarray(scores, dtype=np.float64)
        if self.kind == "logistic":
            return _logistic(x, *self.parameters)
        slope, offset = self.parameters
        return slope * x + offset


def compare(scores: npt.ArrayLike, labels: npt.ArrayLike, *, start: ScoreMapping | None = None) -> Metrics:
    """Return the metrics of scores against labels. Both rise with quality.

    Args:
        scores: (N,), finite or not.
        labels: (N,), finite.
        start: A mapping of similar pictures, as for `fit_mapping`.

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
        return Metrics(srcc, krcc, note=_TOO_FEW)
    mapping = fit_mapping(x, y, start=start)
    mapped = mapping.apply(x)
    # A straight line that falls would turn the sign of the correlation.
    plcc = float(pearsonr(x if mapping.kind == "linear" else mapped, y).statistic)
    return Metrics(srcc, krcc, plcc, float(np.sqrt(np.mean((mapped - y) ** 2))), mapping.kind, mapping.note)


def fit_mapping(scores: npt.ArrayLike, labels: npt.ArrayLike, *, start: ScoreMapping | None = None) -> ScoreMapping:
    """Return VQEG's 4-parameter logistic, or a straight line where the logistic cannot be fitted.

    The fit starts from [max label, min label, mean score, 0.5], and again from a quarter of the scores' standard
    deviation in the place of 0.5 where that fails. It fails if it does not converge, or if it ends in a constant or in
    a curve that is worse than a straight line.

    Args:
        scores: (N,), finite, not all equal.
        labels: (N,), finite, not all equal.
        start: A mapping of similar pictures, from which the fit starts first. If it is a straight line, so is the
            result.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    slope = float(np.mean((x - x.mean()) * (y - y.mean())) / x.var())
    line = ScoreMapping("linear", (slope, float(y.mean() - slope * x.mean())))
    if len(x) < MIN_PICTURES:
        return ScoreMapping("linear", line.parameters, _TOO_FEW)
    if start is not None and start.kind == "linear":
        return ScoreMapping("linear", line.parameters, start.note)
    ends = (float(y.max()), float(y.min()), float(x.mean()))
    starts = [((*ends, 0.5), _FINE), ((*ends, float(x.std()) / 4), _FINE)]
    if start is not None:
        b1, b2, b3, b4 = start.parameters
        starts.insert(0, ((b1, b2, b3, b4), _COARSE))
    worst_allowed = np.mean((line.apply(x) - y) ** 2) + _TOLERANCE * y.var()
    limit = MAX_EVALUATIONS if start is None else MAX_EVALUATIONS // 10
    reason = ""
    for one, tolerance in starts:
        try:
            logistic = _fit_logistic(x, y, one, tolerance, limit)
        except RuntimeError as error:
            reason = reason or str(error)
            continue
        if np.mean((logistic.apply(x) - y) ** 2) <= worst_allowed:
            return logistic
        reason = reason or "it ended in a curve that is worse than a straight line"
    note = f"the logistic was not fitted: {reason}; PLCC and RMSE are those of a straight line"
    return ScoreMapping("linear", line.parameters, note)


def _fit_logistic(
    x: Floats, y: Floats, start: tuple[float, float, float, float], tolerance: float, limit: int
) -> ScoreMapping:
    """Return the logistic that a fit ends in.

    Raises:
        RuntimeError: The fit does not converge, or it ends in a constant.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Where scores fit a straight line, the four parameters are not unique, and SciPy warns. Only the curve is used.
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            found, _ = curve_fit(_logistic, x, y, p0=start, jac=_slopes, maxfev=limit, ftol=tolerance)
        except RuntimeError as error:
            raise RuntimeError(f"it did not converge in {limit:,} evaluations") from error
        mapped = _logistic(x, *found)
    if not np.isfinite(mapped).all() or np.ptp(mapped) <= 1e-9 * np.ptp(y):
        raise RuntimeError("it ended in a constant")
    b1, b2, b3, b4 = (float(value) for value in found)
    return ScoreMapping("logistic", (b1, b2, b3, b4))


def _logistic(x: Floats, b1: float, b2: float, b3: float, b4: float) -> Floats:
    step: Floats = expit((x - b3) / np.abs(b4))
    return b2 + (b1 - b2) * step


def _slopes(x: Floats, b1: float, b2: float, b3: float, b4: float) -> Floats:
    """Return the derivatives of the logistic by its parameters, (N, 4)."""
    z = (x - b3) / np.abs(b4)
    step: Floats = expit(z)
    rise = (b1 - b2) * step * (1 - step)
    return np.stack([step, 1 - step, -rise / np.abs(b4), -rise * z / b4], axis=1)
