"""Tokenizers in the files of slow tokenizers: vocab.json with merges.txt, and vocab.txt. They become a tokenizer.json.

The same ids as transformers' own conversion gives, which the tests compare. What decides is the tokenizer's class, as
tokenizer_config.json or config.json name it: the files alone do not tell Qwen's text from GPT-2's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gptexport.errors import TokenizerError
from gptexport.tokenizers.tokenizer_json import parse, read_bytes, read_tokenizer_json
from gptexport_runtime import BackendUnavailableError

_AS_JSON = (
    "Save it as a tokenizer.json: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) with transformers"
)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def token_ids(path: Path) -> Mapping[str, int]:
    """The id of every token in a tokenizer's file; none where its form does not say without a library.

    Raises:
        TokenizerError: it is damaged.
    """
    if path.suffix == ".txt":
        return _lines(path)
    if path.suffix != ".json":
        return {}
    parsed = parse(read_bytes(path), path)
    return _plain(parsed, path) if is_vocab(parsed) else read_tokenizer_json(path).ids


def is_vocab(parsed: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a vocab.json: ids by token, and no tokenizer.json."""
    return not isinstance(parsed.get("model"), dict) and all(type(i) is int for i in parsed.values())


def byte_level_bpe(path: Path) -> bytes:
    """The tokenizer.json of GPT-2's vocab.json and the merges.txt beside it.

    Raises:
        TokenizerError: merges.txt is not there, a file is damaged, or the tokenizer is of another kind.
        BackendUnavailableError: the tokenizers package is not installed.
    """
    vocab = _plain(parse(read_bytes(path), path), path)
    merges = path.with_name(f"{path.stem.replace('vocab', 'merges')}.txt")
    if not merges.is_file():
        raise TokenizerError(f"{path} is half of a tokenizer: {merges.name}, its merges, is not beside it.")
    config = _config(path.parent)
    _check_class(path, config, "GPT2Tokenizer")
    tokenizers = _library(path)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if missing := sorted(set(alphabet) - vocab.keys()):
        raise TokenizerError(
            f"{path} is not GPT-2's byte-level BPE: {len(missing)} of 256 bytes have no token. {_AS_JSON}."
        )
    prefix = config.get("add_prefix_space") is True

    def make() -> Any:
        made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(path), str(merges)))
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        made.decoder = tokenizers.decoders.ByteLevel()
        _add_special(made, tokenizers, path, {"eos_token": "<|endoftext|>"} | config)
        bos = _content(config.get("bos_token", "<|endoftext|>"))
        if config.get("add_bos_token") is True and bos is not None and made.token_to_id(bos) is not None:
            made.post_processor = tokenizers.processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
            )
        return made

    return _made(make, path)


def word_piece(path: Path) -> bytes:
    """The tokenizer.json of BERT's vocab.txt, which Chinese GPT-2s are trained with.

    Raises:
        TokenizerError: it is damaged, or the tokenizer is of another kind.
        BackendUnavailableError: the tokenizers package is not installed.
    """
    vocab = _lines(path)
    config = _config(path.parent)
    _check_class(path, config, "BertTokenizer")
    unknown, first, last = (
        _content(config.get(name, default)) or default
        for name, default in (("unk_token", "[UNK]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]"))
    )
    if missing := [token for token in (unknown, first, last) if token not in vocab]:
        raise TokenizerError(f"{path} is not BERT's WordPiece: it has no {', '.join(missing)}. {_AS_JSON}.")
    tokenizers = _library(path)

    def make() -> Any:
        made = tokenizers.Tokenizer(tokenizers.models.WordPiece(dict(vocab), unk_token=unknown))
        made.normalizer = tokenizers.normalizers.BertNormalizer(
            lowercase=config.get("do_lower_case", True),
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
            strip_accents=config.get("strip_accents"),
        )
        made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        made.decoder = tokenizers.decoders.WordPiece(prefix="##")
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{first}:0 $A:0 {last}:0", special_tokens=[(first, vocab[first]), (last, vocab[last])]
        )
        defaults = {"pad_token": "[PAD]", "mask_token": "[MASK]"}
        named = {"unk_token": unknown, "cls_token": first, "sep_token": last}
        _add_special(made, tokenizers, path, defaults | config | named)
        return made

    return _made(make, path)


def _made(make: Callable[[], Any], path: Path) -> bytes:
    try:
        text: str = make().to_str()
    except Exception as error:  # the library raises Exception itself
        raise TokenizerError(f"{path} is not a tokenizer: {error}.") from error
    return text.encode()


def _add_special(made: Any, tokenizers: Any, path: Path, config: Mapping[str, Any]) -> None:
    """The tokens that a text may hold whole: those of the vocabulary, and added ones whose id is what comes next."""
    contents = [_content(config.get(name)) for name in _SPECIAL]
    known = [token for token in dict.fromkeys(contents) if token is not None and made.token_to_id(token) is not None]
    added = path.with_name("added_tokens.json")
    more = _plain(parse(read_bytes(added), added), added) if added.is_file() else {}
    for token, i in sorted(more.items(), key=lambda pair: pair[1]):
        if made.token_to_id(token) is None and i != made.get_vocab_size():
            raise TokenizerError(f"{added} gives {token!r} the id {i}; the next free one is {made.get_vocab_size()}.")
        made.add_tokens([tokenizers.AddedToken(token, normalized=False)])
    made.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in known])


def _check_class(path: Path, config: Mapping[str, Any], expected: str) -> None:
    name = config.get("tokenizer_class")
    if name not in (None, expected, f"{expected}Fast"):
        raise TokenizerError(f"{path} is of a {name}, which reads text in its own way, not {expected}'s. {_AS_JSON}.")


def _config(folder: Path) -> dict[str, Any]:
    """What a folder's files say of its tokenizer, the later ones over the earlier."""
    found: dict[str, Any] = {}
    for name in ("config.json", "special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            said = parse(read_bytes(path), path)
            found |= {"tokenizer_class": said.get("tokenizer_class")} if name == "config.json" else said
    return found


def _content(token: object) -> str | None:
    """A token's text: files have it plain, or as an object."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None


def _plain(parsed: Mapping[str, Any], path: Path) -> dict[str, int]:
    if not all(type(i) is int and 0 <= i < 1 << 31 for i in parsed.values()):
        raise TokenizerError(f"{path} is not a vocabulary: expected an object with an id for each token.")
    return dict(parsed)


def _lines(path: Path) -> dict[str, int]:
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not a vocabulary: {error}.") from error
    lines = text.removesuffix("\n").split("\n")
    return {line.rstrip("\r"): i for i, line in enumerate(lines)}


def _library(path: Path) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise BackendUnavailableError(
            f"{path} needs the tokenizers package to become a tokenizer.json. Install it with `pip install tokenizers`."
        ) from None
    return tokenizers
