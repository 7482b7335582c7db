"""From a file, a folder, a hub id or a user's own module to a model; no code that a checkpoint carries is run.

One file per format (`nanogpt`, `build_nanogpt`, `huggingface`, `module`), and what they share: `recognise` says what a
path holds, `torch_file` opens a .pt safely, `strict` compares the weights with the config and builds the model.
"""

from gptexport.checkpoints.describe import describe_checkpoint
from gptexport.checkpoints.load import load_checkpoint
from gptexport.checkpoints.types import Checkpoint, CheckpointInfo

__all__ = ["Checkpoint", "CheckpointInfo", "describe_checkpoint", "load_checkpoint"]
