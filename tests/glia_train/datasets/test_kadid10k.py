"""KADID-10k's layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from glia_rt.errors import UsageError
from glia_train.datasets.base import missing_pictures, require_pictures
from glia_train.datasets.kadid10k import read
from glia_train.datasets.splits import split_dataset
from glia_train.datasets.table import read_dataset
from glia_train.distortions import DISTORTIONS

HEADER = "dist_img,ref_img,dmos,var"


def make_set(root: Path, *, references: int = 6, rows: str = "", header: str = HEADER) -> Path:
    """A folder as KADID-10k's archive unpacks to, with three distorted pictures of each photograph."""
    (root / "images").mkdir(parents=True)
    lines = [header]
    for reference in range(1, references + 1):
        Image.new("RGB", (40, 30)).save(root / "images" / f"I{reference:02}.png")
        for distortion, level in ((1, 1), (10, 3), (25, 5)):
            name = f"I{reference:02}_{distortion:02}_{level:02}.png"
            Image.new("RGB", (40, 30)).save(root / "images" / name)
            lines.append(f"{name},I{reference:02}.png,{5 - level * 0.8:.2f},0.5")
    (root / "dmos.csv").write_text("\n".join(lines) + "\n" + rows)
    return root


def test_the_rows(tmp_path: Path) -> None:
    dataset = read_dataset("kadid10k", make_set(tmp_path / "k"))
    require_pictures(dataset)
    assert (dataset.name, dataset.score_range, len(dataset.pictures)) == ("kadid10k", (1.0, 5.0), 18)
    first, second = dataset.pictures[:2]
    assert (first.name, first.path) == ("images/I01_01_01.png", tmp_path / "k/images/I01_01_01.png")
    assert (first.score, first.reference, first.distortion) == (4.2, "I01.png", "gaussian_blur")
    assert (second.score, second.reference, second.distortion) == (2.6, "I01.png", "jpeg")
    assert {p.distortion for p in dataset.pictures} <= set(DISTORTIONS)
    assert {(p.group, p.part, p.subset) for p in dataset.pictures} == {(None, None, None)}


def test_the_split_is_by_reference(tmp_path: Path) -> None:
    found = split_dataset(read_dataset("kadid10k", make_set(tmp_path / "k")), 3407)
    assert found.by == "reference"
    assert [len({p.reference for p in part}) for part in found.parts.values()] == [4, 1, 1]
    assert [len(part) for part in found.parts.values()] == [12, 3, 3]


def test_names_on_disk_may_have_another_case(tmp_path: Path) -> None:
    images = make_set(tmp_path / "k") / "images"
    (images / "I01_01_01.png").rename(images / "i01_01_01.PNG")
    dataset = read(tmp_path / "k")
    assert dataset.pictures[0].path == images / "i01_01_01.PNG"
    assert missing_pictures(dataset.pictures) == []


def test_a_missing_picture(tmp_path: Path) -> None:
    root = make_set(tmp_path / "k")
    (root / "images" / "I02_10_03.png").unlink()
    dataset = read(root)
    assert [p.name for p in missing_pictures(dataset.pictures)] == ["images/I02_10_03.png"]
    with pytest.raises(UsageError, match=r"kadid10k: 1 of 18 pictures are not there, first .*images/I02_10_03.png"):
        require_pictures(dataset)


def test_a_wrong_folder(tmp_path: Path) -> None:
    expected = r"the folder of KADID-10k holds dmos.csv, images/"
    with pytest.raises(UsageError, match=f"nowhere: no such folder; {expected}"):
        read(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"file: not a folder; {expected}"):
        read(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=f"empty: no dmos.csv and no images/; {expected}; it holds nothing"):
        read(tmp_path / "empty")
    root = make_set(tmp_path / "download" / "kadid10k")
    with pytest.raises(UsageError, match=f"no dmos.csv and no images/; {expected}; give {root}"):
        read(tmp_path / "download")
    (root / "dmos.csv").rename(root / "labels.csv")
    with pytest.raises(UsageError, match=f"no dmos.csv; {expected}; it holds 'images', 'labels.csv'"):
        read(root)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("I01_02_01.png,I01.png,5.2,0\n", "1 of 19 scores lie outside 1 to 5, first 5.2 of images/I01_02_01.png"),
        ("I01_02_01.png,I01.png,0.9,0\n", "1 of 19 scores lie outside 1 to 5"),
        ("I01_02_01.png,I01.png,nan,0\n", "line 20: the dmos must be a finite number, not 'nan'"),
        ("I01_02_01.png,,3,0\n", "line 20: the ref_img is empty"),
        ("I01.png,I01.png,3,0\n", "line 20: 'I01.png' is not named REFERENCE_DISTORTION_LEVEL"),
        ("I01_26_01.png,I01.png,3,0\n", "is not named .* distortions 01 to 25 and levels 01 to 05"),
        ("I01_02_06.png,I01.png,3,0\n", "is not named"),
        ("../../I01_02_05.png,I01.png,3,0\n", "is not named"),
        ("i01_01_01.png,I01.png,3,0\n", "line 20: i01_01_01.png is in line 2 already"),
        ("I01_02_01.png,I01.png,3\n", "line 20: 3 fields where the header has 4"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"k/dmos\.csv.*{message}"):
        read(make_set(tmp_path / "k", rows=rows))


def test_another_header(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(make_set(tmp_path / "k", header="name,reference,mos,var"))
    assert str(caught.value) == (
        f"{tmp_path}/k/dmos.csv, line 1: no column dist_img and no column ref_img and no column dmos; "
        "KADID-10k's has dist_img,ref_img,dmos,var; the line has 'name', 'reference', 'mos', 'var'"
    )


def test_windows_line_ends_and_the_case_of_the_header(tmp_path: Path) -> None:
    root = make_set(tmp_path / "k", header=HEADER.upper())
    text = (root / "dmos.csv").read_bytes()
    (root / "dmos.csv").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    assert len(read(root).pictures) == 18


def test_labels_of_a_metric_are_named(tmp_path: Path) -> None:
    root = make_set(tmp_path / "k")
    (root / "distort.json").write_text(json.dumps({"metric": "SSIM"}))
    assert read(root).name == "kadid10k layout, SSIM labels"
    (root / "distort.json").write_text(json.dumps({"metric": None}))
    (root / "dmos.csv").unlink()
    with pytest.raises(UsageError, match="these pictures were distorted and not labelled: give --metric"):
        read(root)
    (root / "distort.json").write_text("[]")
    with pytest.raises(UsageError, match=r"distort\.json: not a record of `glia-rt data distort`"):
        read(root)
