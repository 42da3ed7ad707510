"""Parquet files of pictures, or of their paths: a piece a row group, read a few rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from glia_rt.errors import UsageError
from glia_rt.listing.pieces import DamagedShard, Picture, gone, require_file, shard_key, too_large
from glia_rt.pixels.names import display_name

#: What a Parquet reader decodes at once, so that no row group is held whole: so many rows, or of large ones fewer. At
#: 64 MB reading and decoding 12 MP took 49 ms a picture, at 4 MB 42, from a tar file 43.
_ROWS_AT_ONCE: Final = 16
_BYTES_AT_ONCE: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a Parquet file: a column of encoded pictures, or of paths relative to the file's folder.

    A column of structs with a field `bytes`, or else `path`, as Hugging Face writes pictures, is read too. Rows are
    named FILE/NUMBER, counted from 0 through the file; pictures named by a path keep that path.
    """

    path: str
    column: str
    index: int
    first_row: int
    count: int

    def key(self) -> str:
        """See `Piece`."""
        return f"{shard_key(self.path)}/{self.index}"

    def pictures(self, first: int = 0) -> Iterator[Picture]:
        """See `Piece`."""
        import pyarrow as pa

        row = 0
        try:
            for cell in self._cells():
                if row >= first:
                    yield self._picture(row, cell)
                row += 1
        except (pa.ArrowException, OSError) as error:
            # Of the system, which may have it again later, and not of a decompressor.
            if getattr(error, "errno", None) is not None or not os.path.exists(self.path):
                raise gone(self.path, error) from error
            reason = f"a damaged Parquet file ({_first_line(error)})"
            for lost in range(max(row, first), self.count):
                yield Picture(self._name(lost), None, reason, done=(lost + 1) / self.count)

    def _cells(self) -> Iterator[Any]:
        """The column's Arrow scalars."""
        from pyarrow import parquet

        # Without pre_buffer, and with a buffer, pages are read when their turn comes.
        with (
            _open_arrow(self.path) as opened,
            parquet.ParquetFile(opened, pre_buffer=False, buffer_size=1 << 20) as file,
        ):
            mean = file.metadata.row_group(self.index).total_byte_size // self.count
            for batch in file.iter_batches(
                max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // (mean + 1))),
                row_groups=[self.index],
                columns=[self.column],
                use_threads=False,
            ):
                yield from batch.column(0)

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


def row_groups(path: str, column: str) -> Iterator[RowGroup | DamagedShard]:
    """The pieces of a Parquet file; only its footer is read. A damaged one, or one that is none, is a row.

    Raises:
        UsageError: It has no such column of bytes, strings or structs of them.
        SourceError: It cannot be opened.
    """
    import pyarrow as pa
    from pyarrow import parquet

    require_file(path)
    try:
        with _open_arrow(path) as opened, parquet.ParquetFile(opened) as file:
            schema, metadata = file.schema_arrow, file.metadata
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise gone(path, error) from error
        yield DamagedShard(path, f"no Parquet file, or damaged at its end ({_first_line(error)})")
        return
    if column not in schema.names:
        raise UsageError(
            f"{display_name(path)}: no column {column!r}; it has {', '.join(schema.names)}: name one with --column"
        )
    if schema.names.count(column) > 1:
        raise UsageError(f"{display_name(path)}: several columns are called {column!r}; rename all but one")
    if not _holds_pictures(schema.field(column).type):
        raise UsageError(
            f"{display_name(path)}: column {column!r} is {schema.field(column).type}; pictures are bytes, or strings "
            "that are their paths: name such a column with --column, or cast this one to binary"
        )
    row = 0
    for index in range(metadata.num_row_groups):
        count = metadata.row_group(index).num_rows
        if count:
            yield RowGroup(path, column, index, row, count)
        row += count


def _open_arrow(path: str) -> Any:
    """A file for Arrow, which takes names that are not UTF-8 as bytes alone."""
    import pyarrow as pa

    return pa.OSFile(os.fsencode(path))


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def read_cell(cell: Any) -> tuple[Any, str | None]:
    """What an Arrow scalar has for a picture, of a struct `bytes`, or else `path`; or None, and why it has none."""
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
            return None, "a path that is not UTF-8, as strings of Arrow are"
        if value is not None and not (isinstance(value, (bytes, str)) and not value):
            return value, None
    return None, "the row has no picture"


def _fields_of_pictures(kind: Any) -> list[str]:
    """Of a struct's type, the fields that may have a picture, the first one first."""
    return [name for name in ("bytes", "path") if kind.get_field_index(name) >= 0 and _is_value(kind.field(name).type)]


def holds_bytes(kind: Any) -> bool:
    """Whether a column of this type has pictures themselves, and not their paths alone."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(holds_bytes(kind.field(name).type) for name in _fields_of_pictures(kind))
    kind = _plain(kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_pictures(kind: Any) -> bool:
    from pyarrow import types

    return bool(_fields_of_pictures(kind)) if types.is_struct(kind) else _is_value(kind)


def _is_value(kind: Any) -> bool:
    from pyarrow import types

    kind = _plain(kind)
    return holds_bytes(kind) or bool(types.is_string(kind) or types.is_large_string(kind))


def _plain(kind: Any) -> Any:
    """What a dictionary has, or the type itself."""
    from pyarrow import types

    return kind.value_type if types.is_dictionary(kind) else kind
