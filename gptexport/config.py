"""The name that GPT-2's config had in version 0.1: see gptexport.architectures.gpt2."""

from gptexport.architectures.gpt2 import GPTConfig

__all__ = ["GPTConfig"]
