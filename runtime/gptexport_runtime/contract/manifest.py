"""`gptexport.json`, the manifest of a bundle: what it holds, and how it is read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gptexport_runtime.contract.document import Format
from gptexport_runtime.contract.model import FileEntry, ModelInfo, why_stale
from gptexport_runtime.contract.names import FORMAT, FORMAT_VERSION, MANIFEST_FILE

MANIFEST = Format(what="a bundle manifest", name=FORMAT, version=FORMAT_VERSION, again="export again")
# target and dtype of the bundles that do not say where they run, from before 0.2, and run on CUDA alone
_CUDA_ONLY = (("cuda", "float16"), ("cuda", "bfloat16"))


@dataclass(frozen=True, kw_only=True)
class TokenizerEntry:
    """The tokenizer of the model's text: `bytes` and `gpt2` by name, others by their file."""

    name: str
    file: FileEntry | None = None


@dataclass(frozen=True, kw_only=True)
class TextEntry:
    """What the checkpoint says of its text, in ids. `generate` ends a row at one of `eos_token_ids`."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    before_prompt: tuple[int, ...] = ()  # that stand before a text to go on from, if its tokenizer does not put them
    before_message: tuple[int, ...] = ()  # before a message that is to be answered; none: there is no chat format
    after_message: tuple[int, ...] = ()  # and after it

    def __post_init__(self) -> None:
        around = (*self.before_prompt, *self.before_message, *self.after_message)
        named = (*self.eos_token_ids, self.bos_token_id, self.pad_token_id)
        wrong = [i for i in (*named, *around) if i is not None and i < 0]
        if wrong:
            raise ValueError(f"it holds {wrong[0]}; expected token ids")

    @property
    def special_ids(self) -> tuple[int, ...]:
        """All of them, once each."""
        named = (*self.eos_token_ids, self.bos_token_id, self.pad_token_id)
        return tuple(sorted({i for i in named if i is not None}))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`gptexport.json`. `model` holds the full config, of which `info` is the part a session needs."""

    model: Mapping[str, Any]
    source: Mapping[str, Any]  # checkpoint format, its sha256, how the GELU was decided
    dtype: str  # of the weights; logits are float32
    target: str
    opset: int
    graphs: Mapping[str, FileEntry]  # by the name of their head
    weights: FileEntry | None  # None: each graph holds its own
    parameters: int
    producer: Mapping[str, str]  # versions of what wrote it
    audit: Mapping[str, Any] = field(default_factory=dict)  # fusions, expected and achieved
    left_out: Mapping[str, str] = field(default_factory=dict)  # kinds of graph that the forward does not allow, and why
    checked: Mapping[str, str] = field(default_factory=dict)  # what the export made sure of, and on what
    expected_kernels: Mapping[str, Any] = field(default_factory=dict)  # by operator, attention kernels a GPU may take
    parity: Mapping[str, Any] | None = None
    quantize: str | None = None  # "int8", "int8w", "int4": of the linears, and of the embedding
    cache: str | None = None  # "int8": of the keys and values of `decode`; None: they are as `dtype` says
    tokenizer: TokenizerEntry | None = None  # None: the bundle has none
    text: TextEntry = field(default_factory=TextEntry)
    runs_on: tuple[str, ...] = ("cpu", "cuda")  # devices whose kernels run the graphs
    on_cpu: tuple[str, ...] = ()  # heads whose graphs run on the CPU, in float32, wherever the others run

    what = "these graphs and weights"

    def __post_init__(self) -> None:
        if not self.graphs:
            raise ValueError("graphs is empty")
        if not self.runs_on:
            raise ValueError("runs_on is empty; expected a list of devices")

    @property
    def info(self) -> ModelInfo:
        return MANIFEST.build(ModelInfo, dict(self.model), "manifest: model")

    @property
    def identity(self) -> Mapping[str, Any]:
        """The sha256 of each graph and of the weights, by the names that a verdict has for them."""
        return {
            "graphs_sha256": {head: entry.sha256 for head, entry in self.graphs.items()},
            "weights_sha256": self.weights.sha256 if self.weights else None,
        }

    def why_stale(self) -> str | None:
        return why_stale(self, {"graphs_sha256": "other graphs", "weights_sha256": "other weights"})

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Parse and validate.

        Raises:
            ArtifactError: not JSON, not a bundle's manifest, of another version, or with missing or mistyped fields.
        """
        data = MANIFEST.load(text, MANIFEST_FILE)
        if data.get("runs_on") is None and (data.get("target"), data.get("dtype")) in _CUDA_ONLY:
            data["runs_on"] = ["cuda"]
        manifest = MANIFEST.build(Manifest, data, "manifest")
        manifest.info  # noqa: B018 - validates `model` now rather than at first use
        return manifest
