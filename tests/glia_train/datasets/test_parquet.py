"""Labels in Parquet, as Hugging Face and pandas write them."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from glia_rt.errors import BadImageError, UsageError
from glia_rt.pixels.decode import read_image
from glia_train.datasets import parquet as reader
from glia_train.datasets.base import require_pictures
from glia_train.datasets.csv import Columns
from glia_train.datasets.parquet import RowGroups, read_parquet
from glia_train.datasets.splits import split_dataset
from glia_train.datasets.table import read_dataset

#: As the library `datasets` writes a picture.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8 + value, 6), (value, value, value)).save(file, "PNG")
    return file.getvalue()


def images(count: int, first: int = 0) -> pa.Array:
    return pa.array([{"bytes": encoded(first + i), "path": f"{first + i}.png"} for i in range(count)], IMAGE)


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path, **options)
    return path


def read_values(dataset: Any) -> list[int]:
    """The grey level of every picture, which is also what its width tells."""
    return [int(read_image(picture.source())[0, 0, 0]) for picture in dataset.pictures]


def test_shards_as_hugging_face_writes_them(tmp_path: Path) -> None:
    for shard in range(2):
        columns = {"image": images(5, 5 * shard), "score": pa.array(np.arange(5.0) + 5 * shard, pa.float32())}
        write(tmp_path / "data" / f"train-0000{shard}-of-00002.parquet", columns, row_group_size=2)
    for place in (tmp_path, tmp_path / "data"):
        dataset = read_dataset(place)
        require_pictures(dataset)
        assert [p.name for p in dataset.pictures] == [
            f"train-0000{shard}-of-00002.parquet/{row}" for shard in range(2) for row in range(5)
        ]
        assert [p.score for p in dataset.pictures] == list(range(10))
        assert read_values(dataset) == list(range(10))
        assert {(p.path, p.part, p.group) for p in dataset.pictures} == {(None, None, None)}
        assert dataset.name == str(tmp_path / "data")


def test_files_named_after_parts_are_an_official_split(tmp_path: Path) -> None:
    for name, count in (("train-00000-of-00001", 8), ("test-00000-of-00001", 4)):
        write(tmp_path / f"{name}.parquet", {"image": images(count), "score": np.arange(count)})
    (tmp_path / "._train-00000-of-00001.parquet").write_bytes(b"left by another system")
    found = split_dataset(read_dataset(tmp_path), 0)
    assert found.by == "official"
    assert [len(part) for part in found.parts.values()] == [7, 1, 4]
    assert {p.name.partition("/")[0] for p in found.test} == {"test-00000-of-00001.parquet"}
    # One file of another name: it is not told what belongs where.
    write(tmp_path / "more.parquet", {"image": images(3), "score": np.arange(3)})
    assert {p.part for p in read_dataset(tmp_path).pictures} == {None}


def test_names_do_not_depend_on_how_the_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", {"image": images(6), "score": np.arange(6)})
    monkeypatch.chdir(tmp_path)
    assert [p.name for p in read_dataset("a.parquet").pictures] == [
        p.name for p in read_dataset(tmp_path / "a.parquet").pictures
    ]


def test_the_columns(tmp_path: Path) -> None:
    columns = {
        "picture": images(4),
        "MOS": pa.array([1, 2, 3, 4], pa.int32()),
        "reference": pa.array(["a", "a", "b", "b"]).dictionary_encode(),
        "Split": pa.array(["train", "val", "TEST", "train"]),
        "subset": pa.array(["x", None, "y", ""]),
        "twin": pa.array([7.0, None, float("nan"), 7.0]),
        "many": pa.array([[1, 2]] * 4),
    }
    read = read_parquet([write(tmp_path / "a.parquet", columns)], Columns("picture", "MOS", "twin")).pictures
    assert [p.score for p in read] == [1, 2, 3, 4]
    assert [p.reference for p in read] == ["a", "a", "b", "b"]
    assert [p.part for p in read] == ["train", "validation", "test", "train"]
    assert [p.subset for p in read] == ["x", None, "y", None]
    assert {p.kept_together for p in read} == {"7.0"}  # the rows of 7.0 join both references


def test_a_group_may_be_missing(tmp_path: Path) -> None:
    columns = {"image": images(4), "score": np.arange(4), "g": pa.array([None, float("nan"), 1.0, 1.0])}
    read = read_parquet([write(tmp_path / "a.parquet", columns)], Columns(group="g")).pictures
    assert [p.kept_together for p in read] == ["a.parquet/0", "a.parquet/1", "1.0", "1.0"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), "struct"])
def test_paths_are_relative_to_the_file(tmp_path: Path, kind: Any) -> None:
    for value in range(3):
        (tmp_path / f"{value}.png").write_bytes(encoded(value))
    paths: Any = ["0.png", "1.png", str(tmp_path / "2.png")]
    column = (
        pa.array([{"path": path} for path in paths]) if kind == "struct" else pa.array(paths, pa.string()).cast(kind)
    )
    dataset = read_dataset(write(tmp_path / "a.parquet", {"path": column, "score": np.arange(3)}))
    require_pictures(dataset)
    assert [p.path for p in dataset.pictures] == [tmp_path / path for path in paths]
    assert [p.name for p in dataset.pictures] == paths
    assert read_values(dataset) == [0, 1, 2]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())])
def test_pictures_without_a_struct(tmp_path: Path, kind: Any) -> None:
    column = pa.array([encoded(i) for i in range(3)], pa.binary()).cast(kind)
    assert read_values(read_dataset(write(tmp_path / "a.parquet", {"image": column, "score": np.arange(3)}))) == [
        0,
        1,
        2,
    ]


def test_a_struct_may_have_a_path_and_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(encoded(1))
    rows = [{"bytes": encoded(0), "path": "0.png"}, {"bytes": None, "path": "1.png"}]
    rows += [{"bytes": None, "path": None}, {"bytes": None, "path": "2.png"}]
    columns = {"image": pa.array(rows, IMAGE), "score": np.arange(4)}
    first, second, third, fourth = read_dataset(write(tmp_path / "a.parquet", columns)).pictures
    assert first.source() == encoded(0)
    assert second.source() == tmp_path / "1.png"
    with pytest.raises(BadImageError, match=r"a\.parquet, row group 0, row 2: the row has no picture"):
        third.source()
    with pytest.raises(BadImageError, match=r"2\.png: No such file"):
        read_image(fourth.source())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"score": [1.0, None]}, "row 1: the score must be a finite number, not None"),
        ({"score": [1.0, float("nan")]}, "row 1: the score must be a finite number, not nan"),
        ({"score": ["1", "good"]}, "row 1: the score must be a finite number, not 'good'"),
        ({"score": [[1.0], [2.0]]}, r"row 0: the score must be a finite number, not \[1.0\]"),
        ({"mos": [1.0, 2.0]}, "no column score; it has 'image', 'mos': name one with --path-column, --score-column"),
        ({"score": [1, 2], "SCORE ": [1, 2], "Score": [1, 2]}, None),
        ({"Score": [1, 2], "SCORE": [1, 2]}, "a column is there twice: score"),
        ({"score": [1, 2], "split": ["train", None]}, "row 1: the split must be one of"),
        ({"score": [1, 2], "split": ["train", "none"]}, "row 1: the split must be one of"),
        ({"score": [1, 2], "reference": ["a", None]}, "row 1: the reference is empty"),
        ({"score": [1, 2], "image": [1, 2]}, "column 'image' is int64; pictures are bytes, paths, or structs of both"),
        ({"score": [1, 2], "image": ["a.png", None]}, "row 1: the path is empty"),
        ({"score": [1, 2], "image": ["a.png", "x/../a.png"]}, r"x/../a.png is in two rows"),
    ],
)
def test_labels_that_are_refused(tmp_path: Path, columns: dict[str, Any], message: str | None) -> None:
    file = write(tmp_path / "a.parquet", {"image": images(2), **columns})
    if message is None:
        assert len(read_dataset(file).pictures) == 2
        return
    with pytest.raises(UsageError, match=rf"a\.parquet.*{message}"):
        read_dataset(file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"b\.parquet: cannot be read as Parquet: No such file"):
        read_dataset(tmp_path / "b.parquet")
    (tmp_path / "a.PARQUET").write_bytes(b"PAR1 and no more")
    with pytest.raises(UsageError, match=r"a\.PARQUET: cannot be read as Parquet: "):
        read_dataset(tmp_path / "a.PARQUET")


def damage(file: Path, column: int, group: int) -> None:
    """Overwrite the pages of a column, and leave the footer as it is."""
    found = parquet.ParquetFile(file).metadata.row_group(group).column(column)
    start = found.dictionary_page_offset or found.data_page_offset
    data = bytearray(file.read_bytes())
    data[start : start + found.total_compressed_size] = b"\xff" * found.total_compressed_size
    file.write_bytes(data)


def test_a_damaged_page_of_labels(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": images(4), "score": np.arange(4.0)}, row_group_size=2)
    damage(file, column=2, group=1)
    with pytest.raises(UsageError, match=r"a\.parquet: cannot be read as Parquet: \S"):
        read_dataset(file)


def test_a_damaged_page_of_pictures(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": images(4), "score": np.arange(4.0)}, row_group_size=2)
    damage(file, column=0, group=1)
    pictures = read_dataset(file).pictures
    assert read_image(pictures[1].source())[0, 0, 0] == 1
    with pytest.raises(BadImageError, match=r"a\.parquet, row group 1, row 0: a damaged Parquet file \("):
        pictures[2].source()


def test_a_file_that_changes_after_its_labels_were_read(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"image": images(4), "score": np.arange(4.0)}, row_group_size=2)
    before = read_dataset(file)
    assert read_image(before.pictures[0].source())[0, 0, 0] == 0  # its row group is in memory
    write(file, {"image": images(4, 40), "score": np.arange(4.0)}, row_group_size=2)
    os.utime(file, ns=(1, 1))
    assert read_image(before.pictures[1].source())[0, 0, 0] == 1
    with pytest.raises(BadImageError, match=r"a\.parquet: the file has changed since its labels were read"):
        before.pictures[2].source()
    assert read_values(read_dataset(file)) == [40, 41, 42, 43]


def test_row_groups_are_kept_up_to_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", {"image": images(12), "score": np.arange(12.0)}, row_group_size=3)
    cells = [picture.cell for picture in read_dataset(file).pictures]
    read: list[int] = []
    inner = reader._read_column

    def count(cell: Any) -> Any:
        read.append(cell.group)
        return inner(cell)

    monkeypatch.setattr(reader, "_read_column", count)
    plenty = RowGroups()
    for cell in [*cells, *cells]:
        plenty.column(cell)
    assert read == [0, 1, 2, 3]
    read.clear()
    two = RowGroups(2 * max(inner(cell).nbytes for cell in cells))
    for group in (0, 1, 0, 2, 0, 1, 0):
        two.column(cells[3 * group])
    assert read == [0, 1, 2, 1]  # what was used longest ago goes first
    read.clear()
    none = RowGroups(0)
    assert [len(none.column(cells[0])) for _ in range(2)] == [3, 3]
    assert read == [0]  # the newest is kept whatever it holds


def test_threads_that_want_one_row_group_read_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", {"image": images(12), "score": np.arange(12.0)}, row_group_size=6)
    read: list[int] = []
    inner = reader._read_column

    def count(cell: Any) -> Any:
        read.append(cell.group)
        return inner(cell)

    monkeypatch.setattr(reader, "_read_column", count)
    monkeypatch.setattr(reader, "_row_groups", RowGroups())
    pictures = read_dataset(file).pictures
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda picture: int(read_image(picture.source())[0, 0, 0]), [*pictures, *pictures]))
    assert found == [*range(12), *range(12)]
    assert sorted(read) == [0, 1]
