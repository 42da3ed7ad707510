"""The report of an evaluation: a page of scatter, residuals, the figures by share, and the worst misses as pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from markupsafe import Markup

from glia_rt.errors import BadImageError, GliaError
from glia_rt.html import kit
from glia_rt.pixels.decode import read_image
from glia_train.bootstrap import Interval
from glia_train.evaluate import Evaluation, Prediction
from glia_train.metrics import Floats, ScoreMapping

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How many of the worst misses are shown. They fill whole rows of 5 or 2.
SHOWN: Final = 10

_THUMBNAIL: Final = 320
#: Points of the drawn curve.
_CURVE: Final = 200


@dataclass(frozen=True)
class Miss:
    """A picture whose mapped score is far from its label.

    Attributes:
        prediction: The picture and its score.
        mapped: The score after the logistic, or after the straight line.
        thumbnail: The picture as a data URI; None if it cannot be read any more.
    """

    prediction: Prediction
    mapped: float
    thumbnail: str | None

    @property
    def residual(self) -> float:
        """Return label - mapped score."""
        return self.prediction.picture.score - self.mapped


def write_report(path: str | os.PathLike[str], evaluation: Evaluation) -> None:
    """Write the report: an HTML file that needs nothing beside it. The worst misses are read again.

    Raises:
        GliaError: The report cannot be written.
    """
    predictions, mapping = evaluation.scored.predictions, evaluation.mapping
    scores = np.array([one.score for one in predictions])
    labels = np.array([one.picture.score for one in predictions])
    record = evaluation.to_dict()
    made_with = {name: record[name] for name in ("model", "dataset", "split", "split_by", "seed", "bootstrap")}
    made_with |= {name: value for name, value in evaluation.scored.engine.items() if name != "contract"}
    try:
        kit.write_page(
            path,
            "glia_train",
            "report.html",
            {"plain": kit.plain, "count": "{:,}".format, "three": _three, "figure": _figure, "interval": _interval},
            three=_three,
            figure=_figure,
            evaluation=evaluation,
            mapping=mapping,
            is_binned=len(scores) > kit.POINTS,
            scatter=None if mapping is None else _scatter(scores, labels, mapping),
            residuals=None if mapping is None else _residuals(scores, labels, mapping),
            misses=[] if mapping is None else _worst_misses(predictions, mapping),
            made_with=made_with,
        )
    except OSError as error:
        raise GliaError(f"{path}: the report cannot be written: {error.strerror}") from error


def _three(value: float) -> str:
    """Return three decimals, as for a correlation."""
    return f"{value:.3f}"


def _figure(value: float) -> str:
    """Return three digits, as for an RMSE in any unit."""
    return f"{value:#.3g}".rstrip(".")


def _interval(found: Interval | None, digits: Callable[[float], str] = _three) -> str:
    return "" if found is None else f"{digits(found.low)} to {digits(found.high)}"


def _scatter(scores: Floats, labels: Floats, mapping: ScoreMapping) -> Markup:
    """Return label against score, with the curve that maps scores to label units."""

    def draw(axes: Axes) -> None:
        kit.scatter(axes, scores, labels)
        x = np.linspace(scores.min(), scores.max(), _CURVE)
        axes.plot(x, mapping.apply(x), color=kit.SERIES[1], linewidth=2)
        kit.label_axes(axes, "score", "label")

    return _plot(draw)


def _residuals(scores: Floats, labels: Floats, mapping: ScoreMapping) -> Markup:
    """Return label minus mapped score, against the score."""

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=kit.FAINT, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
        kit.scatter(axes, scores, labels - mapping.apply(scores))
        kit.label_axes(axes, "score", "label minus mapped score")

    return _plot(draw)


def _plot(draw: Callable[[Axes], None]) -> Markup:
    with kit.plot_style():
        figure = kit.new_figure(6, 4.5)
        draw(figure.add_subplot())
        return kit.svg(figure)


def _worst_misses(predictions: Sequence[Prediction], mapping: ScoreMapping) -> list[Miss]:
    """Return the pictures whose mapped scores are farthest from their labels, the farthest first."""
    mapped = mapping.apply([one.score for one in predictions])
    distances = np.abs(mapped - np.array([one.picture.score for one in predictions]))
    worst = np.argsort(-distances, kind="stable")[:SHOWN]
    return [Miss(predictions[i], float(mapped[i]), _thumbnail(predictions[i])) for i in worst]


def _thumbnail(prediction: Prediction) -> str | None:
    try:
        return kit.thumbnail(read_image(prediction.picture.source()), _THUMBNAIL)
    except BadImageError:
        return None
