"""Reader of labels in Parquet, as Hugging Face writes datasets: pictures and scores in the same rows.

A column holds the pictures: structs with the fields `bytes` and `path`, or bytes, or paths relative to the file's
folder. A dataset may have several files. Where there is no column `split` and the name of every file begins with the
name of a part, as in train-00000-of-00002.parquet, the files are an official split.

A picture is read by its row group, because Parquet has no smaller piece that opens on its own. `RowGroups` keeps the
row groups that were read last, so that pictures that are read in order, or in any order from a dataset that fits, are
read once.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from glia_rt.errors import BadImageError, UsageError
from glia_rt.listing.parquet import first_line, holds_bytes, holds_pictures, open_arrow, read_cell
from glia_train.datasets.base import Dataset, LabelledPicture, Part, join_groups, some_names
from glia_train.datasets.csv import OPTIONAL, PART_NAMES, Columns, read_part, read_reference
from glia_train.datasets.tables import finite, places_of

SUFFIX: Final = ".parquet"
#: Columns that are taken for the pictures, the first that a file has.
PICTURE_COLUMNS: Final = ("image", "path")
#: Bytes of encoded pictures that are kept in memory.
KEPT_BYTES: Final = 1 << 30

#: Size and time of the last change of a file.
Stamp: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Cell:
    """A picture in a row of a Parquet file.

    Attributes:
        file: The file.
        stamp: What the file was like when its labels were read.
        column: The column.
        group: Number of the row group.
        row: Number of the row in the row group.
    """

    file: str
    stamp: Stamp
    column: str
    group: int
    row: int

    def read(self) -> Path | bytes:
        """Return the encoded picture, or the path of its file; see `Encoded`."""
        import pyarrow as pa

        where = f"{self.file}, row group {self.group}, row {self.row}"
        try:
            source, refused = read_cell(_row_groups.column(self)[self.row])
        except (pa.ArrowException, OSError, IndexError) as error:
            raise BadImageError(f"a damaged Parquet file ({first_line(error)})", where) from error
        if refused is not None:
            raise BadImageError(refused, where)
        return Path(self.file).parent / source if isinstance(source, str) else bytes(source)

    def identity(self) -> str:
        """Return where the picture lies, and what the file was like; see `Encoded`."""
        return f"{os.path.abspath(self.file)} {self.stamp} {self.column} {self.group} {self.row}"


class RowGroups:
    """The columns of pictures of the row groups that were read last, up to so many bytes.

    Several threads may read. A row group that several ask for is read once.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[str, Stamp, str, int], Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def column(self, cell: Cell) -> Any:
        """Return the Arrow array of a cell's column in its row group.

        Raises:
            BadImageError: The file has changed since its labels were read.
            OSError: The file cannot be read.
            pyarrow.ArrowException: The file is damaged.
        """
        key = (cell.file, cell.stamp, cell.column, cell.group)
        with self._lock:
            future = self._kept.get(key)
            if is_first := future is None:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
        if is_first:
            try:
                future.set_result(_read_column(cell))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(key, None)
                future.set_exception(error)
                raise
            self._make_room(key)
        return future.result()

    def _make_room(self, newest: tuple[str, Stamp, str, int]) -> None:
        with self._lock:
            done = {key: one.result().nbytes for key, one in self._kept.items() if one.done() and not one.exception()}
            held = sum(done.values())
            for key, size in done.items():  # the one that was used longest ago is the first
                if held > self._limit and key != newest:
                    del self._kept[key]
                    held -= size


_row_groups: Final = RowGroups()


def _read_column(cell: Cell) -> Any:
    from pyarrow import parquet

    with open_arrow(cell.file) as opened, parquet.ParquetFile(opened) as file:
        if _stamp(cell.file) != cell.stamp:
            raise BadImageError("the file has changed since its labels were read", cell.file)
        return file.read_row_group(cell.group, columns=[cell.column]).column(0)


def _stamp(file: str) -> Stamp:
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def read_parquet(files: Sequence[str | os.PathLike[str]], columns: Columns | None = None) -> Dataset:
    """Return the rows of Parquet files. Whether the pictures are there is not looked at.

    Args:
        files: The files, at least one, which have the same columns. Pictures inside are named FILE/NUMBER, by the
            file's place below the folder that the files share. Others are named by their paths.
        columns: Which columns to use.

    Raises:
        UsageError: A file cannot be read, lacks a column, or has a row that cannot be used.
    """
    columns = columns or Columns()
    names = sorted(os.fspath(file) for file in files)
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(name)) for name in names])
    parts = [_part_of(name) for name in names]
    is_split = None not in parts and len(set(parts)) > 1
    pictures: list[LabelledPicture] = []
    for name, part in zip(names, parts, strict=True):
        pictures += _read_file(name, os.path.relpath(name, folder), columns, part if is_split else None)
    if all(picture.cell is None for picture in pictures):
        seen: dict[str, LabelledPicture] = {}
        for picture in pictures:
            if seen.setdefault(os.path.normpath(picture.path or picture.name), picture) is not picture:
                raise UsageError(f"{names[0]}: {picture.name} is in two rows: keep one of them")
    folders = {os.path.dirname(name) or os.curdir for name in names}
    title = names[0] if len(names) == 1 else folders.pop() if len(folders) == 1 else folder
    return Dataset(title, join_groups(pictures))


def _part_of(file: str) -> Part | None:
    """Return the part of the split that the name of a file begins with, as in test-00000-of-00001.parquet."""
    return PART_NAMES.get(re.split(r"[-.]", os.path.basename(file).lower())[0])


def _read_file(file: str, name: str, columns: Columns, part: Part | None) -> list[LabelledPicture]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with open_arrow(file) as source, parquet.ParquetFile(source) as opened:
            return _read_rows(file, name, opened, columns, part)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else first_line(error)
        raise UsageError(f"{file}: cannot be read as Parquet: {reason}") from error


def _read_rows(file: str, name: str, opened: Any, columns: Columns, part: Part | None) -> list[LabelledPicture]:
    schema, stamp = opened.schema_arrow, _stamp(file)
    wanted = [columns.path] if columns.path else list(PICTURE_COLUMNS)
    held = next((found for one in wanted if (found := _column(file, schema.names, one))), None)
    score = _column(file, schema.names, columns.score)
    group = _column(file, schema.names, columns.group) if columns.group else None
    needed = {" or ".join(wanted): held, columns.score: score, **({columns.group: group} if columns.group else {})}
    if missing := [column for column, found in needed.items() if found is None]:
        raise UsageError(
            f"{file}: no column {' and no column '.join(missing)}; it has {some_names(schema.names, 20)}: name one "
            "with --path-column, --score-column or --group-column"
        )
    kind = schema.field(held).type
    if not holds_pictures(kind):
        raise UsageError(
            f"{file}: column {held!r} is {kind}; pictures are bytes, paths, or structs of both: name another with "
            "--path-column"
        )
    inside = holds_bytes(kind)
    facts = {one: found for one in OPTIONAL if (found := _column(file, schema.names, one))}
    asked = [str(score), *facts.values(), *([group] if group else []), *([] if inside else [str(held)])]
    pictures: list[LabelledPicture] = []
    for number in range(opened.metadata.num_row_groups):
        table = opened.read_row_group(number, columns=list(dict.fromkeys(asked)))
        for row, values in enumerate(table.to_pylist()):
            where = f"{file}, row {len(pictures)}"
            texts = {one: _text(values[found]) for one, found in facts.items()}
            path = None if inside else _path(where, values[held])
            pictures.append(
                LabelledPicture(
                    path or f"{name}/{len(pictures)}",
                    Path(file).parent / path if path else None,
                    finite(where, columns.score, values[score]),
                    reference=read_reference(where, (texts["reference"] or "") if "reference" in texts else None),
                    group=_text(values[group]) if group else None,
                    distortion=texts.get("distortion"),
                    subset=texts.get("subset"),
                    part=read_part(where, texts["split"] or "") if "split" in texts else part,
                    cell=Cell(file, stamp, str(held), number, row) if inside else None,
                )
            )
    return pictures


def _column(file: str, names: Sequence[str], column: str) -> str | None:
    """Return the name that a column has in a file; None if it is not there."""
    found = places_of(names, column)
    if len(found) > 1:
        raise UsageError(f"{file}: a column is there twice: {column}; rename the one that is not meant")
    return names[found[0]] if found else None


def _path(where: str, value: Any) -> str:
    """Return the path that a cell holds, a string or a struct of one."""
    path = value.get("path") if isinstance(value, dict) else value
    if not path:
        raise UsageError(f"{where}: the path is empty")
    return str(path)


def _text(value: Any) -> str | None:
    """Return a cell as text. pandas writes NaN where a column of numbers has no value."""
    return None if value is None or value == "" or value != value else str(value)
