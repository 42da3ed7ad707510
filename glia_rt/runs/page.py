"""The report of a run: a page of the distribution of scores, the best and worst pictures, and the unreadable ones."""

from __future__ import annotations

import contextlib
import heapq
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from markupsafe import Markup

from glia_rt.errors import BadImageError, GliaError, SourceError, UsageError
from glia_rt.html import kit
from glia_rt.listing.frozen import FrozenListing
from glia_rt.listing.pieces import Position
from glia_rt.pixels.decode import read_image
from glia_rt.results import Result

if TYPE_CHECKING:
    from glia_rt.scorer import Scorer

#: How many of the best pictures, and of the worst, are shown. They fill whole rows of 5 or 2.
SHOWN: Final = 10

_THUMBNAIL: Final = 320
#: Most kinds of errors that are told apart.
_KINDS: Final = 100


@dataclass(frozen=True, order=True)
class _Ranked:
    """A picture among the best or the worst.

    `rank` rises with how much the picture belongs there. Of pictures with equal scores, the first ranks highest.
    """

    rank: tuple[float, int]
    position: Position = field(compare=False)
    result: Result = field(compare=False)


def write_report(
    path: str | os.PathLike[str],
    rows: Iterable[tuple[Position, Result]],
    listing: FrozenListing,
    scorer: Scorer,
    run: Mapping[str, Any],
) -> None:
    """Write the report: an HTML file that needs nothing beside it.

    Args:
        path: The file to write.
        rows: Results in order, with their positions in the listing. They are walked once. Only their scores and sizes
            are held in memory.
        listing: The listing. Its best and worst pictures are read again for their thumbnails.
        scorer: What scored the pictures. The report needs its contract and limits.
        run: How the pictures were scored, which the report shows (`runs.run.describe`).

    Raises:
        GliaError: The report cannot be written.
    """
    scores, megapixels = array("f"), array("f")
    best: list[_Ranked] = []
    worst: list[_Ranked] = []
    errors: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for number, (position, result) in enumerate(rows):
        if result.score is None or result.width is None or result.height is None:
            kind = _kind(result.error or "")
            if kind not in errors and len(errors) >= _KINDS:
                kind = "other reasons"  # some errors quote the damage itself, so that no two are equal
            errors[kind] += 1
            examples.setdefault(kind, result.path)
            continue
        scores.append(result.score)
        megapixels.append(result.width * result.height / 1e6)
        for heap, value in ((best, result.score), (worst, -result.score)):
            item = _Ranked((value, -number), position, result)
            if len(heap) < SHOWN:
                heapq.heappush(heap, item)
            elif item > heap[0]:
                heapq.heapreplace(heap, item)
    shown = {ranked.position: ranked.result.path for ranked in (*best, *worst)}
    thumbnails = _thumbnails(listing, shown, scorer.max_pixels)
    values, sizes = np.asarray(scores), np.asarray(megapixels)
    try:
        kit.write_page(
            path,
            "glia_rt.runs",
            "page.html",
            {"plain": kit.plain, "count": "{:,}".format},
            run=run,
            contract=scorer.contract,
            scored=len(scores),
            is_binned=len(scores) > kit.POINTS,
            quantiles=_quantiles(values),
            histogram=_histogram(values) if len(scores) else None,
            by_size=_by_size(sizes, values) if len(scores) else None,
            errors=[(kind, count, examples[kind]) for kind, count in errors.most_common()],
            best=[(item.result, thumbnails.get(item.position)) for item in sorted(best, reverse=True)],
            worst=[(item.result, thumbnails.get(item.position)) for item in sorted(worst, reverse=True)],
        )
    except OSError as error:
        raise GliaError(f"{path}: the report cannot be written: {error.strerror}") from error


def _kind(error: str) -> str:
    """Return an error without the numbers in it, so that equal causes count as one."""
    return re.sub(r"\d+", "N", error)


def _quantiles(scores: np.ndarray) -> dict[str, float]:
    if not len(scores):
        return {}
    levels = {"least": 0, "5 % are below": 5, "median": 50, "5 % are above": 95, "greatest": 100}
    return {name: float(np.percentile(scores, level)) for name, level in levels.items()}


def _thumbnails(listing: FrozenListing, wanted: Mapping[Position, str], max_pixels: int) -> dict[Position, str]:
    """Return thumbnails of the pictures at these positions, which are read again.

    A position has no thumbnail if the picture there has another name now, or cannot be read.
    """
    found: dict[Position, str] = {}
    pieces = {position.piece for position in wanted}
    # All pictures are scored by now. What has gone since must not keep their rows from being written.
    with contextlib.suppress(SourceError, UsageError):
        for number, piece in enumerate(listing.pieces()):
            if number not in pieces:
                continue
            places = sorted(position.picture for position in wanted if position.piece == number)
            with contextlib.suppress(SourceError):
                for i, picture in enumerate(piece.pictures(places[0]), places[0]):
                    if picture.source is not None and picture.name == wanted.get(Position(number, i)):
                        with contextlib.suppress(BadImageError):
                            pixels = read_image(picture.source, max_pixels=max_pixels)
                            found[Position(number, i)] = kit.thumbnail(pixels, _THUMBNAIL)
                    if i == places[-1]:
                        break
    return found


def _histogram(scores: np.ndarray) -> Markup:
    with kit.plot_style():
        figure = kit.new_figure(7, 3.5)
        axes = figure.add_subplot()
        axes.hist(scores, bins=min(60, max(5, round(len(scores) ** 0.5))), color=kit.SERIES[0])
        kit.label_axes(axes, "score", "pictures")
        return kit.svg(figure)


def _by_size(megapixels: np.ndarray, scores: np.ndarray) -> Markup:
    """Return a plot of score against size."""
    with kit.plot_style():
        figure = kit.new_figure(7, 4)
        axes = figure.add_subplot(xscale="log")
        kit.scatter(axes, megapixels, scores)
        kit.label_axes(axes, "megapixels", "score")
        return kit.svg(figure)
