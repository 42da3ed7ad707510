"""Tar archives, made with the standard library: whole, hostile and damaged."""

from __future__ import annotations

import gzip
import io
import itertools
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from helpers.listings import listed

from glia_rt.errors import SourceError
from glia_rt.listing.pieces import MAX_ENCODED_BYTES, Picture
from glia_rt.listing.sources import Sources
from glia_rt.listing.tar import TarArchive
from glia_rt.pixels.names import picture_extensions

Members = Iterable[tuple[str, bytes]]


def make_tar(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pictures(path: Path, first: int = 0) -> list[Picture]:
    return list(TarArchive.at(str(path)).pictures(first))


def sources(found: Iterable[Picture]) -> list[tuple[str, str | bytes | None]]:
    return [(Path(picture.name).name, picture.source) for picture in found]


@pytest.mark.parametrize(("ending", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_pictures_of_an_archive_in_its_order(tmp_path: Path, ending: str, mode: str) -> None:
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


def test_what_looks_like_a_picture_and_is_left_out_is_counted(tmp_path: Path) -> None:
    names = [".a.jpg", "a.jpg", "b.jxl", "deep/._a.jpg", "deep/c.JXL", ".notes.txt", "a.json", "d.cr2", "b.jpg"]
    path = make_tar(tmp_path / "0.tar", [(name, b"x") for name in names])
    sources = Sources([path])
    assert sources.say_left_out() == ""
    for _ in range(2):
        assert listed(sources) == [f"{path}/a.jpg", f"{path}/b.jpg"]
        assert sources.say_left_out() == "left out: 1 .cr2 file, 2 .jxl files, 2 hidden pictures", "of one reading"
    rest: Counter[str] = Counter()
    assert len(list(TarArchive.at(str(path)).pictures(1, rest))) == 1
    assert rest == {"hidden picture": 1, ".jxl file": 2, ".cr2 file": 1}, "after the first picture"


def test_a_run_says_what_it_left_out_of_archives(
    plain_bundle: Path, pictures: Path, glia_rt_command: Callable[..., Any], tmp_path: Path
) -> None:
    content = (pictures / "00.jpg").read_bytes()
    path = make_tar(tmp_path / "0.tar", [("a.jpg", content), ("b.jxl", b"x")])
    (tmp_path / "album").mkdir()
    (tmp_path / "album/.c.jpg").touch()
    for options in (["-o", tmp_path / "a.csv"], []):
        done = glia_rt_command("score", plain_bundle, path, tmp_path / "album", *options)
        assert done.stderr.count("left out: 1 .jxl file, 1 hidden picture") == 1, done.stderr


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
        bomb.refused
        == f"{MAX_ENCODED_BYTES + 1} bytes, over the limit of {MAX_ENCODED_BYTES} for a picture in an archive"
    )
    assert peak < 20e6


def test_an_archive_inside_an_archive_is_no_picture(tmp_path: Path) -> None:
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
def test_a_damaged_archive_ends_in_a_row_that_says_so(tmp_path: Path, edit: Any, whole: int) -> None:
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


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda tar: tar[: 4 * 1024], "cut off: its end is missing"),
        (lambda tar: tar + tar, "more after its end, such as a second archive"),
        (lambda tar: tar + b"\0" * 100_000 + b"x", "more after its end, such as a second archive"),
    ],
    ids=["no end", "two archives", "rubbish"],
)
def test_the_end_of_an_archive_is_looked_at(tmp_path: Path, mode: str, edit: Any, reason: str) -> None:
    content = edit(make_tar(tmp_path / "0.tar", [(f"{i}.jpg", b"x" * 300) for i in range(4)]).read_bytes())
    (tmp_path / "0.tar").write_bytes(gzip.compress(content) if mode == "w:gz" else content)
    found = pictures(tmp_path / "0.tar")
    assert sources(found) == [*((f"{i}.jpg", b"x" * 300) for i in range(4)), ("0.tar", None)]
    assert found[-1].refused == f"a damaged tar file, not read further ({reason})"


def test_the_checksum_of_a_gzip_is_looked_at(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "0.tar.gz", [("0.jpg", b"x")], "w:gz")
    found = damaged(path, lambda content: content[:-8] + b"#" * 8)
    assert sources(found) == [("0.jpg", b"x"), ("0.tar.gz", None)]
    assert "CRC check failed" in str(found[-1].refused)


@pytest.mark.parametrize("members", [[], [("a.json", b"{}"), ("b.img", b"x")]], ids=["empty", "others"])
def test_an_archive_without_a_picture_says_so(tmp_path: Path, members: Members) -> None:
    [row] = pictures(make_tar(tmp_path / "0.tar", members))
    assert row.refused == "a tar file without a picture: no member has a picture's extension"
    assert pictures(tmp_path / "0.tar", 1) == []


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
@pytest.mark.parametrize("before", [0, 1])
def test_a_header_that_would_fill_the_memory(tmp_path: Path, kind: bytes, before: int) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, 100_000_000
    with gzip.open(tmp_path / "0.tar.gz", "wb") as file:
        for _ in range(before):
            file.write(tarfile.TarInfo("a.jpg").tobuf())
        file.write(info.tobuf() + b"x" * info.size + tarfile.TarInfo("b.jpg").tobuf() + b"\0" * 1024)
    tracemalloc.start()
    [*_, row] = pictures(tmp_path / "0.tar.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    reason = "a header of 100000000 bytes" if before else "not a tar file, or damaged at its start"
    assert row.refused == f"a damaged tar file, not read further ({reason})"
    assert peak < 10e6


def test_whatever_bytes_change_an_archive_ends_in_rows(tmp_path: Path) -> None:
    import random

    pax = {"path": "ä" * 120 + ".jpg", "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(3):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size, info.pax_headers = 700, pax if i == 1 else {}
            tar.addfile(info, io.BytesIO(b"1\n0\n9\n" + b"\0" * 694))
    content, chance, refused = path.read_bytes(), random.Random(0), 0
    headers = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
    for turn in range(3000):
        changed = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 30))):
            changed[chance.randrange(7000)] = chance.choice(b"\0\xff0179-=\nLxgKS")
        if turn % 2:  # else nearly all of those in a header end at its checksum
            for at in headers:
                changed[at : at + 512] = with_checksum(changed[at : at + 512])
        path.write_bytes(changed)
        refused += any(picture.refused for picture in itertools.islice(TarArchive.at(str(path)).pictures(), 100))
    assert refused > 300


def with_checksum(header: bytes) -> bytes:
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:512])
    return header[:148] + b"%06o\0 " % total + header[156:512]


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """As `TarInfo.tobuf` makes it, which makes none of a negative size."""
    plain = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    plain[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 else b"%011o\0" % size
    plain[156:157] = kind
    return with_checksum(bytes(plain))


def sized_by_pax(name: str, size: int) -> bytes:
    record = b"%d size=%d\n" % (len(f"{size}") + 9, size)
    return header("pax", len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0") + header(name)


@pytest.mark.parametrize(
    "second",
    [
        header("b.jpg", -512),
        header("b.txt", -512),
        header("b.jpg", -1),
        header("b.jpg", -512, tarfile.XHDTYPE),
        header("b.jpg", -1024, b"?"),
        sized_by_pax("b.jpg", -512),
        sized_by_pax("b.txt", -1536),
        header("b.jpg", 0, tarfile.GNUTYPE_SPARSE)[:482] + b"\1",
        *(header("x", 0, kind) * 2000 for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE)),
    ],
    ids=["picture", "no picture", "less than a block", "pax", "unknown", "by pax", "no picture, by pax", "sparse, cut",
         "headers of headers", "global headers"],
)  # fmt: skip
def test_headers_that_lead_back_or_nowhere(tmp_path: Path, second: bytes) -> None:
    """A negative size once made an archive that never ends."""
    path = tmp_path / "0.tar"
    path.write_bytes(header("a.jpg", 1) + b"x".ljust(512, b"\0") + second)
    first, last = itertools.islice(TarArchive.at(str(path)).pictures(), 100)
    assert (first.source, last.source) == (b"x", None)
    assert str(last.refused).startswith("a damaged tar file, not read further (")


@pytest.mark.parametrize("mode", ["w:xz", "w:bz2"])
def test_a_damaged_archive_compressed_otherwise(tmp_path: Path, mode: str) -> None:
    path = make_tar(tmp_path / "0.tar", [(f"{i}.jpg", b"x") for i in range(9)], mode)
    middle = path.stat().st_size // 2
    [*_, last] = damaged(path, lambda content: content[:middle] + b"#" * 9 + content[middle + 9 :])
    assert str(last.refused).startswith("a damaged tar file, not read further (")


def test_an_archive_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"0\.tar: cannot be read: No such file or directory"):
        TarArchive.at(str(tmp_path / "0.tar"))


def test_headers_are_not_kept(tmp_path: Path) -> None:
    """All 20,000 of them are 9 MB."""
    path = make_tar(tmp_path / "0.tar", ((f"{i:06}.jpg", b"") for i in range(20_000)))
    picture_extensions()  # loads every plugin of Pillow, which would be counted
    tracemalloc.start()
    assert sum(1 for _ in TarArchive.at(str(path)).pictures()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6
