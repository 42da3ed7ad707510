"""Datasets made of photographs."""

from __future__ import annotations

import csv
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glia_rt.errors import BadImageError, GliaError, OutputExistsError, UsageError
from glia_rt.pixels.decode import read_image
from glia_train.datasets.base import require_pictures
from glia_train.datasets.csv import Columns, read_labels
from glia_train.datasets.table import read_dataset
from glia_train.distortions import DISTORTIONS
from glia_train.full_reference import ssim
from glia_train.synthetic import (
    PER_PHOTOGRAPH,
    distort_photographs,
    find_photographs,
    require_output,
    require_photographs,
)


def photograph(path: Path, seed: int = 0, size: tuple[int, int] = (48, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8))
    coarse.resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    photograph(folder / "sea.png")
    photograph(folder / "hills" / "sea.jpg", 1, (64, 36))
    return folder


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "new" / "set"
    assert distort_photographs(find_photographs(photos), folder, seed=5, metric="ssim") == 2 * PER_PHOTOGRAPH
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_is_in_the_layout_of_kadid(made: Path) -> None:
    dataset = read_dataset("kadid10k", made)
    require_pictures(dataset)
    assert (dataset.name, dataset.score_range) == ("kadid10k layout, SSIM labels", (1, 5))
    assert len(dataset.pictures) == 250
    assert {p.reference for p in dataset.pictures} == {"sea.png", "hills__sea.png"}
    assert {p.distortion for p in dataset.pictures} == set(DISTORTIONS)
    assert len(list((made / "images").iterdir())) == 252
    assert sorted(path.name for path in made.iterdir()) == ["distort.json", "dmos.csv", "images", "pictures.csv"]


def test_labels_are_those_of_the_files(photos: Path, made: Path) -> None:
    assert np.array_equal(read_image(made / "images/hills__sea.png"), read_image(photos / "hills/sea.jpg"))
    for row in rows(made / "pictures.csv")[::20]:
        value = ssim(read_image(made / "images" / row["reference"]), read_image(made / row["path"]))
        assert float(row["ssim"]) == pytest.approx(value, abs=5e-7)
    labels = {row["dist_img"]: row for row in rows(made / "dmos.csv")}
    for row in rows(made / "pictures.csv"):
        if row["distortion"]:
            found = labels.pop(row["path"].removeprefix("images/"))
            assert float(found["dmos"]) == pytest.approx(1 + 4 * max(0, float(row["ssim"])), abs=5e-6)
            assert found["ref_img"] == row["reference"]
        else:
            assert (row["level"], float(row["ssim"])) == ("0", 1)
    assert labels == {}


def test_the_list_is_a_user_s_own_labels_too(made: Path) -> None:
    dataset = read_labels(made / "pictures.csv", Columns(score="ssim"))
    require_pictures(dataset)
    assert len(dataset.pictures) == 252
    assert {p.reference for p in dataset.pictures} == {"sea.png", "hills__sea.png"}


def test_the_record(made: Path) -> None:
    record = json.loads((made / "distort.json").read_text())
    assert (record["metric"], record["metric_direction"]) == ("SSIM", "at most 1, higher is better")
    assert (record["dmos"], record["seed"], record["max_side"]) == ("1 + 4 * max(0, SSIM)", 5, None)
    assert record["photographs"] == {"sea": "sea.png", "hills__sea": "hills/sea.jpg"}
    assert {"glia-rt", "numpy", "scipy", "scikit-image", "pillow"} <= set(record["versions"])


def test_the_seed_decides_to_the_bit_and_the_number_of_threads_does_not(
    photos: Path, made: Path, tmp_path: Path
) -> None:
    found = find_photographs(photos)
    distort_photographs(found, tmp_path / "three", seed=5, metric="ssim", workers=3)
    assert contents(tmp_path / "three") == contents(made)
    distort_photographs(found[:1], tmp_path / "alone", seed=5)
    distort_photographs(found[:1], tmp_path / "other", seed=6)
    alone, other, both = (contents(folder / "images") for folder in (tmp_path / "alone", tmp_path / "other", made))
    assert len(alone) == 126
    assert alone.items() <= both.items()  # other photographs change nothing
    changed = {name for name in alone if alone[name] != other[name]}
    assert {f"{found[0].name}_11_03.png", f"{found[0].name}_19_03.png"} <= changed  # noise, jitter
    assert not {f"{found[0].name}_10_03.png", f"{found[0].name}_01_03.png"} & changed  # JPEG, blur


def test_without_a_metric_there_are_no_labels(photos: Path, tmp_path: Path) -> None:
    distort_photographs(find_photographs(photos)[:1], tmp_path / "set", seed=0)
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["distort.json", "images", "pictures.csv"]
    assert list(rows(tmp_path / "set" / "pictures.csv")[0]) == ["path", "reference", "distortion", "level"]
    with pytest.raises(UsageError, match="these pictures were distorted and not labelled"):
        read_dataset("kadid10k", tmp_path / "set")


def test_photographs_may_be_reduced(tmp_path: Path) -> None:
    photograph(tmp_path / "photos" / "wide.png", size=(160, 80))
    photograph(tmp_path / "photos" / "small.png", 1, size=(40, 36))
    found = find_photographs(tmp_path / "photos")
    require_photographs(found, max_side=64, workers=1)
    distort_photographs(found, tmp_path / "set", seed=0, max_side=64)
    assert read_image(tmp_path / "set/images/wide_10_01.png").shape == (32, 64, 3)
    assert read_image(tmp_path / "set/images/small_10_01.png").shape == (36, 40, 3)


def test_names_are_safe_and_never_the_same(tmp_path: Path) -> None:
    names = ["a.png", "a.jpg", "A.gif", "b c.png", "b_c.png", "x/a.png", "x__a.png", "d_01_02.png", "d.png", "e.f.png"]
    names += ["-g.png", "h&<i>.png", "ü" * 60 + ".png", "ü" * 60 + ".jpg", "j-0123abcd.png", "\udcff.png"]
    for name in names:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "photos" / "notes.txt").touch()
    (tmp_path / "photos" / ".hidden.png").touch()
    found = {one.file: one.name for one in find_photographs(tmp_path / "photos")}
    assert set(found) == set(names)
    assert len({name.casefold() for name in found.values()}) == len(names)
    assert (found["d.png"], found["e.f.png"], found["-g.png"], found["h&<i>.png"]) == ("d", "e.f", "-g", "h__i_")
    for name in found.values():
        assert name.replace(".", "a").replace("-", "a").isidentifier() or name.startswith("-")
        assert len(os.fsencode(f"{name}_25_05.png")) < 255
    for file in ("a.png", "a.jpg", "A.gif", "b c.png", "b_c.png", "x/a.png", "x__a.png", "d_01_02.png", names[12]):
        assert found[file][-9] == "-", file
    assert found == {one.file: one.name for one in find_photographs(tmp_path / "photos")}


def test_photographs_that_are_refused(tmp_path: Path) -> None:
    def check() -> None:
        require_photographs(find_photographs(tmp_path), max_side=None, workers=2)

    with pytest.raises(UsageError, match="nowhere: not a folder"):
        find_photographs(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no pictures in this folder or below it"):
        find_photographs(tmp_path)
    photograph(tmp_path / "a.png")
    photograph(tmp_path / "b.png", 1)
    check()
    photograph(tmp_path / "copy.png")
    with pytest.raises(UsageError, match=r"copy.png is the same picture as .*a.png; remove one of them"):
        check()
    photograph(tmp_path / "flat.png", 2, (200, 31))
    photograph(tmp_path / "tiny.png", 2, (4, 4))
    with pytest.raises(UsageError, match=r"flat.png: 200x31 pixels, and distortions need at least 32x32, and 1 more"):
        check()
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(BadImageError, match=r"bad.png: not a picture Pillow can read; mend it, or take it out"):
        check()
    photograph(tmp_path / "long.png", 3, (400, 40))
    with pytest.raises(UsageError, match=r"long.png: 64x6 pixels"):
        require_photographs([one for one in find_photographs(tmp_path) if one.name == "long"], max_side=64, workers=1)


def test_a_run_that_breaks_off_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    before = threading.active_count()
    count = 0

    def stop() -> None:
        nonlocal count
        count += 1
        if count == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distort_photographs(find_photographs(photos), tmp_path / "set", seed=0, metric="ssim", workers=2, done=stop)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == before


def test_an_earlier_dataset_stays_until_the_new_one_is_whole(photos: Path, tmp_path: Path) -> None:
    found = find_photographs(photos)[:1]
    distort_photographs(found, tmp_path / "set", seed=0)
    before = contents(tmp_path / "set")

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distort_photographs(found, tmp_path / "set", seed=1, done=stop)
    assert contents(tmp_path / "set") == before
    distort_photographs(found, tmp_path / "set", seed=1)
    assert contents(tmp_path / "set") != before


def test_outputs_that_are_refused(photos: Path, made: Path, tmp_path: Path) -> None:
    def refused(kind: type[GliaError], out: Path, message: str, *, overwrite: bool = True) -> None:
        with pytest.raises(kind, match=message):
            require_output(photos, out, overwrite=overwrite)

    refused(UsageError, photos, "lie in each other")
    refused(UsageError, photos / "new", "lie in each other")
    refused(UsageError, photos.parent, "lie in each other")
    (tmp_path / "file").touch()
    refused(UsageError, tmp_path / "file", "is a file")
    refused(UsageError, tmp_path, "holds file, which `glia-rt data distort` did not write")
    distort_photographs(find_photographs(photos)[:1], tmp_path / "set", seed=0)
    (tmp_path / "set" / "run").mkdir()
    refused(UsageError, tmp_path / "set", "holds run, which `glia-rt data distort` did not write")
    refused(OutputExistsError, made, "holds an earlier dataset: give --overwrite", overwrite=False)
    require_output(photos, made, overwrite=True)
    (tmp_path / "empty").mkdir()
    require_output(photos, tmp_path / "empty", overwrite=False)
    require_output(photos, tmp_path / "new" / "set", overwrite=False)


def test_arguments_that_are_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no metric 'psnr'; there is ssim"):
        distort_photographs(find_photographs(photos), tmp_path / "set", seed=0, metric="psnr")
    with pytest.raises(UsageError, match="the seed must not be negative"):
        distort_photographs(find_photographs(photos), tmp_path / "set", seed=-1)
    (tmp_path / "file").touch()
    with pytest.raises(GliaError, match=r"cannot be written: .*; name another folder"):
        distort_photographs(find_photographs(photos), tmp_path / "file" / "set", seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_progress_counts_every_picture(photos: Path, tmp_path: Path) -> None:
    done: list[int] = []
    count: Callable[[], None] = lambda: done.append(1)  # noqa: E731
    distort_photographs(find_photographs(photos)[:1], tmp_path / "set", seed=0, done=count)
    assert len(done) == PER_PHOTOGRAPH == 126
