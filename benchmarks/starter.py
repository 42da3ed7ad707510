"""The model that ships: what is measured of it, the one measurement, its speed, and the folder in the package.

    python benchmarks/starter.py name starter=run/checkpoint.pt ridge=ridge/checkpoint.pt ...
    python benchmarks/starter.py measure --root BIQ2021 starter=run/checkpoint.pt ridge=ridge/checkpoint.pt ...
    python benchmarks/starter.py against --root BIQ2021 NAME
    python benchmarks/starter.py ship run/checkpoint.pt
    python benchmarks/starter.py speed

`name` writes the hash and the options of each checkpoint to benchmarks/results/starter/models.json, which is committed
before anything is measured. `measure` takes these checkpoints and no others, scores BIQ2021's official test part with
all of them, and writes predictions.csv (without labels) and figures.json beside it. It refuses to measure twice.
`against` reads the predictions again, and writes by how much the other models are ahead of one to against_NAME.json.
`ship` exports a checkpoint and fills glia_rt/starter/; what card.json there says goes into the manifest. `speed`
measures what is there beside a GLIANet on ViT-B, and writes speed.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import common
import numpy as np

from glia_export.export import export
from glia_rt import Scorer
from glia_rt.bundle import GRAPHS, MANIFEST, write_manifest
from glia_rt.files import sha256
from glia_rt.runs.outputs import format_score
from glia_rt.starter.paths import BUNDLE, CHECKPOINT, FOLDER
from glia_rt.versions import installed_versions
from glia_train import evaluate
from glia_train.bootstrap import interval, srcc
from glia_train.checkpoint import Checkpoint
from glia_train.datasets.base import require_pictures
from glia_train.datasets.table import read_dataset
from glia_train.models.glianet import DEFAULT_BACKBONE
from glia_train.scorer import Engine

RESULTS = Path(__file__).parent / "results" / "starter"
MODELS, PREDICTIONS, FIGURES = RESULTS / "models.json", RESULTS / "predictions.csv", RESULTS / "figures.json"
SPEED = RESULTS / "speed.json"
#: The model that the others are held against.
BASELINE = "ridge"
#: Pictures of the measurement of speed, their sides in pixels, and how often each is repeated.
PICTURES, SIZE, ROUNDS = 100, 512, 5
#: What PyTorch computes in, so that the figures are those of the weights and not of a machine.
ENGINE = Engine(precision="fp32", batch_size=32)


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("name", "measure"):
        command = commands.add_parser(name)
        command.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
        if name == "measure":
            command.add_argument("--root", required=True, help="the folder of BIQ2021")
    command = commands.add_parser("against")
    command.add_argument("name", help="a model of predictions.csv")
    command.add_argument("--root", required=True, help="the folder of BIQ2021")
    command = commands.add_parser("ship")
    command.add_argument("checkpoint", type=Path)
    commands.add_parser("speed")
    arguments = parser.parse_args()
    if arguments.command == "ship":
        ship(arguments.checkpoint)
        return
    if arguments.command == "speed":
        measure_speed()
        return
    if arguments.command == "against":
        compare_predictions(arguments.name, arguments.root)
        return
    models = dict(text.partition("=")[::2] for text in arguments.models)
    if not all(models.values()) or BASELINE not in models:
        parser.error(f"give models as NAME=CHECKPOINT, {BASELINE} among them")
    if arguments.command == "name":
        name_models(models)
    else:
        measure(models, arguments.root)


def name_models(models: Mapping[str, str]) -> None:
    """Write down which checkpoints will be measured."""
    require_unmeasured()
    found = {}
    for name, path in models.items():
        checkpoint = Checkpoint.load(path)
        facts = ("family", "config", "options", "pictures", "machine", "versions", "epoch")
        found[name] = {"sha256": sha256(Path(path))} | {key: checkpoint.trained_on.get(key) for key in facts}
    RESULTS.mkdir(parents=True, exist_ok=True)
    MODELS.write_text(json.dumps(found, indent=2) + "\n")
    print(f"wrote {MODELS}: commit it before you measure")


def measure(models: Mapping[str, str], root: str) -> None:
    """Score the official test part with all models, and write predictions and figures."""
    require_unmeasured()
    named = json.loads(MODELS.read_text())
    if set(models) != set(named):
        raise SystemExit(f"{MODELS} names {', '.join(named)}: give each of them as NAME=CHECKPOINT")
    for name, path in models.items():
        if sha256(Path(path)) != named[name]["sha256"]:
            raise SystemExit(f"{path} is not the checkpoint that {MODELS} names {name}")
    dataset = read_dataset("biq2021", root)
    require_pictures(dataset)
    chosen = evaluate.select(dataset, "test", evaluate.SEED)
    scored = {name: evaluate.score(path, chosen, ENGINE) for name, path in models.items()}
    if unreadable := [one.picture.name for found in scored.values() for one in found.unreadable]:
        raise SystemExit(f"{unreadable[0]} cannot be read: mend the dataset, nothing was measured")
    scores = {name: np.array([one.score for one in found.predictions]) for name, found in scored.items()}
    figures = {
        "test part": {"pictures": len(chosen.pictures), "leaking": len(chosen.leaking), "engine": "PyTorch, fp32"},
        "hardware": common.hardware(),
        "versions": installed_versions(*common.PACKAGES),
        "models": {name: agreement(chosen, values) for name, values in scores.items()},
        f"against {BASELINE}": {
            name: against(chosen, values, scores[BASELINE]) for name, values in scores.items() if name != BASELINE
        },
    }
    with PREDICTIONS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", *models])
        for i, picture in enumerate(chosen.pictures):
            writer.writerow([picture.name, *(format_score(scores[name][i]) for name in models)])
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"wrote {PREDICTIONS} and {FIGURES}")


def compare_predictions(name: str, root: str) -> None:
    """Write by how much each model's figures are over those of one, by the predictions that were written."""
    with PREDICTIONS.open(newline="") as file:
        rows = {row.pop("path"): row for row in csv.DictReader(file)}
    chosen = evaluate.select(read_dataset("biq2021", root), "test", evaluate.SEED)
    models = list(next(iter(rows.values())))
    if name not in models:
        raise SystemExit(f"{PREDICTIONS} has no {name}, but {', '.join(models)}")
    scores = {one: np.array([float(rows[picture.name][one]) for picture in chosen.pictures]) for one in models}
    found = {one: against(chosen, scores[one], scores[name]) for one in models if one != name}
    path = RESULTS / f"against_{name}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"wrote {path}")


def require_unmeasured() -> None:
    """End the script if the test part has been measured already."""
    if FIGURES.exists():
        raise SystemExit(f"{FIGURES} exists: the test part is measured once")


def agreement(chosen: evaluate.Selection, scores: np.ndarray) -> dict[str, Any]:
    """Return a model's figures with their intervals, without the leaking pictures, and SRCC with them."""
    part = Judged(chosen)
    labels = np.array([picture.score for picture in chosen.pictures])
    found: dict[str, Any] = {key: part.figure(of, scores) for key, of in part.figures.items()}
    return found | {"with leaking pictures": round(srcc(scores, labels), 4)}


def against(chosen: evaluate.Selection, scores: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    """Return by how much a model's figures are over those of another, with the intervals of a paired bootstrap."""
    part = Judged(chosen)
    return {key: part.figure(of, scores, others) for key, of in part.figures.items()}


class Judged:
    """The pictures of the test part that do not leak, and their figures.

    Attributes:
        figures: A function of scores and indices (M,) by the name of a figure: SRCC overall, the mean of the SRCCs
            within the subsets, and these.
    """

    def __init__(self, chosen: evaluate.Selection) -> None:
        self._taken = [i for i, picture in enumerate(chosen.pictures) if picture.name not in chosen.leaking]
        pictures = [chosen.pictures[i] for i in self._taken]
        self._labels = np.array([picture.score for picture in pictures])
        self._groups = [picture.kept_together for picture in pictures]
        self._subsets = np.array([picture.subset for picture in pictures])
        self._names = sorted(set(self._subsets))
        self.figures: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"overall": self._srcc}
        self.figures["within"] = self._within
        self.figures |= {name: partial(self._in, name) for name in self._names}

    def figure(self, of: Callable[..., float], scores: np.ndarray, others: np.ndarray | None = None) -> dict[str, Any]:
        """Return a figure of scores, or the difference of that of scores and that of others, with its interval."""
        first = scores[self._taken]
        second = None if others is None else others[self._taken]

        def value(at: np.ndarray) -> float:
            return float(of(first, at) - (0 if second is None else of(second, at)))

        found = interval(value, self._groups, seed=evaluate.SEED)
        ends = [] if found is None else [round(found.low, 4), round(found.high, 4)]
        name = "srcc" if second is None else "difference"
        return {name: round(value(np.arange(len(self._labels))), 4), "interval": ends}

    def _within(self, scores: np.ndarray, at: np.ndarray) -> float:
        return float(np.mean([self._in(name, scores, at) for name in self._names]))

    def _srcc(self, scores: np.ndarray, at: np.ndarray) -> float:
        return srcc(scores[at], self._labels[at])

    def _in(self, subset: str, scores: np.ndarray, at: np.ndarray) -> float:
        return self._srcc(scores, at[self._subsets[at] == subset])


def ship(checkpoint: Path) -> None:
    """Export a checkpoint, and put it and what else the package has room for into glia_rt/starter/.

    The checkpoint is copied as it is, so that its hash is that of the measured one.
    """
    if not (CHECKPOINT.exists() and CHECKPOINT.samefile(checkpoint)):
        shutil.copyfile(checkpoint, CHECKPOINT)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = export(CHECKPOINT, Path(scratch) / BUNDLE.name, report=print).path
        record = json.loads((bundle / MANIFEST).read_text())
        (bundle / MANIFEST).unlink()
        for (_, precision), name in GRAPHS.items():
            if precision == "fp16":
                (bundle / name).unlink()
                del record["files"][name]
        # What the export measured of graphs that are not there would only puzzle.
        record["parity"] = [row for row in record["parity"] if "fp16" not in row["what"].lower()]
        del record["schema"]
        write_manifest(bundle, record)
        if BUNDLE.exists():
            shutil.rmtree(BUNDLE)
        shutil.copytree(bundle, BUNDLE)
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    print(f"{FOLDER}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


def measure_speed() -> None:
    """Measure pictures a second beside ViT-B's, in turns, and the first score of a new process."""
    found: dict[str, Any] = {"hardware": common.hardware(), "versions": installed_versions(*common.PACKAGES)}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        _, vit_b = common.random_bundle(DEFAULT_BACKBONE, Path(scratch))
        photographs = Path(scratch) / "photographs"
        common.make_jpegs(photographs, SIZE, SIZE, PICTURES)
        one = next(photographs.iterdir())
        scorers = {
            "starter": stack.enter_context(Scorer.open(BUNDLE)),
            "ViT-B": stack.enter_context(Scorer.open(vit_b)),
        }
        rates: dict[str, list[float]] = {name: [] for name in scorers}
        for _ in range(ROUNDS):
            for name, scorer in scorers.items():
                list(scorer.score_files([one] * 8))  # warm
                began = time.perf_counter()
                count = sum(1 for _ in scorer.score_files([photographs]))
                rates[name].append(count / (time.perf_counter() - began))
        found["backend"] = {name: f"{s.backend.name}, {s.backend.precision}" for name, s in scorers.items()}
        found[f"JPEGs of {SIZE}x{SIZE}, pictures/s"] = {name: statistics.median(each) for name, each in rates.items()}
        found["ratio"] = statistics.median(a / b for a, b in zip(rates["starter"], rates["ViT-B"], strict=True))
        program = "import sys; from glia_rt import Scorer; Scorer.open(sys.argv[1]).score(sys.argv[2])"
        commands = {
            "from Python": [sys.executable, "-c", program, str(BUNDLE), str(one)],
            "glia-rt score": [sys.executable, "-m", "glia_rt", "score", str(BUNDLE), str(one)],
        }
        found["first score of a new process, s"] = {name: seconds(command) for name, command in commands.items()}
    SPEED.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def seconds(command: Sequence[str]) -> float:
    """Return the median time of a command, after one run that fills the caches."""
    times = []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
