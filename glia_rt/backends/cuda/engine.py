"""TensorRT engines of a bundle: which files they are, and what is written down about each.

An engine lies in NAME.glia/engines/ as TensorRT wrote it, with a record beside it in JSON. Its name says what it is
for, TARGET.INPUT.PRECISION.smXX[-smYY].VERSION.engine, so that one bundle on a shared disk serves unlike GPUs.
`glia_engines` writes both files. The runtime reads the record, and hashes the engine before TensorRT sees a byte of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from glia_rt import upgrades
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import GraphKind
from glia_rt.errors import BackendError, BundleError, EngineError

SCHEMA: Final = 2
FOLDER: Final = "engines"

#: Least, most usual and greatest shape of each input.
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Target:
    """One of the two TensorRTs.

    Attributes:
        name: As on the command line, and the backend's.
        package: What Python imports.
        extra: The extra of glia-rt that installs it.
        portable: Whether one engine serves many GPUs and is built without one; else it is built on the GPU it is for.
    """

    name: str
    package: str
    extra: str
    portable: bool


TARGETS: Final = {
    target.name: target
    for target in (
        Target("tensorrt-rtx", "tensorrt_rtx", "rtx", portable=True),
        Target("tensorrt", "tensorrt", "tensorrt", portable=False),
    )
}


@dataclass(frozen=True)
class EngineRecord:
    """What stands in the JSON beside an engine.

    Attributes:
        target: "tensorrt-rtx" or "tensorrt".
        library_version: Of the TensorRT that built it; no other loads it.
        capabilities: Compute capabilities it was built for, "8.9" say. Empty in records of schema 1 for the set that
            tensorrt-rtx builds for by itself, 8.0 and later.
        system: Operating system and processor it was built on, "Linux x86_64" say.
        input: Which graph: "views" or "image".
        precision: "fp16" or "fp32".
        profile: Shapes it takes.
        onnx: The bundle's file it was built from.
        onnx_sha256: Hash of that file.
        bundle_identity: Of the bundle it was built from.
        engine_sha256: Hash of the engine.
        engine_size: Bytes of the engine.
        layers: What the engine's own kernel list says; see `glia_engines.kernels.summary`.
        build_seconds: How long TensorRT took.
        glia_rt: The version of glia-rt that built it.
    """

    target: str
    library_version: str
    capabilities: tuple[str, ...]
    system: str
    input: GraphKind
    precision: str
    profile: Profile
    onnx: str
    onnx_sha256: str
    bundle_identity: str
    engine_sha256: str
    engine_size: int
    layers: Mapping[str, Any]
    build_seconds: float
    glia_rt: str

    @property
    def min_batch(self) -> int:
        """Fewest pictures the engine takes at once."""
        return max(least[0] for least, _, _ in self.profile.values())

    @property
    def usual_batch(self) -> int:
        """Pictures at once that the engine is fastest at."""
        return max(usual[0] for _, usual, _ in self.profile.values())

    @property
    def max_batch(self) -> int:
        """Most pictures the engine takes at once."""
        return max(greatest[0] for _, _, greatest in self.profile.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> EngineRecord:
        """Read a record, also one of schema 1.

        Raises:
            EngineError: It is not there, not a record, or of a newer schema.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EngineError(f"{path}, which describes the engine, cannot be read ({error}); {REBUILD}") from error
        written_by = found.get("glia_rt") if isinstance(found, dict) else None
        try:
            record = upgrades.upgrade(found, str(path), SCHEMA, upgrades.ENGINE, written_by)
            del record["schema"]
            known = {field.name for field in dataclasses.fields(cls)}
            upgrades.require_fields(record, str(path), known, written_by=written_by)
        except BundleError as error:
            raise EngineError(f"{error}; or {REBUILD}") from error
        try:
            record["capabilities"] = tuple(record["capabilities"])
            record["profile"] = {
                name: tuple(tuple(shape) for shape in shapes) for name, shapes in record["profile"].items()
            }
        except (TypeError, AttributeError) as error:
            raise EngineError(f"{path} is damaged ({error}); {REBUILD}") from error
        return cls(**record)


REBUILD: Final = "build the engine again, with glia-rt build and --overwrite"


def engine_path(record: EngineRecord, bundle: Bundle) -> Path:
    """Return where an engine of a bundle lies."""
    architectures = "-".join(f"sm{capability.replace('.', '')}" for capability in record.capabilities)
    name = f"{record.target}.{record.input}.{record.precision}.{architectures}.{record.library_version}.engine"
    return bundle.path / FOLDER / name


def find_engines(bundle: Bundle, target: str, input: GraphKind, precision: str) -> list[tuple[Path, EngineRecord]]:
    """Return a bundle's engines of one kind with their records, by file name.

    Raises:
        EngineError: A record is missing or damaged.
    """
    folder = bundle.path / FOLDER
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    paths = [folder / name for name in names if name.endswith(".engine") and not name.startswith(".")]
    found = [(path, EngineRecord.read(record_path(path))) for path in paths if _may_be(path, target, input, precision)]
    for path, record in found:
        if (record.target, record.input, record.precision) != (target, input, precision):
            raise EngineError(f"{record_path(path)} describes another engine; {REBUILD}")
    return found


def _may_be(path: Path, target: str, input: GraphKind, precision: str) -> bool:
    return path.name.startswith(f"{target}.{input}.{precision}.")


def record_path(engine: Path) -> Path:
    """The record of an engine."""
    return engine.with_suffix(".json")


def build_command(bundle: Bundle, target: str, input: GraphKind, precision: str) -> str:
    """The command that makes an engine, to be read by people."""
    words = ["glia-rt build", shlex.quote(str(bundle.path)), "--target", target]
    if input == "image":
        words += ["--input image --batch 1:4:8 --size 224x224:768x1024:3000x4000"]
    if precision != "fp16":
        words += ["--precision", precision]
    return " ".join(words)


def checked_engine(
    bundle: Bundle, target: str, input: GraphKind, precision: str, *, library_version: str, capability: str
) -> tuple[bytes, EngineRecord]:
    """Read a bundle's engine and make sure that it is whole, of this bundle, and for this machine.

    Args:
        bundle: What it belongs to.
        target: "tensorrt-rtx" or "tensorrt".
        input: Which graph.
        precision: "fp16" or "fp32".
        library_version: Of the TensorRT here.
        capability: Compute capability of the GPU here, "8.9" say.

    Raises:
        EngineError: There is none, it was changed since it was built, it is another bundle's, or it was built for
            another TensorRT, GPU or operating system. The message says what to do.
    """
    found = find_engines(bundle, target, input, precision)
    if not found:
        raise EngineError(
            f"{bundle.path / FOLDER} holds no engine of {target} for {input} in {precision}: "
            f"{build_command(bundle, target, input, precision)}"
        )
    # The one for this machine, if there is one; else the one that comes nearest, and below the reason why not it.
    path, record = max(found, key=lambda one: _fitness(one[1], library_version, capability))
    content = path.read_bytes()
    if len(content) != record.engine_size:
        raise EngineError(
            f"{path} has {len(content)} bytes, its record says {record.engine_size}; copy it again, or {REBUILD}"
        )
    if hashlib.sha256(content).hexdigest() != record.engine_sha256:
        raise EngineError(f"{path} is not the file that was built (sha256 differs); copy it again, or {REBUILD}")
    if record.bundle_identity != bundle.identity or record.onnx_sha256 != bundle.sha256(GRAPHS[input, precision]):
        raise EngineError(f"{path} was built from another export of {bundle.path.name}; {REBUILD}")
    if record.library_version != library_version:
        raise EngineError(
            f"{path} was built by {target} {record.library_version}, here is {library_version}, and engines do not "
            f"travel between versions; {REBUILD}"
        )
    # What a portable engine runs on is for the library to say: Runtime.get_engine_validity.
    if not TARGETS[target].portable:
        if capability not in record.capabilities:
            raise EngineError(
                f"{path} was built on a GPU of compute capability {', '.join(record.capabilities)}, this one has "
                f"{capability}; {REBUILD} on this machine"
            )
        if record.system != system():
            raise EngineError(f"{path} was built on {record.system}, this is {system()}; {REBUILD} on this machine")
    return content, record


def _fitness(record: EngineRecord, library_version: str, capability: str) -> tuple[bool, bool, int]:
    """Return how well an engine suits a machine, to be compared; the first difference counts."""
    is_of_this_version = record.library_version == library_version
    # A portable engine may run on later GPUs than those it names. The more it names the better; schema 1 names none.
    return is_of_this_version, capability in record.capabilities, len(record.capabilities)


def require_in_profile(record: EngineRecord, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse inputs whose shapes the engine was not built for.

    Raises:
        BackendError: With the sizes it takes.
    """
    for name, shape in shapes.items():
        least, _, greatest = record.profile[name]
        if not all(low <= side <= high for low, side, high in zip(least, shape, greatest, strict=True)):
            batches, *sides = (f"{low} to {high}" for low, high in zip(least, greatest, strict=True))
            raise BackendError(
                f"backend {record.target}: a batch of {shape[0]} of {'x'.join(map(str, shape[1:-1]))} is not what the "
                f"engine was built for: {batches} of height {sides[-3]} and width {sides[-2]}; build it with another "
                "--batch or --size, or score from views, which takes pictures of all sizes"
            )


def system() -> str:
    """Operating system and processor, "Linux x86_64" say."""
    return f"{platform.system()} {platform.machine()}"


def engines(bundle: Bundle) -> list[EngineRecord]:
    """Records of all engines in a bundle's folder, by file name."""
    folder = bundle.path / FOLDER
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [EngineRecord.read(folder / name) for name in names if name.endswith(".json")]
