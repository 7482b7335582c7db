"""Eager PyTorch to a raw ONNX graph with dynamic B and T. No checkpoint, no file, no target in here."""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO

import onnx_ir as ir
import onnxscript.optimizer
import torch
import torch.nn as nn

from gptexport.errors import ExportError
from gptexport.export.encoder_mask import mask_as_given
from gptexport.export.program import keep_float32_numbers, say_grouped_queries
from gptexport.export.rewrites import Audit
from gptexport.export.sdpa import attention_as_onnx_has_it
from gptexport.recipe import DEFAULT_OPSET
from gptexport_runtime.contract.names import AXIS_B, AXIS_T, INPUT_IDS, LOGITS

NOISY_LOGGERS = ("torch.onnx._internal.exporter._registration", "onnx_ir.passes.common.initializer_deduplication")

# The operations whose count must survive the trace, with the opset since when ONNX has them whole.
WHOLE_OPS = {
    "scaled_dot_product_attention": ("Attention", 23),
    "layer_norm": ("LayerNormalization", 17),
    "gelu": ("Gelu", 20),
}


FEW = 64  # integers or booleans that belong to the structure


@dataclass(frozen=True)
class Trace:
    """The structure and the weights of a model, apart: passes over the graph can neither fold nor keep a weight."""

    model: ir.Model  # initializers that are weights have no value in here
    weights: dict[str, torch.Tensor]  # by initializer; the model's own tensors, not copies
    expected: dict[str, int]  # how many of each WHOLE_OPS node the PyTorch program promises
    longest: int  # the T up to which torch.export vouches for the graph: block_size, or one less
    audit: Audit = field(default_factory=dict)  # of what was made of this graph since
    by_hand: list[str] = field(default_factory=list)  # why attention that is written by hand is not one node

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    @property
    def weight_bytes(self) -> int:
        """Those that share memory count once, as they are stored."""
        sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in self.weights.values()}
        return sum(sizes.values())


class _Float32Logits(nn.Module):
    """Logits leave the graph as float32, whatever dtype the weights have: numpy has no bfloat16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids)
        return logits.float()


def trace_logits(model: nn.Module, *, block_size: int, opset: int = DEFAULT_OPSET) -> Trace:
    """Trace `model.forward(idx (B,T) int64) -> (B,T,V)` to a graph input_ids -> logits with axes named B and T.

    Raises:
        ExportError: the forward fixes B or T, cannot be traced, or ONNX lacks one of its operations.
    """
    if block_size < 2:
        raise ExportError(f"block_size is {block_size}; a graph with a dynamic T needs at least 2.")
    _check_runs(model, _example(block_size))
    with _quiet_exporter():
        program, longest = _export_program(_Float32Logits(model).eval(), block_size)
        say_grouped_queries(program)
        keep_float32_numbers(program)
        try:
            onnx_program = torch.onnx.export(
                program,
                opset_version=opset,
                dynamo=True,
                input_names=[INPUT_IDS],
                output_names=[LOGITS],
                optimize=False,  # torch's own optimization folds Transpose(weight), and so stores tied weights twice
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"the traced model cannot be written at opset {opset}: {_reason(error)}") from error
        assert onnx_program is not None
        weights = _take_weights(onnx_program.model.graph)
        made = onnx_program.model.clone()  # the exporter's own keeps weights that it merged, out of sight
        with redirect_stdout(StringIO()):  # onnxscript 0.6 prints how much it rewrote
            onnxscript.optimizer.optimize_ir(made)
    _name_axes(made.graph)
    weights = {name: tensor for name, tensor in weights.items() if name in made.graph.initializers}
    return Trace(made, weights, _promised(program, opset), longest)


def _export_program(model: nn.Module, block_size: int) -> tuple[torch.export.ExportedProgram, int]:
    """The program, and the longest T that torch.export vouches for.

    A mask that is cut to `mask[:T, :T]`, as in the lecture, is its own special case to PyTorch where the cut cuts
    nothing, at T = block_size: torch.export then refuses that one length. The graph has no special case, so trace
    without that length; the caller must check there.
    """
    try:
        return _export_up_to(model, block_size), block_size
    except Exception as error:
        reason = _reason(error)
        if block_size > 2 and _is_cut(reason, block_size):
            return _export_up_to(model, block_size - 1), block_size - 1
        fixed = re.search(r"marked (B|T) as dynamic but your code specialized it to be a constant \((\d+)\)", reason)
        if fixed and (
            steps := sorted({type(part).__name__ for part in model.modules() if isinstance(part, nn.RNNBase)})
        ):
            raise ExportError(
                f"the forward has {' and '.join(steps)}, a state that is computed one position after the other, which "
                "cannot be traced with a dynamic T. Only forwards that treat all positions at once, as attention does, "
                "are exported."
            ) from error
        if fixed:
            axis, value = fixed.groups()
            raise ExportError(
                f"the forward fixes {axis} to {value} while it is traced, so the graph would run at that size alone. "
                f"Take {axis} from idx.shape inside forward, and neither convert it to a Python number, nor compare "
                "it, nor loop over it in Python."
            ) from error
        raise ExportError(
            "the forward cannot be traced with dynamic B and T. Common causes: control flow that depends on values "
            f"or on T, .item(), or a buffer of fixed length. torch.export says: {reason}"
        ) from error


def _check_runs(model: nn.Module, example: torch.Tensor) -> None:
    """Raise ExportError where forward does not run with its weights as they are, which tracers do not always notice."""
    try:
        with torch.no_grad():
            model(example)
    except Exception as error:  # whatever a user's module raises
        dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in model.parameters()})
        raise ExportError(
            f"the forward does not run with weights in {' and '.join(dtypes)}: {_reason(error)}. Cast what it computes "
            "by itself, positions for example, to the dtype of what they meet: cos.to(x.dtype); or export in float32."
        ) from error


def _is_cut(reason: str, block_size: int) -> bool:
    """Whether torch.export asks for T, or for as many rows of so many numbers, to be other than at block_size."""
    size = rf"L\['{INPUT_IDS}'\]\.size\(\)\[1\]"
    guard = re.search(rf"generated guard \(?(?:(\d+)\*)?{size}\)? != (\d+)", reason)
    return guard is not None and int(guard[1] or 1) * block_size == int(guard[2])


def _example(longest: int) -> torch.Tensor:
    return torch.zeros(2, min(7, longest), dtype=torch.long)


def _export_up_to(model: nn.Module, longest: int) -> torch.export.ExportedProgram:
    B = torch.export.Dim(AXIS_B, min=1)
    T = torch.export.Dim(AXIS_T, min=1, max=longest)
    example = _example(longest)
    with torch.no_grad(), mask_as_given(), attention_as_onnx_has_it():
        return torch.export.export(model, (example,), dynamic_shapes={INPUT_IDS: {0: B, 1: T}}, strict=False)


def _take_weights(graph: ir.Graph) -> dict[str, torch.Tensor]:
    """Part the weights from the structure. The exporter's own constants, shape arithmetic, stay in the graph.

    Two reasons: constant folding would store Transpose(weight) as a second copy under another name, and
    onnxscript's rewrite rules keep the last graph they saw for ever, with all that it holds. A few integers, such as
    the list of `x[:, [0, -1]]`, stay as well: shape inference wants to read them, and reads no other file.
    """
    weights = {}
    for name, value in graph.initializers.items():
        raw = getattr(value.const_value, "raw", None)
        if isinstance(raw, torch.Tensor) and (raw.is_floating_point() or raw.is_complex() or raw.numel() > FEW):
            weights[name] = raw.detach()
            value.const_value = None
    return weights


def _name_axes(graph: ir.Graph) -> None:
    """Give the dynamic axes their contract names, everywhere; the exporter calls them s95 or so."""
    (input_ids,) = graph.inputs
    assert input_ids.shape is not None
    names: dict[str, str] = {}
    for dim, axis in zip(input_ids.shape, (AXIS_B, AXIS_T), strict=True):
        if not isinstance(dim, ir.SymbolicDim) or dim.value is None:
            raise ExportError(f"the exporter fixed {axis} to {dim} silently; the graph would run at that size alone.")
        names[dim.value] = axis
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in _values(graph):
        if value.shape is not None:
            value.shape = ir.Shape(
                pattern.sub(lambda match: names[match.group()], dim.value)
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None
                else dim
                for dim in value.shape
            )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _promised(program: torch.export.ExportedProgram, opset: int) -> dict[str, int]:
    called = Counter(
        str(node.target).split(".")[1] for node in program.graph.nodes if str(node.target).startswith("aten.")
    )
    return {onnx_op: called[aten_op] for aten_op, (onnx_op, since) in WHOLE_OPS.items() if opset >= since}


def _reason(error: BaseException) -> str:
    """The first telling lines of an exporter's error, which may run to pages, without paths of the machine."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip() and "File " not in line]
    return f"{type(root).__name__}: " + " ".join(lines[:6])[:600]


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Hide the exporter's notes about itself, such as that torchvision is not installed: a user cannot act on them."""
    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "The tensor attributes? .* assigned during export")  # of an LSTM, say
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
