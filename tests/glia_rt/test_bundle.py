from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glia_rt.backends.base import BackendOptions
from glia_rt.backends.choose import open_backend
from glia_rt.bundle import GRAPHS, MANIFEST, SCHEMA, Bundle, new_bundle, write_manifest
from glia_rt.errors import BundleError, OutputExistsError, UsageError


@pytest.fixture
def bundle(plain_bundle: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(plain_bundle, tmp_path / "copy.glia")


def change_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((bundle / MANIFEST).read_text())
    change(record)
    (bundle / MANIFEST).write_text(json.dumps(record))


def flip(path: Path) -> None:
    """Change one bit in the middle: same size, other file."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


# Opening


def test_open(plain_bundle: Path) -> None:
    bundle = Bundle.open(str(plain_bundle))
    assert bundle.path == plain_bundle
    assert bundle.identity == hashlib.sha256((plain_bundle / MANIFEST).read_bytes()).hexdigest()
    assert bundle.contract.score.range == (1.0, 5.0)
    assert bundle.manifest["model"]["family"] == "linear"
    files = {p.relative_to(plain_bundle).as_posix() for p in plain_bundle.rglob("*") if p.is_file()} - {MANIFEST}
    assert set(bundle.manifest["files"]) == files
    assert set(GRAPHS.values()) < files


def test_engines_and_reports_beside_the_files_are_not_part_of_it(bundle: Path) -> None:
    identity = Bundle.open(bundle).identity
    for name in ("engines/a.engine", "reports/b.json"):
        (bundle / name).parent.mkdir()
        (bundle / name).write_text("{}")
    assert Bundle.open(bundle).identity == identity


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"gone\.glia does not exist; `glia-rt export CHECKPOINT` writes one"):
        Bundle.open(tmp_path / "gone.glia")


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "a.glia").touch()
    with pytest.raises(BundleError, match=r"a\.glia is a file; a bundle is a folder"):
        Bundle.open(tmp_path / "a.glia")


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: manifest\.json cannot be read"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_a_manifest_that_is_not_json(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"is not a bundle: manifest\.json cannot be read"):
        Bundle.open(bundle)


@pytest.mark.parametrize("content", ["[]", "null", '{"schema": 2, "files": 5}', "{}"])
def test_another_schema(bundle: Path, content: str) -> None:
    (bundle / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=r"the manifest: (not a JSON object|schema None is not|missing field)"):
        Bundle.open(bundle)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"schema": ' * 100_000])
def test_a_manifest_of_nothing_but_brackets(bundle: Path, content: str) -> None:
    (bundle / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have(bundle: Path, name: str) -> None:
    change_manifest(bundle, lambda record: record["files"].update({name: {"sha256": "", "size": 0}}))
    with pytest.raises(BundleError, match="is missing"):
        Bundle.open(bundle)


def test_a_newer_schema_names_the_version_that_made_it(bundle: Path) -> None:
    change_manifest(bundle, lambda record: record.update(schema=SCHEMA + 1, tools={"glia-rt": "9.1"}))
    with pytest.raises(BundleError, match=rf"the manifest: schema {SCHEMA + 1} is newer than {SCHEMA}.*glia-rt 9\.1"):
        Bundle.open(bundle)


def test_an_unknown_field_names_the_version_that_made_it(bundle: Path) -> None:
    change_manifest(bundle, lambda record: record.update(colour="blue", tools={"glia-rt": "9.1"}))
    with pytest.raises(BundleError, match=r"the manifest: unknown field colour; glia-rt 9\.1 wrote it"):
        Bundle.open(bundle)


@pytest.mark.parametrize("key", ["model", "contract", "checkpoint", "files", "parity", "tools"])
def test_a_manifest_that_lacks_something(bundle: Path, key: str) -> None:
    change_manifest(bundle, lambda record: record.pop(key))
    with pytest.raises(BundleError, match=f"the manifest: missing field {key}; the file is damaged: make it again"):
        Bundle.open(bundle)


@pytest.mark.parametrize("files", [None, [], ["scorer.onnx"], {"scorer.onnx": None}, {"scorer.onnx": {"size": 1}}])
def test_a_manifest_whose_files_are_of_the_wrong_kind(bundle: Path, files: Any) -> None:
    change_manifest(bundle, lambda record: record.update(files=files))
    with pytest.raises(BundleError, match="the manifest's files lack their sizes and hashes; export it again"):
        Bundle.open(bundle)


def test_a_newer_contract_in_the_manifest(bundle: Path) -> None:
    change_manifest(bundle, lambda record: record["contract"].update(schema=3))
    with pytest.raises(BundleError, match="contract: schema 3 is newer than 2"):
        Bundle.open(bundle)


def test_a_missing_file(bundle: Path) -> None:
    (bundle / "selftest/scores.json").unlink()
    with pytest.raises(BundleError, match=r"selftest/scores\.json is missing; copy the bundle again"):
        Bundle.open(bundle)


def test_a_file_of_another_size(bundle: Path) -> None:
    path = bundle / "scorer.onnx"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1)
    with pytest.raises(BundleError, match=rf"scorer\.onnx has {size - 1} bytes, the manifest says {size}; copy"):
        Bundle.open(bundle)


# Hashes


def test_every_file_passes_its_hash(plain_bundle: Path) -> None:
    bundle = Bundle.open(plain_bundle)
    for name in bundle.manifest["files"]:
        assert bundle.checked_file(name) == plain_bundle / name


@pytest.mark.parametrize(
    ("backend", "input"), [("openvino", "views"), ("onnxruntime", "views"), ("onnxruntime", "image")]
)
def test_one_bit_is_found_before_a_graph_is_loaded(bundle: Path, backend: str, input: Any) -> None:
    flip(bundle / GRAPHS[input, "fp32"])
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match=r"scorer\.onnx is not the file that was exported"):
        open_backend(backend, opened, BackendOptions(input))


def test_one_bit_is_found_in_the_selftest(bundle: Path) -> None:
    flip(bundle / "selftest/scores.json")
    with pytest.raises(BundleError, match=r"scores\.json is not the file that was exported"):
        Bundle.open(bundle).selftest()


def test_a_damaged_file_that_is_not_loaded_is_no_hindrance(bundle: Path) -> None:
    flip(bundle / "image_scorer.fp16.onnx")
    opened = Bundle.open(bundle)
    backend, _ = open_backend("onnxruntime", opened, BackendOptions())
    backend.close()


def test_a_file_the_manifest_does_not_name(bundle: Path) -> None:
    (bundle / "other.onnx").touch()
    with pytest.raises(BundleError, match=r"the manifest names no other\.onnx"):
        Bundle.open(bundle).checked_file("other.onnx")


def test_a_file_that_went_after_opening(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (bundle / "scorer.onnx").unlink()
    with pytest.raises(BundleError, match=r"scorer\.onnx cannot be read \(No such file"):
        opened.checked_file("scorer.onnx")


# Writing


def fill(folder: Path, text: str) -> None:
    (folder / "file").write_text(text)
    write_manifest(folder, {})


def fail_halfway(path: Path, error: BaseException | type[BaseException], *, overwrite: bool = False) -> None:
    with new_bundle(path, overwrite=overwrite) as folder:
        fill(folder, "half")
        raise error


def test_a_new_bundle_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.glia"
    with new_bundle(path) as folder:
        fill(folder, "new")
        assert not path.exists()
        assert folder.is_relative_to(tmp_path), "a rename must not cross file systems"
    assert (path / "file").read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_halfway(tmp_path / "a.glia", error)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.glia"
    with new_bundle(path) as folder:
        fill(folder, "old")
    with pytest.raises(ValueError, match="stop"):
        fail_halfway(path, ValueError("stop"), overwrite=True)
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_bundle_is_replaced_only_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.glia"
    for text in ("old", "new"):
        with new_bundle(path, overwrite=text == "new") as folder:
            fill(folder, text)
            (folder / text).touch()
    assert {p.name for p in path.iterdir()} == {"file", "new", MANIFEST}
    with pytest.raises(OutputExistsError, match=r"a\.glia exists; give --overwrite"), new_bundle(path):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_bundle_is_ever_replaced(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.glia", tmp_path / "b.glia"
    file.write_text("notes")
    folder.mkdir()
    (folder / "photo.jpg").touch()
    for path in (file, folder):
        with pytest.raises(UsageError, match="is no bundle, so it is not replaced"), new_bundle(path, overwrite=True):
            pass
    assert file.read_text() == "notes"
    assert (folder / "photo.jpg").exists()


def test_what_a_killed_export_left_is_no_hindrance(tmp_path: Path) -> None:
    with new_bundle(tmp_path / "a.glia") as folder:
        fill(folder, "old")
    folder.mkdir(parents=True)  # as a process of the same number would have left it
    (folder / "half").touch()
    with new_bundle(tmp_path / "a.glia", overwrite=True) as folder:
        fill(folder, "new")
    assert {p.name for p in (tmp_path / "a.glia").iterdir()} == {"file", MANIFEST}


@pytest.mark.parametrize(
    "name",
    [
        ".a.glia.backup-1",
        ".a.glia.partial-mine",
        ".a.glia.partial-01234567",  # of a writer that has just begun
        ".b.glia.partial-4000000000",
    ],
)
def test_what_no_export_of_this_bundle_left_is_not_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with new_bundle(tmp_path / "a.glia") as folder:
        fill(folder, "new")
    assert (tmp_path / name).is_dir()


def test_the_old_one_comes_back_where_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.glia"
    with new_bundle(path) as folder:
        fill(folder, "old")
    with pytest.raises(FileNotFoundError), new_bundle(path, overwrite=True) as folder:
        folder.rmdir()
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("target", ["other.glia", "nothing.glia"])
def test_a_link_is_not_replaced(tmp_path: Path, target: str) -> None:
    with new_bundle(tmp_path / "other.glia") as folder:
        fill(folder, "old")
    link = tmp_path / "a.glia"
    link.symlink_to(tmp_path / target)
    with pytest.raises(UsageError, match="is no bundle, so it is not replaced"), new_bundle(link, overwrite=True):
        pass
    assert link.is_symlink()


def test_a_folder_that_cannot_be_written() -> None:
    with pytest.raises(UsageError, match="/proc cannot be written"), new_bundle("/proc/a.glia"):
        pass


@pytest.mark.parametrize("name", ["model", "model.onnx", "model.glia.bak"])
def test_the_name_must_end_in_glia(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"a bundle's name ends in \.glia"), new_bundle(tmp_path / name):
        pass


def test_the_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no is not a folder: make it first"), new_bundle(tmp_path / "no/a.glia"):
        pass


def test_the_manifest_names_every_file_with_its_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    write_manifest(tmp_path, {"model": 1, "files": {"b": {"opset": 20}}})
    assert json.loads((tmp_path / MANIFEST).read_text()) == {
        "schema": SCHEMA,
        "model": 1,
        "files": {
            "b": {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0, "opset": 20},
            "in/a": {"sha256": hashlib.sha256(b"abc").hexdigest(), "size": 3},
        },
    }
