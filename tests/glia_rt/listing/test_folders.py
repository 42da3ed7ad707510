"""Pictures in folders: which names are found, and in what order."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.listings import make
from PIL import Image

from glia_rt.errors import UsageError
from glia_rt.listing.folders import find_images


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


def test_folders_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another user's; whoever runs this may be root, to whom nothing is forbidden."""
    make(tmp_path, "a.jpg", "private/b.jpg")
    scandir = os.scandir

    def guarded(path: str) -> Any:
        if Path(path).name == "private":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    for top in (tmp_path, tmp_path / "private"):
        with pytest.raises(UsageError, match=r"private: this folder cannot be listed: Permission denied; make it read"):
            list(find_images([top]))


def test_an_empty_folder_yields_nothing(tmp_path: Path) -> None:
    assert found(tmp_path) == []
