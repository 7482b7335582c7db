"""A user's own module: its limits are all that is known of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch.nn as nn

from gptexport.architectures.base import Architecture, check_sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleConfig:
    """Raises ValueError where a size is not a positive integer."""

    block_size: int  # longest sequence T
    vocab_size: int  # V, of the logits
    input_vocab_size: int | None = None  # how many ids forward takes, where it is not as many

    def __post_init__(self) -> None:
        check_sizes(self, "block_size", "vocab_size")

    def to_dict(self) -> dict[str, Any]:
        """Without input_vocab_size where there is nothing to say."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _cannot_build(_config: ModuleConfig) -> nn.Module:
    raise NotImplementedError("a user's own module is made by the user's own code")


ARCHITECTURE = Architecture(
    name="module", title="a module of your own", config=ModuleConfig, model=_cannot_build, strict=False
)
