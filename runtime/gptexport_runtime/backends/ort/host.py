"""Bound to the host's memory: the provider reads and writes the caller's arrays where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.dlpack import CPU, Borrowed, DeviceLogits
from gptexport_runtime.backends.ort.binding import Floats, Ids
from gptexport_runtime.backends.ort.package import first_line
from gptexport_runtime.backends.output import Output
from gptexport_runtime.contract.heads import Head
from gptexport_runtime.errors import ExecutionError

if TYPE_CHECKING:
    from gptexport_runtime.backends.ort.cache import CacheRows
    from gptexport_runtime.backends.ort.options import OpenOptions


class HostStore:
    """A cache in the host's memory. Pages of it that were never written take none."""

    device = "cpu"

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        # what was never written is multiplied by 0, so it must not be NaN
        self.values: NDArray[Any] = np.zeros(shape, dtype)
        self.address = int(self.values.ctypes.data)

    def copy_rows(self, source: HostStore, rows: list[tuple[int, int]], length: int) -> None:
        for i, row in rows:
            self.values[:, :, i, :, :length] = source.values[:, :, row, :, :length]


class HostArray:
    """An output that stays on the host, as `DeviceLogits` holds it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array
        self.address = int(array.ctypes.data)


class HostRunner:
    """A session, bound anew in each call. Threads may share it."""

    captured_graphs = 0

    def __init__(self, session: Any, what: str, tokens_at_once: int) -> None:
        self.session = session
        self._what, self._tokens_at_once = what, tokens_at_once

    def run(self, feed: Mapping[str, Ids], output: Output, out: Floats, cache: CacheRows | None = None) -> None:
        """See binding.Runner. A large batch runs a few rows at a time, but not one with a cache."""
        B, T = next(iter(feed.values())).shape
        rows = max(1, self._tokens_at_once // T)
        if cache is not None:
            rows = B
        for start in range(0, B, rows):
            part = slice(start, start + rows)
            some = {name: values[part] for name, values in feed.items()}
            self._take(some, replace(output, shape=out[part].shape), out[part], cache)

    def run_on_device(self, feed: Mapping[str, Ids | Borrowed], output: Output) -> DeviceLogits:
        out = np.empty(output.written, output.kind.stored)
        self._run({name: values for name, values in feed.items() if isinstance(values, np.ndarray)}, output, out, None)
        return DeviceLogits(HostArray(out), output, (CPU, 0))

    def _take(self, feed: Mapping[str, Ids], output: Output, out: Floats, cache: CacheRows | None) -> None:
        if output.is_plain:
            self._run(feed, output, out, cache)
            return
        written = np.empty(output.written, output.kind.stored)
        self._run(feed, output, written, cache)
        output.take(written.reshape(-1, written.shape[-1]), out.reshape(-1, out.shape[-1]))

    def _run(self, feed: Mapping[str, Ids], output: Output, out: NDArray[Any], cache: CacheRows | None) -> None:
        binding = self.session.io_binding() if cache is None else cache.binding(self.session)
        for name, values in feed.items():
            binding.bind_cpu_input(name, values)
        # bound even when the caller passed no buffer: ONNX Runtime else copies its result into a numpy array
        binding.bind_output(output.name, "cpu", 0, output.kind.element, out.shape, out.ctypes.data)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions share no base but Exception
            B, T = next(iter(feed.values())).shape
            raise ExecutionError(f"{self._what} at B={B}, T={T}: {first_line(error)}.") from error


class HostBinding:
    """See binding.Binding."""

    def __init__(self, device: str, tokens_at_once: int) -> None:
        """
        Args:
            device: where the provider computes, for errors.
            tokens_at_once: B×T of one run; a batch with more is computed in several.
        """
        self._device, self._tokens_at_once = device, tokens_at_once

    def open(self, open_session: Callable[[bool], Any], head: Head, options: OpenOptions, what: str) -> HostRunner:
        return HostRunner(open_session(False), f"{what} failed on {self._device}", self._tokens_at_once)

    def round_capacity(self, capacity: int) -> int:
        return capacity

    def allocate(self, shape: tuple[int, ...], dtype: type[np.generic]) -> HostStore:
        return HostStore(shape, dtype)

    def borrow(self, ids: object) -> None:
        """No tensor of the host is borrowed: numpy reads it."""

    def read(self, ids: Borrowed) -> Ids:
        raise NotImplementedError("nothing is borrowed on the host")
