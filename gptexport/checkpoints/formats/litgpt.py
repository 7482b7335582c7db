"""LitGPT's folders: `lit_model.pth`, `model_config.yaml`, a tokenizer. Llama- and GPT-NeoX-shaped ones are read."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from gptexport.architectures import llama, neox
from gptexport.checkpoints.formats import litgpt_llama, litgpt_neox
from gptexport.checkpoints.formats.huggingface_text import text_of
from gptexport.checkpoints.formats.litgpt_config import DEFAULTS, Fields, read_yaml
from gptexport.checkpoints.names import clean_state_dict, is_tied
from gptexport.checkpoints.torch_file import read_torch_file
from gptexport.checkpoints.types import AssumptionSource, Stored
from gptexport.errors import CheckpointError

FORMAT = "litgpt"
CONFIG, WEIGHTS = "model_config.yaml", "lit_model.pth"


def read(folder: Path) -> Stored:
    """What a LitGPT folder says.

    Raises:
        CheckpointError: a file is missing or damaged, or a field has a wrong value.
        UnknownCheckpointError: the config asks for what gptexport does not build; the fields are named.
    """
    path = folder / CONFIG
    fields: Fields = DEFAULTS | read_yaml(path)
    of_neox = fields["mlp_class_name"] == DEFAULTS["mlp_class_name"]
    shape, architecture = (litgpt_neox, neox.ARCHITECTURE) if of_neox else (litgpt_llama, llama.ARCHITECTURE)
    config = shape.config_of(fields, path)
    payload = read_torch_file(folder / WEIGHTS).payload
    if not isinstance(payload, Mapping):
        raise CheckpointError(f"{folder / WEIGHTS}: expected a dict of weights, got a {type(payload).__name__}.")
    state = payload["model"] if isinstance(payload.get("model"), Mapping) else payload
    cleaned, problems = clean_state_dict(state)
    weights = shape.weights_of(cleaned, config, fields)
    embedding, head = architecture.embedding, architecture.head
    assert embedding is not None and head is not None
    said: dict[str, AssumptionSource] = {item.name: "checkpoint" for item in architecture.assumed}
    text = text_of(folder, {}, config.vocab_size)
    return Stored(
        format=FORMAT,
        path=folder,
        architecture=architecture,
        config=replace(config, tied=is_tied(weights, embedding, head)),
        assumed=said,
        weights=weights,
        files=(path, folder / WEIGHTS),
        tokenizer=text.tokenizer,
        text=text.ids,
        notes=text.notes,
        problems=problems,
    )
