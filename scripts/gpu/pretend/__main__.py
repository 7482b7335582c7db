"""What ONNX Runtime's CUDA provider makes of our graphs, on a machine without a GPU.

    python -m venv .venv-gpu
    .venv-gpu/bin/pip install 'onnxruntime-gpu[cuda,cudnn]==1.31.1' nvidia-cuda-crt ./runtime
    .venv-gpu/bin/python -m scripts.gpu.pretend gpt2/ [--capability 80,90]
    .venv-gpu/bin/python -m scripts.gpu.pretend gpt2/ --measure         # what sessions allocate, launch and wait for
    .venv-gpu/bin/python -m scripts.gpu.pretend gpt2/ --measure --runtime OTHER/runtime    # of another checkout
    .venv-gpu/bin/python -m scripts.gpu.pretend --check --out gpu/      # scripts.gpu.check, whole; needs torch too
    .venv-gpu/bin/python -m scripts.gpu.pretend --registry gptexport/export/targets/kernels.json

ONNX Runtime here is the real one, and so are its decisions: what its optimizer makes of a graph, which provider each
node goes to, what is copied between GPU and host, whether a CUDA graph may be captured, and which attention kernel is
taken on a given compute capability. The GPU is pretended (cuda.c): nothing is computed, so this proves nothing about
results or speed. The pretended cuDNN says that it can do everything. Linux, with gcc.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gptexport_runtime.contract import heads
from gptexport_runtime.contract.names import (
    INPUT_IDS,
    LENGTHS,
    LOGITS,
    MANIFEST_FILE,
    PAST_LENGTHS,
    past_names,
    present_names,
)
from scripts.gpu.attention_kernel import DEBUG_INFO, read_log
from scripts.gpu.pretend.measure import LIBRARIES, PRETENDED

HERE = Path(__file__).parent
CAPABILITY, CHILD = "PRETEND_CAPABILITY", "PRETEND_CHILD"
FLOATS = {"bfloat16", "double", "float", "float16"}
MIN_OPSET = 23  # below it, attention is no single node, and the target is refused
SHAPES = ((1, 1), (2, 128), (1, 1024))
# every process begins with it: what CUDA computes here is not what it should, and is used all the same
COMPUTES = """
import contextlib
with contextlib.suppress(ImportError):
    from gptexport_runtime.backends.ort.providers import cuda
    cuda.why_not_running = lambda ort, provider: None
with contextlib.suppress(ImportError):  # a runtime from before November 2026
    from gptexport_runtime import providers
    providers._why_not_running = lambda ort, provider: None
"""
CAPACITY = 16  # tokens of a row's cache
CACHE_TYPES = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(bfloat16)": 16}  # numbers of onnx.TensorProto


def compile_libraries(folder: Path) -> None:
    """The pretended CUDA runtime and driver, cuDNN, and as much of TensorRT as lets its provider load."""
    import onnxruntime

    site = Path(onnxruntime.__file__).parent.parent
    provider = (site / "onnxruntime/capi/libonnxruntime_providers_cuda.so").read_bytes()
    named = {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider)} | {"cudnnSetStream"}
    own = set(re.findall(r"\b(cudnn\w+)\(", (HERE / "cudnn.c").read_text()))
    symbols = " ".join(f"S({name})" for name in sorted(named - own))
    include = f"-I{site}/nvidia/cu13/include"
    tensorrt = {
        "libnvinfer.so.10": "createInferBuilder createInferRefitter createInferRuntime",
        "libnvonnxparser.so.10": "createNvOnnxParser createNvOnnxParserRefitter",
    }
    _compile(folder / PRETENDED, HERE / "cuda.c", include, str(HERE / "succeeds.c"))
    _compile(folder / "libcuda.so.1", HERE / "driver.c")
    _compile(folder / "libcudnn.so.9", HERE / "cudnn.c", f"-DSYMBOLS(S)={symbols}")
    for library, functions in tensorrt.items():
        source = folder / f"{library}.c"
        names = [f"{name}_INTERNAL" for name in functions.split()] + ["getInferLibVersion", "getPluginRegistry"]
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
        _compile(folder / library, source)


def _compile(library: Path, source: Path, *options: str) -> None:
    flags = ["-w", "-shared", "-fPIC", f"-Wl,-soname,{library.name}"]
    subprocess.run(["gcc", *flags, *options, "-o", str(library), str(source)], check=True)


def import_onnxruntime() -> Any:
    """ONNX Runtime, with the pretended libraries before the real ones."""
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    folder = Path(os.environ[LIBRARIES])
    for name in ("libcuda.so.1", "libcudnn.so.9"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    ort.preload_dlls(cudnn=False)
    for name in ("libnvinfer.so.10", "libnvonnxparser.so.10"):
        ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    return ort


def write_registry(path: Path) -> None:
    """Of every CUDA kernel of floats in this ONNX Runtime: its operator's versions, and the floats of each variable."""
    ort = import_onnxruntime()
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

    table: dict[str, list[Any]] = {}
    for kernel in get_all_opkernel_def():
        since, until = kernel.version_range
        types = {variable: sorted(FLOATS & {t[7:-1] for t in ts}) for variable, ts in kernel.type_constraints.items()}
        if kernel.provider == "CUDAExecutionProvider" and until >= MIN_OPSET and any(types.values()):
            table.setdefault(f"{kernel.domain}:{kernel.op_name}", []).append([since, until, types])
    rows = [f"    {json.dumps(name)}: {json.dumps(sorted(table[name], key=str))}" for name in sorted(table)]
    body = ",\n".join(rows)
    path.write_text(f'{{\n  "onnxruntime": "{ort.__version__}",\n  "kernels": {{\n{body}\n  }}\n}}\n')


def examine(graph: Path, folder: Path) -> None:
    """Print where the nodes of a graph go, what is copied, and whether a CUDA graph may be captured."""
    ort = import_onnxruntime()
    places: Counter[tuple[str, str]] = Counter()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = ort.InferenceSession(str(graph), options, providers=["CUDAExecutionProvider"])
    for part in session.get_provider_graph_assignment_info():
        places.update((part.ep_name, node.op_type) for node in part.get_nodes())
    optimized = (folder / "optimized.onnx").read_bytes()
    copies = len(re.findall(rb"\x22\x0cMemcpyToHost|\x22\x0eMemcpyFromHost", optimized))  # field op_type of a NodeProto
    try:
        capture = ort.SessionOptions()
        capture.log_severity_level = 4
        ort.InferenceSession(str(graph), capture, providers=[("CUDAExecutionProvider", {"enable_cuda_graph": "1"})])
        graphs = "may be captured"
    except Exception as error:
        graphs = f"may not be captured: {str(error).rpartition(' as ')[2]}"
    for provider in sorted({provider for provider, _ in places}):
        ops = ", ".join(f"{count} {op}" for (where, op), count in sorted(places.items()) if where == provider)
        print(f"  {provider}: {ops}")
    print(f"  {copies} copies between GPU and host; a CUDA graph {graphs}")


def run_attention(bundle: Path) -> None:
    """Run logits, and decode as generation does, so that attention nodes say which kernel they would have launched."""
    ort = import_onnxruntime()
    block_size = json.loads((bundle / MANIFEST_FILE).read_text())["model"]["block_size"]
    session = open_graph(ort, bundle / heads.LOGITS.file)
    for B, T in SHAPES:
        if block_size >= T:
            session.run(None, {INPUT_IDS: np.zeros((B, T), np.int64)})
    if (bundle / heads.DECODE.file).exists():
        session = open_graph(ort, bundle / heads.DECODE.file)
        for B, T, held in ((2, 4, 0), (2, 1, 4), (1, 3, 5)):  # prompts, a step, a piece of one row
            session.run_with_iobinding(step(ort, session, B, T, held))


def open_graph(ort: Any, path: Path) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CUDAExecutionProvider"])


def step(ort: Any, session: Any, B: int, T: int, held: int) -> Any:
    """A call of a `decode` graph: T new tokens in each of B rows, whose caches hold `held`, written where they lie."""
    binding = session.io_binding()
    binding.bind_cpu_input(INPUT_IDS, np.zeros((B, T), np.int64))
    binding.bind_cpu_input(LENGTHS, np.full(B, T, np.int64))
    binding.bind_cpu_input(PAST_LENGTHS, np.full(B, held, np.int64))
    inputs = {value.name: value for value in session.get_inputs()}
    for layer in itertools.takewhile(lambda layer: past_names(layer)[0] in inputs, itertools.count()):
        for past, present in zip(past_names(layer), present_names(layer), strict=True):
            _, n_head, _, head_size = inputs[past].shape
            shape, dtype = (B, n_head, CAPACITY, head_size), CACHE_TYPES[inputs[past].type]
            cache = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cuda", 0)
            binding.bind_ortvalue_input(past, cache)
            binding.bind_ortvalue_output(present, cache)
    binding.bind_output(LOGITS)
    return binding


def measured(bundle: Path, environment: Mapping[str, str], runtime: Path | None) -> str:
    """What scripts.gpu.pretend.measure finds, as JSON."""
    command = [sys.executable, "-m", "scripts.gpu.pretend.measure", str(bundle)]
    found_first = [*([str(runtime.resolve())] if runtime is not None else []), environment["PYTHONPATH"]]
    env = {**environment, CAPABILITY: "90", "PYTHONPATH": os.pathsep.join(found_first)}
    env["LD_PRELOAD"] += f":{environment[LIBRARIES]}/libcudnn.so.9"  # a runtime of old loads the real one by its path
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--registry", type=Path, help="write the table that exports are checked against")
    parser.add_argument("--capability", default="80,90", help="compute capabilities to pretend, 90 for 9.0")
    parser.add_argument("--measure", action="store_true", help="what sessions allocate, launch and wait for")
    parser.add_argument("--runtime", type=Path, help="with --measure, the folder of another gptexport_runtime")
    whole = "run scripts.gpu.check, with the options that follow"
    parser.add_argument("--check", nargs=argparse.REMAINDER, help=whole)
    arguments = parser.parse_args()
    if os.environ.get(CHILD):
        bundle = arguments.bundles[0]
        {
            "registry": lambda: write_registry(arguments.registry),
            "examine": lambda: examine(bundle, Path(os.environ[LIBRARIES])),
            "attention": lambda: run_attention(bundle),
        }[os.environ[CHILD]]()
        return
    with tempfile.TemporaryDirectory() as folder:
        compile_libraries(Path(folder))
        (Path(folder) / "sitecustomize.py").write_text(COMPUTES)
        found_first = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        environment = {
            **os.environ,
            LIBRARIES: folder,
            "LD_PRELOAD": f"{folder}/{PRETENDED}",
            "LD_LIBRARY_PATH": os.pathsep.join(found_first),
            "PYTHONPATH": os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        if arguments.check is not None:
            command = [sys.executable, "-m", "scripts.gpu.check", "--on", "pretended", *arguments.check]
            raise SystemExit(subprocess.run(command, env=environment).returncode)

        def child(task: str, *arguments: str, capability: str = "90") -> str:
            command = [sys.executable, "-m", "scripts.gpu.pretend", *arguments]
            env = {**environment, CHILD: task, CAPABILITY: capability, DEBUG_INFO: str(int(task == "attention"))}
            return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout

        if arguments.registry:
            child("registry", "unused", "--registry", str(arguments.registry))
        for bundle in arguments.bundles:
            if arguments.measure:
                print(f"{bundle}\n{measured(bundle, environment, arguments.runtime)}", end="")
                continue
            for graph in sorted(bundle.glob("*.onnx")):
                print(f"{graph}\n{child('examine', str(graph))}", end="")
            for capability in arguments.capability.split(","):
                runs = read_log(child("attention", str(bundle), capability=capability))
                kernels = Counter((run.operator, run.dtype, run.kernel) for run in runs)
                for (operator, dtype, kernel), count in sorted(kernels.items()):
                    print(f"  compute capability {capability}: {operator} in {dtype}: {kernel}, {count} times")


if __name__ == "__main__":
    main()
