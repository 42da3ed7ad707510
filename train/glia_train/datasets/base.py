"""The table that every dataset is read into, with one row for each picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Columns of a labels file, which `datasets.csv` reads and the demo writes; `reference` may be left out.
COLUMNS: Final = ("path", "score", "reference")


@dataclass(frozen=True)
class LabelledPicture:
    """One row of a labels file.

    Attributes:
        name: The path as it stands in the labels file.
        path: The file of the picture.
        score: The label. It rises with quality.
        reference: Name of the content that the picture shows; None where the labels file lacks that column.
    """

    name: str
    path: Path
    score: float
    reference: str | None = None
