"""An `onnxruntime.InferenceSession` of a file, which runs where it was asked to and nowhere else."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from gptexport_runtime.backends.forked import keep_in_child
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.package import SILENT, first_line, import_onnxruntime
from gptexport_runtime.backends.ort.providers.provider import Provider
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError

# ONNX Runtime 1.31.1 crashes in it (SIGSEGV) on some graphs in float16; it has nothing to do for a graph without them.
FOR_CONVOLUTIONS = ["NchwcTransformer"]


def open_session(
    model: Path | bytes,
    provider: Provider,
    options: OpenOptions,
    *,
    path: Path | None = None,
    optimize: bool = True,
    plan: bool = True,
    captures: bool = False,
) -> Any:
    """Open a graph: an `onnxruntime.InferenceSession`, or what the provider opens in place of one.

    Args:
        model: the file; or the graph itself, whose weights lie in files beside `path`.
        path: names the graph in errors, and the folder of its weights; None: `model`.
        optimize: fuse and reorder nodes; False: each runs as it is written.
        plan: of the activations' memory: one block, which is kept.
        captures: CUDA graphs will be captured.

    Raises:
        BackendUnavailableError: it cannot run there.
        ArtifactError: the file is damaged, or its external data is missing.
    """
    if provider.open is not None:
        return provider.open(model, options, path)
    ort = import_onnxruntime()
    session_options = ort.SessionOptions()
    session_options.log_severity_level = SILENT
    session_options.intra_op_num_threads = 1 if provider.whole else options.threads or provider.threads()
    session_options.enable_mem_pattern = plan
    entries = dict(provider.entries(options))
    if provider.whole:
        entries["session.record_ep_graph_assignment_info"] = "1"
    if not optimize or provider.whole:
        session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not options.prepack:
        entries["session.disable_prepacking"] = "1"
    if not options.spin:
        entries["session.intra_op.allow_spinning"] = "0"
    if isinstance(model, bytes):
        assert path is not None, "the weights' folder"
        entries["session.model_external_initializers_file_folder_path"] = str(path.parent.resolve())
        source: str | bytes = model
    else:
        # by path, not by bytes: the weights are then mapped into memory, not copied
        path, source = path or model, str(model)
    for key, value in entries.items():
        session_options.add_session_config_entry(key, value)
    arguments = provider.attach(ort, session_options, provider.options(options, captures))
    try:
        session = ort.InferenceSession(
            source, session_options, **arguments, disabled_optimizers=FOR_CONVOLUTIONS, enable_fallback=0
        )
    except Exception as error:
        raise _load_error(ort, path, provider, error) from error
    keep_in_child(session)
    session.disable_fallback()  # a run that fails on CUDA would be repeated on the CPU
    if provider.name not in session.get_providers():
        raise BackendUnavailableError(
            f"{path} did not open on {provider}: ONNX Runtime took {', '.join(session.get_providers())} instead."
        )
    if provider.whole:
        _check_whole(session, path, provider)
    return session


def _check_whole(session: Any, path: Path, provider: Provider) -> None:
    """A graph in pieces runs, but each border costs copies and what a compiler could have joined.

    Raises:
        BackendUnavailableError: the provider has not taken every node, as one piece.
    """
    pieces = session.get_provider_graph_assignment_info()
    if [piece.ep_name for piece in pieces] == [provider.name]:
        return
    left = {node.op_type for piece in pieces if piece.ep_name != provider.name for node in piece.get_nodes()}
    raise BackendUnavailableError(
        f"{path} fell into {len(pieces)} pieces on {provider}, which does not take "
        f"{', '.join(sorted(left)) or 'it as one'}. Export it for this provider: "
        f"gptexport onnx CHECKPOINT -o FOLDER --target {provider}."
    )


def _load_error(
    ort: types.ModuleType, path: Path, provider: Provider, error: Exception
) -> ArtifactError | BackendUnavailableError:
    """Our error for what `InferenceSession` raised, distinguished by its name and text: it has nothing better."""
    text = first_line(error)
    if type(error).__name__ == "NotImplemented":
        return BackendUnavailableError(f"onnxruntime {ort.__version__} cannot run {path} on {provider}: {text}")
    if "graph capture" in text:
        return BackendUnavailableError(f"{path} cannot be captured as CUDA graphs, which were asked for: {text}")
    if "allocate memory" in text or "out of memory" in text.lower():
        return BackendUnavailableError(f"{path} does not fit into the memory of {provider}: {text}")
    if "External data path" in text:
        advice = "Its external data must lie beside it, under the name it was exported with."
    elif "opset" in text.lower() or "IR version" in text:
        advice = f"onnxruntime {ort.__version__} may be too old for it: upgrade, or export with a lower --opset."
    else:
        advice = "It is damaged or not an ONNX graph: copy it again, or export again."
    return ArtifactError(f"{path} does not load: {text}. {advice}")
