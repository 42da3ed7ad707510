"""The report of gpu.py: its results and the machine, as JSON, as tables in Markdown and as a plot."""

from __future__ import annotations

import contextlib
import io
import json
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from matplotlib.figure import Figure

from glia_rt import files
from glia_rt.machine import cpu_count

#: Ways of measuring throughput, by their key in the report.
WAYS: Final = {"host": "from the host", "resident": "from the GPU"}
PERCENTILES: Final = (50, 90, 99)

PACKAGES: Final = (
    *("torch", "triton", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt_rtx", "tensorrt"),
    *("cuda-core", "nvidia-cublas", "nvidia-cudnn-cu13", "numpy"),
)

Report = Mapping[str, Any]


def machine(device: torch.device) -> dict[str, str]:
    """Return the GPU, its driver and CUDA version, and the processor and system of the host."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    cpu = re.search(r"model name\s*: (.+)", cpuinfo)
    found = {"CPU": f"{cpu[1] if cpu else platform.machine()} ({cpu_count()} cores)", "system": platform.platform()}
    if device.type == "cpu":
        return {"GPU": "none", **found}
    gpu = torch.cuda.get_device_properties(device)
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = "unknown"  # a container may lack nvidia-smi
    with contextlib.suppress(FileNotFoundError):
        driver = subprocess.run(ask, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[0]
    size = f"{gpu.total_memory / 2**30:.0f} GiB, capability {gpu.major}.{gpu.minor}"
    return {"GPU": gpu.name, "size": size, "driver": driver, "CUDA": str(torch.version.cuda), **found}


def write(folder: Path, report: Report) -> Path:
    """Write gpu-GPU-BACKBONE.json, .md and .png, each by rename, and return the path of the JSON."""
    gpu = re.sub(r"\W+", "-", report["machine"]["GPU"]).lower()
    path = folder / f"gpu-{gpu}-{report['backbone'].split('.')[0]}.json"
    image = io.BytesIO()
    plot(report).savefig(image, format="png", dpi=120)
    contents = {
        ".json": json.dumps(report, indent=2).encode() + b"\n",
        ".md": "".join(f"{line}\n" for line in markdown(report)).encode(),
        ".png": image.getvalue(),
    }
    for suffix, content in contents.items():
        files.write_whole(path.with_suffix(suffix), content)
    return path


def markdown(report: Report) -> Iterator[str]:
    """Yield the lines of the tables: the setup, parity and latency, throughput, and what could not run."""
    rows, ceiling, batches = report["contenders"], report["ceiling"], report["batches"]
    for facts in (report["machine"], report["versions"]):
        yield "; ".join(f"{key} {value}" for key, value in facts.items()) + "  "
    yield f"`{report['command']}`: {report['backbone']}, {report['flops_per_image'] / 1e9:.2f} GFLOP an image  "
    yield f"Ceiling: {ceiling['flops_per_s'] / 1e12:.2f} TFLOP/s in {ceiling['product']}"
    yield ""
    yield "| | off PyTorch FP32 by | off itself alone by | p50, batch 1 | p90 | p99 | GPU memory |"
    yield "|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        if found := row["batches"]:
            cells = [f"{max(at['parity']['worst'] for at in found.values()):.1e}"]
            alone = [at["off_itself_alone"] for at in found.values() if "off_itself_alone" in at]
            cells.append(f"{max(alone):.1e}" if alone else "")
            latency = found["1"]["latency"] if "1" in found else {}
            cells += [f"{latency[f'p{share}_ms']:.2f} ms" if latency else "" for share in PERCENTILES]
            largest = max(found, key=int)
            cells.append(f"{found[largest]['memory_bytes'] / 2**20:.0f} MiB at batch {largest}")
            yield f"| {name} | {' | '.join(cells)} |"
    for way, title in WAYS.items():
        yield ""
        yield f"| images/s {title} at batch | {' | '.join(map(str, batches))} |"
        yield "|---" * (len(batches) + 1) + "|"
        for name, row in rows.items():
            if row["batches"]:
                rates = [row["batches"].get(str(batch), {}).get(way) for batch in batches]
                cells = [f"{at['images_per_s']:.1f} ({at['share_of_ceiling']:.0%})" if at else "" for at in rates]
                yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield "Scores are off by shares of the score range, at most. GPU memory is what all of the GPU's free memory shrank"
    yield "by since the contender was opened. In brackets, the rate's share of the ceiling."
    for name, row in rows.items():
        for at, why in row["failed"].items():
            yield f"\n{name} did not run at {at}: {why}"


def plot(report: Report) -> Figure:
    """Return a plot of latency and throughput against batch size, with the ceiling. Both axes are logarithmic."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    latency, throughput = figure.subplots(1, 2)
    for i, (name, row) in enumerate(report["contenders"].items()):
        if not row["batches"]:
            continue
        batches, found = [int(batch) for batch in row["batches"]], row["batches"].values()
        look = {"color": f"C{i}", "marker": "osD^v"[i % 5], "markersize": 5}
        latency.plot(batches, [at["latency"]["p50_ms"] for at in found], **look)
        for (way, title), line in zip(WAYS.items(), ("-", ":"), strict=True):
            rates = [at[way]["images_per_s"] for at in found]
            throughput.plot(batches, rates, linestyle=line, label=f"{name}, {title}", **look)
    ceiling = report["ceiling"]["flops_per_s"] / report["flops_per_image"]
    throughput.axhline(ceiling, color="black", linestyle="--", label="ceiling: the matrix products alone")
    latency.set_title("Latency from the host, median")
    latency.set_ylabel("ms")
    throughput.set_title("Throughput")
    throughput.set_ylabel("images/s")
    for axes in (latency, throughput):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(report["batches"], [str(batch) for batch in report["batches"]])
        axes.set_xlabel("batch size")
        axes.grid(alpha=0.3)
    figure.suptitle(f"{report['backbone']} on {report['machine']['GPU']}")
    figure.legend(loc="outside right center", frameon=False)
    return figure
