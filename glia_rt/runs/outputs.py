"""Formats of the output: one row a picture as CSV, JSON Lines or Parquet, with how the scores were made beside them.

How they were made is in OUTPUT.meta.json, and in a Parquet file also as JSON under the key `glia-rt` of its key-value
metadata.
"""

from __future__ import annotations

import codecs
import csv
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

import numpy as np

from glia_rt.errors import UsageError
from glia_rt.results import COLUMNS, Result

if TYPE_CHECKING:
    import pyarrow as pa

METADATA_KEY: Final = "glia-rt"
ROW_GROUP: Final = 10_000


class Sink(Protocol):
    """Results on their way into a file, in order."""

    def write(self, result: Result) -> None:
        """Add a row."""

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Write what is held back, and how the scores were made; the file itself stays open."""


def sink_format(output: Path) -> Callable[[BinaryIO], Sink]:
    """The format that the extension of an output's name stands for, as what makes a sink of an open file.

    Raises:
        UsageError: Another extension, no such folder, or a folder in the output's place.
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
    """OUTPUT.meta.json."""
    return output.with_name(output.name + ".meta.json")


def format_score(score: float) -> str:
    """The fewest decimal digits that read back as the same float32."""
    return str(np.float32(score))


def json_line(result: Result) -> str:
    """A result as one JSON object on one line, without the line break; score as `format_score` writes it."""
    return json.dumps(_record(result), ensure_ascii=False, allow_nan=False)


def _record(result: Result) -> dict[str, Any]:
    record = result.to_row()
    if result.score is not None:
        record["score"] = float(format_score(result.score))
    return record


class _Csv:
    """RFC 4180: a header, lines ending in CRLF; UTF-8. None is an empty cell."""

    def __init__(self, file: BinaryIO) -> None:
        # CRLF, too, because Python 3.11 leaves a lone CR inside a name unquoted where lines end in LF.
        self._writer = csv.DictWriter(codecs.getwriter("utf-8")(file), COLUMNS, lineterminator="\r\n")
        self._writer.writeheader()

    def write(self, result: Result) -> None:
        self._writer.writerow(_record(result))

    def finish(self, metadata: Mapping[str, Any]) -> None:
        pass


class _Jsonl:
    """One JSON object a line, UTF-8. None is null."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, result: Result) -> None:
        self._file.write(f"{json_line(result)}\n".encode())

    def finish(self, metadata: Mapping[str, Any]) -> None:
        pass


def arrow_schema() -> pa.Schema:
    """The columns of a `Result`, typed."""
    # Here, not above: it takes longer to import than all the rest of the runtime.
    import pyarrow as pa

    types = (pa.string(), pa.float32(), pa.string(), pa.string(), pa.int32(), pa.int32())
    return pa.schema(list(zip(COLUMNS, types, strict=True)))


class _Parquet:
    """Typed columns, zstd, in row groups of ROW_GROUP rows, which bounds the memory. None is null."""

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
