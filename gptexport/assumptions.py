"""Choices that change a model's result and that its weights do not tell: options of the commands. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumption:
    """One such choice: a field of an architecture's config, and an option by the same name."""

    name: str
    values: tuple[str, ...]
    help: str

    def check(self, value: object) -> None:
        """Raise ValueError where `value` is none of the choices."""
        if value not in self.values:
            raise ValueError(f"{self.name} is {value!r}; expected one of {', '.join(self.values)}")


GELU = Assumption("gelu", ("tanh", "erf"), "The GELU that the training code used, if the checkpoint does not say.")
ASSUMPTIONS = (GELU,)
