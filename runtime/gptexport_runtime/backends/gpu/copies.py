"""Copies between the host and the device, through pinned memory. Each returns when it is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from gptexport_runtime.backends.gpu.driver import Driver, address_of, move
from gptexport_runtime.backends.gpu.turns import TURNS

PINNED = 8 << 20  # bytes of each of the two pinned buffers that copies go through


@dataclass(frozen=True)
class _Staging:
    """Pinned memory that copies go through, and the stream that fills or empties it."""

    stream: int
    pinned: int


class Copies:
    """Two streams with a pinned buffer each, whatever is copied. Threads take turns."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._stagings = [_Staging(driver.make_stream(), driver.pin(PINNED)) for _ in range(2)]

    @property
    def stream(self) -> int:
        """The stream that a lender of memory has to order its work before."""
        return self._stagings[0].stream

    def upload(self, address: int, source: NDArray[Any]) -> None:
        """From a contiguous array. Through pinned memory: else the call may return before the device has it."""
        staging = self._stagings[0]
        with TURNS:
            for start in range(0, source.nbytes, PINNED):
                size = min(PINNED, source.nbytes - start)
                move(staging.pinned, address_of(source) + start, size)
                self._driver.to_device(address + start, staging.pinned, size, staging.stream)
                self._driver.wait(staging.stream)

    def download(self, address: int, out: NDArray[Any]) -> None:
        """Into a contiguous array of the caller's: while the device writes one pinned buffer, the other is emptied."""
        with TURNS:
            before: tuple[_Staging, int, int] | None = None
            for number, start in enumerate(range(0, out.nbytes, PINNED)):
                staging = self._stagings[number % 2]
                size = min(PINNED, out.nbytes - start)
                self._driver.to_host(staging.pinned, address + start, size, staging.stream)
                self._empty(before, out)
                before = (staging, start, size)
            self._empty(before, out)

    def download_borrowed(self, address: int, out: NDArray[Any]) -> None:
        """Like `download`, from memory whose lender has ordered its work before `stream`: both streams wait for it."""
        with TURNS:
            self._driver.wait(self.stream)
            self.download(address, out)

    def within(self, spans: Iterable[tuple[int, int, int]]) -> None:
        """Copy (to, from, bytes) each, on the device."""
        with TURNS:
            for to, source, size in spans:
                self._driver.copy(to, source, size, self.stream)
            self._driver.wait(self.stream)

    def zero(self, address: int, size: int) -> None:
        with TURNS:
            self._driver.zero(address, size, self.stream)
            self._driver.wait(self.stream)

    def _empty(self, filled: tuple[_Staging, int, int] | None, out: NDArray[Any]) -> None:
        if filled is not None:
            staging, start, size = filled
            self._driver.wait(staging.stream)
            move(address_of(out) + start, staging.pinned, size)

    def __del__(self) -> None:
        for staging in getattr(self, "_stagings", ()):
            self._driver.unpin(staging.pinned)
            self._driver.drop_stream(staging.stream)
