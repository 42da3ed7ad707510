"""A service's throughput: one picture a call from several threads, or lists from one, JPEGs in memory to scores.

    python benchmarks/service.py [BUNDLE]

All ways are measured in turns, so that what else the machine does falls on all of them. The first is what one stream of
the engine on one core does alone: pictures are decoded, and run in batches, one after the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from common import PACKAGES, hardware, make_jpegs

from glia_rt import Scorer
from glia_rt.bench import closed_loop
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_rt.samples import stack
from glia_rt.versions import installed_versions

RESULT = Path(__file__).parent / "results" / "service.json"
PICTURES = 32
SIDE = 512
THREADS = (1, 2, 8)
ROUNDS = 5
SECONDS = 3.0


def main() -> None:
    """Measure, print and write the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="starter")
    bundle = parser.parse_args().bundle
    with tempfile.TemporaryDirectory() as folder, Scorer.open(bundle) as scorer:
        jpegs = make_jpegs(Path(folder) / "jpegs", SIDE, SIDE, PICTURES)
        pictures = [path.read_bytes() for path in sorted(jpegs.iterdir())]
        ways = _ways(scorer, pictures)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        milliseconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (call, pictures_a_call, threads) in ways.items():
                loop = closed_loop(call, seconds=SECONDS, least=4, warm_up=2, callers=threads)
                rates[name].append(pictures_a_call * loop.rate)
                milliseconds[name].append(1000 * loop.percentile(50))
        found = {
            "bundle": bundle,
            "backend": f"{scorer.backend.name} {scorer.backend.precision}",
            "hardware": hardware(),
            "versions": installed_versions(*PACKAGES),
            "ways": {
                name: {
                    "pictures_per_second": round(statistics.median(rates[name]), 1),
                    "of_one_stream": round(
                        statistics.median(a / b for a, b in zip(rates[name], rates["one stream"], strict=True)), 2
                    ),
                    "median_ms_a_call": round(statistics.median(milliseconds[name]), 1),
                }
                for name in ways
            },
        }
    text = json.dumps(found, indent=2) + "\n"
    print(text)
    RESULT.write_text(text)


def _ways(scorer: Scorer, pictures: list[bytes]) -> dict[str, tuple[Callable[[], object], int, int]]:
    """Return what a call does, how many pictures it scores, and how many threads call."""
    turn = iter(range(1 << 62))

    def one_stream() -> None:
        for first in range(0, len(pictures), scorer.batch_size):
            batch = pictures[first : first + scorer.batch_size]
            scorer.backend.run(stack([make_inputs(read_image(picture), scorer.contract) for picture in batch]))

    def single() -> None:
        scorer.score(pictures[next(turn) % len(pictures)])

    ways: dict[str, tuple[Callable[[], object], int, int]] = {"one stream": (one_stream, len(pictures), 1)}
    ways |= {f"score, {threads} threads": (single, 1, threads) for threads in THREADS}
    ways[f"score_batch of {PICTURES}"] = (lambda: scorer.score_batch(pictures), len(pictures), 1)
    return ways


if __name__ == "__main__":
    main()
