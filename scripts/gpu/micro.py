"""What single nodes cost on the GPU, beside torch's: it decides which form an export should take, and which switch.

    python -m scripts.gpu.check --only micro

A node is a session of its own, without optimization, and its inputs and outputs are on the device. Of products of one
row the weights stay in the GPU's second-level cache, so their times are below those in a model.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from scripts.gpu.part import Part
from scripts.gpu.setting import Setting

KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
BYTES: dict[int, int] = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2}
MICROSOFT = "com.microsoft"
RANDOM = 1 << 20  # numbers; longer tensors repeat them
TRIES, WARM = 20, 5


@dataclass(frozen=True)
class Tensor:
    name: str
    kind: int  # of TensorProto
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return BYTES[self.kind] * math.prod(self.shape)

    def random(self, scale: float) -> np.ndarray:
        """Its numbers, as the integers or floats that hold them: numpy has no bfloat16."""
        few = np.random.default_rng(0).standard_normal(min(math.prod(self.shape), RANDOM), dtype=np.float32) * scale
        numbers = np.resize(few, self.shape)
        if self.kind == TensorProto.BFLOAT16:
            return (numbers.view(np.uint32) >> 16).astype(np.uint16)
        return numbers.astype(np.float16) if self.kind == TensorProto.FLOAT16 else numbers


@dataclass(frozen=True, kw_only=True)
class Row:
    """A node, which a run does `copies` times."""

    label: str
    op: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] = ()
    domain: str = MICROSOFT
    attributes: Mapping[str, Any] = field(default_factory=dict)
    flops: float = 0.0
    copies: int = 4
    entries: Mapping[str, str] = field(default_factory=dict)  # of the session

    @property
    def nbytes(self) -> int:
        """What one node reads and writes."""
        return sum(tensor.nbytes for tensor in (*self.inputs, *self.weights, *self.outputs))

    def model(self) -> bytes:
        names = [tensor.name for tensor in (*self.inputs, *self.weights)]
        nodes = [
            helper.make_node(
                self.op, names, [f"{out.name}{i}" for out in self.outputs], domain=self.domain, **self.attributes
            )
            for i in range(self.copies)
        ]
        initializers = [
            helper.make_tensor(t.name, t.kind, t.shape, t.random(0.02).tobytes(), raw=True) for t in self.weights
        ]
        inputs = [helper.make_tensor_value_info(t.name, t.kind, t.shape) for t in self.inputs]
        outputs = [
            helper.make_tensor_value_info(f"{t.name}{i}", t.kind, t.shape)
            for i in range(self.copies)
            for t in self.outputs
        ]
        graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
        imports = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=10)
        return model.SerializeToString()


def micro(part: Part) -> None:
    """Every row, and torch's yardsticks where torch has a GPU."""
    from gptexport_runtime.backends.ort.providers import why_not

    if reason := why_not(part.setting.device):  # which also loads CUDA's libraries
        raise SystemExit(reason)
    found: list[dict[str, object]] = []
    for row in rows(part.setting):
        try:
            found.append(measure(row, part.setting.device))
        except Exception as error:  # a kernel that there is not is an answer too
            found.append({"label": row.label, "failed": f"{type(error).__name__}: {error}"[:200]})
        part.found(rows=found)
    if part.setting.torch_device == "cuda":
        for yardstick in yardsticks(part.setting):
            found.append(yardstick)
            part.found(rows=found)


def rows(setting: Setting) -> Iterator[Row]:
    """The nodes of a block, its products at many rows and at few, and what may stand in their place."""
    kind, N, C, V = KINDS[setting.dtype], setting.tokens, setting.config.n_embd, setting.config.vocab_size
    for name in dict.fromkeys((setting.dtype, setting.other_dtype or setting.dtype)):
        yield from _elementwise(name, KINDS[name], N, C)
    for m in dict.fromkeys((N, 128, 1)):
        for K, M in ((C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)):
            yield from _products(kind, m, K, M)
    for width in dict.fromkeys((V, -(-V // 8) * 8, -(-V // 64) * 64)):  # rows that begin on 2, 16 and 128 bytes
        for m in (N, 1):
            yield Row(
                label=f"head {m}×{C} @ ({width},{C})ᵀ",
                op="FusedMatMul",
                inputs=(Tensor("x", kind, (m, C)),),
                weights=(Tensor("w", kind, (width, C)),),
                outputs=(Tensor("y", kind, (m, width)),),
                attributes={"transB": 1},
                flops=2.0 * m * C * width,
                copies=1 if m > 1 else 4,
            )
    yield Row(
        label=f"Cast {N}×{V} to float32",
        op="Cast",
        domain="",
        inputs=(Tensor("x", kind, (N, V)),),
        outputs=(Tensor("y", TensorProto.FLOAT, (N, V)),),
        attributes={"to": TensorProto.FLOAT},
        copies=1,
    )
    yield from _attention(setting, kind)


def _elementwise(name: str, kind: int, N: int, C: int) -> Iterator[Row]:
    def biased(op: str, width: int, domain: str = MICROSOFT) -> Row:
        x, b, y = Tensor("x", kind, (N, width)), Tensor("b", kind, (width,)), Tensor("y", kind, (N, width))
        label = f"{op} and bias, {N}×{width} {name}"
        return Row(label=label, op=op, domain=domain, inputs=(x,), weights=(b,), outputs=(y,))

    yield biased("FastGelu", 4 * C)
    yield biased("BiasGelu", 4 * C)
    yield biased("Add", 3 * C, "")  # of q, k, v
    yield biased("Add", C, "")  # of q alone: what is left if the biases of k and v are folded into other weights
    x, s, y = (Tensor(n, kind, (1, N, C)) for n in "xsy")
    yield Row(
        label=f"SkipLayerNormalization and bias, {N}×{C} {name}",
        op="SkipLayerNormalization",
        inputs=(x, s),
        weights=tuple(Tensor(n, kind, (C,)) for n in ("gamma", "beta", "bias")),
        outputs=(y,),
        attributes={"epsilon": 1e-5},
    )
    yield Row(
        label=f"Split {N}×{3 * C} {name}",
        op="Split",
        domain="",
        inputs=(Tensor("x", kind, (1, N, 3 * C)),),
        outputs=tuple(Tensor(n, kind, (1, N, C)) for n in "qkv"),
        attributes={"axis": 2, "num_outputs": 3},
    )


def _products(kind: int, m: int, K: int, M: int) -> Iterator[Row]:
    tunings = {"": {}, ", tuned": {"ep.cuda.enable_gemm_auto_tune": "1"}} if m == 1 else {"": {}}
    for words, entries in tunings.items():
        yield Row(
            label=f"MatMul {m}×{K} @ {K}×{M}{words}",
            op="MatMul",
            domain="",
            inputs=(Tensor("x", kind, (m, K)),),
            weights=(Tensor("w", kind, (K, M)),),
            outputs=(Tensor("y", kind, (m, M)),),
            flops=2.0 * m * K * M,
            copies=32 if m == 1 else 4,
            entries=entries,
        )


def _attention(setting: Setting, kind: int) -> Iterator[Row]:
    """ONNX's with flash; and com.microsoft's on packed q, k, v, where cuDNN makes a plan for each length."""
    H, D = setting.config.n_head, setting.config.n_embd // setting.config.n_head
    T = setting.config.block_size
    B = max(1, setting.tokens // T)
    q, k, v, y = (Tensor(name, kind, (B, T, H * D)) for name in "qkvy")
    yield Row(
        label=f"Attention {B}×{T}",
        op="Attention",
        domain="",
        inputs=(q, k, v),
        outputs=(y,),
        attributes={"is_causal": 1, "q_num_heads": H, "kv_num_heads": H},
        flops=2.0 * B * H * T * T * D,
    )
    for length in (T, T - 1, T - 2):
        yield Row(
            label=f"MultiHeadAttention, packed, {B}×{length}",
            op="MultiHeadAttention",
            inputs=(Tensor("x", kind, (B, length, H, 3, D)),),
            outputs=(Tensor("y", kind, (B, length, H * D)),),
            attributes={"num_heads": H, "unidirectional": 1},
            flops=2.0 * B * H * length * length * D,
            copies=1,
        )


def measure(row: Row, device: str) -> dict[str, object]:
    """Microseconds of one node, the median; and milliseconds of the first run, in which kernels are chosen."""
    import onnxruntime as ort

    from gptexport_runtime.backends.ort.providers import provider_of

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in row.entries.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(row.model(), options, providers=[provider_of(device).name], enable_fallback=0)
    binding, place, kept = session.io_binding(), _place(device), []
    for tensor in row.inputs:
        kept.append(place(tensor, tensor.random(1.0)))
        binding.bind_input(tensor.name, device, 0, tensor.kind, tensor.shape, kept[-1][0])
    for tensor in row.outputs:
        kept.append(place(tensor, None))  # the copies of the node write to the same place
        for i in range(row.copies):
            binding.bind_output(f"{tensor.name}{i}", device, 0, tensor.kind, tensor.shape, kept[-1][0])
    spent = []
    for _ in range(1 + WARM + TRIES):
        began = time.perf_counter()
        session.run_with_iobinding(binding)
        spent.append(time.perf_counter() - began)
    seconds = statistics.median(spent[1 + WARM :]) / row.copies
    return told(row.label, seconds, spent[0], row.nbytes, row.flops)


def told(label: str, seconds: float, first: float, nbytes: float, flops: float) -> dict[str, object]:
    return {
        "label": label,
        "us": 1e6 * seconds,
        "bytes_per_s": nbytes / seconds,
        "flop_per_s": flops / seconds,
        "first_ms": 1e3 * first,
    }


def _place(device: str) -> Callable[[Tensor, np.ndarray | None], tuple[int, object]]:
    """What puts numbers, or none, into the device's memory: their address, and what holds them."""
    if device != "cuda":

        def on_host(tensor: Tensor, numbers: np.ndarray | None) -> tuple[int, object]:
            held = np.zeros(tensor.nbytes, np.uint8) if numbers is None else numbers
            return int(held.ctypes.data), held

        return on_host

    from gptexport_runtime.backends.gpu.driver import load_driver
    from gptexport_runtime.backends.gpu.memory import DeviceMemory

    memory = DeviceMemory(load_driver())

    def on_gpu(tensor: Tensor, numbers: np.ndarray | None) -> tuple[int, object]:
        buffer = memory.allocate(tensor.nbytes)
        if numbers is not None:
            memory.copies.upload(buffer.address, numbers)
        return buffer.address, buffer

    return on_gpu


def yardsticks(setting: Setting) -> Iterator[dict[str, object]]:
    """What torch's own kernels take, by events on the GPU."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    dtype, N, C, V = getattr(torch, setting.dtype), setting.tokens, setting.config.n_embd, setting.config.vocab_size
    on_gpu: dict[str, Any] = {"device": "cuda", "dtype": dtype}
    big = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    other, pinned = torch.empty_like(big), torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
    yield _torch("copy of 1 GiB", partial(other.copy_, big), nbytes=2 << 30)
    yield _torch("64 MiB to pinned memory", partial(pinned.copy_, big[: 64 << 20]), nbytes=64 << 20)
    x = torch.randn(N, C, **on_gpu)
    for width in (V, -(-V // 8) * 8, -(-V // 64) * 64):
        w, flops = torch.randn(width, C, **on_gpu), 2.0 * N * C * width
        yield _torch(f"linear {N}×{C} to {width}", partial(F.linear, x, w), flops=flops)
        into_float32 = partial(torch.mm, x, w.t(), out_dtype=torch.float32)
        yield _torch(f"linear {N}×{C} to {width} in float32", into_float32, flops=flops)
    hidden = torch.randn(N, 4 * C, **on_gpu)
    yield _torch(f"gelu {N}×{4 * C}", lambda: F.gelu(hidden, approximate="tanh"), nbytes=16.0 * N * C)
    H, T = setting.config.n_head, setting.config.block_size
    q, k, v = (torch.randn(N // T, H, T, C // H, **on_gpu) for _ in range(3))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        with sdpa_kernel(backend):
            label = f"attention {N // T}×{T}, {backend.name}"
            call = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
            yield _torch(label, call, flops=2.0 * N * T * C)


def _torch(label: str, call: Callable[[], object], nbytes: float = 0.0, flops: float = 0.0) -> dict[str, object]:
    import torch

    label = f"torch: {label}"
    try:
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        first = time.perf_counter() - began
        for _ in range(WARM):
            call()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(TRIES):
            call()
        end.record()
        torch.cuda.synchronize()
    except Exception as error:
        return {"label": label, "failed": f"{type(error).__name__}: {error}"[:200]}
    return told(label, start.elapsed_time(end) / 1e3 / TRIES, first, nbytes, flops)
