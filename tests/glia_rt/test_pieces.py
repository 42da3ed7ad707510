"""Tar shards and Parquet, made with the standard library and pyarrow, whole, hostile and damaged."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from glia_rt.errors import SourceError, UsageError
from glia_rt.images import picture_extensions
from glia_rt.pieces import MAX_ENCODED_BYTES, File, Picture, RowGroup, TarShard, row_groups

Members = Iterable[tuple[str, bytes]]


def make_tar(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pictures(path: Path, first: int = 0) -> list[Picture]:
    return list(TarShard(str(path)).pictures(first))


def sources(found: Iterable[Picture]) -> list[tuple[str, str | bytes | None]]:
    return [(Path(picture.name).name, picture.source) for picture in found]


def test_a_file_is_one_picture() -> None:
    file = File("photos/a.jpg", folder="photos")
    assert (file.count, file.key()) == (1, "photos/a.jpg")
    assert list(file.pictures()) == [Picture("photos/a.jpg", "photos/a.jpg", folder="photos")]
    assert list(file.pictures(1)) == []


# Tar


@pytest.mark.parametrize(("ending", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_pictures_of_a_shard_in_its_order(tmp_path: Path, ending: str, mode: str) -> None:
    members = [
        ("b.jpg", b"1"), ("b.json", b"{}"), ("b.cls", b"7"), ("a.PNG", b"22"), ("deep/er/c.webp", b"333"),
        (".hidden.jpg", b"4"), ("deep/._d.jpg", b"5"), ("none", b"6"),
    ]  # fmt: skip
    path = make_tar(tmp_path / f"0{ending}", members, mode)
    found = pictures(path)
    assert [(picture.name, picture.source) for picture in found] == [
        (f"{path}/b.jpg", b"1"),
        (f"{path}/a.PNG", b"22"),
        (f"{path}/deep/er/c.webp", b"333"),
    ]
    assert [picture.refused for picture in found] == [None] * 3
    assert pictures(path, 2) == found[2:]
    assert pictures(path, 3) == []
    shares = [picture.done for picture in found]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] <= 1


def test_long_and_odd_names_survive(tmp_path: Path) -> None:
    names = [
        "d/" * 300 + "long.jpg",
        "é😀.jpg",
        "two\nlines.jpg",
        'quo"te.jpg',
        b"\xff\xfe.jpg".decode("utf-8", "surrogateescape"),
    ]
    path = make_tar(tmp_path / "0.tar", [(name, b"x") for name in names])
    assert [picture.name for picture in pictures(path)] == [
        f"{path}/{name}" for name in (*names[:4], "\\udcff\\udcfe.jpg")
    ]


def test_links_and_names_that_lead_out_are_rows_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind, target in [
            ("soft.jpg", tarfile.SYMTYPE, "../secret.jpg"),
            ("hard.jpg", tarfile.LNKTYPE, "inside.jpg"),
            ("pipe.jpg", tarfile.FIFOTYPE, ""),
            ("folder.jpg", tarfile.DIRTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        for name in ("../secret.jpg", "a/../../b.jpg", "/etc/c.jpg", "inside.jpg"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    assert [(picture.name.removeprefix(f"{path}/"), picture.source, picture.refused) for picture in pictures(path)] == [
        ("soft.jpg", None, "a link: not followed"),
        ("hard.jpg", None, "a link: not followed"),
        ("pipe.jpg", None, "not a regular file"),
        ("../secret.jpg", None, "a name that leads out of the archive: not read"),
        ("a/../../b.jpg", None, "a name that leads out of the archive: not read"),
        ("/etc/c.jpg", None, "a name that leads out of the archive: not read"),
        ("inside.jpg", b"x", None),
    ]


def test_a_member_that_would_fill_the_memory_is_refused_unread(tmp_path: Path) -> None:
    """A tar of a tar: what is in it says that it has a terabyte, and a compressed one really has half a gigabyte."""
    path = tmp_path / "0.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        header = tarfile.TarInfo("bomb.jpg")
        header.size = MAX_ENCODED_BYTES + 1
        file.write(header.tobuf())
        for _ in range(MAX_ENCODED_BYTES // (1 << 20)):
            file.write(bytes(1 << 20))
        file.write(bytes(512))
        header = tarfile.TarInfo("after.jpg")
        header.size = 1
        file.write(header.tobuf() + b"x" + bytes(511) + bytes(1024))
    picture_extensions()  # loads every plugin of Pillow, which would be counted
    tracemalloc.start()
    bomb, after = pictures(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (bomb.source, after.source) == (None, b"x")
    assert (
        bomb.refused == f"{MAX_ENCODED_BYTES + 1} bytes, over the limit of {MAX_ENCODED_BYTES} for a picture in a shard"
    )
    assert peak < 20e6


def test_a_shard_inside_a_shard_is_no_picture(tmp_path: Path) -> None:
    inner = make_tar(tmp_path / "inner.tar", [("a.jpg", b"x")])
    assert sources(pictures(make_tar(tmp_path / "0.tar", [("inner.tar", inner.read_bytes()), ("b.jpg", b"y")]))) == [
        ("b.jpg", b"y")
    ]


def damaged(path: Path, edit: Any) -> list[Picture]:
    content = bytearray(path.read_bytes())
    path.write_bytes(edit(content))
    return pictures(path)


def cut(at: int) -> Any:
    return lambda content: content[:at]


def overwritten(at: int) -> Any:
    return lambda content: content[:at] + b"#" * 512 + content[at + 512 :]


@pytest.mark.parametrize(
    ("edit", "whole"),
    [
        (cut(0), 0),
        (cut(100), 0),
        (cut(512 + 100), 0),
        (cut(1024 + 100), 1),
        (cut(2048 + 512 + 7), 2),
        (overwritten(0), 0),
        (overwritten(1024), 1),
        (lambda content: b"hello, I am no tar file at all", 0),
    ],
    ids=["empty", "first header", "first content", "second header", "third content", "no header", "bad header", "text"],
)
def test_a_damaged_shard_ends_in_a_row_that_says_so(tmp_path: Path, edit: Any, whole: int) -> None:
    path = make_tar(tmp_path / "0.tar", [(f"{i}.jpg", b"x" * 300) for i in range(4)])
    found = damaged(path, edit)
    assert sources(found)[:-1] == [(f"{i}.jpg", b"x" * 300) for i in range(whole)]
    last = found[-1]
    assert (last.name, last.source) == (str(path), None)
    assert str(last.refused).startswith("a damaged tar file, not read further (")
    assert pictures(path, whole) == [last]
    assert pictures(path, whole + 1) == []


@pytest.mark.parametrize("edit", [cut(2000), overwritten(700)], ids=["cut", "overwritten"])
def test_a_damaged_gzip(tmp_path: Path, edit: Any) -> None:
    import random

    noise = random.Random(0)
    path = make_tar(tmp_path / "0.tar.gz", [(f"{i}.jpg", noise.randbytes(900)) for i in range(4)], "w:gz")
    found = damaged(path, edit)
    assert 1 <= len(found) <= 4
    assert str(found[-1].refused).startswith("a damaged tar file")


def test_a_shard_that_is_gone(tmp_path: Path) -> None:
    shard = TarShard(str(tmp_path / "0.tar"))
    for act in (shard.key, lambda: list(shard.pictures())):
        with pytest.raises(SourceError, match=r"0\.tar: cannot be read: No such file or directory"):
            act()  # type: ignore[operator]


def test_the_key_of_a_shard_changes_with_it(tmp_path: Path) -> None:
    shard = TarShard(str(make_tar(tmp_path / "0.tar", [("a.jpg", b"x")])))
    before = shard.key()
    assert shard.key() == before
    make_tar(tmp_path / "0.tar", [("a.jpg", b"x"), ("b.jpg", b"x" * 20_000)])
    assert shard.key() != before


def test_headers_are_not_kept(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "0.tar", ((f"{i:06}.jpg", b"") for i in range(20_000)))
    picture_extensions()  # loads every plugin of Pillow, which would be counted
    tracemalloc.start()
    assert sum(1 for _ in TarShard(str(path)).pictures()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


# Parquet


def write_parquet(path: Path, column: Any, *, row_group: int = 3, name: str = "image") -> Path:
    parquet.write_table(pa.table({"key": list(range(len(column))), name: column}), path, row_group_size=row_group)
    return path


def all_rows(path: Path, column: str = "image") -> list[Picture]:
    return [picture for piece in row_groups(str(path), column) for picture in piece.pictures()]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_a_column_of_bytes(tmp_path: Path, kind: Any) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([b"%d" % i for i in range(8)], kind))
    groups = list(row_groups(str(path), "image"))
    assert [(group.index, group.first_row, group.count) for group in groups] == [(0, 0, 3), (1, 3, 3), (2, 6, 2)]
    found = all_rows(path)
    assert [(picture.name, picture.source) for picture in found] == [(f"{path}/{i}", b"%d" % i) for i in range(8)]
    assert list(groups[1].pictures(2)) == found[5:6]
    assert [picture.done for picture in groups[2].pictures()] == [0.5, 1.0]
    assert len({group.key() for group in groups}) == 3


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
    pool = pa.system_memory_pool()
    pa.set_memory_pool(pool)
    try:
        before, peak = pool.bytes_allocated(), 0
        for group in row_groups(str(path), "image"):
            for _ in group.pictures():
                peak = max(peak, pool.bytes_allocated() - before)
    finally:
        pa.set_memory_pool(pa.default_memory_pool())
    assert 0 < peak < 40e6


def test_refusals_of_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([b"x"], pa.binary()))
    with pytest.raises(UsageError, match=r"no column 'path'; it has key, image: name one with --column"):
        all_rows(path, "path")
    with pytest.raises(UsageError, match=r"column 'key' is int64; pictures are bytes, or strings that are their paths"):
        all_rows(path, "key")
    (tmp_path / "b.parquet").write_text("hello, I am no Parquet file")
    with pytest.raises(UsageError, match=r"b\.parquet: not a Parquet file"):
        all_rows(tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"c\.parquet: cannot be read: .*No such file"):
        all_rows(tmp_path / "c.parquet")


def test_damaged_pages_are_rows_that_say_so(tmp_path: Path) -> None:
    column = pa.array([bytes([i]) * 1000 for i in range(6)], pa.binary())
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"image": column}), path, row_group_size=3, use_dictionary=False, compression="zstd")
    content = bytearray(path.read_bytes())
    start = parquet.read_metadata(path).row_group(0).column(0).data_page_offset
    content[start : start + 30] = b"#" * 30
    path.write_bytes(content)
    found = all_rows(path)
    assert [picture.name for picture in found] == [f"{path}/{i}" for i in range(6)]
    assert [str(picture.refused).startswith("a damaged Parquet file") for picture in found] == [True] * 3 + [False] * 3


def test_a_parquet_file_that_goes_away(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pa.array([b"x"], pa.binary()))
    [group] = row_groups(str(path), "image")
    assert isinstance(group, RowGroup)
    path.unlink()
    with pytest.raises(SourceError, match=r"a\.parquet: cannot be read"):
        list(group.pictures())
