"""Reads damaged copies of a file, as glia-rt reads it, in this process; ends with a traceback where it should not.

python fuzz.py KIND FILE BUNDLE COUNT SEED

Each copy is made from KIND, FILE, SEED and its number alone: bits, bytes, lengths, missing and doubled pieces, more of
them at both ends, where formats keep what they say of themselves. It prints the peak of memory over what was there
before, in bytes.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: A picture of 178 megapixels would be read, and take 540 MB.
MAX_PIXELS = 20_000_000
#: Addresses that a copy may take over what was taken before, so that a wrong length does no harm, in bytes.
ADDRESSES = 1 << 31
#: Seconds that a copy may take. The process then ends by SIGALRM, even where it is in a library.
LIMIT = 20
#: From both ends of a file: headers, footers, directories.
ENDS = 2048
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
VALUES = (None, True, -1, 0, 10**12, 1e308, "", "x" * 5000, "../../etc/passwd", "\0", [], {}, [[]], {"": None})


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a damaged copy."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        place = chance.choice(("anywhere", "head", "tail"))
        first = {"anywhere": 0, "head": 0, "tail": max(0, len(found) - ENDS)}[place]
        last = {"anywhere": len(found), "head": min(len(found), ENDS), "tail": len(found)}[place]
        at = chance.randrange(first, max(first + 1, last))
        match chance.choice(("bit", "byte", "length", "varint", "cut", "drop", "double", "random")):
            case "bit":
                found[at : at + 1] = bytes(one ^ (1 << chance.randrange(8)) for one in found[at : at + 1])
            case "byte":
                found[at : at + 1] = chance.randbytes(1)
            case "length":
                size, order = chance.choice((1, 2, 4, 8)), chance.choice("<>")
                value = chance.choice(EXTREMES) & ((1 << 8 * size) - 1)
                found[at : at + size] = struct.pack(f"{order}{'BHIQ'[size.bit_length() - 1]}", value)
            case "varint":
                found[at : at + chance.randrange(6)] = varint(chance.choice(EXTREMES) << chance.randrange(2))
            case "cut":
                del found[at:]
            case "drop":
                del found[at : at + chance.randrange(1, 64)]
            case "double":
                piece = found[at : at + chance.randrange(1, 256)]
                found[at:at] = piece
            case "random":
                size = chance.randrange(1, 32)
                found[at : at + size] = chance.randbytes(size)
    return bytes(found)


def varint(value: int) -> bytes:
    """Return a number as the headers of Parquet and ONNX have it, seven bits a byte."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def damaged_json(content: bytes, chance: random.Random) -> bytes:
    """Return a copy in which a value is another, or is missing."""
    record = json.loads(content)
    for _ in range(chance.choice((1, 1, 2))):
        inner: Any = record
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = chance.choice(keys)
            if isinstance(inner[key], (dict, list)) and inner[key] and chance.random() < 0.8:
                inner = inner[key]
            elif chance.random() < 0.2:
                del inner[key]
                break
            else:
                inner[key] = chance.choice(VALUES)
                break
    return json.dumps(record).encode()


def score(path: Path, bundle: Path, scorer: Any) -> None:
    """Score what is in an archive or picture."""
    from glia_rt.listing.sources import Sources

    list(scorer.score_files(Sources([path], column="image")))


def open_manifest(path: Path, bundle: Path, scorer: Any) -> None:
    """Open a copy of the bundle with this manifest."""
    from glia_rt import Scorer

    copy = _copy(bundle, path.parent)
    _write(copy / "manifest.json", path.read_bytes())
    with Scorer.open(copy, "onnxruntime"):
        pass


def open_graph(path: Path, bundle: Path, scorer: Any) -> None:
    """Open a copy of the bundle with this graph, and a manifest that has its hash."""
    from glia_rt import Scorer
    from glia_rt.files import sha256

    copy = _copy(bundle, path.parent)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["scorer.onnx"] |= {"sha256": sha256(path), "size": path.stat().st_size}
    _write(copy / "manifest.json", json.dumps(manifest).encode())
    _write(copy / "scorer.onnx", path.read_bytes())
    with Scorer.open(copy, "onnxruntime") as opened:
        inputs = {one.name: _zeros(one.shape) for one in opened.contract.inputs}
        opened.score_views(**inputs)


def _copy(bundle: Path, folder: Path) -> Path:
    """Return a bundle of links to the files of another."""
    copy = folder / "copy.glia"
    if not copy.exists():
        copy.mkdir()
        for file in bundle.iterdir():
            (copy / file.name).symlink_to(file.resolve())
    return copy


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # and not what it links to
    path.write_bytes(content)


def _zeros(shape: tuple[int, ...]) -> Any:
    import numpy as np

    return np.zeros((1, *shape), np.uint8)


def load_checkpoint(path: Path, bundle: Path, scorer: Any) -> None:
    """Load a checkpoint, and make its model."""
    from glia_train.checkpoint import Checkpoint

    Checkpoint.load(path).build_model()


KINDS: dict[str, Callable[[Path, Path, Any], None]] = {
    "parquet": score, "tar": score, "tar.gz": score, "jpg": score, "png": score,
    "json": open_manifest, "onnx": open_graph, "pt": load_checkpoint,
}  # fmt: skip


def status(name: str) -> int:
    """Return a figure of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> None:
    """Read copies of one file."""
    from glia_rt import Scorer
    from glia_rt.errors import GliaError
    from glia_rt.pixels.decode import configure_pillow

    kind, file, bundle, count, seed = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:])
    content, use = file.read_bytes(), KINDS[kind]
    configure_pillow(MAX_PIXELS)
    with Scorer.open(bundle, "onnxruntime", max_pixels=MAX_PIXELS) as scorer, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"damaged.{kind}"
        path.write_bytes(content)
        use(path, bundle, scorer)  # what is not damaged is read, and loads what it takes
        Path("/proc/self/clear_refs").write_text("5")
        idle = status("VmRSS")
        most = status("VmSize") + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        for number in range(count):
            chance = random.Random(f"{kind} {seed} {number}")
            change = damaged_json if kind == "json" and chance.random() < 0.7 else damaged
            path.write_bytes(change(content, chance))
            print(number, flush=True)  # so that a crash says where
            signal.alarm(LIMIT)
            try:
                use(path, bundle, scorer)
            except GliaError:
                if use is score:  # whatever is in a file, the run over it and others goes on
                    raise
        signal.alarm(0)
        print("peak", status("VmHWM") - idle)


if __name__ == "__main__":
    main()
