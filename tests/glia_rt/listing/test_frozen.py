"""A listing in a file, and what a run reads of it after things have changed."""

from __future__ import annotations

import os
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from helpers.runs import frozen
from pyarrow import parquet

from glia_rt.errors import SourceError, UsageError
from glia_rt.listing.frozen import FrozenListing, Summary, freeze
from glia_rt.listing.pieces import File, Piece, Position, Refused
from glia_rt.listing.sources import Sources


def make(folder: Path) -> Sources:
    """Make two pictures, a tar archive of two, a Parquet file of five rows in groups of two, and a missing file."""
    (folder / "album").mkdir()
    for name in ("a.jpg", os.fsdecode(b"caf\xe9.jpg")):
        (folder / "album" / name).touch()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name in ("p.jpg", "q.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    write_table(folder / "t.parquet", 5)
    paths = [folder / "album", folder / "0.tar", folder / "t.parquet", folder / "missing.jpg"]
    return Sources(paths, column="image")


def write_table(path: Path, rows: int) -> None:
    parquet.write_table(pa.table({"image": pa.array([b"x"] * rows, pa.binary())}), path, row_group_size=2)


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return make(tmp_path)


@pytest.fixture
def listing(sources: Sources, tmp_path: Path) -> FrozenListing:
    frozen(sources, tmp_path / "l.jsonl.zst")
    return FrozenListing(tmp_path / "l.jsonl.zst")


def names(listing: FrozenListing) -> list[str]:
    return [picture.name.rpartition("/")[2] for _, picture in listing.pictures()]


def test_it_holds_what_was_found(sources: Sources, listing: FrozenListing) -> None:
    assert list(listing.pieces()) == list(sources.pieces())
    assert [picture for _, picture in listing.pictures()] == list(sources.pictures())
    found = listing.summary()
    assert (found.pieces, found.pictures, len(found.sha256)) == (7, None, 64)


def test_its_hash_is_of_what_was_found(sources: Sources, tmp_path: Path) -> None:
    def digest() -> str:
        return freeze(tmp_path / "other.jsonl.zst", sources.pieces(), "").sha256

    first = digest()
    assert digest() == first
    os.utime(tmp_path / "0.tar", (1, 1))
    assert digest() != first


def test_it_goes_on_from_any_position(listing: FrozenListing) -> None:
    everything = list(listing.pictures())
    assert len(everything) == 10
    for i, (position, _) in enumerate(everything):
        assert list(listing.pictures(position)) == everything[i:]
        assert list(listing.pictures(Position(position.piece, position.picture + 1))) == everything[i + 1 :]


def test_what_comes_later_is_not_of_it(sources: Sources, listing: FrozenListing, tmp_path: Path) -> None:
    before = names(listing)
    assert listing.count_new(sources.pieces()) == 0
    for name in ("album/aa.jpg", "album/z.jpg"):
        (tmp_path / name).touch()
    assert names(listing) == before
    assert listing.count_new(sources.pieces()) == 2


def test_what_cannot_be_listed_now_is_not_new(sources: Sources, listing: FrozenListing, tmp_path: Path) -> None:
    """Folders are listed one after the other, so that new files come before and after it."""
    (tmp_path / "album/z.jpg").touch()
    pieces = list(sources.pieces())
    assert listing.count_new([Refused("folder", "closed"), *pieces, Refused("other", "closed")]) == 1

    def failing() -> Iterator[Piece]:
        yield from pieces
        raise SourceError("this folder cannot be listed: Stale file handle")

    assert listing.count_new(failing()) == 1


@pytest.mark.parametrize("how", ["changed since the listing was made: not read", "no longer there"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0.tar", ["a.jpg", "caf\\udce9.jpg", "0.tar", "0", "1", "2", "3", "4", "missing.jpg"]),
        ("t.parquet", ["a.jpg", "caf\\udce9.jpg", "p.jpg", "q.jpg", "t.parquet", "missing.jpg"]),
    ],
)
def test_an_archive_that_has_changed_is_one_row(
    listing: FrozenListing, tmp_path: Path, name: str, expected: list[str], how: str
) -> None:
    if how == "no longer there":
        (tmp_path / name).unlink()
    else:
        os.utime(tmp_path / name, ns=(0, 0))
    found = list(listing.pictures())
    assert names(listing) == expected
    assert [picture.name for _, picture in found if picture.refused == how] == [str(tmp_path / name)]
    for i, (position, _) in enumerate(found):  # each row once, wherever a run goes on
        assert list(listing.pictures(Position(position.piece, position.picture + 1))) == found[i + 1 :]


def test_an_archive_that_changes_between_its_row_groups(listing: FrozenListing, tmp_path: Path) -> None:
    found = listing.pictures(Position(3, 0))
    assert [next(found)[1].name.rpartition("/")[2] for _ in range(2)] == ["0", "1"]
    write_table(tmp_path / "t.parquet", 9)
    rest = [(position, picture.refused) for position, picture in found]
    assert rest == [(Position(6, -1), "changed since the listing was made: not read"), (Position(6, 0), None)]


def test_shards_are_every_nth_piece_and_together_all_of_it(listing: FrozenListing) -> None:
    whole = list(listing.pieces())
    parts = [list(Sources(list_file=listing.path, shard=(i, 3)).pieces()) for i in (1, 2, 3)]
    assert [len(part) for part in parts] == [3, 2, 2]
    assert [parts[i % 3][i // 3] for i in range(7)] == whole


def test_shards_of_what_may_change_are_refused(sources: Sources, tmp_path: Path) -> None:
    for unfrozen in ({"paths": [tmp_path]}, {"list_file": tmp_path / "list.txt"}):
        with pytest.raises(UsageError, match=r"Make a listing first, glia-rt list PATH\.\.\. -o listing\.jsonl\.zst"):
            Sources(**unfrozen, shard=(1, 2))  # type: ignore[arg-type]


def test_it_takes_little_memory_and_little_disk(tmp_path: Path) -> None:
    import pyarrow  # noqa: F401 - what importing it takes does not count

    count = 100_000
    pieces = (File(f"/data/photos/{i // 1000:05}/IMG_{i * 7919 % 10**8:08}.jpg", "/data/photos") for i in range(count))
    tracemalloc.start()
    freeze(tmp_path / "l.jsonl.zst", pieces, "photos")
    listing = FrozenListing(tmp_path / "l.jsonl.zst")
    assert sum(1 for _ in listing.pictures()) == count
    assert listing.summary().pictures == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    assert listing.path.stat().st_size < 1e6


def test_rows_are_kept_with_the_pieces(listing: FrozenListing, tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl.zst"
    freeze(again, listing.pieces(), "", rows=range(7))
    assert [rows for _, rows in FrozenListing(again).pieces_and_rows()] == list(range(7))
    assert list(FrozenListing(again).pieces()) == list(listing.pieces())
    assert FrozenListing(again).summary() == listing.summary(), "rows are not of the listing"


@pytest.mark.parametrize(
    "lines",
    [
        b"[1]\n",
        b"5\n",
        b'{"kind": []}\n',
        b'{"kind": "zip", "path": "a"}\n',
        b'{"kind": "file", "path": 5}\n',
        b'{"kind": "file", "path": "b", "rows": "2"}\n',
        b'{"pieces": 1, "pictures": 1, "sha256": ""}\n',
        b"",
    ],
    ids=["a list", "a number", "a kind of another type", "a kind of later", "a path", "rows", "totals", "one too few"],
)
def test_a_listing_with_a_wrong_line(listing: FrozenListing, lines: bytes) -> None:
    """One that is passed over would be pictures that nobody misses."""
    head, first = b'{"glia_rt_listing": 1}\n', b'{"kind": "file", "path": "a"}\n'
    last = b'{"pieces": 2, "pictures": 2, "sha256": ""}\n'
    listing.path.write_bytes(pa.compress(head + first + lines + last, "zstd", asbytes=True))
    with pytest.raises(UsageError, match="a damaged listing"):
        list(listing.pieces())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"photos/a.jpg\n", "a damaged listing"),
        (b"", "a damaged listing|cut off"),
        ("half", "a damaged listing"),
        ("without totals", "cut off"),
        ("another field", "a damaged listing"),
        ("another schema", "not a listing that this glia-rt reads"),
    ],
)
def test_a_file_that_is_none(listing: FrozenListing, content: bytes | str, message: str) -> None:
    if content == "half":
        content = listing.path.read_bytes()[: listing.path.stat().st_size // 2]
    elif content == "without totals":
        content = pa.compress(b'{"glia_rt_listing": 1}\n{"kind": "file", "path": "a"}\n', "zstd", asbytes=True)
    elif content == "another field":
        lines = b'{"glia_rt_listing": 1}\n{"kind": "file", "path": "a", "x": 1}\n{"pieces": 1, "x": 1}\n'
        content = pa.compress(lines, "zstd", asbytes=True)
    elif content == "another schema":
        content = pa.compress(b'{"glia_rt_listing": 9}\n', "zstd", asbytes=True)
    assert isinstance(content, bytes)
    listing.path.write_bytes(content)
    for read in (listing.summary, lambda: list(listing.pieces())):
        with pytest.raises(UsageError, match=message):
            read()


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"l\.jsonl\.zst: cannot be read: No such file"):
        list(Sources(list_file=tmp_path / "l.jsonl.zst").pieces())


def test_a_summary_of_pictures(tmp_path: Path) -> None:
    found = freeze(tmp_path / "l.jsonl.zst", [File("a.jpg"), File("b.jpg")], "")
    assert found == Summary(2, 2, found.sha256)
