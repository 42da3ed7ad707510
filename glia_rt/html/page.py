"""What the HTML pages share: a style, plots that take the page's colours, thumbnails. Nothing but the file is needed.

Matplotlib cannot write a CSS variable, and an SVG in one colour would be lost on a light page or on a dark one: plots
are drawn in the colours here, which nothing else has, and these become the page's.
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
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from glia_rt import files

INK: Final = "#010101"
FAINT: Final = "#020202"
SERIES: Final = ("#030301", "#030302", "#030303", "#030304")

_VARIABLES: Final = {INK: "ink", FAINT: "faint"} | {colour: f"series-{i}" for i, colour in enumerate(SERIES, start=1)}


def write_page(
    path: str | os.PathLike[str], package: str, template: str, filters: dict[str, Callable[..., Any]], **values: Any
) -> None:
    """Fill in a template that lies in a package, and write it: HTML with its style inside, without scripts and links.

    The template extends `frame.html`.

    Raises:
        OSError: It cannot be written.
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
    """How plots are drawn: text stays text, for the page's font and for screen readers; equal plots are equal files."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "glia-rt", "font.size": 11, "axes.edgecolor": FAINT}):
        yield


def label_axes(axes: Axes, x: str, y: str) -> None:
    """Name both axes, and leave out the frame's right and top."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.tick_params(which="both", color=FAINT, labelcolor=INK)
    axes.spines[["top", "right"]].set_visible(False)


def svg(figure: Figure) -> Markup:
    """A figure as an <svg> element in the page's colours; to be called within `plot_style`."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]  # what comes before belongs to a file of its own
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return Markup(text)


def thumbnail(pixels: npt.NDArray[np.uint8], size: int | None = None) -> str:
    """A picture, uint8 (H, W, 3), as a data URI: of `size` pixels at most on either side, or as it is."""
    image = Image.fromarray(pixels)
    if size is not None:
        image.thumbnail((size, size))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=90)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
