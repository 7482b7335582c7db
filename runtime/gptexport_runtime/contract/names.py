"""Names of tensors, axes and files, each spelled here and nowhere else."""

from __future__ import annotations

INPUT_IDS = "input_ids"  # (B,T) int64
LENGTHS = "lengths"  # (B) int64: each row's number of real tokens, the rest is padding
PAST_LENGTHS = "past_lengths"  # (B) int64: how many tokens of each row the cache holds before this call
LOGITS = "logits"  # (B,T,V) float32, or as META_ROW says; of the graph `last`: (B,V)
LOGPROBS = "logprobs"  # (B,T-1) float32: of each token given those before it
AXIS_B = "B"
AXIS_T = "T"
AXIS_SCORED = "T-1"  # the tokens that have others before them
AXIS_V = "V"  # a number in the file
AXIS_S = "S"  # capacity of the cache, in tokens of a row

MANIFEST_FILE = "gptexport.json"
WEIGHTS_FILE = "weights.data"
CHARACTERS = "characters.json"  # a tokenizer of one id a character: the list of them
GENAI_FILE = "genai.onnx"  # for onnxruntime-genai, where a bundle is laid out for it: no part of the manifest
GENAI_CONFIG_FILE = "genai_config.json"
FORMAT = "gptexport-bundle"
FORMAT_VERSION = 1

# metadata_props of every graph, so that a bare .onnx knows its limits too
META_BLOCK_SIZE = "gptexport.block_size"
META_VOCAB_SIZE = "gptexport.vocab_size"
META_ROW = "gptexport.logits_row"  # of a graph whose logits have longer rows than V: how many numbers each has
META_ACTIVATION_BLOCK = "gptexport.activation_block"  # where weights are quantized: how many inputs may share a scale
META_WEIGHTS = "gptexport.weights"  # sha256 of the weights that the graph reads from a file, as contract/seal.py has it


def past_names(layer: int) -> tuple[str, str]:
    """Inputs of `decode`: keys and values (B, n_head, S, head_size) of one layer, in the manifest's dtype or cache."""
    return f"past_key_{layer}", f"past_value_{layer}"


def present_names(layer: int) -> tuple[str, str]:
    """Outputs of `decode`: the same with the new tokens in place. Bind them to the memory of `past_names`."""
    return f"present_key_{layer}", f"present_value_{layer}"
