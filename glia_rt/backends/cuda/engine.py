"""TensorRT engines of a bundle: which files they are, and what is written down about each.

An engine lies in NAME.glia/engines/ as TensorRT wrote it, TARGET.INPUT.PRECISION.engine, with a record beside it in
JSON. `glia_engines` writes both; the runtime reads the record and hashes the engine before TensorRT sees a byte of it.
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

from glia_rt.bundle import GRAPHS, Bundle, Input
from glia_rt.errors import BackendError, EngineError

SCHEMA: Final = 1
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
        capabilities: Compute capabilities it was built for, "8.9" say; empty for the portable set of tensorrt-rtx.
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
        schema: Version of this record.
    """

    target: str
    library_version: str
    capabilities: tuple[str, ...]
    system: str
    input: Input
    precision: str
    profile: Profile
    onnx: str
    onnx_sha256: str
    bundle_identity: str
    engine_sha256: str
    engine_size: int
    layers: Mapping[str, Any]
    build_seconds: float
    schema: int = SCHEMA

    @property
    def max_batch(self) -> int:
        """Most pictures the engine takes at once."""
        return max(shapes[2][0] for shapes in self.profile.values())

    def to_json(self) -> str:
        """The record as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> EngineRecord:
        """Read a record.

        Raises:
            EngineError: It is not there, not a record, or of a newer schema.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EngineError(f"{path}, which describes the engine, cannot be read ({error}); {REBUILD}") from error
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(record, dict) or record.get("schema") != SCHEMA or set(record) != known:
            raise EngineError(f"{path} is not an engine's record of schema {SCHEMA}; {REBUILD}")
        try:
            record["capabilities"] = tuple(record["capabilities"])
            record["profile"] = {
                name: tuple(tuple(shape) for shape in shapes) for name, shapes in record["profile"].items()
            }
        except (TypeError, AttributeError) as error:
            raise EngineError(f"{path} is damaged ({error}); {REBUILD}") from error
        return cls(**record)


REBUILD: Final = "build the engine again, with glia-rt build and --overwrite"


def engine_path(bundle: Bundle, target: str, input: Input, precision: str) -> Path:
    """Where a bundle's engine lies, whether or not it is there."""
    return bundle.path / FOLDER / f"{target}.{input}.{precision}.engine"


def record_path(engine: Path) -> Path:
    """The record of an engine."""
    return engine.with_suffix(".json")


def build_command(bundle: Bundle, target: str, input: Input, precision: str) -> str:
    """The command that makes an engine, to be read by people."""
    words = ["glia-rt build", shlex.quote(str(bundle.path)), "--target", target]
    if input == "image":
        words += ["--input image --batch 1:4:8 --size 224x224:768x1024:3000x4000"]
    if precision != "fp16":
        words += ["--precision", precision]
    return " ".join(words)


def checked_engine(
    bundle: Bundle, target: str, input: Input, precision: str, *, library_version: str, capability: str
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
    path = engine_path(bundle, target, input, precision)
    if not path.is_file():
        raise EngineError(f"{path} is not there: {build_command(bundle, target, input, precision)}")
    record = EngineRecord.read(record_path(path))
    if (record.target, record.input, record.precision) != (target, input, precision):
        raise EngineError(f"{record_path(path)} describes another engine; {REBUILD}")
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
                f"backend {record.target}: a batch of {shape[0]} of {shape[1]}x{shape[2]} is not what the engine was "
                f"built for: {batches} of height {sides[0]} and width {sides[1]}; build it with another --batch or "
                "--size, or score from views, which takes pictures of all sizes"
            )


def system() -> str:
    """Operating system and processor, "Linux x86_64" say."""
    return f"{platform.system()} {platform.machine()}"


def engines(bundle: Bundle) -> list[EngineRecord]:
    """Records of all engines in a bundle's folder, by file name."""
    folder = bundle.path / FOLDER
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [EngineRecord.read(folder / name) for name in names if name.endswith(".json")]
