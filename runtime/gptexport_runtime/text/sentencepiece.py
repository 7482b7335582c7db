"""A SentencePiece model, by the sentencepiece package: T5's, Llama's and many others' tokenizer.model."""

from __future__ import annotations

from pathlib import Path

from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, InputError
from gptexport_runtime.text.streams import UNKNOWN, Window
from gptexport_runtime.text.tokenizer import Tokenizer, read_words

SENTENCEPIECE = "tokenizer.model"


def tokenizer_of_model(path: Path) -> Tokenizer:
    """The tokenizer in a SentencePiece model. The package is as it is in training: no token is added.

    Raises:
        ArtifactError: it is none, or damaged.
        BackendUnavailableError: the sentencepiece package is not installed.
    """
    try:
        import sentencepiece  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise BackendUnavailableError(
            f"{path} needs the sentencepiece package. Install it with `pip install sentencepiece`."
        ) from None
    data = read_words(path)
    try:
        made = sentencepiece.SentencePieceProcessor(model_proto=data)
    except Exception as error:  # the package raises RuntimeError for what it cannot parse
        raise ArtifactError(f"{path} is not a SentencePiece model: {error}.") from error
    size: int = made.get_piece_size()

    def encode(text: str) -> list[int]:
        try:
            return list(made.encode(text, out_type=int))
        except Exception as error:
            raise InputError(f"{path} cannot encode the text: {error}.") from error

    def known(i: int) -> bool:
        return 0 <= i < size

    return Tokenizer(
        SENTENCEPIECE,
        size,
        encode,
        lambda i: str(made.id_to_piece(i)) if known(i) else UNKNOWN,
        # of a run of bytes it decodes each character by itself, so that only half of one has to wait
        lambda: Window(lambda ids: str(made.decode(ids)), known, lambda _: None),
    )
