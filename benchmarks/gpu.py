"""Benchmark of GLIANet on an NVIDIA GPU: PyTorch, ONNX Runtime and TensorRT, whichever of them are installed.

    python benchmarks/gpu.py --out benchmarks/results      # ViT-B with random weights
    python benchmarks/gpu.py --out gpu --quick             # fewer batch sizes, shorter loops
    python benchmarks/gpu.py --out gpu --checkpoint c.pt --bundle c.glia    # exported elsewhere

One contender has the GPU at a time. It is opened anew for each batch size, so that the memory measured is its own. Its
scores are compared with those of PyTorch FP32 on the same GPU. Then it is called in three closed loops:

- latency: one caller, from arrays on the host to scores on the host
- throughput from the host: as many callers as it works for at once, from arrays on the host to scores on the host
- throughput from the GPU, to show the engine alone: as many callers, from inputs that are on the GPU already

The loops take turns, round after round, and the median of the rounds is reported. Random weights do not change the
amount of work. The ceiling is PyTorch's fastest FP16 matrix product, which is measured again before each contender.

The script needs torch, timm, onnx and matplotlib. To export here, it also needs onnxscript and an ONNX Runtime. After
each batch size it writes OUT/gpu-GPU-BACKBONE.json, .md and .png, and at the end it prints the tables. They list what
could not run, with the reason. The exit status is 4 if scores were off, and 6 without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import gc
import itertools
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from flops import count_flops
from gpu_report import PACKAGES, PERCENTILES, WAYS, machine, markdown, write
from telling import telling_model
from torch import nn

from glia_export.export import export
from glia_export.half import half_copy
from glia_rt.backends.base import Backend, BackendOptions
from glia_rt.backends.choose import open_backend, unavailable
from glia_rt.backends.cuda.device import Gpu
from glia_rt.backends.cuda.engine import TARGETS
from glia_rt.bench import Timings, closed_loop
from glia_rt.bundle import GRAPHS, Bundle
from glia_rt.errors import BackendError, BundleError, GliaError, ParityError, UsageError
from glia_rt.files import sha256
from glia_rt.pixels.decode import read_image
from glia_rt.verify import SCORE_LIMITS, compare_scores
from glia_rt.versions import installed_versions
from glia_train.checkpoint import Checkpoint, make_checkpoint
from glia_train.models.base import Model
from glia_train.models.glianet import DEFAULT_BACKBONE, GLIANet

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
QUICK_BATCHES: Final = (1, 8, 64)
USUAL_BATCH: Final = 32  # the batch size that engines are tuned for
#: The capabilities that a tensorrt_rtx engine is built for, by the GPU's capability, where they have to be named. The
#: portable set of tensorrt_rtx lacks 7.5. Its list lacks 9.0, so 8.0 is tried there.
RTX_CAPABILITIES: Final = {"7.5": ("7.5",), "9.0": ("8.0",)}
SQUARES: Final = (4096, 8192)


@dataclass(frozen=True)
class Contender:
    """An engine or a PyTorch model that scores views.

    Attributes:
        name: Its name in the tables.
        open: Makes it ready for a batch size.
        prepare: Is called once before `open`, and returns facts for the report.
    """

    name: str
    open: Callable[[int], Backend]
    prepare: Callable[[], dict[str, Any]] = dict


@dataclass(frozen=True)
class Task:
    """The inputs and the settings that every contender is given.

    Attributes:
        views: The views of P pictures by input name, uint8 (P, 224, 224, 3).
        pictures: Names of the P pictures.
        reference: PyTorch FP32's scores of the pictures on this device, float32 (P,).
        span: Width of the score range.
        device: "cuda", or "cpu" for a rehearsal.
        batches: Batch sizes, rising from 1.
        seconds: Length of each loop, seconds.
        calls: Least number of calls in each loop.
        rounds: Number of times that each loop is run.
        products: M, K, N of the matrix products. The fastest of them is the ceiling.
    """

    views: Mapping[str, npt.NDArray[np.uint8]]
    pictures: Sequence[str]
    reference: npt.NDArray[np.float32]
    span: float
    device: torch.device
    batches: Sequence[int]
    seconds: float
    calls: int
    rounds: int
    products: Sequence[tuple[int, int, int]]


class Scores(nn.Module):
    """A model whose call returns scores on its scale."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model.score(*inputs)


class TorchBackend:
    """A PyTorch model with the interface of the runtime's backends."""

    parallel = 1

    def __init__(self, name: str, model: nn.Module, precision: str, device: torch.device, batch: int) -> None:
        self.name, self.precision, self.device, self.batch_size = name, precision, device.type, batch
        self._model = model
        self._host: dict[str, torch.Tensor] = {}

    def run(self, inputs: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            views = [self._on_device(key, view) for key, view in inputs.items()]
            scores: npt.NDArray[np.float32] = self._model(*views).cpu().numpy()
        return scores

    def close(self) -> None:
        del self._model

    def _on_device(self, key: str, view: npt.NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
        if isinstance(view, torch.Tensor):
            return view
        if key not in self._host:
            shape, pin = (self.batch_size, *view.shape[1:]), self.device == "cuda"
            self._host[key] = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
        pinned = self._host[key][: len(view)].copy_(torch.from_numpy(view))
        return pinned.to(self.device, non_blocking=True)


def pytorch(name: str, model: nn.Module, precision: str, device: torch.device, *, compiled: bool = False) -> Contender:
    """Return the contender of a model in its own dtypes, as it is or through torch.compile."""

    def open(batch: int) -> TorchBackend:
        module: Any = copy.deepcopy(model).to(device)
        if compiled:
            module = torch.compile(module, mode="max-autotune", fullgraph=True, dynamic=False)
        return TorchBackend(name, module, precision, device, batch)

    return Contender(name, open)


def runtime(name: str, bundle: Bundle, precision: str, batches: Sequence[int]) -> Contender:
    """Return the contender of one of the runtime's backends, which builds its engine first if it needs one."""

    def open(batch: int) -> Backend:
        return open_backend(name, bundle, BackendOptions(precision=precision, batch_size=batch))[0]

    def prepare() -> dict[str, Any]:
        if reason := unavailable(name):
            raise BackendError(reason)
        if name not in TARGETS:
            return {}
        from glia_engines.build import build

        profile = (1, min(USUAL_BATCH, max(batches)), max(batches))
        capabilities = RTX_CAPABILITIES.get(Gpu.open(0).capability, ()) if TARGETS[name].portable else ()
        built = build(bundle.path, name, batch=profile, precision=precision, capabilities=capabilities)
        return {"engine": dataclasses.asdict(built.record)}

    return Contender(name, open, prepare)


def compete(contenders: Sequence[Contender], task: Task, facts: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure one contender after the other.

    A contender that cannot run is reported with the reason.

    Args:
        contenders: The contenders in the order of the tables.
        task: The inputs and the settings.
        facts: Facts for the top of the report, `flops_per_image` among them.

    Yields:
        The report so far, as plain JSON types, after each batch size of each contender.
    """
    ceilings: list[dict[str, float]] = []
    rows: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        ceilings.append(dict(matrix_products(task)))
        rate, product = max((rate, product) for found in ceilings for product, rate in found.items())
        ceiling = {"flops_per_s": rate, "product": product, "before_each_contender": ceilings}
        for row in measure(contender, task):
            rows[contender.name] = row
            for at, way in itertools.product([at for each in rows.values() for at in each["batches"].values()], WAYS):
                at[way]["share_of_ceiling"] = at[way]["images_per_s"] * facts["flops_per_image"] / rate
            yield {**facts, "ceiling": ceiling, "contenders": rows}


def matrix_products(task: Task, at_once: int = 10) -> Iterator[tuple[str, float]]:
    """Yield the floating-point operations per second of PyTorch's matrix products: FP16 on a GPU, FP32 on a CPU."""
    dtype = torch.float16 if task.device.type == "cuda" else torch.float32
    for m, k, n in task.products:
        a, b = (torch.randn(shape, dtype=dtype, device=task.device) for shape in ((m, k), (k, n)))

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(at_once):
                product = a @ b
            product[0, 0].item()  # waits for the result

        loop = closed_loop(multiply, seconds=task.seconds / 2, least=3)
        yield f"{m}x{k} {k}x{n}", loop.rate * at_once * 2 * m * k * n


def measure(contender: Contender, task: Task) -> Iterator[dict[str, Any]]:
    """Yield the results of a contender after each batch size, and the reason where it does not run."""
    row: dict[str, Any] = {"batches": {}, "failed": {}}
    say(contender.name)
    try:
        row |= contender.prepare()
    except (GliaError, RuntimeError) as error:
        say(f"{contender.name}: {in_short(error)}")
        yield row | {"failed": {"any batch size": in_short(error)}}
        return
    release(task.device)
    before, alone = memory_used(task.device), None
    for batch in task.batches:
        say(f"{contender.name}: batch {batch}")
        try:
            found, scores = measure_batch(contender, batch, task)
        except (GliaError, RuntimeError) as error:  # PyTorch's out of memory is a RuntimeError
            say(f"{contender.name}: batch {batch}: {in_short(error)}")
            row["failed"][f"batch {batch}"] = in_short(error)
        else:
            alone = scores if batch == 1 else alone
            if alone is not None:
                off = np.abs(scores - np.resize(alone, len(scores)))
                found["off_itself_alone"] = float(off.max()) / task.span
            found["memory_bytes"] -= before
            row["batches"][str(batch)] = found
        release(task.device)
        yield row


def measure_batch(contender: Contender, batch: int, task: Task) -> tuple[dict[str, Any], npt.NDArray[np.float32]]:
    """Return parity, times and memory at one batch size, and the scores.

    The pictures are repeated in turn until they fill whole batches, and every one of these has a score.
    """
    pictures = len(task.pictures)
    order = np.resize(np.arange(pictures), -(-pictures // batch) * batch)
    batches: list[dict[str, Any]]
    batches = [{key: view[part] for key, view in task.views.items()} for part in order.reshape(-1, batch)]
    host = resident = batches[0]
    if task.device.type == "cuda":  # backends on a CPU take only arrays on the host
        resident = {key: torch.from_numpy(view).to(task.device) for key, view in host.items()}
    with contextlib.closing(contender.open(batch)) as backend:
        scores = np.concatenate([backend.run(views) for views in batches])
        ways = {"latency": (host, 1), "host": (host, backend.parallel), "resident": (resident, backend.parallel)}
        loops: dict[str, list[Timings]] = {way: [] for way in ways}
        for _, (way, (inputs, callers)) in itertools.product(range(task.rounds), ways.items()):
            call = functools.partial(backend.run, inputs)
            loops[way].append(closed_loop(call, seconds=task.seconds, least=task.calls, callers=callers))
        memory = memory_used(task.device)
    parity = compare_scores(
        f"{contender.name}, batch {batch}",
        scores,
        task.reference[order],
        [task.pictures[i] for i in order.tolist()],
        span=task.span,
        limit=SCORE_LIMITS[backend.precision],
    )
    found = {"precision": backend.precision, "parity": parity.to_dict(), "memory_bytes": memory}
    return found | {way: summary(loops[way], batch, callers) for way, (_, callers) in ways.items()}, scores


def summary(loops: Sequence[Timings], batch: int, callers: int) -> dict[str, Any]:
    """Return the median rate of the rounds, and percentiles over the calls of all rounds."""
    rates = [batch * timings.rate for timings in loops]
    pooled = Timings(tuple(itertools.chain(*(t.calls for t in loops))), sum(t.elapsed for t in loops))
    percentiles = {f"p{share}_ms": 1000 * pooled.percentile(share) for share in PERCENTILES}
    about = {"callers": callers, "calls": len(pooled.calls)}
    return {"images_per_s": statistics.median(rates), "rounds": rates} | percentiles | about


def memory_used(device: torch.device) -> int:
    """Return the bytes of GPU memory that all libraries take, 0 on a CPU.

    PyTorch's own counters see PyTorch alone. Libraries keep what they took while they ran, so the value after a run is
    their peak.
    """
    if device.type == "cpu":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def release(device: torch.device) -> None:
    """Free the memory that PyTorch keeps for later, so that each batch size starts from the same memory."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def say(what: str) -> None:
    print(what, file=sys.stderr)


def make_bundle(folder: Path, backbone: str, checkpoint: Path | None, bundle: Path | None) -> tuple[Bundle, Checkpoint]:
    """Return a bundle in `folder` and its checkpoint. Each is made if it is not given.

    A given bundle is copied to `folder`, so that engines may be built into it.
    """
    path = folder / "model.glia"
    if checkpoint is None:
        checkpoint = folder / "model.pt"
        make_checkpoint(*telling_model(backbone), "random").save(checkpoint)
    if bundle is None:
        export(checkpoint, path, report=lambda stage: say(f"export: {stage}"))
    else:
        shutil.copytree(Bundle.open(bundle).path, path, ignore=shutil.ignore_patterns("engines", "reports"))
    opened = Bundle.open(path)
    if opened.manifest["checkpoint"]["sha256"] != sha256(checkpoint):
        raise BundleError(f"{bundle} was not exported from {checkpoint}: export it again")
    return opened, Checkpoint.load(checkpoint)


def make_task(
    bundle: Bundle, model: GLIANet, device: torch.device, batches: Sequence[int], *, seconds: float, rounds: int
) -> Task:
    """Return the task of scoring the selftest's photographs, with their scores in FP32 as the reference."""
    if (span := bundle.contract.score.span) is None:
        raise UsageError("the checkpoint was never calibrated, so parity has no unit: train it, or leave it out")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    rows = bundle.selftest()
    views = {
        one.name: np.stack(
            [read_image(bundle.checked_file(f"selftest/{row['inputs'][one.name]}")).reshape(one.shape) for row in rows]
        )
        for one in bundle.contract.inputs
    }
    reference = TorchBackend("FP32", Scores(copy.deepcopy(model)).to(device), "fp32", device, len(rows)).run(views)
    vit = model.backbone
    tokens, width = max(batches) * (vit.patch_embed.num_patches + vit.num_prefix_tokens), vit.embed_dim
    products = [*((n, n, n) for n in SQUARES), (tokens, width, 4 * width), (tokens, 4 * width, width)]
    pictures = [row["picture"] for row in rows]
    return Task(views, pictures, reference, span, device, batches, seconds, 10, rounds, products)


def benchmark(options: argparse.Namespace) -> None:
    """Measure everything that runs here, and write the results."""
    if options.bundle and not options.checkpoint:
        raise UsageError("--bundle needs the --checkpoint it was exported from: PyTorch runs that")
    Gpu.open(0)
    if not torch.cuda.is_available():
        raise BackendError(f"torch {torch.__version__} has no CUDA that works with this driver: install one that has")
    options.out.mkdir(parents=True, exist_ok=True)
    device, batches = torch.device("cuda"), QUICK_BATCHES if options.quick else BATCHES
    with tempfile.TemporaryDirectory() as folder:
        bundle, checkpoint = make_bundle(Path(folder), options.backbone, options.checkpoint, options.bundle)
        model = checkpoint.build_model()
        seconds, rounds = (0.3, 1) if options.quick else (1.0, 3)
        task = make_task(bundle, model, device, batches, seconds=seconds, rounds=rounds)
        half = half_copy(model, bundle.manifest["fp16"]["kept_in_float32"])
        facts = {
            "machine": machine(device),
            "versions": installed_versions(*PACKAGES),
            "command": "python " + " ".join(sys.argv),
            "backbone": checkpoint.config.backbone,
            "bundle_identity": bundle.identity,
            "flops_per_image": count_flops(bundle.path / GRAPHS["views", "fp16"]),
            "batches": list(batches),
        }
        contenders = [pytorch("pytorch-eager-fp16", Scores(half), "fp16", device)]
        contenders += [runtime(name, bundle, "fp16", batches) for name in ("onnxruntime-cuda", *TARGETS)]
        # This contender is the last one, because it may tune for minutes at each batch size.
        contenders += [pytorch("pytorch-compile-fp16", Scores(half), "fp16", device, compiled=True)]
        for report in compete(contenders, task, facts):
            path = write(options.out, report)
    print("\n".join(markdown(report)))
    say(f"wrote {path}")
    require_parity(report)


def require_parity(report: Mapping[str, Any]) -> None:
    """Raise ParityError if the scores of any contender were off by more than the limit."""
    found = [at["parity"] for row in report["contenders"].values() for at in row["batches"].values()]
    if wrong := [parity["what"] for parity in found if not parity["passed"]]:
        raise ParityError(f"scores are off by more than the limit: {'; '.join(wrong)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE, help="with random weights; without --checkpoint")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="a calibrated model to measure instead")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="what was exported from it")
    parser.add_argument(
        "--quick", action="store_true", help=f"batches of {QUICK_BATCHES} alone, short loops, one round"
    )
    try:
        benchmark(parser.parse_args())
    except GliaError as error:
        say(f"gpu.py: {error}")
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
