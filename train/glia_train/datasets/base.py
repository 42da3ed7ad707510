"""The table that every dataset becomes: a row a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Columns of a labels file, as `datasets.csv` reads and the demo writes it; `reference` may be left out.
COLUMNS: Final = ("path", "score", "reference")


@dataclass(frozen=True)
class LabelledPicture:
    """One row of a labels file.

    Attributes:
        name: The path as the file writes it.
        path: Where the picture is.
        score: Its label; rises with quality.
        reference: Name of the content it shows, where the file has that column.
    """

    name: str
    path: Path
    score: float
    reference: str | None = None
