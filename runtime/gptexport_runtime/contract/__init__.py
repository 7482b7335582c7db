"""What the exporter writes and the runtime reads: the one home of names, limits and the manifest format.

Everything in here is data. The exporter imports it; nobody retypes "logits".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from gptexport_runtime.errors import ArtifactError

INPUT_IDS = "input_ids"  # (B,T) int64
LENGTHS = "lengths"  # (B) int64: each row's number of real tokens, the rest is padding
PAST_LENGTHS = "past_lengths"  # (B) int64: how many tokens of each row the cache holds before this call
LOGITS = "logits"  # (B,T,V) float32; of the graph `last`: (B,V)
LOGPROBS = "logprobs"  # (B,T-1) float32: of each token given those before it
AXIS_B = "B"
AXIS_T = "T"
AXIS_V = "V"  # a number in the file
AXIS_S = "S"  # capacity of the cache, in tokens of a row

MANIFEST_FILE = "gptexport.json"
WEIGHTS_FILE = "weights.data"
CHARACTERS = "characters.json"  # a tokenizer of one id a character: the list of them
FORMAT = "gptexport-bundle"
FORMAT_VERSION = 1

TARGET_CUDA = "cuda"  # the manifest's target of a bundle whose 16-bit graphs run on CUDA alone

GRAPH_LOGITS = "logits"
GRAPH_LAST = "last"
GRAPH_SCORE = "score"
GRAPH_DECODE = "decode"
GRAPH_FILES = {kind: f"{kind}.onnx" for kind in (GRAPH_LOGITS, GRAPH_LAST, GRAPH_SCORE, GRAPH_DECODE)}


def past_names(layer: int) -> tuple[str, str]:
    """Inputs of `decode`: keys and values (B, n_head, S, head_size) of one layer, in the dtype of the weights."""
    return f"past_key_{layer}", f"past_value_{layer}"


def present_names(layer: int) -> tuple[str, str]:
    """Outputs of `decode`: the same with the new tokens in place. Bind them to the memory of `past_names`."""
    return f"present_key_{layer}", f"present_value_{layer}"


@dataclass(frozen=True)
class Signature:
    """A graph's interface: names and axes. Inputs are int64, the output float32; all axes but V are free.

    That of `decode` leaves out the cache, whose tensors come after these: see `past_names` and `present_names`.
    """

    inputs: Mapping[str, tuple[str, ...]]
    output: str
    output_axes: tuple[str, ...]

    def __str__(self) -> str:
        inputs = ", ".join(f"{name} tensor(int64) [{','.join(axes)}]" for name, axes in self.inputs.items())
        return f"{inputs} -> {self.output} tensor(float) [{','.join(self.output_axes)}]"


SIGNATURES = {
    GRAPH_LOGITS: Signature({INPUT_IDS: (AXIS_B, AXIS_T)}, LOGITS, (AXIS_B, AXIS_T, AXIS_V)),
    GRAPH_LAST: Signature({INPUT_IDS: (AXIS_B, AXIS_T), LENGTHS: (AXIS_B,)}, LOGITS, (AXIS_B, AXIS_V)),
    GRAPH_SCORE: Signature({INPUT_IDS: (AXIS_B, AXIS_T)}, LOGPROBS, (AXIS_B, "T-1")),
    GRAPH_DECODE: Signature(
        {INPUT_IDS: (AXIS_B, AXIS_T), LENGTHS: (AXIS_B,), PAST_LENGTHS: (AXIS_B,)}, LOGITS, (AXIS_B, AXIS_V)
    ),
}

# metadata_props of every graph, so that a bare .onnx knows its limits too
META_BLOCK_SIZE = "gptexport.block_size"
META_VOCAB_SIZE = "gptexport.vocab_size"

_T = TypeVar("_T")


def _build(cls: type[_T], data: object, where: str) -> _T:
    """`cls(**data)`; unknown keys, of a newer writer, are ignored; missing or mistyped ones are an ArtifactError."""
    if not isinstance(data, dict):
        raise ArtifactError(
            f"{where} is {type(data).__name__}; expected an object. The manifest is damaged: export again."
        )
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    try:
        return cls(**{key: value for key, value in data.items() if key in known})
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: {error}. The manifest is damaged: export again.") from error


def _positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive integer")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a caller must know of the model to feed it. `None`: the artifact does not say."""

    vocab_size: int  # V: ids are 0 ... V-1
    block_size: int | None = None  # longest T
    architecture: str = "unknown"
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None

    def __post_init__(self) -> None:
        _positive("vocab_size", self.vocab_size)
        if self.block_size is not None:
            _positive("block_size", self.block_size)


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the bundle: a plain name beside the manifest, its size in bytes and its sha256 (hex)."""

    file: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not self.file or "/" in self.file or "\\" in self.file or self.file.startswith("."):
            raise ValueError(f"file is {self.file!r}; expected a plain file name")


@dataclass(frozen=True, kw_only=True)
class TokenizerEntry:
    """The tokenizer of the model's text: `bytes` and `gpt2` by name, others by their file."""

    name: str
    file: FileEntry | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`gptexport.json`. `model` holds the full config, of which `info` is the part a session needs."""

    model: Mapping[str, Any]
    source: Mapping[str, Any]  # checkpoint format, its sha256, how the GELU was decided
    dtype: str  # of the weights; logits are float32
    target: str
    opset: int
    graphs: Mapping[str, FileEntry]
    weights: FileEntry | None  # None: each graph holds its own
    parameters: int
    producer: Mapping[str, str]  # versions of what wrote it
    audit: Mapping[str, Any] = field(default_factory=dict)  # fusions, expected and achieved
    left_out: Mapping[str, str] = field(default_factory=dict)  # kinds of graph that the forward does not allow, and why
    checked: Mapping[str, str] = field(default_factory=dict)  # what the export made sure of, and on what
    expected_kernels: Mapping[str, Any] = field(default_factory=dict)  # by operator, attention kernels a GPU may take
    parity: Mapping[str, Any] | None = None
    quantize: str | None = None  # "int8": of the linears and the embedding they share a weight with
    tokenizer: TokenizerEntry | None = None  # None: nobody said

    @property
    def info(self) -> ModelInfo:
        return _build(ModelInfo, dict(self.model), "manifest: model")

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Parse and validate.

        Raises:
            ArtifactError: not JSON, not a bundle's manifest, of another version, or with missing fields.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ArtifactError(f"{MANIFEST_FILE} is not JSON ({error}). It is damaged: export again.") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ArtifactError(f'{MANIFEST_FILE} is not a bundle manifest: expected "format": "{FORMAT}".')
        if data.get("format_version") != FORMAT_VERSION:
            raise ArtifactError(
                f"{MANIFEST_FILE} has format_version {data.get('format_version')!r}; this gptexport reads "
                f"{FORMAT_VERSION}. Export again with this version, or upgrade gptexport-runtime."
            )
        graphs = data.get("graphs")
        if not isinstance(graphs, dict) or not graphs:
            raise ArtifactError("manifest: graphs is missing or empty. The manifest is damaged: export again.")
        for name in ("model", "source", "producer", "audit", "left_out", "checked", "expected_kernels", "parity"):
            if not isinstance(data.get(name) or {}, dict):
                raise ArtifactError(
                    f"manifest: {name} is {data[name]!r}; expected an object. The manifest is damaged: export again."
                )
        data["graphs"] = {kind: _build(FileEntry, entry, f"manifest: graphs.{kind}") for kind, entry in graphs.items()}
        if data.get("weights") is not None:
            data["weights"] = _build(FileEntry, data["weights"], "manifest: weights")
        if data.get("tokenizer") is not None:
            tokenizer = dict(data["tokenizer"]) if isinstance(data["tokenizer"], dict) else data["tokenizer"]
            if isinstance(tokenizer, dict) and tokenizer.get("file") is not None:
                tokenizer["file"] = _build(FileEntry, tokenizer["file"], "manifest: tokenizer.file")
            data["tokenizer"] = _build(TokenizerEntry, tokenizer, "manifest: tokenizer")
        manifest = _build(Manifest, data, "manifest")
        manifest.info  # noqa: B018 - validates `model` now rather than at first use
        return manifest
