"""Texts in many scripts, and tokenizers of every kind that were trained on some of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SCRIPTS = {
    "Latin": "Ærøskøbing, naïve — ça va? Łódź!",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "Cyrillic": "Съешь ещё этих мягких булок",
    "Armenian": "Բարեւ աշխարհ",
    "Hebrew": "שָׁלוֹם עולם",
    "Arabic": "مرحبا بالعالم، كيف الحال؟",
    "Devanagari": "नमस्ते दुनिया क्षत्रिय",
    "Bengali": "ওহে বিশ্ব",
    "Tamil": "வணக்கம் உலகம்",
    "Telugu": "నమస్కారం ప్రపంచం",
    "Thai": "สวัสดีชาวโลก",
    "Lao": "ສະບາຍດີຊາວໂລກ",
    "Tibetan": "བཀྲ་ཤིས་བདེ་ལེགས།",
    "Georgian": "გამარჯობა მსოფლიო",
    "Ethiopic": "ሰላም ልዑል",
    "Khmer": "សួស្តីពិភពលោក",
    "Hangul": "안녕하세요 세계",
    "Kana": "こんにちは、カタカナ",
    "Han": "你好，世界。龘靐",
    "Cherokee": "ᎣᏏᏲ ᎡᎶᎯ",
    "Mongolian": "ᠰᠠᠶᠢᠨ ᠪᠠᠶᠢᠨ᠎ᠠ",
    "Gothic": "𐌲𐌿𐍄𐌹𐍃𐌺",
    "emoji": "🙂👩‍👩‍👧‍👦🏳️‍🌈🇺🇳 ok",
    "spaces": "  two  spaces\n\n\ttab  ",
}
TRAINED_ON = [SCRIPTS[name] for name in ("Latin", "Greek", "Cyrillic", "Han", "emoji")] * 3 + [
    "plain text, the the"
] * 9


def _train(made: Any, trainer: Any) -> Any:
    made.train_from_iterator(TRAINED_ON, trainer)
    return made


def byte_level_bpe() -> Any:
    """GPT-2's kind: a character may be several tokens."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = _train(made, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(["<|endoftext|>", "<语言>"])  # the second is not of the byte alphabet
    return made


def byte_level_in_sequence() -> Any:
    made = byte_level_bpe()
    made.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    return made


def llama_bpe() -> Any:
    """Llama's kind: what has no token is spelled in bytes, and a text begins with a BOS."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=40,
        show_progress=False,
    )
    made = _train(made, trainer)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def unigram() -> Any:
    """SentencePiece's kind, with byte fallback."""
    pieces = [("<unk>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256)), ("▁", -3.0), ("▁the", -2.0)]
    pieces += [(character, -4.0 - n / 100) for n, character in enumerate("etaoinshrdlu,.")]
    made = tokenizers.Tokenizer(models.Unigram(pieces, 0, True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return made


def unigram_without_bytes() -> Any:
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return _train(made, trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"]))


def word_piece() -> Any:
    """BERT's kind, which Chinese GPT-2s have."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    made = _train(made, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return made


def suffix_bpe() -> Any:
    """GPT-1's kind: a word ends in </w>."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=250, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    return _train(made, trainer)


def words() -> Any:
    """No decoder: words with a space between."""
    vocab = {word: i for i, word in enumerate(["<unk>", "plain", "text", "the", ",", "�"])}
    made = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


KINDS: dict[str, Callable[[], Any]] = {
    made.__name__: made
    for made in (
        byte_level_bpe,
        byte_level_in_sequence,
        llama_bpe,
        unigram,
        unigram_without_bytes,
        word_piece,
        suffix_bpe,
        words,
    )
}
