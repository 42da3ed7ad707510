"""A GLIANet as ONNX: one trace of the model, one of the sampler, and the graph that joins them.

Views graphs take both views; image graphs take a decoded picture, with the sampler as fixed-shape preprocessing. An
image graph is the views graph with the sampler in the place of its two casts, so the model is traced once a precision.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Final, cast
from unittest import mock

import torch
import torch.nn.functional as F
from onnx import ModelProto, helper, version_converter
from timm.layers.norm_act import GroupNormAct
from timm.layers.padding import pad_same
from timm.layers.std_conv import StdConv2d, StdConv2dSame
from torch import Tensor, nn

from glia_export.sampler import Sampler
from glia_rt.contract import FRAGMENTS, GLOBAL_VIEW, IMAGE, SCORE, Contract
from glia_train.backbone import split_heads
from glia_train.model import CrossAttention, GliaBlock, GLIANet

#: Second output while a graph is being checked: the cls feature that the head reads. Left out of the bundle's files.
FEATURE: Final = "cls_feature"
#: Of graphs without an Attention op.
OPSET: Final = 20


class _Traced(nn.Module):
    """Score and cls feature of one forward pass."""

    def __init__(self, model: GLIANet) -> None:
        super().__init__()
        self.model = model

    def forward(self, global_view: Tensor, fragments: Tensor) -> tuple[Tensor, Tensor]:
        feature = self.model.features(global_view, fragments)
        return self.model.score(feature), feature.float()


class _FoldedConv(nn.Conv2d):
    """A weight-standardised convolution after its weights were standardised once and for all."""

    same_padding: bool = False

    def forward(self, x: Tensor) -> Tensor:
        if self.same_padding:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class _TwoPassGroupNorm(nn.Module):
    """Group normalisation in float32 around the mean, as ONNX Runtime and OpenVINO compute it.

    PyTorch's kernel for CPUs takes both moments in one pass, which on a dark photograph costs a relative 1e-5 of the
    cls feature: as much as an exported graph may be off.
    """

    def __init__(self, norm: GroupNormAct) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        groups = x.float().reshape(x.shape[0], norm.num_groups, -1)  # (N, groups, C/groups * H * W)
        groups = groups - groups.mean(dim=-1, keepdim=True)
        groups = groups * torch.rsqrt((groups * groups).mean(dim=-1, keepdim=True) + norm.eps)
        y = groups.reshape(x.shape) * norm.weight.float().view(-1, 1, 1) + norm.bias.float().view(-1, 1, 1)
        return cast(Tensor, norm.act(norm.drop(y.to(x.dtype))))


class _PackedGliaBlock(nn.Module):
    """A GLIA block with one projection a stream in the place of two.

    z is the query of the fusion and the context of the refinement, F_sd the other way round: so [q | k, v] of each
    stream is one product, and TensorRT cuts it into heads with one kernel (docs/tensorrt.md has the comparison).
    """

    def __init__(self, block: GliaBlock, fusion: CrossAttention, refinement: CrossAttention) -> None:
        super().__init__()
        self.block = block
        self.fusion = fusion
        self.refinement = refinement
        self.local = _packed(fusion.query, refinement.key_value)  # r -> 3r
        self.latent_global = _packed(refinement.query, fusion.key_value)  # r -> 3r

    def forward(self, local: Tensor, latent_global: Tensor) -> tuple[Tensor, Tensor]:
        z = self.block.down(local)  # (N, T, r)
        q_fusion, k_refinement, v_refinement = split_heads(self.local(z), 3, self.fusion.heads)
        q_refinement, k_fusion, v_fusion = split_heads(self.latent_global(latent_global), 3, self.fusion.heads)
        fusion = self.fusion.attend(q_fusion, k_fusion, v_fusion)
        refinement = self.refinement.attend(q_refinement, k_refinement, v_refinement)
        return self.block.mix(local, latent_global, z, fusion, refinement)


def _packed(*layers: nn.Linear) -> nn.Linear:
    packed = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers))
    weights = {key: torch.cat([layer.state_dict()[key] for layer in layers]) for key in ("weight", "bias")}
    packed.load_state_dict(weights)
    return packed


def export_form(model: GLIANet) -> GLIANet:
    """A copy of the model to trace, which computes the same.

    GLIA blocks take packed projections. In the hybrids' stems weight-standardised convolutions become ordinary ones,
    and group normalisation takes its two passes.
    """
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(module, StdConv2d | StdConv2dSame):
            setattr(model.get_submodule(parent), child, _fold(module))
        elif isinstance(module, GroupNormAct):
            setattr(model.get_submodule(parent), child, _TwoPassGroupNorm(module))
        elif isinstance(module, GliaBlock) and module.refinement is not None:
            packed = _PackedGliaBlock(module, module.fusion, module.refinement)
            setattr(model.get_submodule(parent), child, packed)
    return model.eval()


def _fold(conv: Any) -> _FoldedConv:
    folded = _FoldedConv(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.bias is not None,
    )
    folded.same_padding = bool(getattr(conv, "same_pad", False))
    flat = conv.weight.detach().reshape(1, conv.out_channels, -1)
    standardised = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=conv.eps)
    weights = {"weight": standardised.reshape_as(conv.weight)}
    folded.load_state_dict(weights if conv.bias is None else weights | {"bias": conv.bias})
    return folded


def opset_for(model: GLIANet) -> int:
    """23, whose Attention op TensorRT fuses, where all attention is half; else 20, which writes it as its parts.

    TensorRT builds no FP32 Attention, so one block kept in float32 is enough for 20.
    """
    blocks = [*model.backbone.blocks, *model.glia]
    return 23 if all(p.dtype == torch.float16 for block in blocks for p in block.parameters()) else OPSET


def trace_views(model: GLIANet, contract: Contract) -> ModelProto:
    """Views -> (score, cls feature). The model's own weights decide the graph's types, and so its opset."""
    shape = (2, contract.view_size, contract.view_size, 3)
    # Two tensors: given the same one twice, the tracer makes both inputs one.
    views = (torch.zeros(shape, dtype=torch.uint8), torch.ones(shape, dtype=torch.uint8))
    return _trace(_Traced(model), views, [GLOBAL_VIEW, FRAGMENTS], [SCORE, FEATURE], opset_for(model))


def trace_sampler(contract: Contract) -> ModelProto:
    """Picture -> both views, as float32 grey levels."""
    image = torch.zeros(2, 300, 401, 3, dtype=torch.uint8)
    return _trace(Sampler(contract), (image,), [IMAGE], [GLOBAL_VIEW, FRAGMENTS], OPSET)


def join(sampler: ModelProto, views: ModelProto) -> ModelProto:
    """The image graph: the views graph reading the sampler's views; these become outputs 3 and 4, to be checked."""
    joined = ModelProto()
    joined.CopyFrom(views)
    graph = joined.graph
    [opset] = views.opset_import
    sampler_graph = version_converter.convert_version(sampler, opset.version).graph
    _prefix(sampler_graph, "sampler/", keep={IMAGE})
    sampled = {GLOBAL_VIEW: sampler_graph.output[0].name, FRAGMENTS: sampler_graph.output[1].name}
    for node in list(graph.node):
        # uint8 views are cast first thing; the sampler's are float32 already.
        if node.op_type == "Cast" and node.input[0] in sampled:
            for reader in graph.node:
                for i, name in enumerate(reader.input):
                    if name == node.output[0]:
                        reader.input[i] = sampled[node.input[0]]
            graph.node.remove(node)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = sampled.get(name, name)  # Shape of a view, to learn N
    nodes = list(sampler_graph.node) + list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(sampler_graph.input)
    graph.initializer.extend(sampler_graph.initializer)
    graph.value_info.extend(sampler_graph.value_info)
    graph.output.extend(sampler_graph.output)
    return joined


def finish(model: ModelProto, contract: Contract) -> ModelProto:
    """The graph as it goes into the bundle: score alone as output, plain dimension names, the contract inside."""
    done = ModelProto()
    done.CopyFrom(model)
    graph = done.graph
    score = next(output for output in graph.output if output.name == SCORE)
    del graph.output[:]
    graph.output.append(score)
    _name_dimensions(graph)
    # The exporter's record of Python source and shapes: a third of the nodes' bytes, and paths of one machine.
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del graph.metadata_props[:], graph.value_info[:], done.metadata_props[:]
    helper.set_model_props(done, {"glia.contract": contract.to_json()})
    done.producer_name, done.doc_string = "glia-rt", ""
    return done


def _name_dimensions(graph: Any) -> None:
    names = {IMAGE: ("N", "H", "W"), GLOBAL_VIEW: ("N",), FRAGMENTS: ("N",), SCORE: ("N",)}
    for value in list(graph.input) + list(graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=False):
            dim.dim_param = name


def _prefix(graph: Any, prefix: str, keep: set[str]) -> None:
    def renamed(name: str) -> str:
        return name if not name or name in keep else prefix + name

    for node in graph.node:
        node.name = renamed(node.name)
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for value in [*graph.initializer, *graph.value_info, *graph.input, *graph.output]:
        value.name = renamed(value.name)


def _trace(
    module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str], opset: int
) -> ModelProto:
    free = torch.export.Dim.DYNAMIC
    rank = 3 if inputs == [IMAGE] else 1
    with _quiet_exporter(), _no_rule_for_pairs():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple(dict.fromkeys(range(rank), free) for _ in inputs),
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    return program.model_proto


@contextlib.contextmanager
def _no_rule_for_pairs() -> Iterator[None]:
    """The exporter's one rule that looks at every pair of nodes takes half of a trace's time.

    It looks for a tensor cut into halves by slices, and there is none here: the graphs are the same without it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError):  # of an onnxscript that has no such rule any more
            from onnxscript.rewriter.rules.common import slice_split_rule

            stack.enter_context(mock.patch.object(slice_split_rule, "try_rewrite", return_value=None))
        yield


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of its own internals; none of it is for the user."""
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
