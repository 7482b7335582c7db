"""Write a model repository: a folder for each graph, and one that generates.

    REPO/gpt_logits/config.pbtxt  1/model.onnx/{model.onnx,weights.data}  likewise gpt_last, gpt_score
    REPO/gpt_logits/config.pbtxt  1/model.plan                              of an engine
    REPO/gpt_generate/config.pbtxt  1/model.py  1/bundle/                   Triton's Python backend around the runtime

What a graph takes and gives is read from the graph, so that a head or a precision needs nothing here.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptexport.artifacts import Artifact, describe_artifact
from gptexport.staging import staged
from gptexport.triton.ids import refuse_wrong_ids
from gptexport.triton.text_format import Enum, Value, text_format
from gptexport_runtime.artifact import ENGINE_SUFFIX, GRAPH_SUFFIX
from gptexport_runtime.backends.ort.providers import AUTO
from gptexport_runtime.contract.heads import DECODE, Head
from gptexport_runtime.contract.names import AXIS_V, INPUT_IDS, MANIFEST_FILE
from gptexport_runtime.errors import InputError, shown

NAME = re.compile(r"[A-Za-z0-9_-]+")
CONFIG, VERSION = "config.pbtxt", "1"
GENERATE = "generate"
SERVED_AS = {GRAPH_SUFFIX: ("onnxruntime_onnx", "model.onnx"), ENGINE_SUFFIX: ("tensorrt_plan", "model.plan")}
KINDS = {"cpu": "KIND_CPU"}  # of instances, by device; any other is a GPU
TYPES = {1: "TYPE_FP32", 7: "TYPE_INT64", 10: "TYPE_FP16", 16: "TYPE_BF16"}  # by onnx.TensorProto's number


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How the models are served."""

    name: str = "gpt"  # every model's name begins with it
    max_batch: int = 8  # rows
    buckets: Sequence[int] = ()  # lengths that clients pad to; empty: block_size, and halves of it down to 16
    queue_delay: int = 1000  # microseconds that a request may wait for others to be batched with
    instances: int = 1  # of each model
    streams: int = 4  # texts that an instance generates at once
    response_cache: bool = False
    device: str = AUTO  # AUTO: the artifact's own


def write_repository(path: Path, out: Path, serving: Serving) -> dict[str, str]:
    """Write a repository of an artifact.

    Returns: by model, its config.pbtxt.

    Raises:
        InputError: a number or the name is not as expected.
        ArtifactError: the artifact is damaged.
        OutputError: it cannot be written, or is there.
    """
    artifact = describe_artifact(path)
    block_size = artifact.model.get("block_size")
    if not isinstance(block_size, int):
        raise InputError(f"{path} does not tell its block_size. Export it as a bundle.")
    if not NAME.fullmatch(serving.name):
        raise InputError(f"name is {shown(serving.name)}; expected letters, digits, - and _.")
    buckets = _buckets(serving, block_size)
    configs: dict[str, str] = {}
    with staged(out, force=False) as made:
        for head in artifact.heads:
            if not head.cached:
                folder = made / f"{serving.name}_{head.name}"
                configs[folder.name] = _write(folder, _graph_config(folder.name, artifact, head, serving, buckets))
                _copy_graph(artifact, head, folder / VERSION)
        if DECODE in artifact.heads:
            folder = made / f"{serving.name}_{GENERATE}"
            configs[folder.name] = _write(folder, _generate_config(folder.name, artifact, serving, block_size))
            shutil.copyfile(Path(__file__).with_name("model.py"), folder / VERSION / "model.py")
            _copy_bundle(artifact, folder / VERSION / "bundle")
    return configs


def _buckets(serving: Serving, block_size: int) -> list[int]:
    found = list(serving.buckets)
    while not serving.buckets and (not found or found[-1] // 2 >= 16):
        found.append(found[-1] // 2 if found else block_size)
    wrong = next((T for T in found if not 1 <= T <= block_size), None)
    if wrong is not None:
        raise InputError(f"a bucket is {wrong}; expected a length from 1 to the model's block_size, {block_size}.")
    return sorted(set(found))


def _write(folder: Path, config: dict[str, Value]) -> str:
    (folder / VERSION).mkdir(parents=True)
    text = text_format(config)
    (folder / CONFIG).write_text(text)
    return text


def _graph_config(name: str, artifact: Artifact, head: Head, serving: Serving, buckets: list[int]) -> dict[str, Value]:
    """Of a graph that Triton runs by itself."""
    most = next((B for B in range(serving.max_batch, 0, -1) if artifact.accepts(B, buckets[-1])), 1)
    inputs, outputs = _tensors(artifact, head)
    config: dict[str, Value] = {"name": name, "platform": _served_as(artifact)[0], "max_batch_size": most}
    config |= {"input": inputs, "output": outputs, "instance_group": [_instances(artifact, serving)]}
    config |= {"dynamic_batching": {"max_queue_delay_microseconds": serving.queue_delay}}
    config |= {"version_policy": {"latest": {"num_versions": 1}}}
    config |= {"response_cache": {"enable": True}} if serving.response_cache else {}
    warm_up = [_warm_up(T, most if buckets[-1] == T else 1, inputs) for T in buckets if artifact.accepts(1, T)]
    said = {"block_size": artifact.model["block_size"], "vocab_size": artifact.model["vocab_size"]}
    said["buckets"] = ",".join(map(str, buckets))
    return {**config, "model_warmup": warm_up, "parameters": _parameters(said)}


def _tensors(artifact: Artifact, head: Head) -> tuple[list[dict[str, Value]], list[dict[str, Value]]]:
    """What the graph takes and gives, without the batch; an engine's is that of the graph it was built from."""
    import onnx

    signature = head.signature
    types = dict.fromkeys(signature.inputs, onnx.TensorProto.INT64) | {signature.output: onnx.TensorProto.FLOAT}
    V = int(str(artifact.model["vocab_size"]))
    sizes: dict[str, list[int]] = {
        **{name: [-1] * (len(axes) - 1) for name, axes in signature.inputs.items()},
        signature.output: [V if axis == AXIS_V else -1 for axis in signature.output_axes[1:]],
    }
    file = _file(artifact, head)
    if file.suffix == GRAPH_SUFFIX:
        graph = onnx.load(file, load_external_data=False).graph
        for tensor in [*graph.input, *graph.output]:
            types[tensor.name] = tensor.type.tensor_type.elem_type
            sizes[tensor.name] = [d.dim_value or -1 for d in tensor.type.tensor_type.shape.dim[1:]]
    return [_tensor(name, types, sizes) for name in signature.inputs], [_tensor(signature.output, types, sizes)]


def _tensor(name: str, types: dict[str, Any], sizes: dict[str, list[int]]) -> dict[str, Value]:
    """A number for each row is a row of one number to Triton, and is reshaped."""
    said: dict[str, Value] = {"name": name, "data_type": Enum(TYPES[int(types[name])]), "dims": sizes[name] or [1]}
    return said if sizes[name] else {**said, "reshape": {"shape": []}}


def _instances(artifact: Artifact, serving: Serving) -> dict[str, Value]:
    device = artifact.device if serving.device == AUTO else serving.device
    return {"count": serving.instances, "kind": Enum(KINDS.get(device, "KIND_GPU"))}


def _warm_up(T: int, B: int, inputs: list[dict[str, Value]]) -> dict[str, Value]:
    fed = [
        {
            "key": item["name"],
            "value": {
                "data_type": item["data_type"],
                "dims": [T] if item["name"] == INPUT_IDS else [1],
                "zero_data": True,
            },
        }
        for item in inputs
    ]
    return {"name": f"{B}x{T}", "batch_size": B, "inputs": fed}


def _parameters(said: dict[str, Any]) -> list[dict[str, Value]]:
    return [{"key": key, "value": {"string_value": str(value)}} for key, value in said.items()]


def _generate_config(name: str, artifact: Artifact, serving: Serving, block_size: int) -> dict[str, Value]:
    """Of the model in model.py: one text a request, and a response for each token."""
    numbers = {"max_new_tokens": "TYPE_INT64", "temperature": "TYPE_FP32", "top_k": "TYPE_INT64", "top_p": "TYPE_FP32"}
    numbers |= {"min_p": "TYPE_FP32", "repetition_penalty": "TYPE_FP32", "seed": "TYPE_INT64"}
    optional: list[Value] = [
        {"name": option, "data_type": Enum(kind), "dims": [1], "optional": True} for option, kind in numbers.items()
    ]
    stop: Value = {"name": "stop", "data_type": Enum("TYPE_INT64"), "dims": [-1], "optional": True}
    ids: Value = {"name": INPUT_IDS, "data_type": Enum("TYPE_INT64"), "dims": [-1]}
    device = artifact.device if serving.device == AUTO else serving.device
    said = {"device": device, "streams": serving.streams, "block_size": block_size}
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "model_transaction_policy": {"decoupled": True},
        "input": [ids, *optional, stop],
        "output": [{"name": "token", "data_type": Enum("TYPE_INT64"), "dims": [1]}],
        "instance_group": [{"count": serving.instances, "kind": Enum("KIND_CPU")}],  # the runtime chooses the device
        "version_policy": {"latest": {"num_versions": 1}},
        "parameters": _parameters(said),
    }


def _copy_graph(artifact: Artifact, head: Head, folder: Path) -> None:
    """A graph whose weights are in a file of their own is a folder to Triton."""
    file, (_, name) = _file(artifact, head), _served_as(artifact)
    weights = _weights_of(file) if file.suffix == GRAPH_SUFFIX else []
    place = folder / name
    if weights:
        place.mkdir()
        place = place / name
    shutil.copyfile(file, place)
    for data in weights:
        shutil.copyfile(data, place.parent / data.name)
    if file.suffix == GRAPH_SUFFIX:
        model = artifact.model
        refuse_wrong_ids(place, int(str(model.get("input_vocab_size", model["vocab_size"]))))


def _served_as(artifact: Artifact) -> tuple[str, str]:
    """Triton's platform, and its name for the file."""
    return SERVED_AS.get(artifact.path.suffix, SERVED_AS[GRAPH_SUFFIX])


def _file(artifact: Artifact, head: Head) -> Path:
    return artifact.path / head.file if artifact.path.is_dir() else artifact.path


def _copy_bundle(artifact: Artifact, folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(artifact.path / MANIFEST_FILE, folder / MANIFEST_FILE)
    files = [_file(artifact, head) for head in artifact.heads]
    for file in [*files, *_weights_of(files[0])]:
        shutil.copyfile(file, folder / file.name)


def _weights_of(graph: Path) -> list[Path]:
    """The files beside a graph that hold its weights. They are copied: neither onnx nor ONNX Runtime opens links."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    return [
        graph.parent / name for name in sorted({ExternalDataInfo(t).location for t in tensors if uses_external_data(t)})
    ]
