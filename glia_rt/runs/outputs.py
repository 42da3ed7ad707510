"""The formats of an output: CSV, JSON Lines or Parquet, with one row a picture.

The metadata of an output say how its scores were made. They are in OUTPUT.meta.json. A Parquet output also holds them
itself, as JSON under the key `glia-rt` of its key-value metadata.
"""

from __future__ import annotations

import codecs
import csv
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

import numpy as np

from glia_rt.errors import UsageError
from glia_rt.files import csv_rows
from glia_rt.listing.frozen import ENDING
from glia_rt.results import COLUMNS, Result

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY: Final = "glia-rt"
ROW_GROUP: Final = 10_000


class Sink(Protocol):
    """A writer of results into a file, in order."""

    def write(self, result: Result) -> None:
        """Add a row."""

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Write the rows held back, and the metadata. The file itself stays open."""


def sink_format(output: Path) -> Callable[[BinaryIO], Sink]:
    """Return the format that the extension of an output's name stands for.

    Returns:
        A function: open file -> sink.

    Raises:
        UsageError: The extension is not that of a format, the folder does not exist, or the output is a folder.
    """
    found = _FORMATS.get(output.suffix.lower())
    if found is None:
        raise UsageError(f"{output}: the output's name must end in one of {', '.join(_FORMATS)}")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.parent}; make it first")
    if output.is_dir():
        raise UsageError(f"{output}: is a folder; name a file")
    return found


def metadata_path(output: Path) -> Path:
    """Return the path of an output's metadata, OUTPUT.meta.json."""
    return output.with_name(output.name + ".meta.json")


def read_rows(output: Path) -> Iterator[Result]:
    """Yield the rows of an output, in order.

    Raises:
        UsageError: It is not an output of glia-rt.
    """
    try:
        for row in _READERS[output.suffix.lower()](output):
            score = row["score"]
            yield Result(**row | {"score": None if score is None else float(np.float32(score))})
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise UsageError(f"{output}: not an output of glia-rt, or damaged ({error})") from error


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv_rows(file)
        header = next(lines, [])
        for line in lines:
            row = dict(zip(header, line, strict=True))
            numbers = {name: kind(row[name]) if row[name] else None for name, kind in _NUMBERS.items()}
            yield row | {"error": row["error"] or None} | numbers


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP, use_threads=False):
            yield from batch.to_pylist()


#: Columns of numbers, and what they are read as.
_NUMBERS: Final[dict[str, Callable[[str], float | int]]] = {"score": float, "width": int, "height": int}
_READERS: Final = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}


def listing_path(output: Path) -> Path:
    """Return the path of the listing that an output's rows are of, OUTPUT.listing.jsonl.zst."""
    return output.with_name(output.name + ".listing" + ENDING)


def format_score(score: float) -> str:
    """Return the fewest decimal digits that read back as the same float32."""
    return str(np.float32(score))


def json_line(result: Result, *, ascii_only: bool = False) -> str:
    """Return a result as one JSON object on one line, without the line break.

    The score is written as `format_score` writes it.

    Args:
        result: The result.
        ascii_only: Write other characters as escapes of JSON.
    """
    line = json.dumps(_record(result), ensure_ascii=ascii_only, allow_nan=False)
    return line if line.isprintable() else "".join(map(_json_escaped, line))


def _json_escaped(char: str) -> str:
    """Return a character as JSON escapes it, if it would command a terminal."""
    return char if char.isprintable() else json.dumps(char)[1:-1].replace("\x7f", "\\u007f")


def _record(result: Result) -> dict[str, Any]:
    record = result.to_row()
    if result.score is not None:
        record["score"] = float(format_score(result.score))
    return record


class _Csv:
    """CSV of RFC 4180, in UTF-8: a header, and lines that end in CRLF. None is an empty cell."""

    def __init__(self, file: BinaryIO) -> None:
        # Another reason for CRLF: if lines end in LF, Python 3.11 leaves a lone CR inside a name unquoted.
        self._writer = csv.DictWriter(codecs.getwriter("utf-8")(file), COLUMNS, lineterminator="\r\n")
        self._writer.writeheader()

    def write(self, result: Result) -> None:
        self._writer.writerow(_record(result))

    def finish(self, metadata: Mapping[str, Any]) -> None:
        pass


class _Jsonl:
    """JSON Lines, in UTF-8: one JSON object a line. None is null."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, result: Result) -> None:
        self._file.write(f"{json_line(result)}\n".encode())

    def finish(self, metadata: Mapping[str, Any]) -> None:
        pass


def arrow_schema() -> pa.Schema:
    """Return the columns of a `Result` and their types."""
    # pyarrow is imported here because that takes longer than importing all the rest of the runtime.
    import pyarrow as pa

    types = (pa.string(), pa.float32(), pa.string(), pa.string(), pa.int32(), pa.int32())
    return pa.schema(list(zip(COLUMNS, types, strict=True)))


class _Parquet:
    """Parquet: typed columns, compressed with zstd. None is null.

    Rows are written in row groups of ROW_GROUP, which bounds the memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        schema = arrow_schema()
        self._to_batch = functools.partial(pa.RecordBatch.from_pylist, schema=schema)
        self._writer = parquet.ParquetWriter(file, schema, compression="zstd")
        self._held: list[dict[str, Any]] = []

    def write(self, result: Result) -> None:
        self._held.append(result.to_row())
        if len(self._held) == ROW_GROUP:
            self._write_group()

    def finish(self, metadata: Mapping[str, Any]) -> None:
        if self._held:
            self._write_group()
        self._writer.add_key_value_metadata({METADATA_KEY: json.dumps(metadata)})
        self._writer.close()

    def _write_group(self) -> None:
        self._writer.write_batch(self._to_batch(self._held))
        self._held.clear()


_FORMATS: Final[dict[str, Callable[[BinaryIO], Sink]]] = {".csv": _Csv, ".jsonl": _Jsonl, ".parquet": _Parquet}
