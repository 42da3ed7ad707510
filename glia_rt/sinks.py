"""Where results go: one row a picture into a CSV, JSON Lines or Parquet file that appears only when it is whole.

Rows go to OUTPUT.partial, which is renamed to OUTPUT at the end of a run and kept where it is when a run breaks off.
CSV and JSON Lines reach the file system row by row, so that even a killed run leaves every row it scored. Parquet is
held back in row groups and can be read only once its footer is written, which an exception or Ctrl-C still does; a
kill or a full disk does not.

How the scores were made travels with them: as OUTPUT.meta.json, there before OUTPUT is, and in a Parquet file also as
JSON under the key `glia-rt` of its key-value metadata.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Final, Protocol, Self

import numpy as np

from glia_rt.errors import GliaError, OutputExistsError, UsageError
from glia_rt.results import COLUMNS, Result

METADATA_KEY: Final = "glia-rt"
ROW_GROUP: Final = 10_000


def format_score(score: float) -> str:
    """The fewest decimal digits that read back as the same float32."""
    return str(np.float32(score))


def json_line(result: Result) -> str:
    """A result as one JSON object on one line, without the line break; score as `format_score` writes it."""
    return json.dumps(_record(result), ensure_ascii=False, allow_nan=False)


def open_sink(path: str | os.PathLike[str], *, overwrite: bool, metadata: Mapping[str, Any]) -> Sink:
    """Start an output file; its extension chooses the format.

    Args:
        path: Ends in .csv, .jsonl or .parquet.
        overwrite: Replace the output, and a partial file that an earlier run left.
        metadata: How the scores are made; JSON types only.

    Returns:
        A context manager. What is wrong with the path is found here, before anything has been scored.

    Raises:
        OutputExistsError: Without `overwrite`, the output or its partial file is there already.
        UsageError: Another extension, no such folder, a folder in the output's place, or no right to write there.
    """
    output = Path(path)
    make_rows = _FORMATS.get(output.suffix.lower())
    if make_rows is None:
        raise UsageError(f"{output}: the output's name must end in one of {', '.join(_FORMATS)}")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: there is no folder {output.parent}; make it first")
    if output.is_dir():
        raise UsageError(f"{output}: is a folder; name a file")
    if not overwrite and os.path.lexists(output):
        raise OutputExistsError(f"{output} exists; name another file, or give --overwrite to replace it")
    return Sink(output, make_rows, overwrite=overwrite, metadata=metadata)


class Sink:
    """An output file in the making; `open_sink` makes one.

    A clean exit makes the output appear, whole and on disk. An exception, KeyboardInterrupt included, ends the
    partial file properly and leaves it under its own name, unless no row was written.

    Attributes:
        partial_path: Where the rows are until a clean exit; None when nothing is there any more.
    """

    partial_path: Path | None

    def __init__(
        self,
        output: Path,
        make_rows: Callable[[BinaryIO, str], _Rows],
        *,
        overwrite: bool,
        metadata: Mapping[str, Any],
    ) -> None:
        self._output = output
        self._partial = _with_ending(output, ".partial")
        self._metadata = json.dumps(metadata, indent=2, allow_nan=False) + "\n"
        self._is_empty = True
        try:
            self._file: BinaryIO = self._partial.open("wb" if overwrite else "xb")
        except FileExistsError as error:
            raise OutputExistsError(
                f"{self._partial} exists: a run that broke off left it, or one is writing it now; "
                "move it away to keep its rows, or give --overwrite to replace it"
            ) from error
        except OSError as error:
            raise UsageError(f"{self._partial}: cannot be written: {error.strerror}") from error
        self.partial_path = self._partial
        self._rows = make_rows(self._file, self._metadata)

    def write(self, result: Result) -> None:
        """Add one row.

        Raises:
            GliaError: The disk is full, or failed otherwise.
        """
        self._is_empty = False
        with self._reporting():
            self._rows.write(result)
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._reporting():
            with self._file:
                self._rows.finish()
                self._file.flush()
                os.fsync(self._file.fileno())
            if error is None:
                self._publish()
            elif self._is_empty:
                self._partial.unlink()
                self.partial_path = None

    def _publish(self) -> None:
        metadata = _with_ending(self._output, ".meta.json")
        fresh = _with_ending(metadata, ".partial")
        fresh.write_text(self._metadata, encoding="utf-8")
        os.replace(fresh, metadata)
        os.replace(self._partial, self._output)
        self.partial_path = None

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._rows.give_up()
            raise GliaError(
                f"{self._output}: cannot be written: {error.strerror or error}; what was written until then is in "
                f"{self._partial}{self._rows.caution}. Mend the cause and run again, with --overwrite if that may go"
            ) from error


def _with_ending(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _record(result: Result) -> dict[str, Any]:
    record = dataclasses.asdict(result)
    if result.score is not None:
        record["score"] = float(format_score(result.score))
    return record


class _Rows(Protocol):
    """A format: results on their way into a file."""

    #: Added to the message when the file could not be written to its end.
    caution: ClassVar[str] = ""

    def write(self, result: Result) -> None:
        """Write a row, or hold it back."""

    def finish(self) -> None:
        """Write what is held back."""

    def give_up(self) -> None:
        """Forget what is held back: the file has failed."""


class _CsvRows(_Rows):
    """RFC 4180: a header, lines ending in CRLF; UTF-8. None is an empty cell."""

    def __init__(self, file: BinaryIO, metadata: str) -> None:
        # CRLF, too, because Python 3.11 leaves a lone CR inside a name unquoted where lines end in LF.
        self._writer = csv.DictWriter(codecs.getwriter("utf-8")(file), COLUMNS, lineterminator="\r\n")
        self._writer.writeheader()

    def write(self, result: Result) -> None:
        self._writer.writerow(_record(result))


class _JsonlRows(_Rows):
    """One JSON object a line, UTF-8. None is null."""

    def __init__(self, file: BinaryIO, metadata: str) -> None:
        self._file = file

    def write(self, result: Result) -> None:
        self._file.write(f"{json_line(result)}\n".encode())


class _ParquetRows(_Rows):
    """Typed columns, zstd, in row groups of ROW_GROUP rows, which bounds the memory. None is null."""

    caution = " (a Parquet file cut short cannot be read)"

    def __init__(self, file: BinaryIO, metadata: str) -> None:
        # Here, not above: it takes longer to import than all the rest of the runtime.
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema(
            [
                ("path", pa.string()),
                ("score", pa.float32()),
                ("status", pa.string()),
                ("error", pa.string()),
                ("width", pa.int32()),
                ("height", pa.int32()),
            ],
            metadata={METADATA_KEY: metadata},
        )
        self._to_batch = functools.partial(pa.RecordBatch.from_pylist, schema=schema)
        self._writer = parquet.ParquetWriter(file, schema, compression="zstd")
        self._held: list[dict[str, Any]] = []

    def write(self, result: Result) -> None:
        self._held.append(dataclasses.asdict(result))
        if len(self._held) == ROW_GROUP:
            self._write_group()

    def finish(self) -> None:
        if self._held:
            self._write_group()
        self._writer.close()

    def give_up(self) -> None:
        self._held.clear()  # a writer that has failed can still be closed, but not written to

    def _write_group(self) -> None:
        self._writer.write_batch(self._to_batch(self._held))
        self._held.clear()


_FORMATS: Final[dict[str, Callable[[BinaryIO, str], _Rows]]] = {
    ".csv": _CsvRows,
    ".jsonl": _JsonlRows,
    ".parquet": _ParquetRows,
}
