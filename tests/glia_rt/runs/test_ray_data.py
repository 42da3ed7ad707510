"""Scoring on a real Ray cluster: two nodes on this machine, of two CPUs each, as far as Ray is told."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from glia_rt import Scorer
from glia_rt.errors import UsageError
from glia_rt.results import Result
from glia_rt.runs.outputs import METADATA_KEY
from glia_rt.runs.ray_data import score_dataset
from glia_rt.versions import install_command

if TYPE_CHECKING:
    from ray.data import Dataset

#: Seconds; longer than anything here should take.
LIMIT = 100
BACKEND = "onnxruntime"

# Ray copies its own deprecated settings, and warns of each.
pytestmark = [
    pytest.mark.slow,  # clusters
    pytest.mark.filterwarnings("ignore:`use_.*` is deprecated:DeprecationWarning:ray.data.context"),
]

Score = Callable[..., "Dataset"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that this process is connected to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
        import ray
        from ray.cluster_utils import Cluster

        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=2)
        ray.init(nodes.address, logging_level="ERROR", log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield nodes.address
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(autouse=True)
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"longer than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    gc.collect()  # an error of Ray's holds on to actors, and they to CPUs


@pytest.fixture
def score(cluster: str, plain_bundle: Path) -> Score:
    def scored(ds: Dataset, **options: Any) -> Dataset:
        defaults: dict[str, Any] = {"bundle": plain_bundle, "backend": BACKEND, "actors": 2, "rows": 8, "num_cpus": 0.5}
        return score_dataset(ds, **defaults | options)

    return scored


@pytest.fixture(scope="module")
def photographs(pictures: Path, selftest_pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 files, two of them damaged."""
    folder = tmp_path_factory.mktemp("photographs")
    for path in [*pictures.iterdir(), *selftest_pictures]:
        shutil.copy(path, folder)
    (folder / "cut.jpg").write_bytes((pictures / "31.jpg").read_bytes()[:500])
    (folder / "text.jpg").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def expected(photographs: Path, plain_bundle: Path) -> dict[str, Result]:
    """By path, what `Scorer.score_files` says of the photographs."""
    with Scorer.open(plain_bundle, BACKEND) as scorer:
        return {result.path: result for result in scorer.score_files([photographs])}


def result_of(row: dict[str, Any]) -> Result:
    return Result(**{name: row[name] for name in ("path", "score", "status", "error", "width", "height")})


def scoring_processes() -> set[int]:
    import psutil  # comes with Ray

    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            if "_ScorePictures" in process.cmdline()[0]:
                found.add(process.pid)
        except (psutil.Error, IndexError):  # it has just ended
            continue
    return found


def test_scores_are_those_of_one_machine_to_the_bit(
    score: Score, photographs: Path, expected: dict[str, Result]
) -> None:
    import ray

    rows = score(ray.data.read_binary_files(str(photographs), include_paths=True)).take_all()
    assert len(rows) == 40
    assert {row["path"]: result_of(row) for row in rows} == expected
    assert set(rows[0]) == {"path", "score", "status", "error", "width", "height"}
    assert sum(row["status"] == "bad_image" for row in rows) == 2


def test_an_actor_that_is_killed_costs_nothing(
    score: Score, photographs: Path, expected: dict[str, Result], tmp_path: Path
) -> None:
    import ray

    paths = sorted(expected) * 6
    killed = tmp_path / "killed"

    def hold_back(rows: dict[str, Any]) -> dict[str, Any]:
        """Let the second half pass only when an actor has been killed."""
        while rows["id"].max() >= len(paths) / 2 and not killed.exists():
            time.sleep(0.05)
        return rows

    ds = ray.data.from_items([{"id": i, "path": path} for i, path in enumerate(paths)], override_num_blocks=6)
    old = scoring_processes()
    rows: list[dict[str, Any]] = []
    for batch in score(ds.map_batches(hold_back), column="path").iter_batches(batch_size=None, batch_format="pyarrow"):
        rows += batch.to_pylist()
        if not killed.exists():
            while len(actors := scoring_processes() - old) < 2:
                time.sleep(0.05)
            os.kill(min(actors), signal.SIGKILL)
            while not scoring_processes() - old - actors:  # Ray starts another in its place
                time.sleep(0.05)
            killed.touch()
    assert sorted(row["id"] for row in rows) == list(range(len(paths)))
    assert all(result_of(row) == expected[row["path"]] for row in rows)


def test_parquet_to_parquet(score: Score, plain_bundle: Path, selftest_pictures: list[Path], tmp_path: Path) -> None:
    import ray

    encoded = [path.read_bytes() for path in selftest_pictures]
    table = pa.table(
        {
            "id": pa.array(range(8), pa.int16()),
            "image": [{"bytes": data, "path": None} for data in encoded] + [{"bytes": b"", "path": None}, None],
            "tags": [["a"]] * 7 + [None],
        }
    )
    parquet.write_table(table, tmp_path / "in.parquet")
    ds = ray.data.read_parquet(str(tmp_path / "in.parquet"))
    options = {"batch_size": 2, "max_pixels": 100_000}
    score(ds, column="image", actors=(1, 1), rows=3, **options).write_parquet(str(tmp_path / "out"))

    scored = parquet.read_table(tmp_path / "out").sort_by("id")
    kept = [table.schema.field("id"), table.schema.field("tags")]
    texts = [pa.field(name, pa.string()) for name in ("status", "error")]
    sides = [pa.field(name, pa.int32()) for name in ("width", "height")]
    assert scored.schema == pa.schema([*kept, pa.field("score", pa.float32()), *texts, *sides])
    with Scorer.open(plain_bundle, BACKEND, **options) as scorer:
        results = list(scorer.score_files(selftest_pictures))
        assert json.loads(scored.schema.metadata[METADATA_KEY.encode()]) == scorer.resolved
    [too_large] = [i for i, result in enumerate(results) if result.score is None]
    assert "configure_pillow" in scored["error"][too_large].as_py(), "Pillow's own limit is not max_pixels"
    assert scored["score"].to_pylist() == [result.score for result in results] + [None, None]
    assert scored["status"].to_pylist() == [result.status for result in results] + ["bad_image"] * 2
    assert scored["error"].to_pylist()[-2:] == ["the row has no picture"] * 2
    assert scored["tags"].equals(table["tags"])
    assert len(list((tmp_path / "out").iterdir())) == 3, "a row group is not cut into lots of 3, 3 and 2"


def test_columns_of_paths_are_kept(score: Score, photographs: Path, expected: dict[str, Result]) -> None:
    """Scores without names would be of no use."""
    import ray

    paths = sorted(expected)[:4]
    columns = {
        "dictionary": pa.array(paths).dictionary_encode(),
        "struct": pa.array([{"path": path} for path in paths]),
    }
    for name, column in columns.items():
        rows = score(ray.data.from_arrow(pa.table({name: column})), column=name, actors=1).take_all()
        found = [row[name]["path"] if name == "struct" else row[name] for row in rows]
        assert sorted(found) == paths
        assert [row["score"] for row in rows] == [expected[path].score for path in found]


def test_tar_archives(score: Score, photographs: Path, expected: dict[str, Result], tmp_path: Path) -> None:
    import ray

    with tarfile.open(tmp_path / "archive.tar", "w") as archive:
        for name in ("00.jpg", "01.jpg"):
            archive.add(photographs / name, name)
    archives = str(tmp_path / "archive.tar")
    rows = score(ray.data.read_webdataset(archives, decoder=None), column="jpg", actors=1).take_all()
    found = {row["__key__"]: row["score"] for row in rows}
    assert found == {key: expected[str(photographs / f"{key}.jpg")].score for key in ("00", "01")}
    with pytest.raises(ray.exceptions.RayError, match=r"column 'jpg' holds ndarray; pictures are .* decoder=None"):
        score(ray.data.read_webdataset(archives), column="jpg", actors=1).take_all()


def test_a_bundle_that_is_not_there(score: Score, photographs: Path, tmp_path: Path) -> None:
    import ray

    ds = ray.data.read_binary_files(str(photographs))
    with pytest.raises(
        ray.exceptions.RayError, match=r"no\.glia does not exist; `glia-rt export CHECKPOINT` writes one"
    ):
        score(ds, bundle=tmp_path / "no.glia").take_all()


def test_an_actor_with_a_gpu_never_computes_on_the_cpu(score: Score, photographs: Path) -> None:
    import ray

    ds = ray.data.read_binary_files(str(photographs))
    with pytest.raises(ray.exceptions.RayError, match="backend onnxruntime runs on the CPU"):
        score(ds, actors=1, num_cpus=None, num_gpus=1).take_all()


@pytest.mark.parametrize(
    ("column", "names", "message"),
    [
        ("jpg", ["bytes", "url"], "the dataset has no column 'jpg'; it has bytes, url"),
        (
            "bytes",
            ["bytes", "width", "height"],
            "already has columns width, height, which scoring adds: rename or drop them",
        ),
    ],
)
def test_columns_that_do_not_fit(score: Score, tmp_path: Path, column: str, names: list[str], message: str) -> None:
    import ray

    parquet.write_table(pa.table({name: [b"1"] for name in names}), tmp_path / "in.parquet")
    with pytest.raises(UsageError, match=message):
        score(ray.data.read_parquet(str(tmp_path / "in.parquet")), column=column)


def test_columns_that_ray_knows_late(score: Score, photographs: Path) -> None:
    import ray

    scored = score(ray.data.read_binary_files(str(photographs)), column="jpg")
    with pytest.raises(ray.exceptions.RayError, match="UsageError: the dataset has no column 'jpg'; it has bytes"):
        scored.take_all()


CHECKPOINTED = """
import sys
import ray
from ray.data.checkpoint import CheckpointConfig
from glia_rt.runs.ray_data import score_dataset

bundle, photographs, checkpoint, output = sys.argv[1:]
ray.init(log_to_driver=False)
ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
    "path", checkpoint, delete_checkpoint_on_success=False
)
ds = ray.data.read_binary_files(photographs, include_paths=True)
score_dataset(ds, bundle, actors=1, rows=4, num_cpus=0.5, backend="onnxruntime").write_parquet(output)
"""


def test_a_job_that_is_killed_goes_on(
    cluster: str, plain_bundle: Path, photographs: Path, expected: dict[str, Result], tmp_path: Path
) -> None:
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "output"
    command = [sys.executable, "-c", CHECKPOINTED, *map(str, (plain_bundle, photographs, checkpoint, output))]
    environment = os.environ | {"RAY_ADDRESS": cluster}

    def committed() -> list[Path]:
        return [path for path in checkpoint.glob("*.parquet") if ".pending" not in path.name]

    old = scoring_processes()
    with subprocess.Popen(command, env=environment) as job:
        while job.poll() is None and len(committed()) < 3:
            time.sleep(0.01)
        job.kill()
    assert job.returncode == -signal.SIGKILL
    while scoring_processes() - old:
        time.sleep(0.1)
    before = {path.name for path in output.iterdir()}
    assert 12 <= parquet.read_table(output).num_rows < 40

    subprocess.run(command, env=environment, timeout=LIMIT, check=True)
    rows = parquet.read_table(output).to_pylist()
    assert len(rows) == 40
    assert {row["path"]: result_of(row) for row in rows} == expected
    assert {path.name for path in output.iterdir()} > before
    # So that the script, started once too often, finds nothing to do.
    assert set(parquet.read_table(checkpoint)["path"].to_pylist()) == set(expected)


def test_without_ray(without_packages: Callable[..., dict[str, str]]) -> None:
    program = "from glia_rt.runs import ray_data; ray_data.score_dataset(None, 'a.glia', actors=1)"
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=without_packages("ray"), check=False)
    assert done.stderr.splitlines()[-1].endswith(f"MissingPackageError: ray is not installed: {install_command('ray')}")
