"""Benchmark of whole pictures on a CPU: decoding, scoring from files, tar and Parquet, memory, start, and pyiqa.

    pip install -e ".[all]" opencv-python-headless PyTurboJPEG
    python benchmarks/pictures.py            # ViT-B with random weights; about an hour on 2 cores
    python benchmarks/pictures.py --quick    # a twentieth of the pictures

All contenders are timed in one process, in turn, and ratios are taken of neighbouring timings. So a machine that slows
down for a while slows all contenders. pyiqa is timed if it is installed. It is not for commercial use, and nothing here
needs it. The pictures are copies of a few photographs. They are read once more before each timing, so that they come
from the system's cache and disks are not measured.

The script writes results/pictures.json and prints the tables of docs/benchmarks.md. With --only, it keeps the other
parts if they were measured on the same machine with the same versions.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from common import PACKAGES, hardware, make_jpegs, random_bundle, random_inputs, throughput
from PIL import Image
from pyarrow import parquet

from glia_rt import Scorer
from glia_rt.backends.base import CPU_BATCH_SIZE
from glia_rt.bundle import Bundle
from glia_rt.contract import ModelInput, Resize
from glia_rt.listing.frozen import ENDING, freeze
from glia_rt.listing.sources import Sources
from glia_rt.machine import cpu_count
from glia_rt.pipeline import ordered_map
from glia_rt.pixels.decode import read_image
from glia_rt.pixels.views import make_inputs
from glia_rt.samples import stack
from glia_rt.versions import installed_versions
from glia_train.models.glianet import DEFAULT_BACKBONE, ModelConfig
from glia_train.models.table import untrained

#: Runs over each set in each form. The engine alone and decoding alone are timed around each run.
RUNS = 4
#: Width, height, number of pictures, and number of parts that they are split into. Each run scores one of the four
#: parts, or the only part again. A run has 200 pictures or more: the filling and emptying of the pipeline would be a
#: large share of a shorter run.
SETS = {"768x512": (768, 512, 2000, 4), "1024x768": (1024, 768, 2000, 4), "4000x3000": (4000, 3000, 200, 1)}
#: The backbone for measuring memory and faults. The engine does not matter there, and the smallest one is the quickest.
SMALL_BACKBONE = "vit_tiny_patch16_224"
MEMORY = (200, 2_000, 20_000)
STARTS = 5
JPEGS: dict[str, dict[str, Any]] = {
    "baseline 4:2:0": {"subsampling": 2},
    "baseline 4:4:4": {"subsampling": 0},
    "progressive 4:2:0": {"subsampling": 2, "progressive": True},
    "CMYK": {"mode": "CMYK"},
    "turned by EXIF": {"subsampling": 2, "orientation": 6},
}
PEAK_OF_CHILD = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
COLD_START = """
import json, sys, time
stages, began = {"start Python": time.time() - float(sys.argv[3])}, time.perf_counter()
def stage(name):
    global began
    stages[name], began = time.perf_counter() - began, time.perf_counter()
from glia_rt import Scorer
from glia_rt.backends.openvino import OpenVinoBackend
import openvino
stage("import")
compile_graph, compiling = OpenVinoBackend._compile, []
def timed(*args):
    before = time.perf_counter()
    result = compile_graph(*args)
    compiling.append(time.perf_counter() - before)
    return result
OpenVinoBackend._compile = timed
with Scorer.open(sys.argv[1], "openvino") as scorer:
    stage("open")
    scorer.score(sys.argv[2])
    stage("score")
stages["open"] -= compiling[0]
stages["score"] -= compiling[1]
stages["load compiled graphs"] = sum(compiling)
print(json.dumps(stages))
"""


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(cpu_count())
    path = options.out / "pictures.json"
    found = installed_versions(*PACKAGES, "simplejpeg", "numba", "opencv-python-headless", "PyTurboJPEG", "pyiqa")
    made = {
        "hardware": hardware(),
        "versions": found,
        "backbone": options.backbone,
        "batch_size": CPU_BATCH_SIZE,
        "quick": options.quick,
    }
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    same = all(before.get(key) == value for key, value in made.items())
    result: dict[str, Any] = before if same else made
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), options.backbone, 20 if options.quick else 1)
        for part in options.only:
            print(f"{part} ...", file=sys.stderr)
            result[part] = PARTS[part](bench)
            options.out.mkdir(exist_ok=True)
            path.write_text(json.dumps(result, indent=2) + "\n")
    print(markdown(result))
    print(f"\nwrote {path}", file=sys.stderr)


class Bench:
    """Makes bundles and pictures when they are first asked for."""

    def __init__(self, folder: Path, backbone: str, divisor: int) -> None:
        self.folder = folder
        self.divisor = divisor
        self._backbone = backbone
        self._bundles: dict[str, Path] = {}

    def bundle(self, backbone: str | None = None) -> Path:
        backbone = backbone or self._backbone
        if backbone not in self._bundles:
            self._bundles[backbone] = random_bundle(backbone, self.folder)[1]
        return self._bundles[backbone]

    def pictures(self, size: str) -> Path:
        width, height, count, _ = SETS[size]
        folder = self.folder / size
        return folder if folder.exists() else make_jpegs(folder, width, height, max(count // self.divisor, 8))


def decoders(bench: Bench) -> dict[str, Any]:
    """Return the milliseconds of each decoder per kind of JPEG in one thread, and whether its pixels are Pillow's."""
    contenders: dict[str, Callable[[bytes], Any]] = {
        "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        "simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False),
    }
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        print(f"left out: OpenCV ({error})", file=sys.stderr)
    else:
        cv2.setNumThreads(1)
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        contenders["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    try:
        turbo: Any = importlib.import_module("turbojpeg").TurboJPEG()
    except (ImportError, RuntimeError, OSError) as error:
        print(f"left out: PyTurboJPEG ({error})", file=sys.stderr)
    else:
        contenders["PyTurboJPEG"] = lambda data: turbo.decode(data, pixel_format=0)
    photograph = Image.open(next(bench.pictures("4000x3000").iterdir()))
    result: dict[str, Any] = {}
    for kind, options in JPEGS.items():
        data = encoded(photograph, **options)
        expected = contenders["Pillow"](data)
        result[kind] = {}
        for name, decode in contenders.items():
            try:
                same = np.array_equal(decode(data), expected)
            except (ValueError, OSError) as error:
                result[kind][name] = {"cannot": str(error)[:80]}
                continue
            ms = 1e3 * statistics.median(timed(decode, data) for _ in range(7))
            result[kind][name] = {"ms": ms, "pixels_of_pillow": same}
    return result


def views_of_large(bench: Bench) -> dict[str, Any]:
    """Return the time of decoding 12 MP and making both views, on one core and on all.

    Pillow's open, convert and resize alone are timed beside it.
    """
    contract = untrained(ModelConfig(backbone="vit_tiny_patch16_224"))[1]
    paths = [str(path) for path in sorted(bench.pictures("4000x3000").iterdir())][:24]

    def by_pillow(path: str) -> Any:
        return np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))

    def ours(path: str) -> Any:
        return next(iter(make_inputs(read_image(path), contract).values()))

    if not all(np.array_equal(by_pillow(path), ours(path)) for path in paths):
        raise RuntimeError("the pixels are not Pillow's")
    result = {}
    for workers in (1, cpu_count()):
        rounds = []
        with ThreadPoolExecutor(workers) as pool:
            for turn in range(8):
                order = (by_pillow, ours) if turn % 2 else (ours, by_pillow)
                times = {work: timed(lambda work: list(pool.map(work, paths)), work) / len(paths) for work in order}
                rounds.append((times[by_pillow], times[ours]))
        result[f"{workers} threads"] = {
            "pillow_ms": 1e3 * statistics.median(pair[0] for pair in rounds),
            "ours_ms": 1e3 * statistics.median(pair[1] for pair in rounds),
            "ratio": statistics.median(pair[1] / pair[0] for pair in rounds),
        }
    return result


def end_to_end(bench: Bench) -> dict[str, Any]:
    """Return the pictures per second of `Scorer.score_files` from files, tar and Parquet.

    Its two halves, the engine and decoding, are timed alone beside it.
    """
    result: dict[str, Any] = {}
    with Scorer.open(bench.bundle(), "openvino") as scorer:
        inputs = random_inputs(scorer.contract, scorer.batch_size)
        for size in SETS:
            folder = bench.pictures(size)
            paths = sorted(str(path) for path in folder.iterdir())
            mean = statistics.mean(Path(path).stat().st_size for path in paths)
            result[size] = {"pictures": len(paths), "mean_bytes": mean, "precision": scorer.backend.precision}
            count = SETS[size][3]
            some = paths[: -(-len(paths) // RUNS)]
            for kind, parts in forms(folder, paths, count).items():
                seconds = 0.0
                rows = []
                # Both halves are timed before, between and after the runs that they are compared with.
                keep_cached(some)
                halves = [(engine_rate(scorer, inputs), decode_rate(scorer, some))]
                for part in parts * (RUNS // count):
                    keep_cached(part.paths)
                    began = time.perf_counter()
                    rows += list(scorer.score_files(part))
                    seconds += time.perf_counter() - began
                    keep_cached(some)
                    halves.append((engine_rate(scorer, inputs), decode_rate(scorer, some)))
                if len(rows) != len(paths) * (RUNS // count) or any(row.status != "ok" for row in rows):
                    raise RuntimeError("some pictures failed")
                rate = len(rows) / seconds
                engine, decode = (statistics.harmonic_mean(values) for values in zip(*halves, strict=True))
                result[size][kind] = {
                    "per_s": rate,
                    "engine_per_s": engine,
                    "decode_per_s": decode,
                    "engine_and_decode_around_each_run": halves,
                    # The ceiling is the work of both halves in turn on the same cores. Overlap cannot beat it.
                    "share_of_ceiling": rate * (1 / engine + 1 / decode),
                }
                print(f"{size} {kind}: {rate:.1f}/s", file=sys.stderr)
    return result


class NoEngine:
    """An engine that costs nothing, to see what one process can feed."""

    name, precision, library, device, device_type = "none", "fp32", "none", "none", "none"
    batch_size, parallel = 32, 2

    def run(self, inputs: Mapping[str, Any]) -> np.ndarray:
        return np.zeros(len(next(iter(inputs.values()))), np.float32)

    def warm_up(self) -> None: ...

    def close(self) -> None: ...


def feeding(bench: Bench) -> dict[str, Any]:
    """Return the pictures per second that one process hands to an engine that costs nothing, and what they cost.

    Decoding lets other threads run, so it gains by cores. The interpreter runs one thread at a time. What it takes of a
    picture is seen with pictures of 16x16 pixels and a model that takes those, where decoding is next to nothing.

    The milliseconds a picture, on one core, are those of decoding, of the views, and of a batch's way to a GPU: it is
    stacked, and copied to pinned memory. "in place" is the least: each picture is written to that memory at once.
    """
    bundle = Bundle.open("starter")
    tiny = sorted(str(path) for path in make_jpegs(bench.folder / "tiny", 16, 16, 20_000 // bench.divisor).iterdir())
    usual = sorted(str(path) for path in bench.pictures("768x512").iterdir())
    rates = {}
    with Scorer(bundle, NoEngine(), input="views", batch_size=NoEngine.batch_size, max_pixels=1 << 20) as scorer:
        for name, paths in (("768x512", usual), ("16x16", tiny)):
            keep_cached(paths)
            rates[name] = len(paths) / timed(lambda paths: list(scorer.score_files(paths)), paths)
            scorer.contract = dataclasses.replace(scorer.contract, inputs=(ModelInput("picture", Resize(16)),))
    few = usual[: NoEngine.batch_size]
    pixels = [read_image(path) for path in few]
    views = [make_inputs(one, bundle.contract) for one in pixels]
    batch, pinned = stack(views), stack(views)

    def copy() -> None:
        for name, array in batch.items():
            pinned[name][:] = array

    def in_place() -> None:
        for i, inputs in enumerate(views):
            for name, array in inputs.items():
                pinned[name][i] = array

    works: dict[str, Callable[[], Any]] = {
        "decode": lambda: [read_image(path) for path in few],
        "views": lambda: [make_inputs(one, bundle.contract) for one in pixels],
        "stack": lambda: stack(views),
        "copy": copy,
        "in place": in_place,
    }
    ms = {name: 1e3 * statistics.median(timed(work) for _ in range(15)) / len(few) for name, work in works.items()}
    return {"per_s": rates, "ms_per_picture": ms}


def keep_cached(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Read files, and all files in folders, so that they stay in the system's cache.

    Some machines drop from the cache what was not read for a minute or two.
    """
    for path in map(Path, paths):
        for file in path.iterdir() if path.is_dir() else [path]:
            with file.open("rb") as opened:
                while opened.read(1 << 24):
                    pass


def engine_rate(scorer: Scorer, inputs: dict[str, np.ndarray]) -> float:
    """Return the pictures per second of the engine alone."""
    return throughput(scorer.backend.run, inputs, scorer.backend.parallel)


def decode_rate(scorer: Scorer, paths: list[str]) -> float:
    """Return the pictures per second of reading, decoding and making both views on all cores, without an engine."""
    began = time.perf_counter()
    with ThreadPoolExecutor(cpu_count()) as pool:
        ahead = scorer.batch_size + cpu_count()  # as in `score_stream`
        work = ordered_map(pool, lambda path: make_inputs(read_image(path), scorer.contract), paths, ahead=ahead)
        count = sum(1 for _ in work)
    return count / (time.perf_counter() - began)


def forms(folder: Path, paths: list[str], count: int) -> dict[str, list[Sources]]:
    """Return a folder of pictures in three forms, each in `count` parts.

    The forms are files, tar archives, and Parquet with row groups of 100.
    """
    tars, tables = ([folder.with_suffix(f".{i}.{kind}") for i in range(count)] for kind in ("tar", "parquet"))
    schema = pa.schema([("bytes", pa.binary())])
    for i, (tar, table) in enumerate(zip(tars, tables, strict=True)):
        if tar.exists() and table.exists():
            continue
        part = paths[i::count]
        with tarfile.open(tar, "w") as archive:
            for path in part:
                archive.add(path, Path(path).name)
        with parquet.ParquetWriter(table, schema, compression="none", use_dictionary=False) as writer:
            for start in range(0, len(part), 100):
                column = pa.array([Path(path).read_bytes() for path in part[start : start + 100]], pa.binary())
                writer.write_table(pa.table({"bytes": column}))
    listing = folder.with_suffix(ENDING)
    freeze(listing, Sources([folder]).pieces(), str(folder))
    return {
        "files": [Sources(list_file=listing, shard=(i + 1, count)) for i in range(count)],
        "tar": [Sources([tar]) for tar in tars],
        "Parquet": [Sources([table], column="bytes") for table in tables],
    }


def peak_memory(bench: Bench) -> dict[str, float]:
    """Return the peak resident memory of `glia-rt score`, MB, on the smallest ViT over more and more pictures."""
    pictures = sorted(bench.pictures("768x512").iterdir())
    bundle = bench.bundle(SMALL_BACKBONE)
    result = {}
    for count in MEMORY:
        count = max(count // bench.divisor, 8)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "pictures"
            folder.mkdir()
            for i in range(count):
                (folder / f"{i:06}.jpg").symlink_to(pictures[i % len(pictures)].resolve())
            result[f"{count} files"] = peak_of_score(bundle, [str(folder)])
    for kind, parts in forms(bench.pictures("768x512"), [str(path) for path in pictures], RUNS).items():
        if kind != "files":
            args = [*(str(path) for part in parts for path in part.paths), "--column", parts[0].column]
            result[f"{len(pictures)} in {kind}"] = peak_of_score(bundle, args)
    return result


def peak_of_score(bundle: Path, args: list[str]) -> float:
    """Return the peak resident memory of `glia-rt score`, MB."""
    with tempfile.TemporaryDirectory() as name:
        score = [sys.executable, "-m", "glia_rt", "score", str(bundle), *args, "-o", f"{name}/scores.csv"]
        # A small process starts it, because a child's peak starts at that of the process that started it.
        done = subprocess.run([sys.executable, "-c", PEAK_OF_CHILD, *score], check=True, stdout=subprocess.PIPE)
    return int(done.stdout) / 1024


def cold_start(bench: Bench) -> dict[str, Any]:
    """Return the seconds from the start of the process to the score of one picture, in stages and as a whole.

    OpenVINO's cache is warm. One further run, as a whole, has an empty cache.
    """
    picture = next(bench.pictures("768x512").iterdir())
    command = [sys.executable, "-m", "glia_rt", "score", str(bench.bundle()), str(picture)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # fills the cache
    stages = []
    whole = []
    for _ in range(STARTS):
        staged = [sys.executable, "-c", COLD_START, str(bench.bundle()), str(picture), str(time.time())]
        stages.append(json.loads(subprocess.run(staged, check=True, stdout=subprocess.PIPE).stdout))
        whole.append(timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)))
    with tempfile.TemporaryDirectory() as empty:
        first = timed(
            lambda: subprocess.run(
                command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"XDG_CACHE_HOME": empty}
            )
        )
    return {
        "stages": {name: statistics.median(run[name] for run in stages) for name in stages[0]},
        "glia-rt score": statistics.median(whole),
        "glia-rt score, nothing compiled yet": first,
    }


def beside_pyiqa(bench: Bench) -> dict[str, Any]:
    """Return the pictures per second of glia-rt and of pyiqa's topiq_nr and musiq, random weights, same pictures."""
    try:
        topiq = importlib.import_module("pyiqa.archs.topiq_arch")
        musiq = importlib.import_module("pyiqa.archs.musiq_arch")
    except ImportError as error:
        print(f"left out: pyiqa ({error})", file=sys.stderr)
        return {}
    models = {
        "topiq_nr": topiq.CFANet(
            semantic_model_name="resnet50", use_ref=False, backbone_pretrain=False, pretrained=False
        ),
        "musiq": musiq.MUSIQ(pretrained=False),
    }
    result: dict[str, Any] = {}
    with Scorer.open(bench.bundle(), "openvino") as scorer:
        for size in ("768x512", "1024x768"):
            paths = sorted(str(path) for path in bench.pictures(size).iterdir())
            rates: dict[str, list[float]] = {name: [] for name in ("glia-rt", *models)}
            for model in models.values():
                score_by_pyiqa(model.eval(), paths[:1])
            for _ in range(3):
                few = paths[: max(160 // bench.divisor, 8)]
                rates["glia-rt"].append(len(few) / timed(lambda few: list(scorer.score_files(few)), few))
                for name, model in models.items():
                    few = paths[: max(16 // bench.divisor, 2)]
                    rates[name].append(len(few) / timed(score_by_pyiqa, model, few))
            result[size] = {name: statistics.median(values) for name, values in rates.items()}
            for name in models:
                ratios = [ours / theirs for ours, theirs in zip(rates["glia-rt"], rates[name], strict=True)]
                result[size][f"ratio to {name}"] = statistics.median(ratios)
    return result


def score_by_pyiqa(model: torch.nn.Module, paths: list[str]) -> None:
    """Score one picture after the other in float32, as pyiqa's command line does."""
    with torch.inference_mode():
        for path in paths:
            pixels = np.asarray(Image.open(path).convert("RGB"))
            model(torch.from_numpy(pixels.copy()).permute(2, 0, 1).unsqueeze(0).float() / 255)


def timed(work: Callable[..., Any], *args: Any) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    work(*args)
    return time.perf_counter() - began


def encoded(photograph: Image.Image, *, mode: str = "RGB", orientation: int | None = None, **options: Any) -> bytes:
    """Return a photograph as a JPEG."""
    file = io.BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    photograph.convert(mode).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def markdown(result: dict[str, Any]) -> str:
    """Return the tables of docs/benchmarks.md and docs/scale.md."""

    def lines() -> Iterator[str]:
        yield f"{result['hardware']}; " + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        if "end_to_end" in result:
            yield "\n| `score_files` | pictures/s | engine alone | decoding and views alone | share of both in turn |"
            yield "|---|---|---|---|---|"
            for size, kinds in result["end_to_end"].items():
                for kind in ("files", "tar", "Parquet"):
                    row = kinds[kind]
                    rates = " | ".join(f"{row[name]:.1f}" for name in ("per_s", "engine_per_s", "decode_per_s"))
                    what = f"{kinds['pictures']} JPEGs of {size}, {kinds['mean_bytes'] / 1e6:.2f} MB each, {kind}"
                    yield f"| {what} | {rates} | {row['share_of_ceiling']:.1%} |"
        if "decoders" in result:
            names = list(next(iter(result["decoders"].values())))
            yield "\n| JPEG of 12 MP, ms on one core | " + " | ".join(names) + " |"
            yield "|---|" + "---|" * len(names)
            for kind, row in result["decoders"].items():
                cells = [
                    "cannot" if "cannot" in row[name]
                    else f"{row[name]['ms']:.0f}" + ("" if row[name]["pixels_of_pillow"] else ", other pixels")
                    for name in names
                ]  # fmt: skip
                yield f"| {kind} | " + " | ".join(cells) + " |"
        if "views_of_large" in result:
            yield "\n| 12 MP: decode and views | ms by Pillow | ms here | ratio |"
            yield "|---|---|---|---|"
            for name, row in result["views_of_large"].items():
                yield f"| {name} | {row['pillow_ms']:.0f} | {row['ours_ms']:.0f} | {row['ratio']:.2f} |"
        if "feeding" in result:
            feeding = result["feeding"]
            rates = ", ".join(f"{rate:.0f} of {size}" for size, rate in feeding["per_s"].items())
            yield f"\nWithout an engine, pictures/s of one process: {rates}"
            yield "A picture of 768x512 on one core, ms: " + ", ".join(
                f"{name} {ms:.3f}" for name, ms in feeding["ms_per_picture"].items()
            )
        if result.get("beside_pyiqa"):
            yield "\n| pictures/s | glia-rt | topiq_nr | musiq | ratio to topiq_nr | to musiq |"
            yield "|---|---|---|---|---|---|"
            for size, row in result["beside_pyiqa"].items():
                yield (
                    f"| {size} | {row['glia-rt']:.1f} | {row['topiq_nr']:.2f} | {row['musiq']:.2f} | "
                    f"{row['ratio to topiq_nr']:.1f} | {row['ratio to musiq']:.1f} |"
                )
        if "peak_memory" in result:
            peaks = result["peak_memory"].items()
            yield "\nPeak memory: " + ", ".join(f"{peak:.0f} MB over {what}" for what, peak in peaks)
        if "cold_start" in result:
            cold = result["cold_start"]
            stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in cold["stages"].items())
            rest = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in cold.items() if name != "stages")
            yield f"\nCold start: {stages}; of one picture in all: {rest}"

    return "\n".join(lines())


PARTS: dict[str, Callable[[Bench], Any]] = {
    "decoders": decoders,
    "views_of_large": views_of_large,
    "end_to_end": end_to_end,
    "feeding": feeding,
    "beside_pyiqa": beside_pyiqa,
    "cold_start": cold_start,
    "peak_memory": peak_memory,
}

if __name__ == "__main__":
    main()
