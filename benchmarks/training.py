"""Training, step by step: where the time of a step goes, how many crops a second it takes, and how much memory.

    python benchmarks/training.py                                            # ViT-S; about 10 minutes on 2 cores
    python benchmarks/training.py --backbone vit_base_patch16_224 --batch-size 128 --micro-batch-size 16

Three ways of training are measured: a frozen backbone with the cache of what it makes of the whole pictures, a frozen
backbone without that cache, and a tuned backbone. Each has a process of its own, so that its peak memory is its own.
They take turns, round after round. Ratios are taken round by round, and the median is reported.

The pictures are JPEGs of 512x512. Random weights do not change the amount of work. The script writes
results/training-DEVICE-BACKBONE-BATCH.json and prints the tables of docs/training.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from common import PACKAGES, hardware, make_jpegs
from torch.profiler import ProfilerActivity, profile

from glia_rt.machine import cpu_count
from glia_rt.versions import installed_versions
from glia_train.cache import MEMORY_SHARE, FrozenCache, free_memory
from glia_train.datasets.base import LabelledPicture
from glia_train.learner import Learner
from glia_train.loader import InputLoader, KeptPictures, open_cache
from glia_train.loss import LOSSES
from glia_train.machine import Machine, keep_freed_memory
from glia_train.models.base import Model
from glia_train.models.glianet import ModelConfig
from glia_train.models.table import untrained
from glia_train.options import TrainOptions
from glia_train.schedule import Schedule, progress_bar

SIZE = 512
CACHED, BASE, TUNED = WAYS = ("frozen, cached", "frozen, not cached", "tuned")


@dataclass(frozen=True)
class Task:
    """One way of training, to be measured in a process of its own.

    Attributes:
        way: One of `WAYS`.
        photos: A folder of JPEGs.
        backbone: Name of the ViT.
        options: Batch size, micro-batch size and precision.
        steps: Steps that are timed, after one that is not.
    """

    way: str
    photos: Path
    backbone: str
    options: TrainOptions
    steps: int


def measure(task: Task) -> dict[str, Any]:
    """Return the crops per second of one way of training, its peak memory, and the milliseconds of each part."""
    options, machine = task.options, Machine.here(task.options.precision)
    torch.set_num_threads(cpu_count())
    if machine.device.type == "cpu":
        keep_freed_memory()  # as a run does
    model, contract = untrained(ModelConfig(backbone=task.backbone, tune_backbone=task.way == TUNED))
    model.to(machine.device)
    paths = sorted(task.photos.glob("*.jpg"))
    pictures = [LabelledPicture(str(path), path, float(i)) for i, path in enumerate(paths)]
    kept = KeptPictures(int(MEMORY_SHARE * free_memory()))  # as `glia-rt train` does
    plain = loader = InputLoader(pictures, contract, seed=0, workers=cpu_count(), kept=kept)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        if task.way == CACHED:
            cache, result["cache"] = filled_cache(plain, model, machine, Path(folder))
            loader = dataclasses.replace(plain, cache=cache)
        learner = Learner(model, loader, options, machine)
        indices = [i % len(pictures) for i in range((1 + task.steps) * options.batch_size)]
        schedule = Schedule(options, 1 + task.steps, progress_bar(None))
        ends, waits = [], []
        for _ in learner.train_epoch(indices, 1, schedule):
            synchronise(machine)
            ends.append(time.perf_counter())
            waits.append(learner.waited)
        elapsed = ends[-1] - ends[0]
        result["crops_per_s"] = task.steps * options.batch_size / elapsed
        result["waiting"] = (waits[-1] - waits[0]) / elapsed
        result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        if machine.device.type == "cuda":
            result["peak_gpu_memory_gb"] = torch.cuda.max_memory_reserved() / 1e9
        result["ms_per_crop"] = parts(model, loader, options, machine)
        result["share_of_operators"] = operators(model, loader, options, machine)
    return result


def filled_cache(
    loader: InputLoader, model: Model, machine: Machine, folder: Path
) -> tuple[FrozenCache, dict[str, float]]:
    """Return a full cache of what the frozen stream makes of all pictures, and how long it took to fill."""
    model.eval()
    cache = open_cache(loader, model, machine, folder, flipped=len(loader.pictures))
    arrays, start = cache.missing, time.perf_counter()
    cache.fill(model, machine, functools.partial(loader.flipped, name=cache.input), loader.workers, lambda made: None)
    return cache, {
        "arrays_per_s": arrays / (time.perf_counter() - start),
        "mb_per_array": cache.nbytes / arrays / 1e6,
    }


def parts(model: Model, loader: InputLoader, options: TrainOptions, machine: Machine) -> dict[str, float]:
    """Return the milliseconds of each part of a step, per crop; the inputs are made in one thread."""
    size = options.micro_batch_size or options.batch_size
    [(inputs, labels)] = list(loader.batches(range(min(size, len(loader.pictures))), size, epoch=1))
    inputs, labels, count = [one.to(machine.device) for one in inputs], labels.to(machine.device), len(labels)
    decoding = dataclasses.replace(loader, kept=KeptPictures())
    found: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any], crops: int = count) -> Any:
        synchronise(machine)
        start = time.perf_counter()
        made = work()
        synchronise(machine)
        found.setdefault(name, []).append((time.perf_counter() - start) * 1000 / crops)
        return made

    def frozen_stream() -> Any:
        with torch.inference_mode(), machine.autocast():
            return model.precompute(inputs[0])

    optimiser = torch.optim.AdamW(model.trainable_parameters(), lr=1e-12)
    model.train()
    for _ in range(1 + 3):
        timed("inputs, in one thread", lambda: [loader.inputs(i, epoch=1) for i in range(8)], 8)
        timed("the same with decoding", lambda: [decoding.inputs(i, epoch=1) for i in range(8)], 8)
        if not inputs[0].is_floating_point() and not model.config.tune_backbone:
            timed("frozen stream", frozen_stream)
        raw = timed("forward", lambda: machine.raw_score(model, inputs))
        loss = timed("loss", functools.partial(LOSSES[options.loss], raw, labels))
        timed("backward", loss.backward)
        timed("AdamW", optimiser.step, options.batch_size)
        optimiser.zero_grad()
    made = {name: statistics.median(values[1:]) for name, values in found.items()}
    made["forward"] -= made.get("frozen stream", 0.0)
    return made


def operators(model: Model, loader: InputLoader, options: TrainOptions, machine: Machine) -> dict[str, float]:
    """Return the share of each of PyTorch's operators in the time of forward and backward, the largest ones."""
    size = options.micro_batch_size or options.batch_size
    [(inputs, labels)] = list(loader.batches(range(min(size, len(loader.pictures))), size, epoch=1))
    gpu = machine.device.type == "cuda"
    with profile(
        activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU] if gpu else [ProfilerActivity.CPU]
    ) as profiler:
        raw = machine.raw_score(model, inputs)
        LOSSES[options.loss](raw, labels.to(machine.device)).backward()
        synchronise(machine)
    times = {
        event.key: event.self_device_time_total if gpu else event.self_cpu_time_total
        for event in profiler.key_averages()
        if event.key.startswith("aten::")
    }
    total = sum(times.values())
    return {name: t / total for name, t in sorted(times.items(), key=lambda item: -item[1])[:12]}


def synchronise(machine: Machine) -> None:
    """Wait for the GPU, if there is one."""
    if machine.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batch-size", type=int)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    machine = Machine.here(options.precision)
    training = TrainOptions(
        batch_size=options.batch_size, micro_batch_size=options.micro_batch_size, precision=machine.precision
    )
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name:
        photos = make_jpegs(Path(name) / "photos", SIZE, SIZE, options.pictures)
        for turn in range(options.rounds):
            for way in WAYS:
                task = Task(way, photos, options.backbone, training, options.steps)
                with ProcessPoolExecutor(1, get_context("spawn")) as own:
                    found[way].append(own.submit(measure, task).result())
                print(f"round {turn + 1}, {way}: {found[way][-1]['crops_per_s']:.2f} crops/s", file=sys.stderr)
    result = {
        "hardware": machine.name if machine.device.type == "cuda" else hardware(),
        "versions": installed_versions(*PACKAGES),
        "command": "python " + " ".join(sys.argv),
        "backbone": options.backbone,
        "precision": machine.precision,
        "batch_size": training.batch_size,
        "micro_batch_size": training.micro_batch_size,
        "ways": {way: summary(rounds, found[BASE]) for way, rounds in found.items()},
    }
    options.out.mkdir(exist_ok=True)
    device = re.sub(r"[^a-z0-9]+", "-", machine.name.lower())
    batch = f"{options.batch_size}" + (f"x{options.micro_batch_size}" if options.micro_batch_size else "")
    path = options.out / f"training-{device}-{options.backbone.split('.')[0]}-{batch}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(result))
    print(f"\nwrote {path}", file=sys.stderr)


def summary(rounds: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of a way's rounds, and its rate against that of `base` in the same round."""
    ratios = [own["crops_per_s"] / other["crops_per_s"] for own, other in zip(rounds, base, strict=True)]
    return {**medians(rounds), "ratio": statistics.median(ratios), "ratios": ratios}


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of each figure."""
    return {
        name: medians([one[name] for one in rounds])
        if isinstance(value, dict)
        else statistics.median(one.get(name, 0.0) for one in rounds)
        for name, value in rounds[0].items()
    }


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of docs/training.md."""
    ways = result["ways"]
    names = {
        "crops_per_s": "crops/s",
        "ratio": f"against {BASE}",
        "waiting": "share of the time that a step waits for its inputs",
        "peak_memory_gb": "peak memory of the process, GB",
        "peak_gpu_memory_gb": "peak memory of the GPU, GB",
        "arrays_per_s": "filling the cache, arrays/s",
        "mb_per_array": "size of an array, MB",
    }
    figures = {way: {**all_of, **all_of.get("cache", {})} for way, all_of in ways.items()}
    parts = dict.fromkeys(name for way in ways.values() for name in way["ms_per_crop"])

    def row(name: str, values: Iterable[float | None]) -> str:
        return f"| {name} | {' | '.join('' if value is None else f'{value:.3g}' for value in values)} |"

    def lines() -> Iterator[str]:
        micro = "" if result["micro_batch_size"] is None else f", micro-batches of {result['micro_batch_size']}"
        yield f"{result['backbone']}, {result['precision']}, batch size {result['batch_size']}{micro}"
        yield result["hardware"] + "; " + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        yield ""
        yield f"| | {' | '.join(ways)} |"
        yield "|---" * (len(ways) + 1) + "|"
        for key, name in names.items():
            if any(key in figures[way] for way in ways):
                yield row(name, [figures[way].get(key) for way in ways])
        for part in parts:
            yield row(f"{part}, ms a crop", [way["ms_per_crop"].get(part) for way in ways.values()])
        yield ""
        yield "| share of forward and backward | " + " | ".join(ways) + " |"
        yield "|---" * (len(ways) + 1) + "|"
        for name in list(next(iter(ways.values()))["share_of_operators"])[:8]:
            shares = [f"{way['share_of_operators'].get(name, 0):.0%}" for way in ways.values()]
            yield f"| `{name}` | {' | '.join(shares)} |"

    return "\n".join(lines())


if __name__ == "__main__":
    main()
