"""Parquet files of pictures, made with pyarrow: whole, odd and damaged."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from helpers.fuzz import varint
from pyarrow import parquet

from glia_rt.errors import SourceError, UsageError
from glia_rt.listing.parquet import RowGroup, row_groups
from glia_rt.listing.pieces import Picture
from glia_rt.listing.sources import Sources


def write_parquet(path: Path, column: Any, *, row_group: int = 3, name: str = "image") -> Path:
    parquet.write_table(pa.table({"key": list(range(len(column))), name: column}), path, row_group_size=row_group)
    return path


def all_rows(path: Path, column: str = "image") -> list[Picture]:
    return list(each_row(path, column))


def each_row(path: Path, column: str = "image") -> Iterator[Picture]:
    return (picture for piece in row_groups(str(path), column) for picture in piece.pictures())


@contextmanager
def taken_from(pool: Any) -> Iterator[Any]:
    """Have Arrow take its memory from a pool. `pa.default_memory_pool` is whatever was set last."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes(tmp_path: Path, kind: Any) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([b"%d" % i for i in range(8)], kind))
    groups = list(row_groups(str(path), "image"))
    assert [(group.index, group.first_row, group.count) for group in groups] == [(0, 0, 3), (1, 3, 3), (2, 6, 2)]
    found = all_rows(path)
    assert [(picture.name, picture.source) for picture in found] == [(f"{path}/{i}", b"%d" % i) for i in range(8)]
    assert list(groups[1].pictures(2)) == found[5:6]
    assert [picture.done for picture in groups[2].pictures()] == [0.5, 1.0]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_column_of_paths_is_relative_to_the_file(tmp_path: Path, kind: Any) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array(["b.jpg", "/c/d.jpg"], kind))
    assert [(picture.name, picture.source) for picture in all_rows(path)] == [
        (f"{tmp_path}/b.jpg", f"{tmp_path}/b.jpg"),
        ("/c/d.jpg", "/c/d.jpg"),
    ]


def test_pictures_as_hugging_face_writes_them(tmp_path: Path) -> None:
    column = pa.array(
        [{"bytes": b"x", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": None, "path": None}, None],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    path = write_parquet(tmp_path / "a.parquet", column)
    assert [(picture.name, picture.source, picture.refused) for picture in all_rows(path)] == [
        (f"{path}/0", b"x", None),
        (f"{tmp_path}/b.jpg", f"{tmp_path}/b.jpg", None),
        (f"{path}/2", None, "the row has no picture"),
        (f"{path}/3", None, "the row has no picture"),
    ]


def test_structs_of_which_one_field_is_no_picture(tmp_path: Path) -> None:
    column = pa.array([{"bytes": 1, "path": "a.jpg"}], pa.struct([("bytes", pa.int64()), ("path", pa.string())]))
    [picture] = all_rows(write_parquet(tmp_path / "a.parquet", column))
    assert picture.source == f"{tmp_path}/a.jpg"
    path = pa.array([b"\xff"], pa.binary()).view(pa.string())
    column = pa.StructArray.from_arrays([pa.array([b"x"], pa.binary()), path], ["bytes", "path"])
    [picture] = all_rows(write_parquet(tmp_path / "b.parquet", column))
    assert picture.source == b"x"


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """A cell of strings may hold any bytes, and a file may have any name."""
    column = pa.array([b"a.jpg", b"\xff.jpg", b"b.jpg"], pa.binary()).view(pa.string())
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xfe.parquet"))
    write_parquet(tmp_path / "a.parquet", column).rename(path)
    shown = f"{tmp_path}/\\udcfe.parquet"
    assert [(picture.name, picture.source, picture.refused) for picture in all_rows(path)] == [
        (f"{tmp_path}/a.jpg", f"{tmp_path}/a.jpg", None),
        (f"{shown}/1", None, "a path that is not UTF-8, which strings of Arrow must be"),
        (f"{tmp_path}/b.jpg", f"{tmp_path}/b.jpg", None),
    ]


def test_rows_without_a_picture(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([None, b"", b"x"], pa.binary()))
    assert [picture.refused for picture in all_rows(path)] == ["the row has no picture", "the row has no picture", None]


def test_a_row_group_is_read_in_parts(tmp_path: Path) -> None:
    """64 MB in one row group; what is held at once is a few pages and the pictures of one read."""
    column = pa.array([bytes([i % 256]) * (1 << 20) for i in range(64)], pa.binary())
    path = tmp_path / "a.parquet"
    table = pa.table({"image": column})
    parquet.write_table(table, path, use_dictionary=False, compression="none", data_page_size=1 << 20)
    del table, column
    with taken_from(pa.system_memory_pool()) as pool:
        before, peak = pool.bytes_allocated(), 0
        for group in row_groups(str(path), "image"):
            for _ in group.pictures():
                peak = max(peak, pool.bytes_allocated() - before)
    assert 0 < peak < 40e6


def test_refusals_of_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([b"x"], pa.binary()))
    with pytest.raises(UsageError, match=r"no column 'path'; it has key, image: name one with --column"):
        all_rows(path, "path")
    with pytest.raises(UsageError, match=r"column 'key' is int64; pictures are bytes, or strings that are their paths"):
        all_rows(path, "key")
    twice = pa.Table.from_arrays([pa.array([b"x"]), pa.array([b"y"])], ["image", "image"])
    parquet.write_table(twice, tmp_path / "d.parquet")
    with pytest.raises(UsageError, match=r"d\.parquet: several columns are called 'image'"):
        all_rows(tmp_path / "d.parquet")
    with pytest.raises(UsageError, match=r"column 'image' is struct<bytes: int64>; pictures are bytes"):
        all_rows(write_parquet(tmp_path / "s.parquet", pa.array([{"bytes": 1}])))
    with pytest.raises(SourceError, match=r"c\.parquet: cannot be read: .*No such file"):
        all_rows(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    "edit",
    [lambda content: b"hello, I am no Parquet file", lambda content: content[:-9], lambda content: b""],
    ids=["none", "cut off", "empty"],
)
def test_a_file_that_cannot_be_opened_is_a_row(tmp_path: Path, edit: Any) -> None:
    """One of ten thousand must not hold up the others."""
    path = write_parquet(tmp_path / "a.parquet", pa.array([b"x"], pa.binary()))
    path.write_bytes(edit(path.read_bytes()))
    [row] = all_rows(path)
    assert (row.name, row.source) == (str(path), None)
    assert str(row.refused).startswith("not a Parquet file, or damaged at its end (")
    assert [piece.count for piece in Sources([path]).pieces()] == [1]


def test_a_cell_that_is_no_picture_but_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glia_rt.listing.pieces.MAX_ENCODED_BYTES", 1000)
    path = write_parquet(tmp_path / "a.parquet", pa.array([b"x" * 1000, b"y" * 1001], pa.binary()))
    assert [picture.refused for picture in all_rows(path)] == [
        None,
        "1001 bytes, over the limit of 1000 for a picture in an archive",
    ]


def test_large_cells_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glia_rt.listing.parquet._BYTES_AT_ONCE", 1 << 20)
    path = tmp_path / "a.parquet"
    column = pa.array([bytes([i]) * (1 << 20) for i in range(16)], pa.binary())
    parquet.write_table(pa.table({"image": column}), path, use_dictionary=False, data_page_size=1 << 20)
    [group] = row_groups(str(path), "image")
    with taken_from(pa.system_memory_pool()) as pool:
        before = pool.bytes_allocated()
        held = [pool.bytes_allocated() - before for _ in group.pictures()]
    assert 0 < max(held) < 8 << 20


def test_row_groups_without_rows_are_none(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([], pa.binary()))
    assert list(row_groups(str(path), "image")) == []


def test_damaged_pages_are_rows_that_say_so(tmp_path: Path) -> None:
    column = pa.array([bytes([i]) * 1000 for i in range(6)], pa.binary())
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": column}), path, row_group_size=3, use_dictionary=False, compression="zstd")
    content = bytearray(path.read_bytes())
    start = parquet.read_metadata(path).row_group(0).column(0).data_page_offset
    content[start : start + 30] = b"#" * 30
    path.write_bytes(content)
    found = all_rows(path)
    assert [picture.name for picture in found] == [f"{path}/{i}" for i in (0, 3, 4, 5)], "a row for the row group"
    assert [picture.refused is None for picture in found] == [False, True, True, True]
    assert found[0].refused is not None
    assert found[0].refused.startswith("a damaged Parquet file, not read up to row 2 (")
    assert found[0].done == 1.0


def test_a_page_that_is_damaged_in_the_middle_of_a_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array([bytes([i]) * 1000 for i in range(9)], pa.binary())
    small = {"data_page_size": 1, "write_batch_size": 1, "use_dictionary": False, "compression": "none"}
    parquet.write_table(pa.table({"image": column}), path, **small)
    content = path.read_bytes()
    at = content.index(bytes([4]) * 1000) - 4
    path.write_bytes(content[:at] + b"#" * 4 + content[at + 4 :])  # its length
    found = all_rows(path)
    # The rows before it that were decoded with it are lost.
    assert found[-1].refused is not None
    assert found[-1].refused.startswith("a damaged Parquet file, not read up to row 8 (")
    assert all(picture.refused is None for picture in found[:-1])
    [group] = row_groups(str(path), "image")
    for first in range(10):
        assert list(group.pictures(first)) == found[first:], "a run that is resumed has each row once"


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may read again later, and what --resume finds as rows it does not try again."""
    path = write_parquet(tmp_path / "a.parquet", pa.array([b"x"], pa.binary()))
    [group] = row_groups(str(path), "image")

    def failing(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("glia_rt.listing.parquet.open_arrow", failing)
    for act in (lambda: list(group.pictures()), lambda: all_rows(path)):
        with pytest.raises(SourceError, match=r"a\.parquet: cannot be read: Input/output error"):
            act()


def test_a_parquet_file_that_goes_away(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([b"x"], pa.binary()))
    [group] = row_groups(str(path), "image")
    assert isinstance(group, RowGroup)
    path.unlink()
    with pytest.raises(SourceError, match=r"a\.parquet: cannot be read"):
        list(group.pictures())


# Footers that lie


def signed(value: int) -> bytes:
    """A number as Thrift's compact protocol writes it."""
    return varint((value << 1) ^ (value >> 63))


def resident(figure: str) -> int:
    """A figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(figure))


def with_footer(path: Path, true: int, false: int) -> Path:
    """Replace a number in a Parquet file's footer."""
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8]
    assert signed(true) in footer
    footer = footer.replace(signed(true), signed(false))
    path.write_bytes(content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


def one_row_group(path: Path) -> tuple[Path, Any]:
    """Bytes that no other number in the footer is like."""
    column = pa.array([bytes([i % 256]) * 3_001 for i in range(1_234)], pa.binary())
    parquet.write_table(pa.table({"image": column}), path, compression="none", use_dictionary=False)
    return path, parquet.ParquetFile(path).metadata.row_group(0)


def test_sizes_below_nothing(tmp_path: Path) -> None:
    path, group = one_row_group(tmp_path / "a.parquet")
    with_footer(path, group.total_byte_size, -1)
    [picture] = all_rows(path)
    assert picture.refused is not None
    assert "there are fewer than no bytes" in picture.refused


@pytest.mark.parametrize("rows", [10**12, -5])
def test_rows_that_cannot_be(tmp_path: Path, rows: int) -> None:
    path, group = one_row_group(tmp_path / "a.parquet")
    with_footer(path, group.num_rows, rows)
    [picture] = all_rows(path)
    assert picture.refused is not None
    assert picture.refused.startswith("not a Parquet file")


@pytest.mark.parametrize("rows", [1_300, 1_000_000])
def test_fewer_rows_than_promised(tmp_path: Path, rows: int) -> None:
    path, group = one_row_group(tmp_path / "a.parquet")
    found = all_rows(with_footer(path, group.num_rows, rows))
    assert [picture.source is None for picture in found] == [False] * 1_234 + [True]
    reason = f"a damaged Parquet file, not read up to row {rows - 1} (1234 rows where its footer says {rows})"
    assert found[-1].refused == reason
    [piece] = row_groups(str(path), "image")
    assert list(piece.pictures(1_234)) == found[1_234:]
    assert list(piece.pictures(1_235)) == []


def test_a_small_file_of_many_rows(tmp_path: Path) -> None:
    """Its 400 bytes once became 16 million rows."""
    path = tmp_path / "a.parquet"
    column = pa.array([b"abc"] * 12_345, pa.binary())
    parquet.write_table(pa.table({"image": column}), path, compression="zstd", use_dictionary=False)
    with_footer(path, 12_345, 16_000_000)
    assert path.stat().st_size < 1_000
    [picture] = all_rows(path)
    assert picture.refused is not None
    assert "its footer says that there are 16000000 rows" in picture.refused


def test_row_groups_that_share_their_bytes(tmp_path: Path) -> None:
    """One page would be any number of pictures."""
    path, group = one_row_group(tmp_path / "a.parquet")
    metadata = parquet.read_metadata(path)
    twice = parquet.read_metadata(path)
    twice.append_row_groups(metadata)
    twice.write_metadata_file(tmp_path / "footer")
    footer = (tmp_path / "footer").read_bytes()[4:]
    path.write_bytes(path.read_bytes()[: 4 + group.column(0).total_compressed_size] + footer)
    assert parquet.read_metadata(path).num_row_groups == 2
    [picture] = all_rows(path)
    assert picture.refused is not None
    assert "its footer says that a column has" in picture.refused


def with_columns(path: Path, columns: int) -> Path:
    """Write a file of one column. Its row group has so many."""
    parquet.write_table(pa.table({"image": [b"x"]}), path, store_schema=False, write_statistics=False)
    content = path.read_bytes()
    length = int.from_bytes(content[-8:-4], "little")
    footer = content[-8 - length : -8]
    head, _, _ = footer.partition(b"\x19\x1c\x19\x1c")  # a list of one row group, which begins with one of one column
    group = b"\x19\xfc" + varint(columns) + b"\x26\0\0" * columns + b"\x16\2\x16\2\0"
    footer = head + b"\x19\x1c" + group + b"\0"
    path.write_bytes(content[: -8 - length] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


@pytest.mark.parametrize("columns", [5, 300_000, 2_000_000])
def test_columns_that_there_are_not(tmp_path: Path, columns: int) -> None:
    """pyarrow ends the process if it is asked for one. Two million of them, 6 MB, once took 1.4 GB."""
    path = with_columns(tmp_path / "a.parquet", columns)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    [picture] = all_rows(path)
    assert resident("VmHWM") - before < 100e6
    assert picture.refused is not None
    assert picture.refused.startswith("not a Parquet file")


def test_a_footer_is_read_once_for_all_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 4 MB with 100,000 of them once took hours."""
    path = write_parquet(tmp_path / "a.parquet", pa.array([b"x"] * 30, pa.binary()), row_group=1)
    read: list[str] = []
    monkeypatch.setattr("glia_rt.listing.parquet.check_footer", lambda file, size: read.append(file.name))
    assert len(all_rows(path)) == 30
    assert read == [str(path)]


def test_a_name_of_a_column_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": [b"x"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"image", b"\xffmage"))
    [picture] = all_rows(path)
    assert picture.refused is not None
    assert picture.refused.startswith("not a Parquet file")


def test_a_column_that_is_larger_than_its_file(tmp_path: Path) -> None:
    path, group = one_row_group(tmp_path / "a.parquet")
    with_footer(path, group.column(0).total_compressed_size, 10**12)
    [picture] = all_rows(path)
    assert picture.refused is not None
    assert "its footer says that a column has 1000000000000 bytes" in picture.refused


# Pages that unpack to more than fits


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Find out that Arrow takes no more bytes at once."""
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    # What Arrow has from a pool may outlive the test, and giving it back to one that is gone ends the process.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool))
    with taken_from(pool):
        yield
    assert pool.max_memory() < size


def zeros(path: Path, *sizes: int, dictionary: bool = False) -> Path:
    """Write pictures of zeros, each in a page of its own, or all in a dictionary, which take next to no bytes."""
    column = pa.array([bytes(size) for size in sizes], pa.binary())
    own = {"data_page_size": 1, "write_batch_size": 1, "dictionary_pagesize_limit": 1 << 30}
    parquet.write_table(pa.table({"image": column}), path, compression="zstd", use_dictionary=dictionary, **own)
    assert path.stat().st_size < 100_000
    return path


@pytest.mark.parametrize("lie", [False, True], ids=["true", "lie"])
@pytest.mark.parametrize("dictionary", [False, True], ids=["plain", "dictionary"])
def test_zeros_are_not_unpacked(tmp_path: Path, dictionary: bool, lie: bool) -> None:
    """Arrow makes room for as many bytes as the header of a page says, whatever the footer says."""
    path = zeros(tmp_path / "a.parquet", 150_000_000, dictionary=dictionary)
    if lie:
        with_footer(path, parquet.read_metadata(path).row_group(0).column(0).total_uncompressed_size, 1_000)
    with at_most(10_000_000):
        [picture] = all_rows(path)
    assert picture.name == f"{path}/0"
    assert picture.refused is not None
    assert re.fullmatch(
        r"not read, up to row 0: a page of \d+ bytes that unpacks to 15\d+: .* row groups of fewer rows",
        picture.refused,
    )


def test_one_page_of_many_small_values(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array([bytes(1_000_000)] * 300, pa.binary())
    parquet.write_table(pa.table({"image": column}), path, compression="zstd", use_dictionary=False)
    with at_most(10_000_000):
        [picture] = all_rows(path)
    assert picture.refused is not None


def test_pages_before_one_that_is_too_large_are_not_read_either(tmp_path: Path) -> None:
    """It takes no page to find out."""
    path = zeros(tmp_path / "a.parquet", 1_000, 150_000_000)
    [picture] = all_rows(path)
    assert picture.name == f"{path}/0"
    assert picture.refused is not None
    assert picture.refused.startswith("not read, up to row 1: ")


@pytest.mark.parametrize("dictionary", [False, True], ids=["plain", "dictionary"])
def test_the_largest_values_that_are_unpacked(tmp_path: Path, dictionary: bool) -> None:
    """Many rows of them, which the footer says are small, are decoded one by one."""
    size = 24_000_000 if dictionary else 49_000_000
    path = zeros(tmp_path / "a.parquet", *[size] * 6, dictionary=dictionary)
    with_footer(path, parquet.read_metadata(path).row_group(0).column(0).total_uncompressed_size, 1_000)
    with at_most(200_000_000):
        assert [len(picture.source or b"") for picture in each_row(path)] == [size] * 6


@pytest.mark.parametrize("dictionary", [False, True], ids=["plain", "dictionary"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_large_page_that_hardly_shrinks_is_read(tmp_path: Path, compression: str, dictionary: bool) -> None:
    """Arrow puts 1,024 pictures into a page."""
    path = tmp_path / "a.parquet"
    chance = np.random.default_rng(0)
    column = pa.array([chance.bytes(1_000_000) for _ in range(60)], pa.binary())
    parquet.write_table(pa.table({"image": column}), path, compression=compression, use_dictionary=dictionary)
    assert [picture.source for picture in each_row(path)] == column.to_pylist()


def test_pages_of_a_struct_share_the_limits(tmp_path: Path) -> None:
    columns = [pa.array([bytes(30_000_000)] * 2, kind) for kind in (pa.binary(), pa.string())]
    table = pa.table({"image": pa.StructArray.from_arrays(columns, ["bytes", "path"])})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with at_most(10_000_000):
        [picture] = all_rows(tmp_path / "a.parquet")
    assert picture.refused is not None


def test_fields_of_a_struct_that_are_no_pictures_are_not_read(tmp_path: Path) -> None:
    values = [{"bytes": b"x", "path": "a.jpg", "mask": bytes(150_000_000)}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string()), ("mask", pa.binary())])
    table = pa.table({"image": pa.array(values, kind)})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with at_most(10_000_000):
        [picture] = all_rows(tmp_path / "a.parquet")
    assert picture.source == b"x"


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
def test_an_encoding_that_is_not_read(tmp_path: Path, encoding: str) -> None:
    """Its lengths have no bounds: 200 million of them once took 800 MB, from a file of 1,600 bytes."""
    path = tmp_path / "a.parquet"
    table = pa.table({"image": pa.array([b"x"] * 3, pa.binary())})
    parquet.write_table(table, path, use_dictionary=False, column_encoding={"image": encoding})
    [picture] = all_rows(path)
    assert picture.refused is not None
    assert f"encoding {encoding}, which is not read: write it as PLAIN" in picture.refused


def test_one_value_that_is_repeated_is_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    """Its dictionary has it once: 700 rows of 1 MB."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": pa.array([bytes(1_000_000)] * 700, pa.binary())}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    pool = pa.default_memory_pool()
    most = 0
    for picture in each_row(path):
        assert picture.source == bytes(1_000_000)
        most = max(most, pool.bytes_allocated())
    assert most < 64_000_000
