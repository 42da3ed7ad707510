"""Pictures in folders: which names are found, and in what order."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.listings import glia_rt_with_rights, make
from PIL import Image

from glia_rt.errors import SourceError, UsageError
from glia_rt.listing.folders import Found, find_images, match, walk
from glia_rt.listing.frozen import FrozenListing
from glia_rt.listing.pieces import Refused


def found(folder: Path) -> list[str]:
    return [os.path.relpath(path, folder) for path in find_images([folder])]


def test_arguments_keep_their_order_and_their_spelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "z.jpg", "a.jpg", "album/1.png", "notes.txt", ".hidden.jpg")
    monkeypatch.chdir(tmp_path)
    paths: list[str | Path] = [
        "z.jpg",
        Path("a.jpg"),
        "./album",
        "notes.txt",
        "nothing-there.jpg",
        ".hidden.jpg",
        "z.jpg",
    ]
    assert list(find_images(paths)) == [
        "z.jpg",
        "a.jpg",
        "./album/1.png",
        "notes.txt",
        "nothing-there.jpg",
        ".hidden.jpg",
        "z.jpg",
    ]


def test_files_and_folders_are_sorted_together_by_the_bytes_of_their_names(tmp_path: Path) -> None:
    make(
        tmp_path,
        "b/2.jpg",
        "b/10.jpg",
        "a.jpg",
        "c.jpg",
        "B.jpg",
        "é.jpg",
        "b.jpg",
        "b/deep/er/1.jpg",
        "￿.jpg",
        "😀.jpg",
    )
    assert found(tmp_path) == [
        "B.jpg",
        "a.jpg",
        "b/10.jpg",
        "b/2.jpg",
        "b/deep/er/1.jpg",
        "b.jpg",
        "c.jpg",
        "é.jpg",
        "￿.jpg",
        "😀.jpg",
    ]


def test_a_name_that_is_not_utf8_is_found_and_can_be_opened(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    Image.new("RGB", (2, 1)).save(os.fsdecode(name))
    [path] = find_images([tmp_path])
    assert os.fsencode(path) == name
    with Image.open(path) as image:
        assert image.size == (2, 1)


def test_extensions_of_pictures_in_any_case(tmp_path: Path) -> None:
    pictures = ["a.JPG", "b.Jpeg", "c.png", "d.tif", "e.webp", "f.bmp", "g.gif", "h.jp2", "i.ppm"]
    make(tmp_path, *pictures, "a.txt", "b.pdf", "c.eps", "d.ps", "e.mpg", "f.mp4", "g.h5", "h.wmf", "jpg", "j.jpg.bak")
    assert found(tmp_path) == pictures


def test_hidden_names_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, ".a.jpg", ".trash/b.jpg", "album/.c.jpg", "album/d.jpg")
    assert found(tmp_path) == ["album/d.jpg"]


def test_a_hidden_folder_given_by_name_is_searched(tmp_path: Path) -> None:
    make(tmp_path, ".trash/b.jpg")
    assert found(tmp_path / ".trash") == ["b.jpg"]


def test_a_folder_named_like_a_picture_is_still_a_folder(tmp_path: Path) -> None:
    make(tmp_path, "shots.jpg/a.jpg")
    assert found(tmp_path) == ["shots.jpg/a.jpg"]


def test_links_to_files_are_pictures_and_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    make(tmp_path, "in/a.jpg", "elsewhere/b.jpg")
    inside = tmp_path / "in"
    (inside / "link.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (inside / "cycle").symlink_to(inside)
    (inside / "cycle.jpg").symlink_to(inside)
    (inside / "elsewhere").symlink_to(tmp_path / "elsewhere")
    assert found(inside) == ["a.jpg", "link.jpg"]


def test_a_broken_link_is_kept_so_that_it_is_reported(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    assert found(tmp_path) == ["broken.jpg", "loop.jpg"]


def test_a_link_to_a_folder_that_is_given_is_followed(tmp_path: Path) -> None:
    make(tmp_path, "album/a.jpg")
    (tmp_path / "link").symlink_to("album")
    assert list(find_images([tmp_path / "link"])) == [str(tmp_path / "link/a.jpg")]


def test_folders_are_read_only_when_their_turn_comes(tmp_path: Path) -> None:
    make(tmp_path, "1/a.jpg", "2/b.jpg")
    images = find_images([tmp_path / "1", tmp_path / "2"])
    assert next(images) == str(tmp_path / "1/a.jpg")
    make(tmp_path, "2/c.jpg")
    assert list(images) == [str(tmp_path / "2/b.jpg"), str(tmp_path / "2/c.jpg")]


def test_a_folder_that_goes_while_it_is_walked_is_an_error_that_names_it(tmp_path: Path) -> None:
    gone = tmp_path / os.fsdecode(b"gone\xff")
    make(tmp_path, "a.jpg", f"{gone}/b.jpg")
    images = find_images([tmp_path])
    assert next(images) == str(tmp_path / "a.jpg")
    shutil.rmtree(gone)
    with pytest.raises(UsageError, match=r"gone\\udcff: this folder cannot be listed: No such file"):
        next(images)


@pytest.mark.parametrize("how", ["subfolder", "top", "pattern", "beside another"])
def test_folders_that_may_not_be_listed_are_refused_and_the_rest_is_found(tmp_path: Path, how: str) -> None:
    make(tmp_path, "a.jpg", "closed/b.jpg", "z/c.jpg")
    paths = {
        "subfolder": [tmp_path],
        "top": [tmp_path / "closed"],
        "pattern": [tmp_path / "a.jpg", tmp_path / "closed/*.jpg", tmp_path / "z"],
        "beside another": [tmp_path / "a.jpg", tmp_path / "closed", tmp_path / "z"],
    }[how]
    (tmp_path / "closed").chmod(0)
    status, said = glia_rt_with_rights("list", *paths, "-o", tmp_path / "l.jsonl.zst")
    (tmp_path / "closed").chmod(0o700)
    reason = "this folder cannot be listed: Permission denied; make it readable, or name only what is to be scored"
    assert said[0] == f"{tmp_path}/closed: {reason}"
    assert status == 3
    found = {piece.path: piece for piece in FrozenListing(tmp_path / "l.jsonl.zst").pieces()}
    others = [] if how == "top" else [f"{tmp_path}/a.jpg", f"{tmp_path}/z/c.jpg"]
    assert sorted(found) == sorted([f"{tmp_path}/closed", *others])
    assert found[f"{tmp_path}/closed"] == Refused(f"{tmp_path}/closed", reason)


def test_a_folder_that_goes_before_its_turn_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "album/a.jpg")
    found = walk(f"{tmp_path}/album", Counter())
    shutil.rmtree(tmp_path / "album")
    [refused] = found
    assert isinstance(refused, Refused)
    assert refused.reason.startswith("this folder cannot be listed: No such file or directory")


def test_a_machine_that_fails_at_a_folder_is_no_refused_place(tmp_path: Path) -> None:
    make(tmp_path, "album/a.jpg")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(SourceError, match="album: this folder cannot be listed: Too many open files"):
            list(walk(f"{tmp_path}/album", Counter()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_links_that_lead_nowhere_hide_nothing(tmp_path: Path) -> None:
    """Not even hidden ones: whether they are folders cannot be found out."""
    make(tmp_path, "a.jpg", "sub/b.jpg", "closed/inner/x.jpg")
    for folder in (tmp_path, tmp_path / "sub"):
        (folder / ".l").symlink_to(".l")
        (folder / ".l.jpg").symlink_to(".l.jpg")
        (folder / "l").symlink_to("l")
        (folder / ".far").symlink_to("nowhere/" + "x" * 300)
    left_out = Counter[str]()
    assert [found.path for found in walk(str(tmp_path), left_out)] == [
        f"{tmp_path}/{name}" for name in ("a.jpg", "closed/inner/x.jpg", "sub/b.jpg")
    ]
    assert left_out == {"hidden picture": 2}


@pytest.fixture
def other_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_what_is_found_says_which_folder_was_searched(tmp_path: Path, other_disk: Path) -> None:
    make(tmp_path, "a/b/c.jpg", "a/d.jpg")
    make(other_disk, "e.jpg", "deep/f.jpg")
    (tmp_path / "disk").symlink_to(other_disk)
    assert os.stat(tmp_path).st_dev != os.stat(other_disk).st_dev
    assert [*walk(f"{tmp_path}/a", Counter())] == [
        Found(f"{tmp_path}/a/b/c.jpg", f"{tmp_path}/a"), Found(f"{tmp_path}/a/d.jpg", f"{tmp_path}/a")
    ]  # fmt: skip
    assert [*match(f"{tmp_path}/*/*.jpg", Counter())] == [
        Found(f"{tmp_path}/a/d.jpg", f"{tmp_path}"), Found(f"{tmp_path}/disk/e.jpg", f"{tmp_path}/disk")
    ]  # fmt: skip
    assert [*match(f"{tmp_path}/d*k/*/*", Counter())] == [Found(f"{tmp_path}/disk/deep/f.jpg", f"{tmp_path}/disk")]


def test_the_folder_of_a_pattern_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a.jpg", "album/b.jpg")
    monkeypatch.chdir(tmp_path)
    assert [*match("*.jpg", Counter())] == [Found("a.jpg", ".")]
    assert [*match("album/*.jpg", Counter())] == [Found("album/b.jpg", "album")]


def test_an_empty_folder_yields_nothing(tmp_path: Path) -> None:
    assert found(tmp_path) == []
