"""Parquet archives: files with a column of pictures, or of their paths.

Each row group is a piece. It is read a few rows at a time.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from glia_rt.errors import UsageError
from glia_rt.listing.pages import UnreadPageError, check_footer, largest_page
from glia_rt.listing.pieces import Picture, Refused, changed_archive, gone, require_file, too_large
from glia_rt.pixels.names import display_name

#: What a Parquet reader decodes at once: so many rows, or so many bytes if that is less. No row group is held whole.
#: No value is larger than the largest page. Reading pictures of 100 kB or 1 MB one by one takes no longer than 16 at
#: once.
_ROWS_AT_ONCE: Final = 16
_BYTES_AT_ONCE: Final = 1 << 25
#: Rows that a file may have: so many, and so many a byte. Rows without a value take next to none of the file.
_ROWS_ANYWAY: Final = 1 << 20
_ROWS_A_BYTE: Final = 64
#: Row groups of a file, and columns.
_MOST_IN_A_LIST: Final = 100_000


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a Parquet file: a column of encoded pictures, or of paths relative to the file's folder.

    The column may also have structs with a field `bytes`, or else `path`, as Hugging Face writes pictures. A picture is
    named FILE/NUMBER, where rows are numbered from 0 through the file. A picture given by a path is named by that path.
    """

    path: str
    column: str
    index: int
    first_row: int
    count: int
    size: int
    mtime_ns: int
    folder: str | None = None  # whose search found it; None if it was named

    def changed(self) -> Picture | None:
        """See `Piece`."""
        return changed_archive(self.path, self.size, self.mtime_ns, self.folder)

    def pictures(self, first: int = 0, left_out: Counter[str] | None = None) -> Iterator[Picture]:
        """See `Piece`."""
        import pyarrow as pa

        row = 0
        try:
            for cell in self._cells():
                if row >= first:
                    yield self._picture(row, cell)
                row += 1
            if row < self.count:
                raise ValueError(f"{row} rows where its footer says {self.count}")
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            # The file may be readable again later, if it is an error of the system. Damage that a decompressor finds
            # is a row for all that is left of the row group.
            if is_of_the_system(error) or not os.path.exists(self.path):
                raise gone(self.path, error) from error
            if row >= first:
                last = f"up to row {self.first_row + self.count - 1}"
                if isinstance(error, UnreadPageError):
                    reason = f"not read, {last}: {error}"
                else:
                    reason = f"a damaged Parquet file, not read {last} ({first_line(error)})"
                yield Picture(self._name(row), None, reason)

    def _cells(self) -> Iterator[Any]:
        """Yield the Arrow scalars of the column."""
        from pyarrow import parquet
        from pyarrow.types import is_struct

        # Without pre_buffer, and with a buffer, each page is read only when its turn comes.
        with (
            open_arrow(self.path) as opened,
            parquet.ParquetFile(
                opened, metadata=_footer(self.path, self.size, self.mtime_ns), pre_buffer=False, buffer_size=1 << 20
            ) as file,
        ):
            # Other fields of a struct are not read. Lists among them would have no bounds.
            kind = file.schema_arrow.field(self.column).type
            fields = [f"{self.column}.{name}" for name in _fields_of_pictures(kind)] if is_struct(kind) else []
            columns = fields or [self.column]
            chunks = [one for name in columns for one in _chunks(file.metadata.row_group(self.index), name)]
            with open(self.path, "rb") as pages:
                sizes = [
                    largest_page(pages, _start(one), one.total_compressed_size, beside=len(chunks) - 1)
                    for one in chunks
                ]
            at_once = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // max(1, sum(sizes))))
            for batch in file.iter_batches(at_once, row_groups=[self.index], columns=columns, use_threads=False):
                yield from batch.column(self.column)

    def _picture(self, row: int, cell: Any) -> Picture:
        done, (source, refused) = (row + 1) / self.count, read_cell(cell)
        if refused is not None:
            return Picture(self._name(row), None, refused, done=done)
        if isinstance(source, bytes):
            refused = too_large(len(source))
            return Picture(self._name(row), None if refused else source, refused, done=done)
        path = os.path.join(os.path.dirname(self.path), source)
        return Picture(display_name(path), path, done=done)

    def _name(self, row: int) -> str:
        return f"{display_name(self.path)}/{self.first_row + row}"


def row_groups(path: str, column: str) -> Iterator[RowGroup | Refused]:
    """Yield the pieces of a Parquet file. Only its footer is read.

    A file that is damaged, or is not a Parquet file, yields one piece that becomes a row. So does one whose footer
    cannot be true, or promises much more than a file of its size holds.

    Raises:
        UsageError: The file has no such column of bytes, strings or structs of them.
        SourceError: The file cannot be opened.
    """
    import pyarrow as pa

    found = require_file(path)
    try:
        _footer.cache_clear()  # a file that is written again at once may have the same time
        metadata = _footer(path, found.st_size, found.st_mtime_ns)
        schema = metadata.schema.to_arrow_schema()
        names = schema.names
    except (pa.ArrowException, OSError, ValueError) as error:
        if is_of_the_system(error):
            raise gone(path, error) from error
        yield Refused(path, f"not a Parquet file, or damaged at its end ({first_line(error)})")
        return
    if column not in names:
        raise UsageError(
            f"{display_name(path)}: no column {column!r}; it has {', '.join(names)}: name one with --column"
        )
    if names.count(column) > 1:
        raise UsageError(f"{display_name(path)}: several columns are called {column!r}; rename all but one")
    if not holds_pictures(schema.field(column).type):
        raise UsageError(
            f"{display_name(path)}: column {column!r} is {schema.field(column).type}; pictures are bytes, or strings "
            "that are their paths: name such a column with --column, or cast this one to binary"
        )
    try:
        _check_footer(metadata, column, found.st_size)
    except ValueError as error:
        yield Refused(path, f"not a Parquet file of pictures: its footer says that {error}")
        return
    row = 0
    for index in range(metadata.num_row_groups):
        count = metadata.row_group(index).num_rows
        if count:
            yield RowGroup(path, column, index, row, count, found.st_size, found.st_mtime_ns)
        row += count


@functools.lru_cache(maxsize=1)
def _footer(path: str, size: int, mtime_ns: int) -> Any:
    """Return what the footer of a file says. The row groups of a file, which are read in turn, share it."""
    from pyarrow import parquet

    with open(path, "rb") as file:
        check_footer(file, size)
    with (
        open_arrow(path) as opened,
        parquet.ParquetFile(opened, thrift_container_size_limit=_MOST_IN_A_LIST) as found,
    ):
        return found.metadata


def _check_footer(metadata: Any, column: str, file_size: int) -> None:
    """Find out whether what a footer says can be true.

    Raises:
        ValueError: It cannot be true.
    """
    rows = packed = 0
    for group in (metadata.row_group(index) for index in range(metadata.num_row_groups)):
        if group.num_rows < 0:
            raise ValueError(f"there are {group.num_rows} rows")
        rows += group.num_rows
        if group.num_columns != metadata.num_columns:  # pyarrow ends the process if one is asked for that is not there
            raise ValueError(f"a row group has {group.num_columns} columns, and the file has {metadata.num_columns}")
        chunks = _chunks(group, column)
        packed += sum(chunk.total_compressed_size for chunk in chunks)
        sizes = [size for chunk in chunks for size in (chunk.total_compressed_size, chunk.total_uncompressed_size)]
        if min([group.total_byte_size, *sizes]) < 0:
            raise ValueError("there are fewer than no bytes")
        if packed > file_size:
            raise ValueError(f"a column has {packed} bytes, and the file has {file_size}")
    if rows > _ROWS_ANYWAY + _ROWS_A_BYTE * file_size:
        raise ValueError(f"there are {rows} rows, and the file has {file_size} bytes")


def _chunks(group: Any, column: str) -> list[Any]:
    """Return the column chunks of a row group that are of a column, or of the fields of a struct."""
    chunks = (group.column(index) for index in range(group.num_columns))
    return [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(f"{column}.")]


def _start(chunk: Any) -> int:
    """Return where Arrow begins to read a column chunk."""
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
        start = chunk.dictionary_page_offset
    return int(start)


def is_of_the_system(error: BaseException) -> bool:
    """Return whether an error of Arrow is one of the system, and not of what a file holds."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) is not None


def open_arrow(path: str) -> Any:
    """Return a file opened for Arrow, which takes names that are not UTF-8 only as bytes."""
    import pyarrow as pa

    return pa.OSFile(os.fsencode(path))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, because Arrow adds where in its own code the error arose."""
    return str(error).partition("\n")[0]


def read_cell(cell: Any) -> tuple[Any, str | None]:
    """Return what an Arrow scalar holds for a picture. A struct holds it in its field `bytes`, or else in `path`.

    Returns:
        The value and None; or None, and why there is no picture.
    """
    import pyarrow as pa

    if isinstance(cell, pa.DictionaryScalar):
        cell = cell.value
    fields = [cell]
    if isinstance(cell, pa.StructScalar):
        fields = [cell[name] for name in _fields_of_pictures(cell.type)] if cell.is_valid else []
    for field in fields:
        try:
            value = field.as_py()
        except UnicodeDecodeError:
            return None, "a path that is not UTF-8, which strings of Arrow must be"
        if value is not None and not (isinstance(value, (bytes, str)) and not value):
            return value, None
    return None, "the row has no picture"


def _fields_of_pictures(kind: Any) -> list[str]:
    """Return the fields of a struct's type that may hold a picture, in the order in which they are tried."""
    return [name for name in ("bytes", "path") if kind.get_field_index(name) >= 0 and _is_value(kind.field(name).type)]


def holds_bytes(kind: Any) -> bool:
    """Return whether a column of this type holds the pictures themselves, and not only their paths."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(holds_bytes(kind.field(name).type) for name in _fields_of_pictures(kind))
    kind = _plain(kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def holds_pictures(kind: Any) -> bool:
    """Return whether a column of this type holds pictures: bytes, paths, or structs of them."""
    from pyarrow import types

    return bool(_fields_of_pictures(kind)) if types.is_struct(kind) else _is_value(kind)


def _is_value(kind: Any) -> bool:
    from pyarrow import types

    kind = _plain(kind)
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return holds_bytes(kind) or bool(is_text or types.is_null(kind))  # all cells of a shard may be empty


def _plain(kind: Any) -> Any:
    """Return the type of the values of a dictionary, or the type itself if it is no dictionary."""
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind
