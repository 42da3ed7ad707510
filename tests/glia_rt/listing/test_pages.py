"""Headers of Parquet pages: as pyarrow writes them, and made by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from helpers.fuzz import varint
from pyarrow import parquet

from glia_rt.listing.pages import UnreadPageError, check_footer, largest_page


def chunk(path: Path, **options: Any) -> tuple[int, int]:
    """Write a column of two pages or more; return where its bytes begin and how many there are."""
    column = pa.array([bytes([i]) * 5_000 for i in range(40)], pa.binary())
    parquet.write_table(pa.table({"image": column}), path, data_page_size=20_000, write_batch_size=2, **options)
    found = parquet.read_metadata(path).row_group(0).column(0)
    return found.dictionary_page_offset or found.data_page_offset, found.total_compressed_size


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_pages_as_they_are_written(tmp_path: Path, compression: str, version: str, dictionary: bool) -> None:
    options = {"compression": compression, "data_page_version": version, "use_dictionary": dictionary}
    start, size = chunk(tmp_path / "a.parquet", write_page_checksum=True, **options)
    with (tmp_path / "a.parquet").open("rb") as file:
        largest = largest_page(file, start, size)
        assert file.tell() == start + size, "where the last page ends"
    assert 20_000 < largest < (210_000 if dictionary else 40_000)


def number(field: int, value: int) -> bytes:
    """A field of 32 bits, the first of its struct or the next after the last one."""
    return bytes([field << 4 | 5]) + varint(value << 1 if value >= 0 else (-value << 1) - 1)


def page(
    unpacked: int = 100, packed: int = 100, *, encoding: int = 0, more: bytes = b"", content: bytes | None = None
) -> bytes:
    """A data page: its kind, its sizes, and a struct of the number of its values and of their encoding."""
    struct = bytes([2 << 4 | 12]) + number(1, 3) + number(1, encoding) + number(1, 3) + number(1, 3) + b"\0"
    header = number(1, 0) + number(1, unpacked) + number(1, packed) + struct + more + b"\0"
    return header + (bytes(max(0, packed)) if content is None else content)


def dictionary(values: int) -> bytes:
    struct = bytes([4 << 4 | 12]) + number(1, values) + number(1, 0) + b"\0"
    return number(1, 2) + number(1, 100) + number(1, 100) + struct + b"\0" + bytes(100)


def largest(content: bytes) -> int:
    return largest_page(io.BytesIO(content), 0, len(content))


def test_the_largest_of_several() -> None:
    assert largest(page() + page(300) + page(200, 250)) == 300
    assert largest(page(encoding=8) + page(200, 250)) == 250, "what is compressed may be larger"


@pytest.mark.parametrize(
    "field",
    [
        bytes([3 << 4 | 8]) + varint(5) + b"hello",  # bytes, as statistics have
        bytes([3 << 4 | 7]) + bytes(8),
        bytes([3 << 4 | 3]) + b"x",
        bytes([3 << 4 | 1]) + bytes([1 << 4 | 2]),
        bytes([3 << 4 | 6]) + varint(1 << 60),
        bytes([3 << 4 | 9, 3 << 4 | 5]) + b"\1\2\3",
        bytes([3 << 4 | 9, 2 << 4 | 1]) + b"\1\2",
        bytes([3 << 4 | 12]) + bytes([1 << 4 | 12]) + b"\0\0",
        bytes([5]) + varint(200) + varint(7),  # a number of its own, not one after the last
    ],
    ids=["bytes", "double", "byte", "bools", "64 bits", "list", "list of bools", "structs", "long number"],
)
def test_fields_that_do_not_matter_are_passed_over(field: bytes) -> None:
    assert largest(page(more=field) + page(300)) == 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (page()[:3], "cut off"),
        (page() + b"\x15", "cut off"),
        (page(-1), "unpacks to -1"),
        (page(100, -5, content=b""), "a page that has -5 bytes"),
        (number(1, 0) + number(1, 5) + b"\0", "without a field"),
        (number(1, 0) + number(1, 5) + number(1, 5) + b"\0", "without a field"),
        (bytes([1 << 4 | 12]) + b"\0" + number(1, 5) + number(1, 5) + b"\0", "without a field"),
        (number(1, 0) + bytes([1 << 4 | 6]) + varint(10) + number(1, 5) + b"\0", "without a field"),
        (page(more=bytes([5]) + varint(2 << 1) + varint(7)), "a second field 2"),
        (page(more=bytes([5]) + varint(65_538 << 1) + varint(7)), "over 16 bits"),
        (number(1, 0) + bytes([1 << 4 | 5]) + varint(1 << 32), "over 32 bits"),
        (b"\x15" + b"\xff" * 20, "does not end"),
        (page(more=bytes([3 << 4 | 8]) + varint(1 << 30)), "a field of 1073741824 bytes"),
        (page(more=bytes([3 << 4 | 11]) + b"\0"), "of type 11"),
        (page(more=bytes([3 << 4]) + b"\0"), "of type 0"),
        (page(more=bytes([3 << 4 | 12]) + b"\x1c" * 1000), "nested too deep"),
        (page(more=bytes([3 << 4 | 9]) + b"\x19" * 1000), "nested too deep"),
        (page(encoding=100), "encoding 100"),
    ],
    ids=[
        "empty", "last", "unpacked", "packed", "sizes", "no encoding", "a struct", "of another type", "twice",
        "number of a field", "too large", "varint", "too many bytes", "map", "no type", "structs", "lists", "encoding",
    ],
)  # fmt: skip
def test_damaged_headers(content: bytes, message: str) -> None:
    """What Arrow might read otherwise is an error, so that no page has another size than was looked at."""
    with pytest.raises(ValueError, match=message):
        largest(content)


def test_pages_that_are_too_large() -> None:
    assert largest(page(50_000_000)) == 50_000_000
    for content in (page(50_000_001), dictionary(1 << 24), dictionary((1 << 31) - 1)):
        with pytest.raises(UnreadPageError, match="write smaller pages, or row groups of fewer rows"):
            largest(content)
    assert largest(dictionary(100)) == 2_100
    with pytest.raises(UnreadPageError):
        largest_page(io.BytesIO(page(30_000_000)), 0, 100, beside=1)
    sparse = io.BytesIO(page(600 << 20, 300 << 20, content=b""))
    assert largest_page(sparse, 0, 1000) == 600 << 20
    with pytest.raises(UnreadPageError):
        largest_page(io.BytesIO(page((1 << 30) + 1, 1 << 30, content=b"")), 0, 100)


def test_a_column_that_begins_before_the_file() -> None:
    with pytest.raises(ValueError, match="begins at byte -1"):
        largest_page(io.BytesIO(page()), -1, 100)


def footer(content: bytes) -> io.BytesIO:
    return io.BytesIO(b"PAR1" + content + len(content).to_bytes(4, "little") + b"PAR1")


def test_footers() -> None:
    check_footer(io.BytesIO(b"short"), 5)
    check_footer(io.BytesIO(b"\xff" * 100), 100)
    padding = bytes([1 << 4 | 8]) + varint(2_000_000) + bytes(2_000_000)
    structs = bytes([1 << 4 | 9, 15 << 4 | 12])
    for count, fits in ((400_000, True), (500_000, False)):
        file = footer(padding + structs + varint(count) + bytes(count) + b"\0")
        if fits:
            check_footer(file, len(file.getvalue()))
        else:
            with pytest.raises(ValueError, match="500000 elements in a list"):
                check_footer(file, len(file.getvalue()))
