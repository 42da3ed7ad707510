"""The result of scoring one picture: the row that the API returns and that every output file holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, Literal


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one picture: its score, or why it has none.

    Attributes:
        path: The picture's name as it is shown. Bytes that are not UTF-8 stand as backslash escapes.
        score: Finite, on the model's scale, of float32 precision. None unless `status` is "ok".
        status: "ok"; "bad_image" for a picture that cannot be turned into pixels; or "machine_error" for one at which
            the machine failed, so that another try may succeed.
        error: Why there is no score. None if `status` is "ok".
        width: In pixels, of the upright picture (EXIF rotation applied). None if the picture could not be read.
        height: In pixels, likewise.
    """

    path: str
    score: float | None
    status: Literal["ok", "bad_image", "machine_error"]
    error: str | None
    width: int | None
    height: int | None

    def to_row(self) -> dict[str, Any]:
        """Return the values by column. Ten times as fast as dataclasses.asdict, which copies each value deeply."""
        return {column: getattr(self, column) for column in COLUMNS}


def count_rows(rows: int) -> str:
    """Return a number of rows as messages write it: 1 row, 2 rows."""
    return "1 row" if rows == 1 else f"{rows} rows"


#: Names of the columns of every output, in order.
COLUMNS: Final = tuple(field.name for field in dataclasses.fields(Result))
