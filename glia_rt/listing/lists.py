"""Names of pictures in a list: a name a line, names that end in NUL, or a column of a CSV.

A list is never held in memory whole: of a list of names one block is, of a CSV one row, which has a limit.
"""

from __future__ import annotations

import codecs
import csv
import os
from collections.abc import Iterator
from io import BufferedReader
from typing import Final, TextIO

from glia_rt.errors import SourceError, UsageError
from glia_rt.files import csv_rows
from glia_rt.listing.pieces import Refused
from glia_rt.pixels.names import display_name

#: Longest name, in bytes. No system opens a file with a name this long.
MAX_NAME: Final = 1 << 16
#: Most characters and lines in a row of a CSV. A row may have a whole picture in base64 beside its path. A row that is
#: longer begins with a quote that nothing closes.
MAX_ROW: Final = 1 << 24
MAX_LINES: Final = 10_000


def list_entries(path: str, column: str, null_separated: bool) -> Iterator[str | Refused]:
    """Yield the names in a list. In a .csv or .tsv file, they are the values of a column.

    A row of such a file that has no value, is badly quoted or is too long is refused.

    Raises:
        UsageError: The file is not a list, or has no such column.
        SourceError: The list cannot be read.
    """
    try:
        if path.lower().endswith((".csv", ".tsv")):
            yield from _column(path, column, "excel-tab" if path.lower().endswith(".tsv") else "excel")
        else:
            with open(path, "rb") as file:
                yield from names(file, display_name(path), null_separated)
    except OSError as error:
        raise SourceError(f"{display_name(path)}: this list cannot be read: {error.strerror}") from error


def names(file: BufferedReader, called: str, null_separated: bool) -> Iterator[str]:
    """Yield one name a line, or one name up to each NUL. Empty names are skipped.

    Args:
        file: The file of names. It is read only as far as names are asked for.
        called: The file's name in messages.
        null_separated: Whether names end in NUL.

    Raises:
        UsageError: The file does not hold names.
    """
    end, rest = b"\0" if null_separated else b"\n", b""
    block = file.read1(MAX_NAME)
    while block and len(block) < len(codecs.BOM_UTF8) and codecs.BOM_UTF8.startswith(block):
        more = file.read1(MAX_NAME)  # a pipe may bring its bytes one by one
        if not more:
            break
        block += more
    block = block.removeprefix(codecs.BOM_UTF8) or file.read1(MAX_NAME)
    while block:
        *whole, rest = (rest + block).split(end)
        if len(rest) > MAX_NAME:
            raise UsageError(
                f"{called}: no name ends within {MAX_NAME} bytes; this is no list, or "
                + ("its names do not end in NUL: leave out -0" if null_separated else "its names end in NUL: give -0")
            )
        yield from _decoded(whole, called, null_separated)
        block = file.read1(MAX_NAME)
    yield from _decoded([rest], called, null_separated)


def _decoded(found: list[bytes], called: str, null_separated: bool) -> Iterator[str]:
    for name in found:
        if not null_separated:
            name = name.removesuffix(b"\r")
            if b"\0" in name:
                raise UsageError(f"{called}: there are NULs in it; give -0 if its names end so, or save it as UTF-8")
        if name:
            yield os.fsdecode(name)


def _column(path: str, column: str, dialect: str) -> Iterator[str | Refused]:
    # Bytes that are not UTF-8 stand as lone surrogates, as everywhere in `os`.
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = _Lines(file)
        rows = csv_rows(lines, dialect)
        try:
            header = next(rows, [])
        except csv.Error as error:
            raise UsageError(f"{display_name(path)}, line 1: {error}") from error
        if column not in header:
            raise UsageError(
                f"{display_name(path)}: no column {column!r}; its first line has {', '.join(header)}: name one with "
                "--column"
            )
        if header.count(column) > 1:
            raise UsageError(f"{display_name(path)}: several columns are called {column!r}; rename all but one")
        place = header.index(column)
        while True:
            line = lines.begin_row()
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield Refused(f"{path}, line {line}", str(error))
                # A quote that was left open has taken in lines that are rows of their own.
                for number, text in enumerate(lines.taken[1:], line + 1):
                    value = _value_of_line(text, dialect, len(header), place)
                    yield value or Refused(f"{path}, line {number}", f"in the row of line {line}")
                continue
            if row:
                value = row[place] if place < len(row) else ""
                yield value or Refused(f"{path}, line {line}", f"no value in column {column!r}")


class _Lines:
    """The lines of a CSV. Those of one row are kept until the next row begins.

    Attributes:
        taken: The lines of the row so far.
    """

    def __init__(self, file: TextIO) -> None:
        self.taken: list[str] = []
        self._file = file
        self._before = 0  # lines before this row
        self._size = 0  # of the row, in characters

    def begin_row(self) -> int:
        """Forget the lines of the row before; returns the number of the line on which the next row begins."""
        self._before += len(self.taken)
        self._size = 0
        self.taken.clear()
        return self._before + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Return the next line.

        Raises:
            csv.Error: The row is longer than a row may be. The lines after it can still be read.
        """
        if len(self.taken) == MAX_LINES:
            raise csv.Error(f"a row of over {MAX_LINES} lines: a quote is not closed")
        text = self._file.readline(MAX_ROW)
        if not text:
            raise StopIteration
        is_whole = len(text) < MAX_ROW or text.endswith(("\n", "\r"))
        self.taken.append(text if is_whole else "")  # a name that is cut off would be another name
        self._size += len(text)
        if self._size < MAX_ROW:
            return text
        while text and not text.endswith(("\n", "\r")):
            text = self._file.readline(MAX_ROW)
        raise csv.Error(f"a row of over {MAX_ROW} characters")


def _value_of_line(text: str, dialect: str, columns: int, place: int) -> str | None:
    """Return the value of a column, if a line is a whole row by itself."""
    try:
        [row] = csv_rows([text], dialect)
    except (csv.Error, ValueError):
        return None
    return row[place] if len(row) == columns else None
