"""For onnxruntime-genai, beside a bundle: its `decode` graph behind the inputs that are filled there, and a config.

onnxruntime-genai has no input for how many tokens a row's cache holds, and none for how many of the new ones are real.
Both follow from the two that it has: position_ids (B,T), where each new token stands, and attention_mask (B,n), which
is 1 for each of the n tokens so far that is not padding. Everything behind them is the graph `decode` as it was written
and checked, over the same file of weights; the cache keeps its names, which the config tells.

It also insists on an id that ends a text. Where a checkpoint names none, every id is a token like others, so the graph
has one more than the model, V, whose logit is minus infinity: it is never chosen, and a text goes on to the end.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from gptexport.errors import ExportError
from gptexport.export.irtools import constant
from gptexport.precision import Precision
from gptexport.staging import write_file
from gptexport_runtime.contract.heads import DECODE
from gptexport_runtime.contract.manifest import Manifest
from gptexport_runtime.contract.names import (
    AXIS_B,
    AXIS_T,
    GENAI_CONFIG_FILE,
    GENAI_FILE,
    INPUT_IDS,
    LENGTHS,
    LOGITS,
    PAST_LENGTHS,
    past_names,
    present_names,
)
from gptexport_runtime.inputs import PADDING_ID

ATTENTION_MASK, POSITION_IDS = "attention_mask", "position_ids"  # as onnxruntime-genai has them
AXIS_HELD = "held"  # the tokens of a row so far, the new ones among them
NO_TOKEN = -1  # pads where the checkpoint names no id for it: no id of a text, so none is taken for padding

Array = NDArray[Any]


def write_genai(folder: Path, manifest: Manifest, precision: Precision) -> None:
    """Write the graph and the config beside a bundle's `decode`, and run both graphs.

    Raises:
        ExportError: the graph does not run, or does not compute what `decode` does.
    """
    ends = _ends(manifest)
    model = behind_masks(ir.load(folder / DECODE.file), one_more=not ends)
    data = ir.to_proto(model).SerializeToString(deterministic=True)
    write_file(folder / GENAI_FILE, data)
    onnx.checker.check_model(str(folder / GENAI_FILE), full_check=True)
    config = config_of(model.graph, manifest, ends)
    write_file(folder / GENAI_CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
    _check(folder, manifest, precision)


def _ends(manifest: Manifest) -> list[int]:
    """The ids that end a text: those that the checkpoint names, and those that may be predicted and cannot go in."""
    V = manifest.info.vocab_size
    return sorted({i for i in manifest.text.eos_token_ids if i < V} | {*range(manifest.info.predicted_ids, V)})


def behind_masks(model: ir.Model, *, one_more: bool) -> ir.Model:
    """A `decode` graph, in place, with other inputs: attention_mask and position_ids for both kinds of lengths.

    input_ids (B,T), attention_mask (B,n), position_ids (B,T) int64 and the cache -> logits (B,1,V) of each row's last
    real token and the cache. Rows are padded on the right.

    Args:
        one_more: logits are (B,1,V+1), the last of them minus infinity.
    """
    graph, tape = model.graph, Tape()
    ids, lengths, past_lengths, *cache = graph.inputs
    assert [ids.name, lengths.name, past_lengths.name] == [INPUT_IDS, LENGTHS, PAST_LENGTHS]
    kind = ir.TensorType(ir.DataType.INT64)
    mask = ir.Value(name=ATTENTION_MASK, type=kind, shape=ir.Shape([AXIS_B, AXIS_HELD]))
    positions = ir.Value(name=POSITION_IDS, type=kind, shape=ir.Shape([AXIS_B, AXIS_T]))
    first = tape.op("Gather", [positions, constant(tape, 0)], {"axis": 1})  # (B): what the cache holds of a row
    held = tape.op("ReduceSum", [mask, constant(tape, [1])], {"keepdims": 0})
    new = tape.op("Sub", [held, first])
    readers = list(ids.uses())
    # NO_TOKEN becomes the id that a session pads with: int8 rounds all rows together
    known = tape.op("Max", [ids, constant(tape, PADDING_ID)])
    known.type, known.shape = ids.type, ids.shape
    for use in readers:
        use.node.replace_input_with(use.idx, known)
    for old, made in ((past_lengths, first), (lengths, new)):
        made.type, made.shape = old.type, old.shape
        old.replace_all_uses_with(made)
    graph.insert_before(graph[0], tape.nodes)
    graph.inputs[:] = [ids, mask, positions, *cache]
    graph.outputs[0] = _with_axis(graph, graph.outputs[0], one_more)
    return model


def _with_axis(graph: ir.Graph, logits: ir.Value, one_more: bool) -> ir.Value:
    """Logits (B,V) as (B,1,V), by which onnxruntime-genai knows that they are of the last token alone."""
    assert logits.shape is not None and logits.dtype is not None
    V = int(str(logits.shape[1])) + one_more
    tape = Tape()
    out = tape.op("Unsqueeze", [logits, constant(tape, [1])])
    if one_more:
        ends = constant(tape, [0, 0, 0, 0, 0, 1])  # before and after each axis
        never = tape.op("Constant", [], {"value": ir.tensor(np.array(-np.inf, logits.dtype.numpy()))})
        out = tape.op("Pad", [out, ends, never])
    out.type, out.shape = logits.type, ir.Shape([logits.shape[0], 1, V])
    logits.name, out.name = f"{LOGITS}.flat", LOGITS
    graph.extend(tape.nodes)
    return out


def config_of(graph: ir.Graph, manifest: Manifest, ends: list[int]) -> dict[str, Any]:
    """genai_config.json: the graph's names and sizes, the ids that end a text, and greedy search unless it is told."""
    cache, logits = graph.inputs[3], graph.outputs[0]
    assert cache.shape is not None and logits.shape is not None
    past_key, past_value = (_numbered(name) for name in past_names(0))
    present_key, present_value = (_numbered(name) for name in present_names(0))
    text, info = manifest.text, manifest.info
    begins = {"bos_token_id": text.bos_token_id} if text.bos_token_id is not None else {}
    return {
        "model": {
            "type": "decoder",
            **begins,
            "eos_token_id": ends or [info.vocab_size],
            "pad_token_id": NO_TOKEN if text.pad_token_id is None else text.pad_token_id,
            "vocab_size": logits.shape[2],
            "context_length": info.block_size,
            "decoder": {
                "filename": GENAI_FILE,
                "session_options": {"provider_options": []},
                "num_hidden_layers": (len(graph.inputs) - 3) // 2,
                "num_key_value_heads": cache.shape[1],
                "head_size": cache.shape[3],
                "inputs": {
                    "input_ids": INPUT_IDS,
                    "attention_mask": ATTENTION_MASK,
                    "position_ids": POSITION_IDS,
                    "past_key_names": past_key,
                    "past_value_names": past_value,
                },
                "outputs": {"logits": LOGITS, "present_key_names": present_key, "present_value_names": present_value},
            },
        },
        # the graph writes into its cache, so past and present are one buffer of max_length tokens
        "search": {"do_sample": False, "max_length": info.block_size, "past_present_share_buffer": True},
    }


def _numbered(name: str) -> str:
    """`past_key_0` -> `past_key_%d`."""
    return f"{name.removesuffix('0')}%d"


def _check(folder: Path, manifest: Manifest, precision: Precision) -> None:
    """A prompt of two rows of unequal lengths and a step, by both graphs: each row's logits.

    Raises:
        ExportError: they are not the same.
    """
    V, longest = manifest.info.vocab_size, manifest.info.block_size
    assert longest is not None  # an export's manifest says it
    T = min(5, longest)
    prompt = np.random.default_rng(0).integers(0, manifest.info.predicted_ids, (2, T))
    lengths = np.array([T, (T + 1) // 2])
    calls = [(prompt, lengths, np.zeros_like(lengths))]
    if longest > T:
        calls.append((prompt[:, :1], np.ones_like(lengths), lengths))
    expected = _run(folder / DECODE.file, [dict(zip(_OURS, call, strict=True)) for call in calls], T + 1)
    got = _run(folder / GENAI_FILE, [_theirs(*call) for call in calls], T + 1)
    worst = max(
        float(np.sqrt(np.mean((one[:, 0, :V] - other) ** 2) / np.mean(other**2)))
        for one, other in zip(got, expected, strict=True)
    )
    if not worst <= precision.max_relative_rms:
        raise ExportError(
            f"{GENAI_FILE} differs from {DECODE.file} by {worst:.1e} relative RMS; expected at most "
            f"{precision.max_relative_rms:.0e}. {_BUG}"
        )


_OURS = (INPUT_IDS, LENGTHS, PAST_LENGTHS)


def _theirs(ids: Array, lengths: Array, past_lengths: Array) -> dict[str, Array]:
    """The inputs that onnxruntime-genai has for the same call. Positions of padding are 0, as it has them."""
    new = np.arange(ids.shape[1])
    real = new < lengths[:, None]
    held = np.arange(past_lengths.max() + ids.shape[1]) < (past_lengths + lengths)[:, None]
    positions = np.where(real, past_lengths[:, None] + new, 0)
    return {INPUT_IDS: ids, ATTENTION_MASK: held.astype(np.int64), POSITION_IDS: positions}


def _run(path: Path, calls: Sequence[dict[str, Array]], S: int) -> list[Array]:
    """The logits of calls that continue one another, in a cache of S tokens.

    Raises:
        ExportError: it does not run.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")  # memory, and speed does not matter here
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    cache = {
        value.name: np.zeros((2, value.shape[1], S, value.shape[3]), _TYPES[value.type])
        for value in session.get_inputs()[3:]
    }
    logits = []
    for call in calls:
        try:
            found, *present = session.run(None, {**call, **cache})
        except Exception as error:  # ONNX Runtime's have no class in common
            raise ExportError(f"{path.name} does not run: {error}. {_BUG}") from error
        cache = dict(zip(cache, present, strict=True))
        logits.append(found.astype(np.float64))
    return logits


_BUG = "This is a bug in gptexport: please report it."
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
