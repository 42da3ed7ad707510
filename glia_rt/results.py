"""What scoring one picture yields: the row that the API returns and every output file holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, Literal


@dataclass(frozen=True, slots=True)
class Result:
    """One scored picture, or one that could not be.

    Attributes:
        path: The picture's name as it is shown; bytes that are not UTF-8 stand as backslash escapes.
        score: Finite, in label units; float32 in precision. None for a bad image.
        status: "ok", or "bad_image" for a picture that could not be turned into pixels.
        error: Why it could not be; None when ok.
        width: Pixels, upright (EXIF rotation applied); None when the picture could not be read.
        height: Pixels, likewise.
    """

    path: str
    score: float | None
    status: Literal["ok", "bad_image"]
    error: str | None
    width: int | None
    height: int | None

    def to_row(self) -> dict[str, Any]:
        """Values by column; ten times as fast as dataclasses.asdict, which copies each deeply."""
        return {column: getattr(self, column) for column in COLUMNS}


def count_rows(rows: int) -> str:
    """For messages: 1 row, 2 rows."""
    return "1 row" if rows == 1 else f"{rows} rows"


#: Names of the columns of every output, in order.
COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Result))
