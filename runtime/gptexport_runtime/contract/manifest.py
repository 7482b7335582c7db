"""`gptexport.json`, the manifest of a bundle: what it holds, and how it is read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from gptexport_runtime.contract.names import FORMAT, FORMAT_VERSION, MANIFEST_FILE
from gptexport_runtime.errors import ArtifactError

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


def _id(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} holds {value!r}; expected token ids")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a caller must know of the model to feed it. `None`: the artifact does not say."""

    vocab_size: int  # V, of the logits; and ids are 0 ... V-1, but for
    input_vocab_size: int | None = None  # how many ids there are, where it is not V: a padded head, a start token
    block_size: int | None = None  # longest T
    architecture: str = "unknown"
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None

    def __post_init__(self) -> None:
        _positive("vocab_size", self.vocab_size)
        for name in ("block_size", "input_vocab_size"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))

    @property
    def ids(self) -> int:
        """How many ids the model takes: 0 to this less one."""
        return self.input_vocab_size or self.vocab_size

    @property
    def predicted_ids(self) -> int:
        """How many ids both go in and come out: 0 to this less one. Only those can be compared, scored and fed back."""
        return min(self.ids, self.vocab_size)


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
class TextEntry:
    """What the checkpoint says of its text, in ids. `generate` ends a row at one of `eos_token_ids`."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_token_ids", tuple(self.eos_token_ids))  # JSON has lists
        for name, value in (("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)):
            if value is not None:
                _id(name, value)
        for value in self.eos_token_ids:
            _id("eos_token_ids", value)

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
    text: TextEntry = field(default_factory=TextEntry)
    runs_on: tuple[str, ...] = ("cpu", "cuda")  # devices whose kernels run the graphs

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
        data["text"] = _build(TextEntry, data.get("text") or {}, "manifest: text")
        data["runs_on"] = _devices(data)
        manifest = _build(Manifest, data, "manifest")
        manifest.info  # noqa: B018 - validates `model` now rather than at first use
        return manifest


def _devices(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Where the graphs run. Bundles from before 0.2 do not say it: their target and dtype do."""
    found = data.get("runs_on")
    if found is None:
        return ("cuda",) if data.get("target") == "cuda" and data.get("dtype") != "float32" else ("cpu", "cuda")
    if not isinstance(found, list) or not found or not all(isinstance(device, str) for device in found):
        raise ArtifactError(f"manifest: runs_on is {found!r}; expected a list of devices. The manifest is damaged.")
    return tuple(found)
