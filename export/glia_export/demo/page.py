"""The demo's report: one HTML file that needs no other file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from markupsafe import Markup

from glia_export.demo.data import PHOTOGRAPHS
from glia_export.demo.score import Scored
from glia_export.demo.tune import Tuned
from glia_rt.html import kit
from glia_rt.pixels.decode import read_image
from glia_train.distortions import DISTORTIONS, LEVELS, UNORDERED
from glia_train.metrics import compare
from glia_train.ranking import HELD_OUT

#: Distortions whose copies are shown, one of each kind, and the levels that are.
SHOWN: Final = ("gaussian_blur", "white_noise", "jpeg", "color_saturation_2", "darken", "color_block")
SHOWN_LEVELS: Final = (0, 1, 3, 5)
#: Columns of the plot of all distortions.
COLUMNS: Final = 5
THUMBNAIL: Final = 320


@dataclass(frozen=True)
class DemoReport:
    """The content of the page.

    Attributes:
        scored: All photographs and copies, scored with the starter.
        tuned: What came of the fine-tuning.
        seconds: Wall-clock time by stage, in order.
        setup: Further facts that the figures depend on: backend, hardware, versions.
        files: Description of each file of the demo's folder, by its name in that folder.
        commands: Command line of each next step, by a description of the step.
    """

    scored: Sequence[Scored]
    tuned: Tuned
    seconds: Mapping[str, float]
    setup: Mapping[str, str]
    files: Mapping[str, str]
    commands: Mapping[str, str]


def write_report(path: str | os.PathLike[str], report: DemoReport) -> None:
    """Write the page as HTML.

    The file contains its style, plot and thumbnails, and neither scripts nor links.

    Raises:
        BadImageError: The file of a picture cannot be read.
    """
    originals = [one for one in report.scored if one.copy.level == 0]
    originals.sort(key=lambda one: one.score, reverse=True)
    shown_photograph = originals[len(originals) // 4].copy.photograph  # a good one, so that there is room to fall
    held_out = {one.copy.path for one in report.tuned.held_out}
    kit.write_page(
        path,
        "glia_export.demo",
        "page.html",
        {"plain": _plain, "duration": _duration, "thumbnail": _thumbnail},
        report=report,
        originals=originals,
        above=_above(report.scored),
        severe=len(_severe(report.scored)),
        lines=_lines(report.scored),
        shown_photograph=shown_photograph,
        shown={name: row for name in SHOWN if len(row := _row(report.scored, shown_photograph, name)) > 1},
        before=_agreement([one for one in report.scored if one.copy.path in held_out]),
        after=_agreement(report.tuned.held_out),
        unordered=UNORDERED,
        held_out=HELD_OUT,
        credits=[photograph.credit for photograph in PHOTOGRAPHS],
    )


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _thumbnail(path: Path) -> str:
    return kit.thumbnail(read_image(path), THUMBNAIL)


def _agreement(scored: Sequence[Scored]) -> float:
    """Return the rank correlation of scores with the labels of the fine-tuning."""
    return compare([one.score for one in scored], [-one.copy.level for one in scored]).srcc


def _curve(scored: Sequence[Scored], photograph: str, distortion: str) -> list[float]:
    """Return the scores of a photograph and its copies, by level."""
    found = {one.copy.level: one.score for one in scored if _belongs(one, photograph, distortion)}
    return [found[level] for level in range(LEVELS + 1)]


def _belongs(one: Scored, photograph: str, distortion: str) -> bool:
    return one.copy.photograph == photograph and one.copy.distortion in (None, distortion)


def _row(scored: Sequence[Scored], photograph: str, distortion: str) -> list[Scored]:
    return [one for one in scored if _belongs(one, photograph, distortion) and one.copy.level in SHOWN_LEVELS]


def _severe(scored: Sequence[Scored]) -> list[Scored]:
    """Return the copies of the highest level, of distortions that get worse with it."""
    return [one for one in scored if one.copy.level == LEVELS and one.copy.distortion not in UNORDERED]


def _above(scored: Sequence[Scored]) -> list[tuple[Scored, float]]:
    """Return those of them that score above their photographs, and by how much, the worst first."""
    originals = {one.copy.photograph: one.score for one in scored if one.copy.level == 0}
    severe = [(one, one.score - originals[one.copy.photograph]) for one in _severe(scored)]
    return sorted(((one, by) for one, by in severe if by > 0), key=lambda pair: -pair[1])


def _lines(scored: Sequence[Scored]) -> Markup:
    """Return score against level, a small plot for each distortion: a thin line a photograph, and their mean."""
    photographs = sorted({one.copy.photograph for one in scored})
    names = [name for name in DISTORTIONS if any(one.copy.distortion == name for one in scored)]
    rows = -(-len(names) // COLUMNS)
    with kit.plot_style():
        figure = kit.new_figure(10, 2 * rows)
        grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            curves = np.array([_curve(scored, photograph, name) for photograph in photographs])
            axes.plot(curves.T, color=kit.FAINT, linewidth=0.6, alpha=0.6)
            axes.plot(curves.mean(axis=0), color=kit.SERIES[0], linewidth=2)
            kit.label_axes(axes, "", "")
            axes.set_title(_plain(name), color=kit.INK, fontsize=10)
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("level", color=kit.INK)
        for axes in grid[:, 0]:
            axes.set_ylabel("score", color=kit.INK)
        return kit.svg(figure)
