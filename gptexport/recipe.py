"""What is asked of an export, validated once and before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptexport.errors import ExportError
from gptexport.export.targets import PORTABLE, TARGETS, Target
from gptexport.precision import FLOAT32, PRECISIONS, Precision, dtypes, precision_of, quantizations
from gptexport_runtime.contract.heads import DECODE, HEADS, LOGITS, Head

if TYPE_CHECKING:
    from gptexport.tokenizers import BundledTokenizer

MIN_OPSET, DEFAULT_OPSET, MAX_OPSET = 18, 23, 24


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a graph takes: T up to block_size, ids below vocab_size."""

    block_size: int
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One export.

    Raises:
        ExportError: the parts do not go together.
    """

    target: Target = PORTABLE
    precision: Precision = FLOAT32
    heads: tuple[Head, ...] | None = None  # None: all, less those that the forward does not allow
    opset: int = DEFAULT_OPSET
    tokenizer: BundledTokenizer | None = None  # goes into the bundle
    quantize_cache: bool = False  # keys and values of `decode` are in 8 bits
    pad_vocab: bool = False  # rows of logits begin on 128 bytes
    native_logits: bool = False  # logits are not made float32

    def __post_init__(self) -> None:
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise ExportError(f"opset is {self.opset}; expected {MIN_OPSET} to {MAX_OPSET} (default {DEFAULT_OPSET}).")
        if self.opset < self.target.min_opset:
            raise ExportError(
                f"target {self.target} with opset {self.opset}: it fuses attention, which is one node since opset "
                f"{self.target.min_opset}. Leave opset out."
            )
        if not self.target.takes(self.precision):
            there = ", ".join(precision.name for precision in PRECISIONS.values() if self.target.takes(precision))
            others = [target.name for target in TARGETS.values() if target.takes(self.precision)]
            advice = f"Pass target {' or '.join(others)}, or another precision." if others else "Pass another one."
            raise ExportError(
                f"{self.precision.word} {self.precision.name} with target {self.target}: its kernels are for {there}. "
                f"{advice}"
            )
        if self.quantize_cache:
            self._check_cache()
        if (self.pad_vocab or self.native_logits) and not self.target.lays_out_logits(self.precision):
            asked = "pad_vocab" if self.pad_vocab else "native_logits"
            raise ExportError(
                f"{asked} with target {self.target} in {self.precision.name}: it is for 16-bit floats on a GPU. Pass "
                "target cuda with dtype bfloat16 or float16, or leave it out."
            )

    def _check_cache(self) -> None:
        if self.target.attend_in_8_bits is None or not self.precision.quantized:
            raise ExportError(
                f"quantize_cache with target {self.target} in {self.precision.name}: keys and values are in 8 bits "
                "where weights are quantized, as parity judges no other graphs so. Pass quantize "
                f"{', '.join(quantizations())}, or leave it out."
            )
        if not self.wants(DECODE):
            raise ExportError(f"quantize_cache without the graph {DECODE}, whose cache it is. Put it into graphs.")

    @staticmethod
    def of(
        *,
        dtype: str = "float32",
        target: str | None = None,
        quantize: str | None = None,
        quantize_cache: bool = False,
        graphs: Sequence[str] | None = None,
        opset: int = DEFAULT_OPSET,
        tokenizer: BundledTokenizer | None = None,
        pad_vocab: bool = False,
        native_logits: bool = False,
    ) -> Recipe:
        """The recipe that names stand for, as the command line and a manifest spell them.

        Args:
            target: None: portable, or the first that takes the precision.
            graphs: names of heads; the logits are always among them. None: all that the forward allows.

        Raises:
            ExportError: a name is not known, or the parts do not go together.
        """
        if target is not None:
            _check_name("target", target, list(TARGETS))
        _check_name("dtype", dtype, dtypes())
        if quantize is not None:
            _check_name("quantize", quantize, quantizations())
        for name in graphs or ():
            _check_name("graphs", name, list(HEADS))
        precision = precision_of(dtype, quantize)
        if precision.dtype != dtype:
            raise ExportError(
                f"quantize {quantize} with dtype {dtype}: the rest computes in {precision.dtype}. Leave dtype out."
            )
        heads = None if graphs is None else tuple(h for h in HEADS.values() if h.name in graphs or h is LOGITS)
        chosen = TARGETS[target] if target else next(each for each in TARGETS.values() if each.takes(precision))
        return Recipe(
            target=chosen,
            precision=precision,
            heads=heads,
            opset=opset,
            tokenizer=tokenizer,
            quantize_cache=quantize_cache,
            pad_vocab=pad_vocab,
            native_logits=native_logits,
        )

    def wants(self, head: Head) -> bool:
        return self.heads is None or head in self.heads


def _check_name(parameter: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ExportError(f"{parameter} is {value!r}; expected one of {', '.join(known)}.")
