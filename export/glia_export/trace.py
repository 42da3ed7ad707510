"""Tracing to ONNX: one trace of the model, one of the rules that make its inputs, and the graph that joins them.

A views graph takes the inputs of the contract. An image graph takes a decoded picture, and contains the rules as
preprocessing to a fixed shape. It is the views graph, with the traced rules in place of the casts of its inputs. So the
model is traced once for each precision.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper, version_converter
from torch import Tensor, nn

from glia_export.views import Views
from glia_rt.contract import IMAGE, SCORE, Contract
from glia_rt.errors import UsageError
from glia_train.checkpoint import LARGE_MATRIX
from glia_train.models.base import Model

#: Second output of a graph while it is checked: the features. The bundle's files leave it out.
FEATURES: Final = "glia/features"
#: In front of every name inside a graph, so that no input of a contract has the same.
_MODEL: Final = "model/"
_RULES: Final = "rules/"
#: Opset of graphs without an Attention operator.
OPSET: Final = 20
#: Opset of graphs with an Attention operator.
ATTENTION_OPSET: Final = 23


class _Traced(nn.Module):
    """A model that returns scores and features from one forward pass.

    The inputs are one tuple, because torch.export would count separate arguments differently.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        features = self.model.features(*inputs)
        return self.model.calibrated(self.model.raw_score(features)), features.float()


def opset_for(model: Model) -> int:
    """Return the opset of a model's graph: 23 if all attention is half, else 20.

    TensorRT fuses the Attention operator of opset 23, but builds no FP32 Attention. So one attending stage in float32
    is enough for opset 20, which writes attention as its parts.
    """
    attending = [stage for stage in model.stages().values() if stage.attends]
    weights = [parameter for stage in attending for module in stage.modules for parameter in module.parameters()]
    return ATTENTION_OPSET if weights and all(weight.dtype == torch.float16 for weight in weights) else OPSET


def trace_views(model: Model, contract: Contract) -> ModelProto:
    """Return the views graph of a model: inputs -> (score, features).

    The dtypes of the model's weights decide the types in the graph, and so its opset.

    Raises:
        UsageError: The model does not cast an input before all else that it does with it.
    """
    # Each input has its own example tensor, because the tracer would make one input of a tensor given twice.
    example = tuple(torch.full((2, *one.shape), i, dtype=torch.uint8) for i, one in enumerate(contract.inputs))
    names = [one.name for one in contract.inputs]
    traced = _trace(_Traced(model), example, names, [SCORE, FEATURES], opset_for(model), _MODEL, free=1)
    for node in traced.graph.node:
        if node.op_type not in ("Cast", "Shape") and (odd := set(names) & set(node.input)):
            raise UsageError(
                f"the model's first step with its input {min(odd)} is {node.op_type}: cast the input to float32 first, "
                "as Model.normalise does, because TensorRT takes uint8 nowhere else"
            )
    return traced


def trace_rules(contract: Contract) -> ModelProto:
    """Return the graph of the rules: picture -> the inputs of the contract, as float32 grey levels."""
    image = torch.zeros(2, 300, 401, 3, dtype=torch.uint8)
    return _trace(Views(contract), image, [IMAGE], [one.name for one in contract.inputs], OPSET, _RULES, free=3)


def join(rules: ModelProto, views: ModelProto) -> ModelProto:
    """Return the image graph: the views graph, which reads the inputs that the rules make.

    These inputs become further outputs of the graph, so that they can be checked.
    """
    joined = ModelProto()
    joined.CopyFrom(views)
    graph = joined.graph
    [opset] = views.opset_import
    names = [output.name for output in rules.graph.output]
    rules_graph = version_converter.convert_version(rules, opset.version).graph
    sampled = {name: f"{_RULES}out/{name}" for name in names}
    _rename(rules_graph, sampled)
    for node in list(graph.node):
        # The views graph casts its uint8 inputs. The rules make float32 already, so a cast to it is removed.
        to_float = any(one.name == "to" and one.i == TensorProto.FLOAT for one in node.attribute)
        if node.op_type == "Cast" and to_float and node.input[0] in sampled:
            for reader in graph.node:
                for i, name in enumerate(reader.input):
                    if name == node.output[0]:
                        reader.input[i] = sampled[node.input[0]]
            graph.node.remove(node)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = sampled.get(name, name)  # of a Shape operator, or of a cast to half
    nodes = list(rules_graph.node) + list(graph.node)
    del graph.node[:], graph.input[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.extend(rules_graph.input)
    graph.initializer.extend(rules_graph.initializer)
    graph.output.extend(rules_graph.output)
    return joined


def finish(model: ModelProto, contract: Contract) -> ModelProto:
    """Return the graph as it goes into the bundle.

    The score is its only output, its dimensions have plain names, and its metadata contains the contract. Large weights
    that half precision holds exactly are stored as halves, with a cast to float32 behind them.
    """
    done = ModelProto()
    done.CopyFrom(model)
    graph = done.graph
    score = next(output for output in graph.output if output.name == SCORE)
    del graph.output[:]
    graph.output.append(score)
    _name_dimensions(graph)
    _store_halves(graph)
    # The exporter records Python source and shapes: a third of the nodes' bytes, with paths of one machine.
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del graph.metadata_props[:], graph.value_info[:], done.metadata_props[:]
    helper.set_model_props(done, {"glia.contract": contract.to_json()})
    done.producer_name, done.doc_string = "glia-rt", ""
    return done


def _store_halves(graph: Any) -> None:
    """Store float32 weights as halves where that loses nothing. Runtimes cast them once, when they open the graph."""
    casts = []
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT or math.prod(weight.dims) < LARGE_MATRIX:
            continue
        values = numpy_helper.to_array(weight)
        halves = values.astype(np.float16)
        if np.array_equal(halves.astype(np.float32), values):
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(halves, f"{name}/half"))
            casts.append(helper.make_node("Cast", [f"{name}/half"], [name], f"{name}/cast", to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend(casts + nodes)


def _name_dimensions(graph: Any) -> None:
    for value in [*graph.input, *graph.output]:
        names = ("N", "H", "W") if value.name == IMAGE else ("N",)
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            dim.dim_param = name


def _rename(graph: Any, names: Mapping[str, str], prefix: str = "") -> None:
    """Give some values of a graph other names. All others, and all nodes, get a prefix."""

    def renamed(name: str) -> str:
        return names.get(name, prefix + name if name else name)

    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for value in [*graph.initializer, *graph.value_info, *graph.input, *graph.output]:
        value.name = renamed(value.name)


def _trace(
    module: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    opset: int,
    prefix: str,
    *,
    free: int,
) -> ModelProto:
    """Return the graph of a module of one argument. All names inside it begin with `prefix`.

    The first `free` dimensions of every tensor of the argument may have any size.
    """
    sizes = dict.fromkeys(range(free), torch.export.Dim.DYNAMIC)
    with _quiet_exporter(), _no_rule_for_pairs():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            opset_version=opset,
            # Names that no value inside has; the contract's own might be taken there.
            input_names=[f"glia/in/{name}" for name in inputs],
            output_names=[f"glia/out/{name}" for name in outputs],
            dynamic_shapes=(sizes if isinstance(example, Tensor) else tuple(sizes for _ in example),),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model_proto
    outer = {f"glia/in/{name}": name for name in inputs} | {f"glia/out/{name}": name for name in outputs}
    _rename(model.graph, outer, prefix)
    return model


@contextlib.contextmanager
def _no_rule_for_pairs() -> Iterator[None]:
    """Switch off the exporter's one rule that looks at every pair of nodes, which takes half of a trace's time.

    The rule looks for a tensor that slices cut into halves. There is none here, so the graphs are the same without it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError):  # another onnxscript may not have this rule
            from onnxscript.rewriter.rules.common import slice_split_rule

            stack.enter_context(mock.patch.object(slice_split_rule, "try_rewrite", return_value=None))
        yield


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings, which are about its own internals and not for the user."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
