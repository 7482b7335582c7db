"""The toolkit's own errors, beside the runtime's. `gptexport.cli` maps each to its exit code."""

from gptexport_runtime.errors import GPTExportError


class CheckpointError(GPTExportError):
    """A checkpoint of a known format is damaged, incomplete, or asks for something gptexport does not do."""


class UnknownCheckpointError(CheckpointError):
    """The path holds nothing that gptexport recognises, or a format that it names but does not read."""


class UnsafeCheckpointError(CheckpointError):
    """Loading the checkpoint would execute code that it carries."""


class TokenizerError(GPTExportError):
    """The name or the file of a tokenizer is none, is damaged, or is of a kind that gptexport does not read."""


class ExportError(GPTExportError):
    """The model cannot become the graph that the contract asks for."""


class OutputError(GPTExportError):
    """An output cannot be written where it was asked for: no room, no permission, or no place for it."""


class OutputExistsError(OutputError):
    """The output is there already and --force was not given, or it is not gptexport's to replace."""


class EngineError(GPTExportError):
    """A graph cannot become the TensorRT engine that was asked for."""


class OptionError(EngineError):
    """An option that the chosen TensorRT does not have, or a value that it does not take."""
