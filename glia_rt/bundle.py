"""NAME.glia/: an exported model as a folder that is never written to again.

`manifest.json` holds the contract and the sha256 and size of every other file; the bundle's identity is the sha256 of
the manifest itself. Opening a bundle checks sizes; a file is hashed when it is about to be loaded. `engines/` and
`reports/` beside the manifest's files are not part of the identity.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from glia_rt.contract import Contract
from glia_rt.errors import BundleError, OutputExistsError, UsageError

SCHEMA: Final = 1
MANIFEST: Final = "manifest.json"
SUFFIX: Final = ".glia"

Input = Literal["views", "image"]
#: The four graphs, by what they take and the type of their weights.
GRAPHS: Final[Mapping[tuple[Input, str], str]] = {
    ("views", "fp32"): "scorer.onnx",
    ("views", "fp16"): "scorer.fp16.onnx",
    ("image", "fp32"): "image_scorer.onnx",
    ("image", "fp16"): "image_scorer.fp16.onnx",
}


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: The folder.
        manifest: `manifest.json` as read.
        contract: Pixels, views and the meaning of the score.
        identity: sha256 of `manifest.json`, hexadecimal.
    """

    path: Path
    manifest: Mapping[str, Any]
    contract: Contract
    identity: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest and check that every file is there at its size.

        Raises:
            BundleError: Not a bundle, of a newer schema, or with a file missing or of another size.
        """
        path = Path(path)
        if not path.is_dir():
            reason = "is a file; a bundle is a folder" if path.exists() else "does not exist"
            raise BundleError(f"{path} {reason}; `glia-rt export CHECKPOINT` writes one")
        try:
            text = (path / MANIFEST).read_bytes()
            manifest = json.loads(text)
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} is not a bundle: {MANIFEST} cannot be read ({error})") from error
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            found = manifest.get("schema") if isinstance(manifest, dict) else None
            raise BundleError(f"{path}: manifest schema {found!r} is not {SCHEMA}; upgrade glia-rt, or export again")
        missing = {"model", "contract", "checkpoint", "files", "parity", "tools"} - set(manifest)
        if missing:
            raise BundleError(f"{path}: the manifest lacks {', '.join(sorted(missing))}; export it again")
        files = manifest["files"]
        if not isinstance(files, dict) or not all(
            isinstance(entry, dict) and {"sha256", "size"} <= set(entry) for entry in files.values()
        ):
            raise BundleError(f"{path}: the manifest's files lack their sizes and hashes; export it again")
        for name, entry in files.items():
            try:
                size = (path / name).stat().st_size
            except OSError as error:
                raise BundleError(f"{path}: {name} is missing; copy the bundle again, whole") from error
            if size != entry["size"]:
                raise BundleError(
                    f"{path}: {name} has {size} bytes, the manifest says {entry['size']}; copy the bundle again"
                )
        return cls(path, manifest, Contract.from_dict(manifest["contract"]), hashlib.sha256(text).hexdigest())

    def checked_file(self, name: str) -> Path:
        """Path of one of the bundle's files, after hashing it.

        Raises:
            BundleError: The file is not the one that was exported.
        """
        path = self.path / name
        if file_sha256(path) != self.sha256(name):
            raise BundleError(f"{path} is not the file that was exported (sha256 differs); copy the bundle again")
        return path

    def sha256(self, name: str) -> str:
        """Hash of one of the bundle's files as the manifest has it."""
        try:
            return str(self.manifest["files"][name]["sha256"])
        except KeyError as error:
            raise BundleError(f"{self.path}: the manifest names no {name}; export it again") from error

    def selftest(self) -> list[dict[str, Any]]:
        """The selftest's rows: picture, global_view, fragments (file names in selftest/) and golden score."""
        rows: list[dict[str, Any]] = json.loads(self.checked_file("selftest/scores.json").read_text())["pictures"]
        return rows


def file_sha256(path: Path) -> str:
    """sha256 of a file, hexadecimal.

    Raises:
        BundleError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); copy the bundle again") from error


@contextmanager
def new_bundle(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill; it becomes `path` by rename when the block ends well, and is removed otherwise.

    What a killed process left of the same bundle is removed first.

    Raises:
        UsageError: The name does not end in .glia, its parent folder does not exist or cannot be written, or what is
            there is no bundle.
        OutputExistsError: The bundle exists and overwrite is False.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise UsageError(f"{path}: a bundle's name ends in {SUFFIX}")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder: make it first")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists; give --overwrite to replace it, or another -o")
    if path.is_symlink() or (path.exists() and not (path / MANIFEST).is_file()):
        raise UsageError(f"{path} is no bundle, so it is not replaced: move it away, or give another -o")
    for remains in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        # This process's own number, too: an earlier one may have had it, as in a container.
        process = remains.name.rpartition("-")[2]
        if process.isdecimal() and (int(process) == os.getpid() or not _is_running(int(process))):
            shutil.rmtree(remains, ignore_errors=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    old = partial.with_name(f"{partial.name}-replaced")
    try:
        partial.mkdir()
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be written: {error.strerror}; give another -o") from error
    try:
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":
        return True  # there, signal 0 is Ctrl-C
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_manifest(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `manifest.json` over the files now in the folder, adding their sizes and hashes to `record["files"]`."""
    files = {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    details: Mapping[str, Any] = record.get("files", {})
    merged = {name: entry | details.get(name, {}) for name, entry in files.items()}
    (folder / MANIFEST).write_text(json.dumps({"schema": SCHEMA, **record, "files": merged}, indent=2) + "\n")
