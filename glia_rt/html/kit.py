"""The parts that the HTML pages share: a style, plots in the page's colours, and thumbnails.

A page is one file and needs nothing else. A plot must take the colours of the page, because an SVG in one colour would
be lost on a light page or on a dark one. Matplotlib cannot write a CSS variable. Plots are therefore drawn in the
colours named here, which nothing else has, and `svg` replaces these by the variables of the page.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from glia_rt import files

# Matplotlib would keep its list of fonts in a folder of its own at home. It reads this variable as it is imported.
if _cache := files.cache_folder("matplotlib"):
    os.environ.setdefault("MPLCONFIGDIR", str(_cache))

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

INK: Final = "#010101"
FAINT: Final = "#020202"
SERIES: Final = ("#030301", "#030302", "#030303", "#030304")

#: Most pictures that are drawn as a point each. The points of more would be a blot, and a file of megabytes.
POINTS: Final = 2_000

_VARIABLES: Final = {INK: "ink", FAINT: "faint"} | {colour: f"series-{i}" for i, colour in enumerate(SERIES, start=1)}


def write_page(
    path: str | os.PathLike[str], package: str, template: str, filters: dict[str, Callable[..., Any]], **values: Any
) -> None:
    """Fill in a template that lies in a package, and write the page.

    The template extends `frame.html`. The page is HTML with its style inside, without scripts and links.

    Raises:
        OSError: The page cannot be written.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("glia_rt.html", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    page = environment.get_template(template).render(**values)
    files.write_whole(Path(path), page)


@contextmanager
def plot_style() -> Iterator[None]:
    """Set how plots are drawn within this context.

    Text stays text, for the page's font and for screen readers. Equal plots give equal files.
    """
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "glia-rt", "font.size": 11, "axes.edgecolor": FAINT}):
        yield


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes, and leave out the frame's right and top."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)


def scatter(axes: Axes, x: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.floating[Any]]) -> None:
    """Draw y (N,) against x (N,), N at least 1, which is positive on a logarithmic axis.

    Each pair is a point. If there are more than `POINTS`, a point shows how many of them fall near it.
    """
    if len(x) <= POINTS:
        axes.scatter(x, y, s=14, c=SERIES[0], alpha=0.5, linewidths=0)
        return
    if axes.get_xscale() == "log":
        edges = np.geomspace(x.min(), max(x.max(), x.min() * 1.01), 31)
        centres = np.sqrt(edges[:-1] * edges[1:])
    else:
        edges = np.linspace(x.min(), max(x.max(), np.nextafter(x.min(), np.inf)), 31)
        centres = (edges[:-1] + edges[1:]) / 2
    counts, _, up = np.histogram2d(x, y, bins=(edges, 24))
    column, row = np.nonzero(counts)
    share = np.log1p(counts[column, row]) / np.log1p(counts.max())
    heights = (up[row] + up[row + 1]) / 2
    axes.scatter(centres[column], heights, s=2 + 60 * share, c=SERIES[0], alpha=0.6, linewidths=0)


def plain(value: Any) -> str:
    """Return a value of a record as people read it: a mapping as names and values, None as "default"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(inner)}" for key, inner in value.items())
    return "default" if value is None else str(value)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches. Call this within `plot_style`."""
    return Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure) -> Markup:
    """Return a figure as an <svg> element in the page's colours. Call this within `plot_style`."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]  # what comes before is only for an SVG file of its own
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text)


def thumbnail(pixels: npt.NDArray[np.uint8], size: int | None = None) -> str:
    """Return a picture, uint8 (H, W, 3), as a data URI: at most `size` pixels on either side, or as it is if None."""
    image = Image.fromarray(pixels)
    if size is not None:
        image.thumbnail((size, size))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
