"""What it takes to write an architecture as a class of transformers.

To add one, write a file like gpt2.py and its line in CONVERTERS (huggingface.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Converter:
    """One architecture's way to transformers."""

    fields: Callable[[Any], dict[str, Any]]
    """Of its config: config.json's, all that decide the result. Raises: ExportError where no class computes it."""
    weights: Callable[[Any, Mapping[str, torch.Tensor]], Weights]
    """Of its config and its weights, under the module's names: under the class's, in the class's layout."""
