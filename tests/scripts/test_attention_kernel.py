"""`scripts.gpu.attention_kernel` reads what ONNX Runtime says of its attention kernels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gptexport.export.targets import CUDA
from gptexport.precision import PRECISIONS
from gptexport_runtime.backends.ort.providers import why_not
from scripts.gpu.attention_kernel import main, read_log, unexpected

TINY = Path(__file__).parents[1] / "runtime" / "data" / "tiny"
# As onnxruntime-gpu 1.31.1 prints it (scripts/gpu/pretend), colours and all; one line is of a node without a name.
LOG = (
    "\x1b[36mAttentionKernelOptions: FLASH_ATTENTION=1 EFFICIENT_ATTENTION=1 CUDNN_FLASH_ATTENTION=0 MATH=1\x1b[0m\n"
    "\x1b[36mOperator=Attention Node=node_Attention_3 DataType=bf16 SdpaKernel=FLASH_ATTENTION\x1b[0m\n"
    "something else that a program prints\n"
    "\x1b[36mOperator=GroupQueryAttention Node=node_GroupQueryAttention_0 DataType=bf16 "
    "SdpaKernel=CUDNN_FLASH_ATTENTION EffectiveKvLengthBound=16\x1b[0m\n"
    "\x1b[36mOperator=GroupQueryAttention DataType=fp16 SdpaKernel=FLASH_ATTENTION NumSplits=0 "
    "EffectiveKvLengthBound=1\x1b[0m\n"
    "\x1b[36mOperator=Attention Node=att DataType=fp32 SdpaKernel=MATH\x1b[0m\n"
)


def test_every_attention_that_ran_is_read() -> None:
    assert [(run.operator, run.node, run.dtype, run.kernel) for run in read_log(LOG)] == [
        ("Attention", "node_Attention_3", "bf16", "FLASH_ATTENTION"),
        ("GroupQueryAttention", "node_GroupQueryAttention_0", "bf16", "CUDNN_FLASH_ATTENTION"),
        ("GroupQueryAttention", "", "fp16", "FLASH_ATTENTION"),
        ("Attention", "att", "fp32", "MATH"),
    ]


def test_what_was_not_expected_is_named() -> None:
    expected = CUDA.expected_kernels(PRECISIONS["bfloat16"], [64])
    runs = read_log(LOG)
    assert unexpected(runs[:3], expected) == []
    assert unexpected(runs, expected) == ["Attention ran by MATH"]
    assert unexpected([], expected) == ["no attention kernel was named in the log"]


def test_without_a_gpu_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if why_not("cuda") is None:
        pytest.skip("a GPU is here")
    monkeypatch.setattr(sys, "argv", ["attention_kernel", str(TINY)])
    assert main() == 4
    assert capsys.readouterr().err.startswith("error: onnxruntime")
