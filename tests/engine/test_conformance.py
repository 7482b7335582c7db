"""Every attribute and signature of TensorRT's and of the CUDA driver's that the code uses exists in the genuine ones.

What needs a GPU cannot run here, but it cannot drift either. The bindings are genuine: those of TensorRT 11 import
without their libraries once three empty ones stand in for them.
"""

from __future__ import annotations

import ast
import ctypes
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import driver as cuda

from gptexport_runtime.backends.gpu import device, driver

ROOT = Path(__file__).parents[2]
RTX, TENSORRT = "tensorrt_rtx_bindings", "tensorrt_bindings"
LIBRARIES = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")
SYMBOLS = """createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL
getBuilderPluginRegistry getPluginRegistry initLibNvInferPlugins createNvOnnxParserRefitter_INTERNAL
createNvOnnxParser_INTERNAL getNvOnnxParserVersion"""

# What a name stands for, by file: `context.execute_async_v3` is IExecutionContext's.
BUILD = {
    "trt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "layer": "ILayer",
    "attention": "IAttention",
    "error": "ParserError",
    "cache": "ITimingCache",
}
RUN = {
    "library": "",
    "_trt": "",
    "_engine": "ICudaEngine",
    "config": "IRuntimeConfig",
    "context": "IExecutionContext",
    "strategies": "DynamicShapesKernelSpecializationStrategy",
}
FILES = {
    "gptexport/engine/build.py": BUILD,
    "gptexport/engine/edition.py": {"trt": ""},
    "gptexport/engine/cancel.py": {"trt": ""},
    "runtime/gptexport_runtime/backends/tensorrt/log.py": {"library": ""},
    "runtime/gptexport_runtime/backends/tensorrt/backend.py": RUN | {"engine": "ICudaEngine"},
    "runtime/gptexport_runtime/backends/tensorrt/graph.py": RUN,
}
MODULE_ITSELF = {"__name__", "__version__"}
ONLY_RTX = {
    ("", "ComputeCapability"),
    ("ComputeCapability", "__members__"),
    ("DynamicShapesKernelSpecializationStrategy", "EAGER"),
    ("DynamicShapesKernelSpecializationStrategy", "NONE"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
}
# used by a name that is computed, or a subclass's
INDIRECT = {("BuilderFlag", name) for name in ("TF32", "WEIGHT_STREAMING", "REFIT", "VERSION_COMPATIBLE")} | {
    ("IProgressMonitor", "phase_start"),
    ("IProgressMonitor", "step_complete"),
    ("IProgressMonitor", "phase_finish"),
    ("ILogger", "log"),
    ("IAttentionInputLayer", "attention"),  # a layer that was given this class
}

DUMP = """
import ctypes, importlib, json, sys
module, *libraries = sys.argv[1:]
for library in libraries:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
trt = importlib.import_module(module)
api = {"": {name: getattr(trt, name).__doc__ or "" for name in dir(trt)}}
for name in dir(trt):
    if isinstance(getattr(trt, name), type):
        api[name] = {member: getattr(getattr(trt, name), member).__doc__ or "" for member in dir(getattr(trt, name))}
json.dump(api, sys.stdout)
"""


@dataclass(frozen=True)
class Use:
    """`owner.name`, called with these arguments (None: not called)."""

    owner: str
    name: str
    positional: int | None
    keywords: tuple[str, ...]
    where: str


def uses() -> list[Use]:
    """Every use of TensorRT in the files above."""
    found = []
    for file, names in FILES.items():
        tree = ast.parse((ROOT / file).read_text())
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            owner = owner_of(node.value, names) if isinstance(node, ast.Attribute) else None
            if owner is None or not isinstance(node, ast.Attribute) or node.attr in MODULE_ITSELF:
                continue
            if (owner, node.attr) == ("ILayer", "attention"):
                continue
            call = calls.get(id(node))
            positional = None if call is None else len(call.args)
            keywords = tuple(word.arg or "**" for word in call.keywords) if call else ()
            found.append(Use(owner, node.attr, positional, keywords, f"{file}:{node.lineno}"))
    return found


def owner_of(node: ast.expr, names: dict[str, str]) -> str | None:
    """The class that an expression is of: by its last name, or one of the module's classes or enums."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
    if name in names:
        return names[name]
    if isinstance(node, ast.Attribute) and owner_of(node.value, names) == "":
        return node.attr  # trt.LayerType.ATTENTION_INPUT
    return None


@pytest.fixture(scope="session")
def apis(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, str]]]:
    """The docstrings, which hold the signatures, of every class of both bindings."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler, which makes the libraries that stand in for TensorRT's")
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub.c").write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS.split()))
    stubs = [str(folder / name) for name in LIBRARIES]
    for stub in stubs:
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{Path(stub).name}", "-o", stub, str(folder / "stub.c")]
        subprocess.run(command, check=True)
    return {RTX: dump(RTX), TENSORRT: dump(TENSORRT, *stubs)}


def dump(module: str, *libraries: str) -> Any:
    """In a process of its own: two TensorRTs do not live in one."""
    command = [sys.executable, "-W", "ignore", "-c", DUMP, module, *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def signatures(doc: str) -> list[list[str]]:
    """The parameters of each overload that a pybind11 docstring lists, without self."""
    found = re.findall(r"^(?:\d+\. )?\w+\((.*)\) -> ", doc, flags=re.MULTILINE)
    return [[part for part in re.split(r", (?=\w+: )", text) if part and not part.startswith("self")] for text in found]


def accepts(parameters: list[str], use: Use) -> bool:
    assert use.positional is not None
    names = [parameter.partition(":")[0] for parameter in parameters]
    rest = parameters[use.positional :]
    missing = [p.partition(":")[0] for p in rest if " = " not in p and p.partition(":")[0] not in use.keywords]
    return use.positional <= len(parameters) and set(use.keywords) <= set(names[use.positional :]) and not missing


def test_uses_are_found() -> None:
    """The test below is worth as much as this list."""
    found = {(use.owner, use.name) for use in uses()}
    assert {
        ("Builder", "build_serialized_network"),
        ("OnnxParser", "parse"),
        ("IAttention", "decomposable"),
        ("LayerType", "ATTENTION_INPUT"),
        ("ICudaEngine", "create_execution_context"),
        ("IExecutionContext", "execute_async_v3"),
        ("IExecutionContext", "set_tensor_address"),
        ("ParserError", "node_name"),
        ("ExecutionContextAllocationStrategy", "USER_MANAGED"),
    } <= found
    assert len(found) > 50


@pytest.mark.parametrize("library", [RTX, TENSORRT])
def test_every_name_exists(library: str, apis: dict[str, dict[str, dict[str, str]]]) -> None:
    api = apis[library]
    used = {(use.owner, use.name): use.where for use in uses()} | dict.fromkeys(INDIRECT, "INDIRECT")
    missing = {key: where for key, where in used.items() if key[1] not in api.get(key[0], {})}
    assert set(missing) == (set() if library == RTX else ONLY_RTX), missing


@pytest.mark.parametrize("library", [RTX, TENSORRT])
def test_every_call_fits_a_signature(library: str, apis: dict[str, dict[str, dict[str, str]]]) -> None:
    checked = 0
    for use in uses():
        doc = apis[library].get(use.owner, {}).get(use.name, "")
        if use.positional is None or (use.owner, use.name) in ONLY_RTX - {("IBuilderConfig", "set_compute_capability")}:
            continue
        if use.owner == "" and use.name[:1].isupper():  # a class: its constructor's signature
            doc = apis[library][use.name]["__init__"]
        overloads = signatures(doc)
        if library == TENSORRT and (use.owner, use.name) in ONLY_RTX:
            continue
        assert any(accepts(overload, use) for overload in overloads), (use, overloads)
        checked += 1
    assert checked > 25


def test_signatures_are_read() -> None:
    one = "parse(self: T, model: Buffer, path: str = None) -> bool\n\n  Parse"
    assert signatures(one) == [["model: Buffer", "path: str = None"]]
    many = (
        "f(*args, **kwargs)\nOverloaded\n\n1. f(self: T, a: int) -> int\n\n2. f(self: T, a: int, b: d[x, y]) -> int\n"
    )
    assert signatures(many) == [["a: int"], ["a: int", "b: d[x, y]"]]
    parameters = signatures(one)[0]
    for positional, keywords, fits in (
        (1, (), True),
        (1, ("path",), True),
        (0, (), False),
        (3, (), False),
        (1, ("x",), False),
    ):
        assert accepts(parameters, Use("", "parse", positional, keywords, "")) is fits


def test_every_function_of_the_cuda_driver_exists_with_its_parameters() -> None:
    """By the genuine bindings, which return what a C function writes to a pointer."""
    for name, arguments in driver._SIGNATURES.items():
        function = name.removesuffix("_v2").removesuffix("WithFlags")
        parameters = re.match(rf"{function}\((.*?)\)", inspect.getdoc(getattr(cuda, function)) or "")
        assert parameters, name
        passed = [argument for argument in arguments if not issubclass(argument, ctypes._Pointer)]
        assert len([p for p in parameters.group(1).split(",") if p.strip()]) == len(passed), name


def test_numbers_of_the_cuda_driver_are_its_own() -> None:
    assert cuda.CUstream_flags.CU_STREAM_NON_BLOCKING == driver.NON_BLOCKING
    assert cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL == driver.THREAD_LOCAL
    assert cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY == driver.OUT_OF_MEMORY
    capability = cuda.CUdevice_attribute
    assert capability.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == device._CAPABILITY_MAJOR
    assert capability.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == device._CAPABILITY_MINOR
