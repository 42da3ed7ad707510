"""glia-rt info: what a bundle or a checkpoint is, on a screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from glia_rt.backends.cuda.engine import EngineRecord, engines
from glia_rt.cli.console import tell
from glia_rt.cli.options import needs
from glia_rt.contract import Contract
from glia_rt.errors import BundleError, EngineError
from glia_rt.starter.paths import is_bundle


@click.command()
@click.argument("path", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print all there is, as JSON.")
def info(path: str, as_json: bool) -> None:
    """Say what a bundle or a checkpoint is."""
    import json

    try:
        record, rows = _describe_bundle(path) if is_bundle(path) else _describe_checkpoint(path)
    except (AttributeError, KeyError, TypeError, ZeroDivisionError) as error:
        raise BundleError(f"{path}: a value is of the wrong kind ({error!r}); the file is damaged") from error
    if as_json:
        click.echo(json.dumps(record, indent=2))
    else:
        width = max(len(name) for name, _ in rows) + 2
        for name, text in rows:
            tell(f"{name:<{width}}{text}")


def _describe_bundle(path: str) -> tuple[dict[str, Any], list[list[str]]]:
    from glia_rt.bundle import GRAPHS, WHOLE_STARTER, Bundle

    bundle = Bundle.open(path)
    manifest, built = bundle.manifest, engines(bundle)
    record = {"bundle": str(path), "identity": bundle.identity, **manifest}
    record["engines"] = [{"file": file.name} | _engine_facts(one) for file, one in built]
    sizes = {name: manifest["files"][name]["size"] for name in GRAPHS.values() if name in manifest["files"]}
    worst = max(manifest["parity"], key=lambda row: row["worst"] / row["limit"], default=None)
    rows = [
        ["bundle", str(path)],
        *_describe_model(manifest["model"], bundle.contract, manifest["checkpoint"], manifest.get("card", {})),
        ["files", ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items())],
    ]
    if worst is not None:
        rows.append(["worst parity", f"{worst['worst']:.1e} of {worst['limit']:.0e} allowed: {worst['what']}"])
    for i, (file, one) in enumerate(built):
        line = _engine_line(one) if isinstance(one, EngineRecord) else f"{file.name}: its record cannot be read"
        rows.append(["engine" if i == 0 else "", line])
    if not built:
        advice = f"glia-rt build {path} --target tensorrt-rtx builds one"
        if bundle.shipped:
            advice = f"glia-rt build {path} --target tensorrt-rtx builds one in FP32; {WHOLE_STARTER}"
        rows.append(["engine", f"none yet; {advice}"])
    return record, [
        *rows,
        ["identity", bundle.identity],
        ["made by", f"glia-rt {manifest['tools'].get('glia-rt', '?')}"],
    ]


def _engine_line(record: EngineRecord) -> str:
    gpus = ", ".join(record.capabilities) or "8.0 and later"
    return (
        f"{record.target} {record.library_version}, {record.input}, {record.precision}, compute capability {gpus}, "
        f"{record.engine_size / 1e6:.1f} MB"
    )


def _engine_facts(found: EngineRecord | EngineError) -> dict[str, Any]:
    return found.to_dict() if isinstance(found, EngineRecord) else {"error": str(found)}


def _describe_checkpoint(path: str) -> tuple[dict[str, Any], list[list[str]]]:
    with needs("train"):
        from glia_train.checkpoint import Checkpoint
    checkpoint = Checkpoint.load(path)
    record = {"checkpoint": str(path), **checkpoint.describe()}
    rows = [
        ["checkpoint", str(path)],
        *_describe_model(record["model"], checkpoint.contract, record, record["card"]),
        ["weights", f"{record['parameters']:,}" + (", adapters only" if record["adapter_only"] else "")],
    ]
    return record, rows


def _describe_model(
    model: Mapping[str, Any], contract: Contract, origin: Mapping[str, Any], card: Mapping[str, Any]
) -> list[list[str]]:
    """Return the rows that a bundle and a checkpoint share; `origin` has backbones, trained_on and metrics."""
    backbone = model["config"].get("backbone")
    sources = ", ".join(f"started from {facts['source']}" for facts in origin.get("backbones", {}).values())
    about = f"{model['family']}" + (f" on {backbone}" if backbone else "") + (f", {sources}" if sources else "")
    score = contract.score
    meaning = (
        "never calibrated: it has no unit"
        if score.range is None
        else f"{score.range[0]:g} to {score.range[1]:g}, higher is better"
    )
    rows = [["model", about]]
    for i, one in enumerate(contract.inputs):
        shape = " x ".join(map(str, one.shape))
        rows.append(["inputs" if i == 0 else "", f"{one.name}: {one.rule.rule}, {shape}"])
    rows.append(["score", f"{score.name}, {meaning}"])
    rows.append(["trained on", _training(origin.get("trained_on", {}), origin.get("metrics", {}))])
    if card.get("text"):
        rows.append(["card", str(card["text"])])
    for name, figure in card.get("figures", {}).items():
        rows.append(["", f"{name}: {figure}"])
    return rows


def _training(trained_on: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    if not trained_on:
        return "nothing"
    text = str(trained_on.get("labels", "labels of a user's own"))
    pictures = trained_on.get("pictures", {})
    if "train" in pictures:
        text += f", {pictures['train']} pictures"
    if "srcc" in metrics:
        text += f"; {trained_on.get('measured_on', 'held-out')} SRCC {metrics['srcc']:.3f}"
    return text
