"""A user's module as it came is the reference: it is run before anything is done to it, and nothing may change that.

Everything that loading does afterwards (to the CPU, wrappers taken off, weights cast to float32) is compared with what
was heard here. Parity cannot see such a mistake: it loads the module the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn as nn

from gptexport.checkpoints.formats.forward import Key, check_shape, find_logits, pick
from gptexport.errors import CheckpointError

# Relative RMS: of two runs of the same kernels, which may add in another order at another address;
SAME, SAME_16_BIT = 1e-5, 1e-2
MOVED = 1e-2  # of a GPU, which may multiply in TF32, and the CPU;
ROUNDED = {torch.float16: 5e-2, torch.bfloat16: 2.5e-1}  # of that dtype and float32, whose weights are compared exactly

MAX_FLOPS = 2e12  # of a run at T = block_size, half a minute on two cores
MAX_BYTES = 1 << 30  # of its logits, or of the scores of one layer
UNBOUNDED = 1 << 22  # a forward that takes this id looks none up in a table


class NoRoomError(Exception):
    """forward runs at some lengths, and not at T = `asked`; what it raised there is the cause."""

    def __init__(self, asked: int, longest: int) -> None:
        super().__init__(f"forward runs up to T = {longest}, not at {asked}")
        self.asked = asked
        self.longest = longest


@dataclass(frozen=True)
class Sample:
    ids: torch.Tensor  # (B,T) int64, on the CPU
    logits: torch.Tensor  # (B,T,V), as the module gave them, on the CPU


@dataclass(frozen=True, kw_only=True)
class AsItCame:
    """What a module said before anything was done to it."""

    block_size: int
    key: Key  # where the logits are in what forward returns
    vocab_size: int  # V, of the logits
    samples: tuple[Sample, ...]  # the longest first

    @property
    def longest(self) -> int:
        """The T up to which it was run: block_size, where that can be afforded."""
        return self.samples[0].ids.shape[1]


def run(module: nn.Module, ids: torch.Tensor) -> Any:
    """Whatever forward returns, for ids that are moved to where the module is."""
    with torch.no_grad():
        return module(ids.to(device_of(module)))


def device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def listen(module: nn.Module, source: str, *, block_size: int, vocab_size: int | None) -> AsItCame:
    """Run a module at T = block_size first, then at short lengths, on ids that any vocabulary has.

    The longest comes first because of modules that remember it, as caches of rotary tables and masks do: what they
    make of a short sequence may not do for a long one.

    Raises:
        CheckpointError: there are no logits at every position, or they are others on the same ids a second time.
        NoRoomError: it does not run at the longest T.
        Exception: whatever forward raises.
    """
    longest = _affordable(module, block_size)
    shapes = [(1, longest), (2, min(5, block_size)), (1, min(3, block_size))]
    few = min(7, vocab_size or 1)
    batches = [torch.arange(B * T).reshape(B, T) % few for B, T in shapes]
    outputs = [_run_longest(module, batches[0]), *(run(module, ids) for ids in batches[1:])]
    key = find_logits(outputs[1], source, *shapes[1], vocab_size)  # of two rows, so that B is told from 1
    samples = []
    for ids, output in zip(batches, outputs, strict=True):
        logits = pick(output, key)
        samples.append(Sample(ids, logits.detach().cpu()))
    for sample in (*samples[1:], samples[0]):  # what is wrong is told of a short one if it can be
        check_shape(sample.logits, source, *sample.ids.shape)
    sizes = [sample.logits.shape[-1] for sample in samples]
    if len(set(sizes)) > 1:
        longest_V, first, second = sizes
        other = second if second != first else longest_V
        raise CheckpointError(f"{source}: forward returned {first} logits at one shape and {other} at another.")
    came = AsItCame(block_size=block_size, key=key, vocab_size=sizes[0], samples=tuple(samples))
    _check_repeats(module, came, source)
    return came


def listen_to(module: nn.Module, came: AsItCame, ids: torch.Tensor) -> AsItCame:
    """The same with one batch more."""
    sample = Sample(ids, pick(run(module, ids), came.key).detach().cpu())
    return replace(came, samples=(*came.samples, sample))


def difference(model: nn.Module, came: AsItCame) -> float:
    """The worst relative RMS between what `model` says now, logits (B,T,V), and what the module said as it came.

    Infinite where one is not a finite number and the other is, or is another one; a forward may mean its NaN. The
    longest sample is run last, so that a module that remembers the last length it saw remembers that.
    """
    worst = 0.0
    for sample in reversed(came.samples):
        logits = run(model, sample.ids).cpu()
        worst = max(worst, relative_rms(logits, sample.logits[..., : logits.shape[-1]]))
    return worst


def relative_rms(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.to(torch.float64), expected.to(torch.float64)
    finite = expected.isfinite()
    if actual.shape != expected.shape or not torch.equal(finite, actual.isfinite()):
        return float("inf")
    odd = actual[~finite], expected[~finite]
    if not torch.equal(odd[0].nan_to_num(nan=0.5), odd[1].nan_to_num(nan=0.5)):
        return float("inf")
    scale = float(expected[finite].square().mean().sqrt()) if finite.any() else 1.0
    error = float((actual - expected)[finite].square().mean().sqrt()) if finite.any() else 0.0
    return error / scale if scale else error


def tolerance(came: AsItCame) -> float:
    """Within which two runs of the same kernels are the same."""
    return SAME_16_BIT if any(sample.logits.dtype in ROUNDED for sample in came.samples) else SAME


def ids_taken(module: nn.Module, logits: int, block_size: int) -> int:
    """How many ids forward takes, 0 to this less one: as many as there are logits, most often.

    Told by running it, on the CPU, where an id past a table raises. One that takes any number is taken at its logits.
    """

    def takes(i: int) -> bool:
        try:
            run(module, torch.tensor([[0, i][-block_size:]]))  # beside another: it may want more than padding
        except Exception:  # IndexError most often
            return False
        return True

    if takes(logits - 1) and not takes(logits):
        return logits
    low, high = 0, logits  # `low` is taken
    if takes(logits):
        low, high = logits, 2 * logits
        while takes(high):
            low, high = high, 2 * high
            if high > UNBOUNDED:
                return logits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return high


def ids_of_every_sort(count: int, special: set[int], block_size: int) -> torch.Tensor:
    """(B,T): rows of one id alone, that begin with it, that end with it, of the ids that a forward may treat specially.

    Those are the first and the last, and what the module's config calls padding, beginning or end of a text.
    """
    T = min(6, block_size)
    draw = torch.Generator().manual_seed(0)
    rows = []
    for i in sorted({0, count - 1} | {i for i in special if 0 <= i < count}):
        plain = torch.randint(0, count, (3, T), generator=draw)
        plain[0, : (T + 1) // 2] = i
        plain[1, T // 2 :] = i
        plain[2, ::2] = i
        rows += [torch.full((1, T), i), plain]
    return torch.cat(rows)


def _run_longest(module: nn.Module, ids: torch.Tensor) -> Any:
    try:
        return run(module, ids)
    except Exception as error:  # theirs
        asked = ids.shape[1]
        if shorter := _longest_taken(module, asked):
            raise NoRoomError(asked, shorter) from error
        raise


def _longest_taken(module: nn.Module, block_size: int) -> int:
    """The longest T below block_size at which forward runs; 0 if it runs at none."""

    def takes(T: int) -> bool:
        try:
            run(module, torch.zeros(1, T, dtype=torch.long))
        except Exception:  # theirs
            return False
        return True

    low, high = 0, block_size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) else (low, middle)
    return low


def _check_repeats(module: nn.Module, came: AsItCame, source: str) -> None:
    """The same ids give the same logits, the first of all after everything else has been seen."""
    for sample in came.samples[1:]:
        again = relative_rms(pick(run(module, sample.ids), came.key).cpu(), sample.logits)
        if not again <= tolerance(came):
            raise CheckpointError(
                f"{source}: the same ids gave other logits the second time ({again:.1e} relative RMS): forward "
                "draws random numbers (a dropout that eval() does not reach?), or remembers what it was given before. "
                "A graph does neither."
            )


def _affordable(module: nn.Module, block_size: int) -> int:
    """block_size, or the part of it whose run costs as much as may be spent."""
    weights = sum(parameter.numel() for parameter in module.parameters())
    rows = max((parameter.shape[0] for parameter in module.parameters() if parameter.ndim == 2), default=1)
    slow = 8 if any(parameter.dtype in ROUNDED for parameter in module.parameters()) else 1  # on a CPU

    def costs(T: int) -> bool:
        return 2 * weights * T * slow > MAX_FLOPS or 4 * T * max(rows, 8 * T) > MAX_BYTES

    T = block_size
    while T > 64 and costs(T):
        T //= 2
    return T
