"""The name that the GPT-2 module had in version 0.1: see gptexport.architectures.gpt2."""

from gptexport.architectures.gpt2 import GPT

__all__ = ["GPT"]
