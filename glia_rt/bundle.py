"""NAME.glia/: an exported model as a folder that is never written to again.

`manifest.json` holds the contract, and the sha256 and size of every other file. The identity of the bundle is the
sha256 of the manifest itself. Opening a bundle checks sizes; a file is hashed when it is about to be loaded. What
`glia-rt build` adds, `engines/`, is not part of the identity.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from glia_rt import files, upgrades
from glia_rt.contract import Contract, GraphKind
from glia_rt.errors import BundleError, OutputExistsError, UsageError
from glia_rt.starter.paths import STARTER, resolve_bundle
from glia_rt.steps import step

SCHEMA: Final = 2
MANIFEST: Final = "manifest.json"
SUFFIX: Final = ".glia"

#: What to do for the graphs that the shipped bundle has not.
WHOLE_STARTER: Final = f"`glia-rt export {STARTER}` makes a whole bundle of it, {STARTER}{SUFFIX}"

#: What some entries of a manifest are, besides those that have checks of their own.
_KINDS: Final[Mapping[str, type]] = {"model": dict, "checkpoint": dict, "parity": list, "tools": dict, "card": dict}
#: Hashing a larger file, in bytes, is a step worth naming.
_LARGE: Final = 1 << 20

#: The four graphs, by what they take and the type of their weights.
GRAPHS: Final[Mapping[tuple[GraphKind, str], str]] = {
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
        manifest: `manifest.json` in this version's schema.
        contract: The inputs, and the meaning of the score.
        identity: sha256 of `manifest.json`, hexadecimal.
    """

    path: Path
    manifest: Mapping[str, Any]
    contract: Contract
    identity: str

    @property
    def shipped(self) -> bool:
        """Whether the bundle lies in glia-rt's own folder, which nothing is written to."""
        return self.path.resolve().is_relative_to(Path(__file__).resolve().parent)

    def gpu_precision(self, input: GraphKind) -> str:
        """Return the precision that GPUs compute a graph in by default: "fp16", or "fp32" if there is no such file."""
        return "fp16" if GRAPHS[input, "fp16"] in self.manifest["files"] else "fp32"

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest, also one of schema 1, and check that every file is there at its size.

        Args:
            path: The folder, or "starter" for the model that glia-rt ships.

        Raises:
            BundleError: Not a bundle, of a newer schema, or with a file missing or of another size.
        """
        with step(f"open {path}"):
            return cls._open(resolve_bundle(path))

    @classmethod
    def _open(cls, path: Path) -> Bundle:
        if not path.is_dir():
            reason = "is a file; a bundle is a folder" if path.exists() else "does not exist"
            raise BundleError(f"{path} {reason}; `glia-rt export CHECKPOINT` writes one")
        try:
            text = (path / MANIFEST).read_bytes()
            manifest = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            advice = "; a path of this name goes before the model that glia-rt ships" if str(path) == STARTER else ""
            raise BundleError(f"{path} is not a bundle: {MANIFEST} cannot be read ({error}){advice}") from error
        written_by = _written_by(manifest)
        manifest = upgrades.upgrade(manifest, f"{path}: the manifest", SCHEMA, upgrades.MANIFEST, written_by)
        required = {"schema", "model", "contract", "checkpoint", "files", "fp16", "parity", "tools"}
        upgrades.require_fields(manifest, f"{path}: the manifest", required, {"card"}, written_by)
        for key, kind in _KINDS.items():
            if not isinstance(manifest.get(key, kind()), kind):
                raise BundleError(
                    f"{path}: the manifest: {key} is of the wrong kind; the file is damaged: make it again"
                )
        entries = manifest["files"]
        if not isinstance(entries, dict) or not all(
            isinstance(entry, dict) and {"sha256", "size"} <= set(entry) for entry in entries.values()
        ):
            raise BundleError(f"{path}: the manifest's files lack their sizes and hashes; export it again")
        for name, entry in entries.items():
            try:
                size = (path / name).stat().st_size
            except (OSError, ValueError) as error:  # a ValueError for what no file can be named
                raise BundleError(f"{path}: {name} is missing; copy the bundle again, whole") from error
            if size != entry["size"]:
                raise BundleError(
                    f"{path}: {name} has {size} bytes, the manifest says {entry['size']}; copy the bundle again"
                )
        try:
            contract = Contract.from_dict(manifest["contract"], written_by)
        except BundleError as error:
            raise BundleError(f"{path}: {error}") from error
        return cls(path, manifest, contract, hashlib.sha256(text).hexdigest())

    def checked_file(self, name: str) -> Path:
        """Return the path of one of the bundle's files, after hashing it.

        Raises:
            BundleError: The file is not the one that was exported.
        """
        expected, path = self.sha256(name), self.path / name
        try:
            with step(f"hash {path}") if path.stat().st_size > _LARGE else nullcontext():
                found = files.sha256(path)
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}); copy the bundle again") from error
        if found != expected:
            raise BundleError(f"{path} is not the file that was exported (sha256 differs); copy the bundle again")
        return path

    def sha256(self, name: str) -> str:
        """Return the hash of one of the bundle's files, as the manifest has it."""
        try:
            return str(self.manifest["files"][name]["sha256"])
        except KeyError as error:
            if self.shipped:
                raise BundleError(f"glia-rt ships the starter without {name}: {WHOLE_STARTER}") from error
            raise BundleError(f"{self.path}: the manifest names no {name}; export it again") from error

    def selftest(self) -> list[dict[str, Any]]:
        """Return the selftest, a dictionary for each photograph.

        `picture` is its file in selftest/, `inputs` holds the file of each of the model's inputs by name, and `score`
        is PyTorch's score in float32.
        """
        rows: list[dict[str, Any]] = json.loads(self.checked_file("selftest/scores.json").read_text())["pictures"]
        return [row if "inputs" in row else upgrades.selftest_1(row) for row in rows]


def _written_by(manifest: Any) -> str | None:
    """Return the version of glia-rt that a manifest names; it may be damaged."""
    tools = manifest.get("tools") if isinstance(manifest, dict) else None
    found = tools.get("glia-rt") if isinstance(tools, dict) else None
    return found if isinstance(found, str) else None


@contextmanager
def new_bundle(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Make a folder to fill. It becomes the bundle when the block ends well, and is removed otherwise.

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
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(files.whole_folder(path))
        except OSError as error:
            raise UsageError(f"{path.parent} cannot be written: {error.strerror}; give another -o") from error
        yield folder


def write_manifest(folder: Path, record: Mapping[str, Any]) -> None:
    """Write `manifest.json` over the files now in the folder, adding their sizes and hashes to `record["files"]`."""
    found = {
        path.relative_to(folder).as_posix(): {"sha256": files.sha256(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    details: Mapping[str, Any] = record.get("files", {})
    merged = {name: entry | details.get(name, {}) for name, entry in found.items()}
    (folder / MANIFEST).write_text(json.dumps({"schema": SCHEMA, **record, "files": merged}, indent=2) + "\n")
