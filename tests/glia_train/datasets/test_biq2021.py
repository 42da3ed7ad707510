"""BIQ2021's layout, on pictures made here."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from glia_rt.errors import UsageError
from glia_train.datasets.base import missing_pictures, require_pictures
from glia_train.datasets.biq2021 import near_duplicates, read
from glia_train.datasets.splits import split_dataset
from glia_train.datasets.table import read_dataset

TRAIN = ["ss03 (1)", "ss01 (22)", "ss01 (23)", "ss02 (1014)", *(f"ss03 ({i})" for i in range(900, 910))]
TEST = ["ss03 (2)", "ss02 (5)", "ss01 (2)"]


def make_set(root: Path, *, train: str = "", test: str = "", header: str = "Image Name,MOS,,") -> Path:
    """A folder as a checkout of the repository, with the quirks of the original.

    The header of the training labels has empty columns, and one picture has another case on disk.
    """
    (root / "Images").mkdir(parents=True)
    for name in (*TRAIN, *TEST):
        Image.new("RGB", (16, 16)).save(root / "Images" / f"{name}.jpg")
    (root / "Images" / "ss02 (1014).jpg").rename(root / "Images" / "ss02 (1014).JPG")
    rows = [f"{name}.jpg,{0.1 + 0.05 * i:.4f},,\n" for i, name in enumerate(TRAIN)]
    (root / "Train (Images and MOS).csv").write_text(f"{header}\n" + "".join(rows) + train)
    rows = [f"{name}.jpg,{0.4 + 0.1 * i:.4f}\n" for i, name in enumerate(TEST)]
    (root / "Test (Images and MOS).csv").write_text("Image Name,MOS\n" + "".join(rows) + test)
    return root


def test_the_rows(tmp_path: Path) -> None:
    dataset = read_dataset("biq2021", make_set(tmp_path))
    require_pictures(dataset)
    assert (dataset.name, dataset.score_range, len(dataset.pictures)) == ("biq2021", (0.0, 1.0), 17)
    first = dataset.pictures[0]
    assert (first.name, first.score, first.subset, first.part) == ("Images/ss03 (1).jpg", 0.1, "ss03", "train")
    assert first.reference is first.distortion is None
    assert [p.part for p in dataset.pictures] == ["train"] * 14 + ["test"] * 3
    assert Counter(p.subset for p in dataset.pictures) == {"ss01": 3, "ss02": 2, "ss03": 12}


def test_one_name_has_another_case_on_disk(tmp_path: Path) -> None:
    [picture] = [p for p in read(make_set(tmp_path)).pictures if "1014" in p.name]
    assert picture.name == "Images/ss02 (1014).jpg"
    assert picture.path == tmp_path / "Images" / "ss02 (1014).JPG"


@pytest.mark.skipif(sys.platform == "darwin", reason="names differ in more than case there")
def test_files_that_differ_in_case_only(tmp_path: Path) -> None:
    images = make_set(tmp_path) / "Images"
    Image.new("RGB", (16, 16)).save(images / "SS02 (1014).jpg")
    with pytest.raises(UsageError, match=r"ss02 \(1014\).jpg may be 'SS02 \(1014\).jpg', 'ss02 \(1014\).JPG': rename"):
        read(tmp_path)
    Image.new("RGB", (16, 16)).save(images / "ss02 (1014).jpg")
    [picture] = [p for p in read(tmp_path).pictures if "1014" in p.name]
    assert picture.path == images / "ss02 (1014).jpg"


def test_the_official_split(tmp_path: Path) -> None:
    found = split_dataset(read(make_set(tmp_path)), 3407)
    assert found.by == "official"
    assert [p.name for p in found.test] == sorted(f"Images/{name}.jpg" for name in TEST)
    assert len(found.validation) == 1
    assert len(found.train) == 13


def test_near_duplicates(tmp_path: Path) -> None:
    groups = near_duplicates()
    assert len(set(groups.values())) == 455
    assert len(groups) == 971
    assert all(name == name.lower() and name[:4] in ("ss01", "ss02", "ss03") for name in groups)
    by_name = {p.name: p for p in read(make_set(tmp_path)).pictures}
    twins = [by_name[f"Images/ss01 ({i}).jpg"] for i in (22, 23)]
    assert twins[0].kept_together == twins[1].kept_together == "near-duplicates of ss01 (22)"
    assert by_name["Images/ss03 (1).jpg"].group is None


def test_a_test_picture_with_a_twin_in_training_leaks(tmp_path: Path) -> None:
    assert read(make_set(tmp_path / "whole")).leaking == set()
    root = make_set(tmp_path / "twins", test="ss01 (44).jpg,0.5\n", train="ss01 (47).jpg,0.4,,\n")
    assert read(root).leaking == {"Images/ss01 (44).jpg"}


def test_a_wrong_folder(tmp_path: Path) -> None:
    expected = r"the folder of BIQ2021 holds Train \(Images and MOS\).csv, Test \(Images and MOS\).csv, Images/"
    root = make_set(tmp_path / "BIQ2021-master")
    with pytest.raises(UsageError, match=rf"; {expected}; give .*BIQ2021-master"):
        read(tmp_path)
    (root / "Test (Images and MOS).csv").unlink()
    with pytest.raises(
        UsageError, match=rf"no Test \(Images and MOS\).csv; {expected}; it holds 'Images', 'Train \(Images and MOS"
    ):
        read(root)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"test": "ss01 (7).jpg,1.2\n"}, "Test .*: 1 of 4 scores lie outside 0 to 1, first 1.2 of Images/ss01"),
        ({"train": "ss01 (7).jpg,-0.1,,\n"}, "Train .*: 1 of 15 scores lie outside 0 to 1"),
        ({"test": "SS03 (1).JPG,0.5\n"}, r"Test .*, line 5: SS03 \(1\).JPG is in .*Train .*, line 2 already"),
        ({"train": "ss04 (7).jpg,0.5,,\n"}, r"line 16: 'ss04 \(7\).jpg' is not named as ss01 \(1\).jpg is"),
        ({"train": "ss01 /../../x.jpg,0.5,,\n"}, "is not named as"),
        ({"train": "ss01 (7).jpg,,,\n"}, "line 16: the MOS must be a finite number, not ''"),
        ({"header": "name,mos,,"}, "no column Image Name; BIQ2021's has Image Name,MOS; the line has 'name', 'mos', '"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, labels: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(make_set(tmp_path, **labels))


def test_missing_pictures(tmp_path: Path) -> None:
    root = make_set(tmp_path)
    (root / "Images" / "ss03 (1).jpg").unlink()
    assert [p.name for p in missing_pictures(read(root).pictures)] == ["Images/ss03 (1).jpg"]
