"""The architectures that can be written for other systems."""

from __future__ import annotations

from gptexport.architectures import gpt2, llama, neox
from gptexport.checkpoints import Checkpoint
from gptexport.converters import gpt2 as to_gpt2
from gptexport.converters import llama as to_llama
from gptexport.converters import neox as to_neox
from gptexport.converters.converter import Converter
from gptexport.errors import ExportError

CONVERTERS: dict[str, Converter] = {
    gpt2.ARCHITECTURE.name: to_gpt2.CONVERTER,
    llama.ARCHITECTURE.name: to_llama.CONVERTER,
    neox.ARCHITECTURE.name: to_neox.CONVERTER,
}


def converter_of(checkpoint: Checkpoint) -> Converter:
    """Raises: ExportError where the architecture has none."""
    converter = CONVERTERS.get(checkpoint.architecture.name)
    if converter is None:
        raise ExportError(
            f"the architecture {checkpoint.architecture} is not written for other systems; expected one of "
            f"{', '.join(CONVERTERS)}. `gptexport onnx` exports it as it is."
        )
    return converter
