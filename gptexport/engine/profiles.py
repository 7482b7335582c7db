"""Which (B,T) an engine is to take: asked for, or proposed from the lengths that users send."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from gptexport.errors import EngineError, OptionError
from gptexport_runtime.contract.engine import Profile
from gptexport_runtime.files import open_regular

Shape = tuple[int, int]
DEFAULT_MIN, DEFAULT_OPT, DEFAULT_MAX = (1, 1), (8, 256), (8, 1024)
BUCKET_STEP = 64  # kernels work in tiles: bounds between multiples of this save nothing
MAX_PROFILES = 8  # each is compiled anew


def make_profiles(
    low: Sequence[Shape], opt: Sequence[Shape], high: Sequence[Shape], *, block_size: int | None
) -> tuple[Profile, ...]:
    """Profiles from min, opt and max as asked for; what was not asked for is the default, cut to `block_size`.

    Raises:
        OptionError: they do not pair up, are out of order, or T is beyond block_size.
    """
    count = max(len(low), len(opt), len(high), 1)
    if count > MAX_PROFILES:
        raise OptionError(f"{count} profiles; expected at most {MAX_PROFILES}, since each is compiled anew.")
    for name, given in (("min", low), ("opt", opt), ("max", high)):
        if len(given) not in (0, count):
            raise OptionError(f"{count} profiles, but {len(given)} times --{name}; give it as often, or not at all.")
        for B, T in given:
            if block_size is not None and block_size < T:
                raise OptionError(
                    f"--{name} {B}x{T}: T is beyond the model's block_size, {block_size}. The graph has no position "
                    f"embedding there, and TensorRT would not say so. Use --{name} {B}x{block_size}."
                )
    longest = block_size or DEFAULT_MAX[1]
    profiles = []
    for index in range(count):
        most = high[index] if high else (DEFAULT_MAX[0], min(DEFAULT_MAX[1], longest))
        least = low[index] if low else DEFAULT_MIN
        best = opt[index] if opt else (min(DEFAULT_OPT[0], most[0]), min(DEFAULT_OPT[1], most[1]))
        best = best if opt else (max(best[0], least[0]), max(best[1], least[1]))
        try:
            profiles.append(Profile(min=least, opt=best, max=most))
        except ValueError:
            shapes = ", ".join("{} {}x{}".format(*row) for row in (("min", *least), ("opt", *best), ("max", *most)))
            raise OptionError(f"{shapes}: expected min ≤ opt ≤ max, in B and in T.") from None
    return tuple(profiles)


def propose_profiles(
    lengths: Sequence[int], *, opt_B: int, max_B: int, block_size: int, buckets: int = 3
) -> tuple[Profile, ...]:
    """Profiles with bounds in T where they waste least: T of every length rounded up to its bucket's, summed, is least.

    Together they take every T from 1 to `block_size`, so that a length not seen yet is not refused.

    Raises:
        OptionError: a length is beyond block_size, or less than 1.
    """
    if not 1 <= buckets <= MAX_PROFILES:
        raise OptionError(f"--buckets is {buckets}; expected 1 to {MAX_PROFILES}.")
    wrong = [length for length in lengths if not 1 <= length <= block_size]
    if wrong or not lengths:
        raise OptionError(
            f"{len(wrong)} of {len(lengths)} lengths are not in 1 to {block_size}, the block_size"
            + (f" (first: {wrong[0]})." if wrong else ": there are none.")
        )
    bounds = [0, *_best_bounds(lengths, block_size, buckets)]
    profiles = []
    for below, bound in pairwise(bounds):
        inside = [length for length in lengths if below < length <= bound]
        common = int(np.median(inside)) if inside else bound
        profiles.append(Profile(min=(1, below + 1), opt=(opt_B, common), max=(max_B, bound)))
    return tuple(profiles)


def _best_bounds(lengths: Sequence[int], block_size: int, buckets: int) -> list[int]:
    """At most `buckets` ascending bounds, the last one block_size, that make the sum of rounded-up lengths least."""
    candidates = sorted({*range(BUCKET_STEP, block_size, BUCKET_STEP), block_size})
    counts = Counter(candidates[int(np.searchsorted(candidates, length))] for length in lengths)
    below = np.cumsum([0, *(counts[bound] for bound in candidates)])  # lengths up to each candidate
    # best[i]: (cost, bounds) of the lengths up to candidate i - 1 in buckets that end there
    best: list[tuple[int, list[int]]] = [(0, [])] + [
        (int(below[i + 1]) * bound, [bound]) for i, bound in enumerate(candidates)
    ]
    answer = best[-1]
    for _ in range(buckets - 1):
        wider = [best[0]]
        for i, bound in enumerate(candidates):
            options = [(best[j][0] + int(below[i + 1] - below[j]) * bound, [*best[j][1], bound]) for j in range(i + 1)]
            wider.append(min(options, key=lambda option: (option[0], len(option[1]))))
        best = wider
        answer = min(answer, best[-1], key=lambda option: (option[0], len(option[1])))
    return answer[1]


def read_lengths(path: Path) -> list[int]:
    """Lengths of requests: integers in a text file, separated by white space or commas, or an .npy of integers.

    Raises:
        EngineError: the file holds something else.
    """
    try:
        open_regular(path).close()
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
            if array.dtype.kind not in "iu":
                raise ValueError(f"dtype is {array.dtype}")
            return [int(value) for value in array.ravel()]
        return [int(word) for word in path.read_text(encoding="utf-8").replace(",", " ").split()]
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{path} is not a list of lengths: {error}. Expected integers, one a line, or .npy."
        ) from error
