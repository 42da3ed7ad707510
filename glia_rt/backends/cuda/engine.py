"""The TensorRT engines of a bundle: their files, and the record of each.

An engine is stored in NAME.glia/engines/ as TensorRT wrote it, with a record in JSON beside it. Those of a bundle in a
place that cannot be written, and of one that comes with glia-rt, are in the user's data folder. The file name is
TARGET.INPUT.PRECISION.smXX[-smYY].VERSION.engine, so that one bundle on a shared disk can serve different GPUs.
`glia_engines` writes both files. The runtime reads the record and checks the hash of the engine before it gives the
engine to TensorRT.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from glia_rt import upgrades
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.contract import GraphKind
from glia_rt.errors import BackendError, BundleError, EngineError, UsageError

SCHEMA: Final = 2
FOLDER: Final = "engines"
#: The least compute capability that tensorrt-rtx builds for unless others are named.
LEAST_PORTABLE: Final = 8.0

#: Smallest, usual and largest shape of each input.
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Target:
    """One of the two TensorRT libraries.

    Attributes:
        name: Name of the target on the command line. The backend has the same name.
        package: The package that Python imports.
        extra: The extra of glia-rt that installs the package.
        portable: True if one engine serves many GPUs and is built without a GPU. False if an engine is built on the GPU
            that it is for.
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
    """The record of an engine, as the JSON beside it holds it.

    Attributes:
        target: "tensorrt-rtx" or "tensorrt".
        library_version: Version of the TensorRT that built the engine. No other version loads it.
        capabilities: Compute capabilities that the engine was built for, for example "8.9". Empty in a record of schema
            1 if the engine was built for the default set of tensorrt-rtx, 8.0 and later.
        system: Operating system and processor that the engine was built on, for example "Linux x86_64".
        input: Which graph: "views" or "image".
        precision: "fp16" or "fp32".
        profile: Shapes that the engine takes.
        onnx: The bundle's file that the engine was built from.
        onnx_sha256: Hash of that file.
        bundle_identity: Identity of the bundle that the engine was built from.
        engine_sha256: Hash of the engine.
        engine_size: Size of the engine, bytes.
        layers: Counts from the engine's own list of kernels; see `glia_engines.kernels.summary`.
        build_seconds: Time that TensorRT took, seconds.
        glia_rt: Version of glia-rt that built the engine.
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
        """Smallest batch that the engine takes."""
        return max(least[0] for least, _, _ in self.profile.values())

    @property
    def usual_batch(self) -> int:
        """Batch size that the engine is fastest at."""
        return max(usual[0] for _, usual, _ in self.profile.values())

    @property
    def max_batch(self) -> int:
        """Largest batch that the engine takes."""
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
            EngineError: The record is missing or damaged, or its schema is newer.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
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
            record["capabilities"] = _capabilities(record["capabilities"])
            record["profile"] = _profile(record["profile"])
            for name in ("engine_size", "build_seconds"):
                float(record[name])
            return cls(**record)
        except (TypeError, ValueError, AttributeError) as error:
            raise EngineError(f"{path} is damaged ({error}); {REBUILD}") from error


def _capabilities(names: Any) -> tuple[str, ...]:
    """Return compute capabilities that were read from JSON.

    Raises:
        TypeError, ValueError: They are not numbers as text.
    """
    for name in names:
        float(name)
    return tuple(map(str, names))


def _profile(record: Any) -> Profile:
    """Return a profile that was read from JSON.

    Raises:
        AttributeError, TypeError, ValueError: It is not three shapes for each input.
    """
    profile = {name: tuple(tuple(map(int, shape)) for shape in shapes) for name, shapes in record.items()}
    # Three shapes of one length for each input; the first number of each is a batch.
    if not profile or any(len(shapes) != 3 or len({*map(len, shapes)} - {0}) != 1 for shapes in profile.values()):
        raise ValueError(f"profile {record!r}")
    return profile  # type: ignore[return-value]


REBUILD: Final = "build the engine again, with glia-rt build and --overwrite"


def engine_folders(bundle: Bundle) -> list[Path]:
    """Return the folders that engines of a bundle may be in: the bundle's own, and one in the user's data folder.

    A user without HOME and without an entry in the system's table of users has no data folder.
    """
    from platformdirs import user_data_path

    folders = [bundle.path / FOLDER]
    with suppress(RuntimeError):  # there is no HOME
        folders.append(user_data_path("glia-rt", appauthor=False) / bundle.identity / FOLDER)
    return folders


def engine_path(record: EngineRecord, bundle: Bundle) -> Path:
    """Return the path that an engine of a bundle is built to.

    Raises:
        UsageError: The bundle cannot be written, and the user has no folder.
    """
    own, *users = engine_folders(bundle)
    is_kept = os.access(own if own.exists() else bundle.path, os.W_OK) and not bundle.shipped
    if not is_kept and not users:
        raise UsageError(f"{bundle.path} cannot be written, and there is no HOME to keep engines in: set HOME")
    architectures = "-".join(f"sm{capability.replace('.', '')}" for capability in record.capabilities)
    name = f"{record.target}.{record.input}.{record.precision}.{architectures}.{record.library_version}.engine"
    return (own if is_kept else users[0]) / name


def engines(bundle: Bundle) -> list[tuple[Path, EngineRecord | EngineError]]:
    """Return all engines of a bundle with their records, in the order of file names.

    A bundle on a shared disk holds engines of other machines. Where the record of an engine cannot be read, the error
    stands in its place.
    """
    files = [folder / name for folder in engine_folders(bundle) if folder.is_dir() for name in os.listdir(folder)]
    found: list[tuple[Path, EngineRecord | EngineError]] = []
    for path in sorted(files, key=lambda path: path.name):
        if not path.name.endswith(".engine") or path.name.startswith("."):
            continue
        try:
            record = EngineRecord.read(record_path(path))
            if not path.name.startswith(f"{record.target}.{record.input}.{record.precision}."):
                raise EngineError(f"{record_path(path)} describes another engine; {REBUILD}")
            found.append((path, record))
        except EngineError as error:
            found.append((path, error))
    return found


def find_engines(bundle: Bundle, target: str, input: GraphKind, precision: str) -> list[tuple[Path, EngineRecord]]:
    """Return a bundle's engines of one kind and their records, in the order of file names.

    Raises:
        EngineError: There is none, or the record of none can be read.
    """
    prefix = f"{target}.{input}.{precision}."
    found = [(path, record) for path, record in engines(bundle) if path.name.startswith(prefix)]
    readable = [(path, record) for path, record in found if isinstance(record, EngineRecord)]
    if readable:
        return readable
    for _, error in found:
        if isinstance(error, EngineError):
            raise error
    raise EngineError(
        f"{bundle.path / FOLDER} holds no engine of {target} for {input} in {precision}: "
        f"{build_command(bundle, target, input, precision)}"
    )


def record_path(engine: Path) -> Path:
    """Return the path of the record of an engine."""
    return engine.with_suffix(".json")


def build_command(bundle: Bundle, target: str, input: GraphKind, precision: str) -> str:
    """Return the command that builds an engine, as text for people to read."""
    words = ["glia-rt build", shlex.quote(str(bundle.path)), "--target", target]
    if input == "image":
        words += ["--input image --batch 1:4:8 --size 224x224:768x1024:3000x4000"]
    if precision != bundle.gpu_precision(input):
        words += ["--precision", precision]
    return " ".join(words)


def checked_engine(
    bundle: Bundle,
    target: str,
    input: GraphKind,
    precision: str,
    *,
    library_version: str,
    capability: str,
    batch_size: int = 1,
) -> tuple[bytes, EngineRecord]:
    """Read a bundle's engine and check that it is complete, belongs to this bundle and fits this machine.

    Where several fit, one that takes batches of `batch_size` is preferred.

    Args:
        bundle: The bundle that the engine belongs to.
        target: "tensorrt-rtx" or "tensorrt".
        input: Which graph: "views" or "image".
        precision: "fp16" or "fp32".
        library_version: Version of the TensorRT on this machine.
        capability: Compute capability of the GPU on this machine, for example "8.9".
        batch_size: Pictures in a batch. Whether the engine takes so many is for the caller to check.

    Returns:
        The bytes of the engine, and its record.

    Raises:
        EngineError: There is no engine, it was changed after the build, it belongs to another bundle, or it was built
            for another version of TensorRT, GPU or operating system. The message says what to do.
    """
    found = find_engines(bundle, target, input, precision)
    found.sort(key=lambda one: _fitness(one[0], one[1], bundle, library_version, capability, batch_size), reverse=True)
    errors: list[EngineError] = []
    for path, record in found:
        try:
            return _checked(path, record, bundle, library_version, capability), record
        except EngineError as error:
            errors.append(error)
    raise errors[0]  # that of the engine which comes closest


def _checked(path: Path, record: EngineRecord, bundle: Bundle, library_version: str, capability: str) -> bytes:
    """Return the bytes of an engine; raises as `checked_engine` does."""
    if record.library_version != library_version:
        raise EngineError(
            f"{path} was built by {record.target} {record.library_version}, here is {library_version}, and engines do "
            f"not travel between versions; {REBUILD}"
        )
    # The library itself decides which GPUs a portable engine runs on: Runtime.get_engine_validity.
    if not TARGETS[record.target].portable:
        if capability not in record.capabilities:
            raise EngineError(
                f"{path} was built on a GPU of compute capability {', '.join(record.capabilities)}, this one has "
                f"{capability}; {REBUILD} on this machine"
            )
        if record.system != system():
            raise EngineError(f"{path} was built on {record.system}, this is {system()}; {REBUILD} on this machine")
    graph = GRAPHS[record.input, record.precision]
    if record.bundle_identity != bundle.identity or record.onnx_sha256 != bundle.sha256(graph):
        raise EngineError(f"{path} was built from another export of {bundle.path.name}; {REBUILD}")
    content = path.read_bytes()
    if len(content) != record.engine_size:
        raise EngineError(
            f"{path} has {len(content)} bytes, its record says {record.engine_size}; copy it again, or {REBUILD}"
        )
    if hashlib.sha256(content).hexdigest() != record.engine_sha256:
        raise EngineError(f"{path} is not the file that was built (sha256 differs); copy it again, or {REBUILD}")
    return content


def _fitness(
    path: Path, record: EngineRecord, bundle: Bundle, library_version: str, capability: str, batch_size: int
) -> tuple[bool | int, ...]:
    """Return how well an engine fits a machine, as a sort key. The first difference decides."""
    # A record of schema 1 names no capabilities where tensorrt-rtx chose them: 8.0 and later.
    by_itself = not record.capabilities and float(capability) >= LEAST_PORTABLE
    named = capability in record.capabilities or by_itself
    count = len(record.capabilities)
    return (
        record.library_version == library_version,
        named,
        record.max_batch >= batch_size,
        path == engine_path(record, bundle),  # an engine of schema 1 has another name, and is the older one
        # An engine for this GPU alone was asked for. Where none names the GPU, a portable engine may still run on it:
        # the more it names, the likelier that is.
        -count if named else count,
    )


def require_in_profile(record: EngineRecord, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse inputs whose shapes the engine was not built for.

    Raises:
        BackendError: A shape is outside of the profile. The message gives the sizes that the engine takes.
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
    """Return the operating system and the processor, for example "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"
