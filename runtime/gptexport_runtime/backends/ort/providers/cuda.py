"""NVIDIA's GPUs, by CUDA.

ONNX Runtime itself answers a provider that cannot load with a warning and the CPU. So look before asking it: the
package, then the driver, the device, the provider's libraries, and last a model of one node that must run there.
"""

from __future__ import annotations

import types

from gptexport_runtime.backends.gpu.device import find_gpu, why_no_gpu
from gptexport_runtime.backends.gpu.driver import load_driver
from gptexport_runtime.backends.gpu.memory import DeviceMemory
from gptexport_runtime.backends.ort.device import DeviceBinding
from gptexport_runtime.backends.ort.options import OpenOptions
from gptexport_runtime.backends.ort.package import (
    CPU_PACKAGE,
    GPU_PACKAGE,
    INSTALL_GPU,
    conflict,
    installed_packages,
)
from gptexport_runtime.backends.ort.providers.cuda_libraries import why_no_cudnn, why_no_library
from gptexport_runtime.backends.ort.providers.provider import Provider
from gptexport_runtime.backends.ort.providers.trial import why_not_running
from gptexport_runtime.errors import BackendUnavailableError

TOKENS_AT_ONCE = 16384  # of prompts: more would not be faster, and their activations take memory
# flash (1), efficient (2) and math (16), by bits of AttentionBackend (attention_kernel_options.h). Without it cuDNN (8)
# takes prompts on compute capability 9.0, and compiles a plan for every length that comes
ATTENTION_KERNELS = 1 + 2 + 16


def _why_not(ort: types.ModuleType) -> str | None:
    if CUDA.name not in ort.get_available_providers():
        found = installed_packages()
        if reason := conflict(found):
            return reason
        names = ", ".join(map(str, found)) or f"onnxruntime {ort.__version__}"
        return (
            f"{names} has no CUDA; its providers are {', '.join(ort.get_available_providers())}. "
            f"`pip uninstall -y {CPU_PACKAGE}`, then `{INSTALL_GPU}`."
        )
    return why_no_gpu() or _why_old_driver(ort) or why_no_library(ort) or _why_not_running(ort)


def _why_old_driver(ort: types.ModuleType) -> str | None:
    """A driver runs every CUDA of its own major version and of those before."""
    built = str(getattr(ort, "cuda_version", None) or "")  # "13.0"; onnxruntime/__init__.py
    try:
        gpu = find_gpu()
    except BackendUnavailableError as error:
        return str(error)
    major = gpu.driver_cuda.split(".")[0]
    if not built or int(built.split(".")[0]) <= int(major):
        return None
    return (
        f"the NVIDIA driver runs CUDA up to {gpu.driver_cuda}, and {GPU_PACKAGE} {ort.__version__} was built for "
        f"{built}. Update the driver, or install an {GPU_PACKAGE} that was built for CUDA {major}."
    )


def _why_not_running(ort: types.ModuleType) -> str | None:
    reason = why_not_running(ort, CUDA)
    if reason is None or "no kernel image" not in reason:  # cudaErrorNoKernelImageForDevice
        return reason
    gpu = find_gpu()
    return (
        f"{GPU_PACKAGE} {ort.__version__} has no kernels for this GPU, {gpu.name} of compute capability "
        f"{gpu.compute_capability}, which is too old for it or too new. Install a version that names it."
    )


def _options(options: OpenOptions, captures: bool) -> dict[str, str]:
    """core/providers/cuda/cuda_execution_provider_info.cc."""
    found = {
        # the default, 1, would round fp32 operands: other numbers than those of the model
        "use_tf32": str(int(options.cuda.tf32)),
        "enable_cuda_graph": str(int(captures)),
        "sdpa_kernel": str(ATTENTION_KERNELS),
    }
    if options.cuda.memory_limit is not None:
        found["gpu_mem_limit"] = str(options.cuda.memory_limit)
    return found


def _entries(options: OpenOptions) -> dict[str, str]:
    # weights are allocated by themselves and not in the arena, which grows by powers of two
    found = {"session.use_device_allocator_for_initializers": "1"}
    if options.cuda.tune_gemms:
        found["ep.cuda.enable_gemm_auto_tune"] = "1"
    return found


CUDA = Provider(
    device="cuda",
    name="CUDAExecutionProvider",
    why_not=_why_not,
    bind=lambda: DeviceBinding(DeviceMemory(load_driver())),
    tokens_at_once=TOKENS_AT_ONCE,
    threads=lambda: 1,  # the CPU computes shapes alone
    opens_at_load=True,
    options=_options,
    entries=_entries,
    lacks=why_no_cudnn,
    export_with=lambda _ort: "--target cuda --dtype float16",
)
