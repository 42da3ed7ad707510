"""The demo's report: one HTML file that needs no other file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from glia_export.demo.data import METRIC, METRIC_IN_FULL, PHOTOGRAPHS, DemoPicture
from glia_rt.html import kit
from glia_rt.pixels.decode import read_image
from glia_rt.verify import Parity
from glia_train.metrics import Metrics

THUMBNAILS: Final = 30  # fills whole rows of 2, 3, 5 or 6

_MARKERS: Final = tuple(zip(kit.SERIES, ("o", "^", "s", "D"), strict=True))


@dataclass(frozen=True)
class ScoredPicture:
    """A held-out picture and the score that the exported model gave it, in label units."""

    picture: DemoPicture
    score: float


@dataclass(frozen=True)
class DemoReport:
    """The content of the page.

    Attributes:
        backbone: Name of the backbone. Its weights were random at the start.
        trained: The pictures that the model was trained on.
        held_out: The pictures of the other photographs, at least one, scored with the exported model.
        metrics: Agreement of those scores with the labels.
        parity: The comparisons of the export and of the selftest.
        seconds: Wall-clock time by stage, in order.
        setup: Further facts that the figures depend on: model, epochs, hardware, versions, the command.
        files: Description of each file of the demo's folder, by its name in that folder.
        commands: Command line of each next step, by a description of the step.
    """

    backbone: str
    trained: Sequence[DemoPicture]
    held_out: Sequence[ScoredPicture]
    metrics: Metrics
    parity: Sequence[Parity]
    seconds: Mapping[str, float]
    setup: Mapping[str, str]
    files: Mapping[str, str]
    commands: Mapping[str, str]


def write_report(path: str | os.PathLike[str], report: DemoReport) -> None:
    """Write the page as HTML.

    The file contains its style, plot and thumbnails, and neither scripts nor links.

    Raises:
        BadImageError: The file of a held-out picture cannot be read.
    """
    by_score = sorted(report.held_out, key=lambda scored: scored.score, reverse=True)
    shown = np.linspace(0, len(by_score) - 1, min(THUMBNAILS, len(by_score))).round().astype(int)
    kit.write_page(
        path,
        "glia_export.demo",
        "page.html",
        {"plain": _plain, "duration": _duration, "thumbnail": _thumbnail},
        report=report,
        metric=METRIC,
        metric_in_full=METRIC_IN_FULL,
        credits=[photograph.credit for photograph in PHOTOGRAPHS],
        trained_photographs=_photographs(report.trained),
        held_out_photographs=_photographs([scored.picture for scored in report.held_out]),
        ranked=[(rank + 1, by_score[rank]) for rank in shown],
        scatter=_scatter(report.held_out),
    )


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _photographs(pictures: Sequence[DemoPicture]) -> list[str]:
    return sorted({_plain(picture.reference) for picture in pictures})


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _thumbnail(path: Path) -> str:
    """Return a picture as a thumbnail of its own size, because a smaller one would not show its distortion."""
    return kit.thumbnail(read_image(path))


def _scatter(pictures: Sequence[ScoredPicture]) -> Markup:
    """Return score against label as an <svg> element, with a colour and a marker for each photograph."""
    values = [value for scored in pictures for value in (scored.picture.score, scored.score)]
    margin = 0.04 * (max(values) - min(values)) or 0.1
    limits = (min(values) - margin, max(values) + margin)

    with kit.plot_style():
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.add_subplot(xlim=limits, ylim=limits, aspect="equal")
        axes.axline((0, 0), slope=1, color=kit.FAINT, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
        names = _photographs([scored.picture for scored in pictures])
        for name, (colour, marker) in zip(names, cycle(_MARKERS), strict=False):
            shown = [scored for scored in pictures if _plain(scored.picture.reference) == name]
            x, y = [scored.picture.score for scored in shown], [scored.score for scored in shown]
            axes.scatter(x, y, s=20, c=colour, marker=marker, alpha=0.65, linewidths=0, label=name, zorder=2)
        kit.label_axes(axes, f"label ({METRIC})", f"score ({METRIC} predicted)")
        figure.legend(
            loc="outside upper left",
            ncols=len(_MARKERS),
            frameon=False,
            markerscale=1.4,
            labelcolor=kit.INK,
            handletextpad=0.2,
        )
        return kit.svg(figure)
