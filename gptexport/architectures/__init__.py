"""The architectures that gptexport builds itself, one file each. The first line of each file says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptexport.architectures import gpt2, llama, module, nanochat, neox
from gptexport.architectures.base import Architecture, Config

ARCHITECTURES: dict[str, Architecture] = {
    found.name: found
    for found in (
        gpt2.ARCHITECTURE,
        llama.ARCHITECTURE,
        nanochat.ARCHITECTURE,
        neox.ARCHITECTURE,
        module.ARCHITECTURE,
    )
}


def described(model: Mapping[str, Any]) -> tuple[Architecture, Config] | None:
    """The architecture and the config that a manifest's `model` stands for; None where this version knows neither."""
    architecture = ARCHITECTURES.get(str(model.get("architecture")))
    if architecture is None:
        return None
    try:
        return architecture, architecture.config(**{k: v for k, v in model.items() if k != "architecture"})
    except (TypeError, ValueError):
        return None


__all__ = ["ARCHITECTURES", "Architecture", "Config", "described"]
