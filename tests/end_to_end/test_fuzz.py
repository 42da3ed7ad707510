"""Damaged copies of everything that glia-rt reads: no traceback, no crash, no hang, bounded memory.

CI reads 200 of each kind. `pytest tests/end_to_end/test_fuzz.py --fuzz 2000` reads more.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from glia_rt.starter.paths import BUNDLE, CHECKPOINT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc"),
]

PROGRAM = Path(__file__).parents[1] / "helpers" / "fuzz.py"
#: Bytes over what was taken before.
PEAK = 512_000_000
#: Seconds that a copy takes on the average, at most. `fuzz.py` has a limit for each.
LIMIT = 1


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    return Image.fromarray(noise).resize((120, 90), Image.Resampling.BICUBIC)


def jpeg(**options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(), "JPEG", exif=exif, icc_profile=b"x" * 500, **options)


def grey_of_16_bits() -> bytes:
    return encoded(Image.fromarray(np.asarray(photo().convert("L")).astype(np.uint16) * 200), "PNG")


def tar(mode: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=tarfile.PAX_FORMAT) as archive:
        for name in ("0.jpg", "1.jpg", "é" * 60 + ".jpg", "3.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(jpeg())
            archive.addfile(member, io.BytesIO(jpeg()))
    return file.getvalue()


def table(pictures: list[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table({"image": pictures, "n": range(len(pictures))}), file, **options)
    return file.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "baseline.jpg": jpeg,
    "progressive.jpg": lambda: jpeg(progressive=True),
    "palette.png": lambda: encoded(photo().quantize(16), "PNG", transparency=3),
    "grey.png": grey_of_16_bits,
    "files.tar": lambda: tar("w"),
    "files.tar.gz": lambda: tar("w:gz"),
    "structs.parquet": lambda: table([{"bytes": jpeg(), "path": "a"}] * 8, row_group_size=3, compression="zstd"),
    "zeros.parquet": lambda: table([bytes(5_000_000), jpeg()], use_dictionary=False, compression="zstd"),
    "plain.parquet": lambda: table([jpeg(), jpeg(), None, b"junk"], use_dictionary=False),
    "manifest.json": (BUNDLE / "manifest.json").read_bytes,
    "scorer.onnx": (BUNDLE / "scorer.onnx").read_bytes,
    "checkpoint.pt": CHECKPOINT.read_bytes,
}


@pytest.mark.timeout(0)  # the process has a limit of its own, by the number of copies
@pytest.mark.parametrize("name", FILES)
def test_damaged_copies(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    count = pytestconfig.getoption("--fuzz")
    file = tmp_path / name
    file.write_bytes(FILES[name]())
    kind = name.partition(".")[2]
    command = [sys.executable, PROGRAM, kind, file, BUNDLE, count, 0]
    timeout = 60 + LIMIT * count
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=timeout, check=False)
    *copies, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, f"copy {last}, status {done.returncode}: {done.stderr[-3000:]}"
    assert sum(line.isdecimal() for line in copies) == count  # engines print, too
    assert int(last.removeprefix("peak ")) < PEAK
