"""The figures of every epoch of a run: a table, and a picture of its curves."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

_METRICS: Final = ("srcc", "krcc", "plcc", "rmse", "mapping")
#: The columns of metrics.csv. The metrics are those of the validation part.
COLUMNS: Final = ("epoch", "loss", "lr", "crops_per_s", "waiting", *_METRICS, "seconds")

Rows = Sequence[Mapping[str, Any]]


def table(rows: Rows) -> str:
    """Return the rows as a CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plot(rows: Rows) -> bytes:
    """Return a PNG of loss and learning rate, and of the validation part's correlations, over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in rows]
    left.plot(epochs, [row["loss"] for row in rows], marker=".", color="C0")
    left.set_ylabel("loss", color="C0")
    rate = left.twinx()
    rate.plot(epochs, [row["lr"] for row in rows], linestyle=":", color="C1")
    rate.set_ylabel("learning rate at the end of the epoch", color="C1")
    rate.set_ylim(bottom=0)
    for name in ("srcc", "plcc"):
        right.plot(epochs, [row.get(name, float("nan")) for row in rows], marker=".", label=name.upper())
    right.set_ylabel("correlation with the labels, validation part")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.set_xlim(0.5, len(rows) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()
