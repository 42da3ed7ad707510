"""Throughput of the engines on a CPU, side by side, from views. benchmarks/pictures.py measures whole pictures.

    python benchmarks/cpu.py                 # ViT-B with random weights; about 15 minutes on 2 cores
    python benchmarks/cpu.py --backbone vit_tiny_patch16_224 --rounds 2

Everything is timed in one process, contender after contender, round after round. Ratios are taken round by round, and
the median is reported. So a machine that slows down for a while slows all contenders. Random weights do not change the
amount of work. The script writes results/cpu-NAME.json and prints the table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import PACKAGES, hardware, random_bundle, random_inputs, throughput

from glia_rt import Scorer
from glia_rt.backends.base import CPU_BATCH_SIZE
from glia_rt.bundle import Bundle
from glia_rt.errors import GliaError
from glia_rt.machine import cpu_count
from glia_rt.versions import installed_versions
from glia_train.models.base import Model
from glia_train.models.glianet import DEFAULT_BACKBONE

BATCHES = (1, CPU_BATCH_SIZE, 8)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(cpu_count())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, bundle = random_bundle(options.backbone, folder)
        result: dict[str, Any] = {"hardware": hardware(), "versions": installed_versions(*PACKAGES)}
        result["backbone"] = options.backbone
        result["command"] = "python " + " ".join(sys.argv)
        result["views"] = from_views(model, bundle, options.rounds)
    options.out.mkdir(exist_ok=True)
    path = options.out / f"cpu-{options.backbone.split('.')[0]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(result))
    print(f"\nwrote {path}", file=sys.stderr)


def from_views(model: Model, bundle: Path, rounds: int) -> dict[str, Any]:
    """Return the pictures per second of each engine, and its ratio to PyTorch eager FP32 in the same round."""
    contenders: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {
        "PyTorch eager FP32": lambda inputs: eager(model, inputs, autocast=False),
        "PyTorch eager bf16 autocast": lambda inputs: eager(model, inputs, autocast=True),
    }
    contract = Bundle.open(bundle).contract
    with contextlib.ExitStack() as stack:
        scorers = {}
        for backend, precision in (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")):
            try:
                scorer = Scorer.open(bundle, backend, precision=precision)
            except GliaError as error:
                print(f"left out: {error}", file=sys.stderr)
            else:
                scorers[f"{backend} {precision}"] = stack.enter_context(scorer)
        rates: dict[str, list[float]] = {}
        for round_, batch in itertools.product(range(rounds), BATCHES):
            inputs = random_inputs(contract, batch)
            for name, run in contenders.items():
                rate = throughput(run, inputs)
                rates.setdefault(f"{name}, batch {batch}", []).append(rate)
            for name, scorer in scorers.items():
                threads = scorer.backend.parallel if batch > 1 else 1
                rate = throughput(scorer.backend.run, inputs, threads)
                rates.setdefault(f"{name}, batch {batch}", []).append(rate)
            print(f"views: round {round_ + 1}, batch {batch}", file=sys.stderr)
    result = {}
    for name, values in rates.items():
        base = rates[f"PyTorch eager FP32, {name.split(', ')[1]}"]
        result[name] = {
            "images_per_s": statistics.median(values),
            "rounds": values,
            "ratio_to_eager_fp32": statistics.median(a / b for a, b in zip(values, base, strict=True)),
        }
    bf16 = rates["PyTorch eager bf16 autocast, batch 8"]
    if "openvino bf16, batch 8" in rates:
        result["openvino bf16, batch 8"]["ratio_to_bf16_autocast"] = statistics.median(
            a / b for a, b in zip(rates["openvino bf16, batch 8"], bf16, strict=True)
        )
    return result


def eager(model: Model, inputs: dict[str, np.ndarray], *, autocast: bool) -> torch.Tensor:
    """Return the scores of one pass of the PyTorch model on the CPU."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model.score(*(torch.from_numpy(array) for array in inputs.values()))


def markdown(result: dict[str, Any]) -> str:
    """Return the table of docs/benchmarks.md."""

    def lines() -> Iterator[str]:
        yield f"{result['hardware']}; " + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        yield ""
        columns = [f"images/s, batch {batch}" for batch in BATCHES]
        yield f"| from views | {' | '.join(columns)} | batch {BATCHES[-1]} against eager FP32 |"
        yield "|---" * (len(BATCHES) + 2) + "|"
        for name in dict.fromkeys(key.split(",")[0] for key in result["views"]):
            found = [result["views"][f"{name}, batch {batch}"] for batch in BATCHES]
            rates = [f"{each['images_per_s']:.1f}" for each in found]
            yield f"| {name} | {' | '.join(rates)} | {found[-1]['ratio_to_eager_fp32']:.2f} |"

    return "\n".join(lines())


if __name__ == "__main__":
    main()
