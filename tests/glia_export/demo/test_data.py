import socket
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from glia_export.demo.data import MAX_SIDE, PHOTOGRAPHS, SEED, Copy, Photograph, make_copies, read_photograph
from glia_rt.errors import GliaError, MissingPackageError
from glia_rt.pixels.decode import read_image
from glia_train.distortions import LEVELS, distort

DISTORTED = ("jpeg", "white_noise")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Copy]:
    return make_copies(tmp_path_factory.mktemp("demo") / "pictures", PHOTOGRAPHS, DISTORTED)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_photograph_has_every_distortion_at_every_level(made: list[Copy]) -> None:
    kinds = [(None, 0), *((name, level) for name in DISTORTED for level in range(1, LEVELS + 1))]
    assert [(one.photograph, one.distortion, one.level) for one in made] == [
        (photograph.name, *kind) for photograph in PHOTOGRAPHS for kind in kinds
    ]
    assert len({one.path for one in made}) == len(made)


def test_pictures_are_png_of_at_most_512_pixels(made: list[Copy]) -> None:
    sizes = []
    for one in made:
        with Image.open(one.path) as image:
            assert (image.format, image.mode) == ("PNG", "RGB")
            sizes.append(image.size)
    assert max(map(max, sizes)) == MAX_SIDE
    assert min(map(min, sizes)) >= 224


def test_a_copy_is_the_distorted_photograph(made: list[Copy]) -> None:
    originals = {one.photograph: read_image(one.path) for one in made if one.level == 0}
    for one in made[::7]:
        if one.distortion is not None:
            at = [photograph.name for photograph in PHOTOGRAPHS].index(one.photograph)
            rng = np.random.default_rng([SEED, at])
            expected = distort(originals[one.photograph], one.distortion, one.level, rng)
            assert np.array_equal(read_image(one.path), expected)


def test_equal_calls_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_copies(tmp_path / name, PHOTOGRAPHS[:2], DISTORTED[1:])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert len(make_copies(tmp_path, PHOTOGRAPHS, ())) == len(PHOTOGRAPHS)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GliaError, match="file/pictures: cannot be written: Not a directory"):
        make_copies(tmp_path / "file" / "pictures", PHOTOGRAPHS[:1], ())


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(MissingPackageError, match=r"pip install .*openvino"):
        read_photograph(Photograph("no_such_package", "a.png", ""))
