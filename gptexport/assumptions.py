"""Choices that change a model's result and that its weights do not tell: options of the commands. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Assumption:
    """One such choice: a field of an architecture's config, and an option by the same name."""

    name: str
    values: tuple[Any, ...]  # (): any positive integer
    help: str
    parse: Callable[[str], Any] = str  # from the command line

    @property
    def shown(self) -> tuple[str, ...]:
        """The choices as they are written on a command line."""
        return tuple(f"{value:g}" if isinstance(value, float) else str(value) for value in self.values)

    def check(self, value: object) -> None:
        """Raise ValueError where `value` is none of the choices."""
        if self.values and value not in self.values:
            raise ValueError(f"{self.name} is {value!r}; expected one of {', '.join(self.shown)}")
        if not self.values and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{self.name} is {value!r}; expected a positive integer")


GELU = Assumption("gelu", ("tanh", "erf"), "The GELU that the training code used, if the checkpoint does not say.")
SOFTCAP = Assumption("softcap", (15.0, 20.0), "The softcap of a nanochat of early 2026, which had both.", float)
N_HEAD = Assumption("n_head", (), "The number of attention heads, for weights without a config.", int)
ASSUMPTIONS = (GELU, SOFTCAP, N_HEAD)
