"""Memory of a run, measured by the system: pictures that are small on disk and large once decoded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc"),
]

MB = 1_000_000
#: What a peak may be over the budget: of threads, libraries that load late, and the views.
OVER = 300 * MB
PROGRAM = """
import sys
from pathlib import Path
from glia_rt import Scorer
from glia_rt.pixels.decode import configure_pillow

def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

configure_pillow()
bundle, input, memory, small, *paths = sys.argv[1:]
with Scorer.open(bundle, "onnxruntime", input, memory=int(memory)) as scorer:
    scorer.score(small)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    idle = status("VmRSS")
    rows = list(scorer.score_files(paths, workers=16))
    print(sum(row.status == "ok" for row in rows), status("VmHWM") - idle)
"""


def peak(bundle: Path, input: str, memory: int, *paths: Path) -> int:
    """Score pictures with 16 threads in a process; bytes at most over what the engine took before."""
    command = [sys.executable, "-c", PROGRAM, bundle, input, memory, *paths]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    scored, over = map(int, done.stdout.split())
    assert scored == len(paths) - 1
    return over


def test_bombs_stay_within_the_budget(plain_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    """A picture of 36 megapixels in 5 kB takes 144 MB to decode."""
    bomb = tmp_path / "bomb.png"
    Image.new("1", (6000, 6000)).save(bomb)
    assert bomb.stat().st_size < 10_000
    bombs = [pictures / "00.jpg", *[bomb] * 24]
    assert peak(plain_bundle, "views", 400 * MB, *bombs) < 400 * MB + OVER
    assert peak(plain_bundle, "views", 10_000 * MB, *bombs) > 400 * MB + OVER, "the budget is what holds it"


def test_fewer_whole_pictures_are_held_and_run_at_once(plain_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    """What the graph itself takes of a picture is not counted, 25 bytes a pixel and run; so the peaks are compared."""
    picture = tmp_path / "picture.png"
    Image.new("1", (4000, 3000)).save(picture)
    paths = [pictures / "00.jpg", *[picture] * 24]
    limited, not_limited = (peak(plain_bundle, "image", memory * MB, *paths) for memory in (100, 10_000))
    assert limited < not_limited / 2
