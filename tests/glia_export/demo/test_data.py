import re
import socket
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from glia_export.demo.data import (
    CROP,
    LABELS,
    MAX_PICTURES,
    PHOTOGRAPHS,
    DemoPicture,
    Photograph,
    _cut,
    make_dataset,
    read_photograph,
)
from glia_rt.errors import GliaError, MissingPackageError, OutputExistsError, UsageError
from glia_rt.pixels.decode import read_image
from glia_train.datasets.base import require_pictures
from glia_train.datasets.csv import read_labels
from glia_train.datasets.splits import split_dataset
from glia_train.distortions import DISTORTIONS, LEVELS
from glia_train.full_reference import ssim

KINDS = {(None, 0)} | {(name, level) for name in DISTORTIONS for level in range(1, LEVELS + 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "data"


@pytest.fixture(scope="module")
def made(folder: Path) -> list[DemoPicture]:
    return make_dataset(folder, seed=0, pictures=2 * len(KINDS))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_distortion_and_level_and_photograph_has_its_turn(made: list[DemoPicture]) -> None:
    assert Counter((picture.distortion, picture.level) for picture in made) == dict.fromkeys(KINDS, 2)
    share = len(made) / len(PHOTOGRAPHS)
    counts = Counter(picture.reference for picture in made)
    assert set(counts) == {photograph.name for photograph in PHOTOGRAPHS}
    assert all(abs(count - share) <= 2 for count in counts.values())
    assert len({(picture.reference, picture.distortion, picture.level) for picture in made}) == len(made)
    assert len(PHOTOGRAPHS) * len(KINDS) == MAX_PICTURES


def test_the_labels_file_is_what_training_reads(folder: Path, made: list[DemoPicture]) -> None:
    dataset = read_labels(folder / LABELS)
    require_pictures(dataset)
    read = dataset.pictures
    assert [(p.path, p.reference) for p in read] == [(p.path, p.reference) for p in made]
    assert [p.score for p in read] == pytest.approx([p.score for p in made], abs=5e-7)
    split = split_dataset(dataset, seed=0)
    assert split.by == "reference"
    assert len({p.reference for p in split.test}) == 2


def test_pictures_are_png_that_say_in_their_name_what_they_are(made: list[DemoPicture]) -> None:
    for picture in made:
        kind = f"{picture.distortion}-{picture.level}" if picture.distortion else "undistorted"
        assert re.fullmatch(rf"{picture.reference}-\d-{kind}\.png", picture.path.name)
        with Image.open(picture.path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (CROP, CROP))


def test_a_label_is_the_ssim_of_the_file_with_its_crop(made: list[DemoPicture]) -> None:
    crops = {photograph.name: _cut(read_photograph(photograph)) for photograph in PHOTOGRAPHS}
    for picture in made[::10]:
        number = int(picture.path.name.removeprefix(picture.reference).split("-")[1])
        assert picture.score == ssim(crops[picture.reference][number], read_image(picture.path))
    assert [picture.score for picture in made if picture.distortion is None] == [1, 1]


def test_labels_rise_with_quality(made: list[DemoPicture]) -> None:
    by_level = [mean(p.score for p in made if p.level == level) for level in range(LEVELS + 1)]
    assert by_level == sorted(by_level, reverse=True)
    assert by_level[0] == 1
    assert by_level[LEVELS] < 0.7


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        make_dataset(tmp_path / name, seed=seed, pictures=40)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a").keys() != contents(tmp_path / "c").keys()


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert len(make_dataset(tmp_path, seed=0, pictures=10)) == 10


@pytest.mark.parametrize(
    ("height", "width", "crops"), [(300, 451, 2), (400, 600, 4), (500, 741, 6), (512, 512, 4), (872, 1000, 4)]
)
def test_crops_are_square_and_spread_evenly(height: int, width: int, crops: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cut = _cut(pixels)
    assert [crop.shape for crop in cut] == [(CROP, CROP, 3)] * crops
    if min(height, width) <= 2 * CROP:
        assert np.array_equal(cut[0], pixels[:CROP, :CROP])
        assert np.array_equal(cut[-1][:, -1], pixels[:CROP, -1] if height < 384 else pixels[-CROP:, -1])


@pytest.mark.parametrize("pictures", [0, MAX_PICTURES + 1])
def test_a_number_out_of_range_is_refused(tmp_path: Path, pictures: int) -> None:
    with pytest.raises(UsageError, match=f"1 to {MAX_PICTURES} pictures, not {pictures}"):
        make_dataset(tmp_path, seed=0, pictures=pictures)


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seed"):
        make_dataset(tmp_path, seed=-1, pictures=1)


def test_an_earlier_data_set_is_kept(tmp_path: Path) -> None:
    (tmp_path / LABELS).write_text("mine")
    with pytest.raises(OutputExistsError, match=LABELS):
        make_dataset(tmp_path, seed=0, pictures=1)
    assert contents(tmp_path) == {LABELS: b"mine"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GliaError, match="file/data: cannot be written: Not a directory"):
        make_dataset(tmp_path / "file" / "data", seed=0, pictures=1)


def test_a_missing_package_is_named_with_its_extra() -> None:
    with pytest.raises(MissingPackageError, match=r'pip install "glia-rt\[demo\]"'):
        read_photograph(Photograph("no_such_package", "a.png", ""))
