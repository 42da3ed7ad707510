"""Throughput on a CPU: engines side by side from views, and whole pictures end to end.

    python benchmarks/cpu.py                 # ViT-B with random weights; about 20 minutes on 2 cores
    python benchmarks/cpu.py --backbone vit_tiny_patch16_224 --rounds 2

Everything is timed in one process, contender after contender, round after round; ratios are taken round by round and
the median is reported, so that a machine that slows down for a while slows all contenders. Random weights do not
change the amount of work. Writes results/cpu-NAME.json and prints the README's tables.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from glia_export.export import SELFTEST, export
from glia_rt import Scorer
from glia_rt.backends import cpu_count
from glia_rt.contract import FRAGMENTS, GLOBAL_VIEW
from glia_rt.errors import GliaError
from glia_rt.images import read_image
from glia_rt.pipeline import ordered_map
from glia_rt.sampler import make_views
from glia_train.checkpoint import make_checkpoint, untrained
from glia_train.model import DEFAULT_BACKBONE, GLIANet, ModelConfig

BATCHES = (1, 8)
#: Pictures a timing at batch 8, and their sizes.
SETS = {"768x512": (768, 512, 200), "4000x3000": (4000, 3000, 200)}
SECONDS = 4.0  # of each timing from views
PEAK_OF_CHILD = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-pictures", type=int, nargs=2, default=(200, 2000))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(cpu_count())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, contract = untrained(ModelConfig(backbone=options.backbone))
        make_checkpoint(model, contract, "random").save(folder / "checkpoint.pt")
        bundle = export(folder / "checkpoint.pt", report=lambda stage: print(f"export: {stage}", file=sys.stderr)).path
        result: dict[str, Any] = {"hardware": hardware(), "versions": versions(), "backbone": options.backbone}
        result["command"] = "python " + " ".join(sys.argv)
        result["views"] = from_views(model, bundle, options.rounds)
        del model
        result["end_to_end"] = {
            size: end_to_end(bundle, make_jpegs(folder / size, *shape), options.rounds) for size, shape in SETS.items()
        }
        result["peak_memory_mb"] = peak_memory(bundle, folder / "768x512", options.memory_pictures)
    options.out.mkdir(exist_ok=True)
    path = options.out / f"cpu-{options.backbone.split('.')[0]}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(result))
    print(f"\nwrote {path}", file=sys.stderr)


def from_views(model: GLIANet, bundle: Path, rounds: int) -> dict[str, Any]:
    """Images a second of each engine, and its ratio to PyTorch eager FP32 in the same round."""
    contenders: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {
        "PyTorch eager FP32": lambda inputs: eager(model, inputs, autocast=False),
        "PyTorch eager bf16 autocast": lambda inputs: eager(model, inputs, autocast=True),
    }
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
            inputs = random_views(batch)
            for name, run in contenders.items():
                rate = throughput(run, inputs, threads=1)
                rates.setdefault(f"{name}, batch {batch}", []).append(rate)
            for name, scorer in scorers.items():
                threads = scorer.backend.parallel if batch > 1 else 1
                rate = throughput(scorer.backend.run, inputs, threads=threads)
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


def eager(model: GLIANet, inputs: dict[str, np.ndarray], *, autocast: bool) -> torch.Tensor:
    """One pass of the PyTorch model on the CPU."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(torch.from_numpy(inputs[GLOBAL_VIEW]), torch.from_numpy(inputs[FRAGMENTS]))


def throughput(run: Callable[[dict[str, np.ndarray]], Any], inputs: dict[str, np.ndarray], *, threads: int) -> float:
    """Images a second of `run` called from `threads` threads for `SECONDS`, after a warm-up."""
    import threading

    batch = len(inputs[GLOBAL_VIEW])
    for _ in range(2):
        run(inputs)
    done = [0] * threads
    began = time.perf_counter()

    def work(i: int) -> None:
        while time.perf_counter() - began < SECONDS:
            run(inputs)
            done[i] += batch

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - began)


def end_to_end(bundle: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Pictures a second through `Scorer.score_files`, beside its two halves alone on the same cores."""
    from concurrent.futures import ThreadPoolExecutor

    paths = sorted(str(path) for path in folder.iterdir())
    result: dict[str, list[float]] = {"engine": [], "decode": [], "end_to_end": []}
    with Scorer.open(bundle) as scorer:
        contract = scorer.contract
        inputs = random_views(scorer.batch_size)
        for round_ in range(max(1, rounds // 2)):
            result["engine"].append(throughput(scorer.backend.run, inputs, threads=scorer.backend.parallel))
            began = time.perf_counter()
            with ThreadPoolExecutor(cpu_count()) as pool:
                for _ in ordered_map(pool, lambda p: make_views(read_image(p), contract), paths, ahead=2 * cpu_count()):
                    pass
            result["decode"].append(len(paths) / (time.perf_counter() - began))
            began = time.perf_counter()
            statuses = {row.status for row in scorer.score_files(paths)}
            result["end_to_end"].append(len(paths) / (time.perf_counter() - began))
            if statuses != {"ok"}:
                raise RuntimeError(f"some pictures failed: {statuses}")
            print(f"end to end {folder.name}: round {round_ + 1}", file=sys.stderr)
    # The work of both halves on the same cores, one after the other, is what overlap cannot beat.
    shares = [total * (1 / engine + 1 / decode) for engine, decode, total in zip(*result.values(), strict=True)]
    return {
        "pictures": len(paths),
        **{f"{name}_per_s": statistics.median(values) for name, values in result.items()},
        "share_of_ceiling": statistics.median(shares),
        "rounds": result,
    }


def peak_memory(bundle: Path, folder: Path, counts: tuple[int, int]) -> dict[str, float]:
    """Peak resident memory of `glia-rt score` over different numbers of pictures, MB."""
    paths = itertools.cycle(sorted(folder.iterdir()))
    result = {}
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            pictures = Path(name) / "pictures"
            pictures.mkdir()
            for i in range(count):
                (pictures / f"{i:06}.jpg").symlink_to(next(paths).resolve())
            score = [sys.executable, "-m", "glia_rt", "score", str(bundle), str(pictures), "-o", f"{name}/scores.csv"]
            # Through a small process: a child's peak starts at that of the process that started it.
            measure = [sys.executable, "-c", PEAK_OF_CHILD, *score]
            done = subprocess.run(measure, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            result[str(count)] = int(done.stdout) / 1024
    return result


def random_views(batch: int) -> dict[str, np.ndarray]:
    """Views of noise: the work does not depend on what they show."""
    rng = np.random.default_rng(batch)
    shape = (batch, 224, 224, 3)
    return {name: rng.integers(0, 256, shape, dtype=np.uint8) for name in (GLOBAL_VIEW, FRAGMENTS)}


def make_jpegs(folder: Path, width: int, height: int, count: int) -> Path:
    """Photographs of that size: the selftest's, turned and enlarged, with grain, so that they compress like photos."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    grain = rng.normal(0, 4, (height, width, 1)).astype(np.float32)
    photographs = [Image.open(path).convert("RGB") for path in sorted(SELFTEST.glob("*.png"))]
    for i, photograph in zip(range(min(count, 24)), itertools.cycle(photographs)):
        turned = photograph.rotate(90 * (i // len(photographs)), expand=True)
        pixels = np.asarray(turned.resize((width, height), Image.Resampling.BICUBIC), np.float32) + grain
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04}.jpg", quality=90)
    for i in range(24, count):
        shutil.copyfile(folder / f"{i % 24:04}.jpg", folder / f"{i:04}.jpg")
    return folder


def hardware() -> str:
    """The processor, its cores and its matrix instructions."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    known = ("amx_tile", "amx_bf16", "avx512_bf16", "avx512_vnni", "avx512f")
    flags = [flag for flag in known if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.processor())}, {cpu_count()} cores, {' '.join(flags)}"


def versions() -> dict[str, str]:
    """Of everything that is timed."""
    packages = ("glia-rt", "torch", "timm", "onnxruntime", "openvino", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def markdown(result: dict[str, Any]) -> str:
    """The README's tables."""

    def lines() -> Iterator[str]:
        yield f"{result['hardware']}; " + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        yield ""
        yield "| from views | images/s, batch 1 | images/s, batch 8 | batch 8 against eager FP32 |"
        yield "|---|---|---|---|"
        for name in dict.fromkeys(key.split(",")[0] for key in result["views"]):
            one, eight = (result["views"][f"{name}, batch {batch}"] for batch in BATCHES)
            ratio = eight["ratio_to_eager_fp32"]
            yield f"| {name} | {one['images_per_s']:.1f} | {eight['images_per_s']:.1f} | {ratio:.2f} |"
        yield ""
        yield "| `Scorer.score_files` | pictures/s | engine alone | decoding and views alone | share of both in turn |"
        yield "|---|---|---|---|---|"
        for size, row in result["end_to_end"].items():
            rates = " | ".join(f"{row[f'{k}_per_s']:.1f}" for k in ("end_to_end", "engine", "decode"))
            yield f"| {row['pictures']} JPEGs of {size} | {rates} | {row['share_of_ceiling']:.1%} |"
        yield ""
        memory = result["peak_memory_mb"].items()
        yield "Peak memory: " + ", ".join(f"{value:.0f} MB over {count} pictures" for count, value in memory)

    return "\n".join(lines())


if __name__ == "__main__":
    main()
