"""Generation is what the model would say without a cache: alone, in batches of mixed lengths, from a forked cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn as nn

import gptexport_runtime
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport_runtime import ContextLengthError, InputError, Session, SessionError
from gptexport_runtime.backends.ort.cache import OrtCache
from gptexport_runtime.generate.cache import Cache
from tests.support.builders import SIZES
from tests.support.greedy import agreement, fixed_prompts

V, BLOCK = SIZES["vocab_size"], SIZES["block_size"]
PROMPTS = fixed_prompts(200, block_size=BLOCK, vocab_size=V)
LONG = [prompt for prompt in PROMPTS if len(prompt) >= 12]
ALONE, TOGETHER = 60, 17


def test_greedy_is_eager_without_a_cache(session: Session, eager: nn.Module) -> None:
    generated = [session.generate([prompt], temperature=0)[0] for prompt in PROMPTS[:ALONE]]
    assert all(len(prompt) + len(new) == BLOCK for prompt, new in zip(PROMPTS[:ALONE], generated, strict=True))
    found = agreement(eager, PROMPTS[:ALONE], generated)
    assert (found.wrong, found.ties) == (0, 0) and found.tokens > 5 * ALONE


def test_rows_of_mixed_lengths_are_each_as_alone(session: Session, eager: nn.Module) -> None:
    generated = [
        row
        for start in range(0, len(PROMPTS), TOGETHER)
        for row in session.generate(PROMPTS[start : start + TOGETHER], temperature=0)
    ]
    assert agreement(eager, PROMPTS, generated).wrong == 0


def test_a_fork_goes_on_as_the_whole_would(session: Session, eager: nn.Module) -> None:
    """One prompt prefilled once; each copy then gets an ending of its own, of its own length."""
    prompt = LONG[0][:5]
    random = np.random.default_rng(1)
    with session.cache() as cache:
        session.generate([prompt], max_new_tokens=1, temperature=0, cache=cache)
        assert cache.lengths.tolist() == [5]
        with cache.fork(4) as fork:
            texts = [np.concatenate([prompt, random.integers(0, V, count)]) for count in (1, 4, 2, 7)]
            generated = session.generate(texts, temperature=0, cache=fork)
            assert agreement(eager, texts, generated).wrong == 0
        assert cache.lengths.tolist() == [5], "the fork has memory of its own"


def test_what_the_cache_holds_is_not_computed_again(cpu: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    with cpu.cache(rows=2) as cache:
        run = OrtCache.run

        def watched(memory: OrtCache, rows: slice, ids: Any, *rest: Any) -> None:
            fed.append(ids.size)
            run(memory, rows, ids, *rest)

        monkeypatch.setattr(OrtCache, "run", watched)
        first = cpu.generate([LONG[3][:7], LONG[4][:4]], max_new_tokens=2, temperature=0, cache=cache)
        texts = [np.concatenate(pair) for pair in zip([LONG[3][:7], LONG[4][:4]], first, strict=True)]
        fed.clear()
        again = cpu.generate(texts, max_new_tokens=1, temperature=0, cache=cache)
        assert fed == [2], "one token a row"
        other = texts[0].copy()
        other[1] = (other[1] + 1) % V  # a wrong cache costs time, never correctness
        changed = cpu.generate([other, texts[1]], max_new_tokens=5, temperature=0, cache=cache)
    assert changed[1][0] == again[1][0]
    assert np.array_equal(changed[0], cpu.generate([other], max_new_tokens=5, temperature=0)[0])


def test_a_rewound_cache_forgets(cpu: Session) -> None:
    with cpu.cache() as cache:
        whole = cpu.generate([LONG[6][:4]], max_new_tokens=6, temperature=0, cache=cache)
        cache.rewind(2)
        assert cache.lengths.tolist() == [2] and cache.ids[0].tolist() == LONG[6][:2].tolist()
        assert np.array_equal(cpu.generate([LONG[6][:4]], max_new_tokens=6, temperature=0, cache=cache)[0], whole[0])
        wrong_ones: list[Any] = [-1, 99, [1, 2], 1.5]
        for wrong in wrong_ones:
            with pytest.raises(InputError, match="lengths"):
                cache.rewind(wrong)


def test_a_text_depends_on_its_own_seed_alone(session: Session) -> None:
    """Whatever stands beside it, in whatever place, and whoever ends before it."""
    options: dict[str, Any] = {"top_k": 20}  # rows of other lengths end at other times
    prompts = [LONG[8][:3], LONG[9][:9], LONG[10][:1]]
    alone = [session.generate([prompt], seed=seed, **options)[0] for seed, prompt in enumerate(prompts)]
    together = session.generate(prompts, seed=[0, 1, 2], **options)
    backwards = session.generate(prompts[::-1], seed=[2, 1, 0], **options)[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert one.tolist() == two.tolist() == three.tolist()
    same = session.generate([prompts[0]] * 2, seed=5, **options)
    assert same[0].tolist() == same[1].tolist()
    assert session.generate([prompts[0]] * 2, seed=[5, 6], **options)[1].tolist() != same[0].tolist()


def test_rows_end_each_in_its_way(cpu: Session) -> None:
    prompts = [LONG[1][:4], LONG[2][:12]]
    free = cpu.generate(prompts, temperature=0)
    assert [len(row) for row in free] == [BLOCK - 4, BLOCK - 12], "block_size is the end"
    stop = int(free[0][2])
    cut = [row.tolist() for row in cpu.generate(prompts, temperature=0, stop=[stop])]
    for row, got in zip(free, cut, strict=True):
        where = row.tolist().index(stop) if stop in row else len(row)
        assert got == row[:where].tolist(), "the id that stops is not part of it"
    steps = list(cpu.stream(prompts, temperature=0, stop=[stop]))
    assert all(step.shape == (2,) for step in steps)
    assert [[t for t in column if t != -1] for column in np.stack(steps, axis=1).tolist()] == cut
    assert [len(row) for row in cpu.generate([LONG[0][:3], [1] * BLOCK], temperature=0)] == [BLOCK - 3, 0]


def test_past_block_size_is_an_error_or_a_sliding_restart(session: Session, eager: nn.Module) -> None:
    prompt = LONG[4][:6]
    with pytest.raises(ContextLengthError, match="row 0 has 6 tokens and would get 30 more; block_size is 17"):
        session.generate([prompt], max_new_tokens=30)
    (new,) = session.generate([prompt], max_new_tokens=30, temperature=0, slide=True)
    text, start = prompt.tolist(), 0
    with torch.inference_mode():
        for _ in range(30):
            if len(text) - start > BLOCK:
                start = len(text) - BLOCK // 2
            text.append(int(eager(torch.tensor([text[start:]]))[0, -1].argmax()))
    assert new.tolist() == text[6:]


def test_a_prompt_past_block_size_slides_too(session: Session, eager: nn.Module) -> None:
    """It goes on from its last half, as a text does that has grown so long; beside rows that have not."""
    text = np.concatenate(LONG)[: BLOCK + 9]
    with pytest.raises(ContextLengthError, match=f"row 0 of ids has {BLOCK + 9} tokens; the model's block_size is"):
        session.generate([text], max_new_tokens=2)
    long, short = session.generate([text, LONG[0][:3]], max_new_tokens=4, temperature=0, slide=True)
    assert long.tolist() == session.generate([text[-(BLOCK // 2) :]], max_new_tokens=4, temperature=0)[0].tolist()
    assert agreement(eager, [text[-(BLOCK // 2) :], LONG[0][:3]], [long, short]).wrong == 0
    with session.cache() as cache:
        (cached,) = session.generate([text], max_new_tokens=4, temperature=0, slide=True, cache=cache)
    assert cached.tolist() == long.tolist()


def test_a_stream_that_is_closed_frees_its_cache(cpu: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Cache] = []
    make = cpu.cache

    def kept(*sizes: Any, **options: Any) -> Cache:
        made.append(make(*sizes, **options))
        return made[-1]

    monkeypatch.setattr(cpu, "cache", kept)
    steps = cpu.stream([[1, 2, 3]], temperature=0)
    next(steps)
    assert "closed" not in repr(made[0])
    steps.close()
    assert "closed" in repr(made[0])
    with pytest.raises(SessionError, match="closed"):
        list(cpu.stream([[1, 2, 3]], cache=made[0]))


def test_a_cache_serves_one_call_at_a_time(cpu: Session) -> None:
    with cpu.cache() as cache:
        steps = cpu.stream([[1, 2]], cache=cache)
        next(steps)
        with pytest.raises(SessionError, match="in use by another call"):
            cpu.generate([[1, 2]], cache=cache)
        steps.close()
        cpu.generate([[1, 2]], cache=cache)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0"),
        ({"slide": True}, "slide has no end"),
        ({"stop": [V]}, f"stop holds {V}"),
        ({"seed": [1]}, "one for each of the 2 rows"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": None}, "seed is None; expected an integer of 0 or more, or one for each of the 2 rows"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": True}, "seed is True"),
        ({"seed": np.array(1.5)}, "seed is array"),
        ({"stop": V - 1}, f"stop is {V - 1}; expected token ids, 0 to {V - 1}, in a list or set"),
        ({"stop": None}, "stop is None"),
        ({"stop": np.array(3)}, "stop is array"),
        ({"stop": [True]}, "stop holds True"),
        ({"stop": [[5, 6]]}, r"stop holds \[5, 6\]"),
        ({"stop": "ab"}, "stop is 'ab'"),
        ({"stop": [-1]}, "stop holds -1"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": True}, "min_p is True"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(
    bundles: dict[str, Path], options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the graph is opened."""
    with gptexport_runtime.load(bundles["cpu"], "cpu") as session:
        monkeypatch.setattr(session._backend, "open_decoder", lambda _head: pytest.fail("it was opened"))
        with pytest.raises(InputError, match=message):
            session.stream([[1, 2], [3]], **options)


def test_wrong_caches_are_refused(cpu: Session) -> None:
    with cpu.cache(rows=2) as cache, pytest.raises(InputError, match="the cache has 2 rows and ids 1"):
        cpu.stream([[1]], cache=cache)
    with cpu.cache(capacity=4) as cache, pytest.raises(InputError, match="room for 4 tokens a row; 16 are needed"):
        cpu.stream([[1]], cache=cache)
    for options, message in [({"rows": 0}, "rows is 0"), ({"capacity": 99}, "capacity is 99")]:
        with pytest.raises(InputError, match=message):
            cpu.cache(**options)


def test_int8_generates_what_its_own_logits_say(bundles: dict[str, Path]) -> None:
    """Activations have one scale for all tokens of a call, so a step's logits are near those of the whole, no more."""
    with gptexport_runtime.load(bundles["int8"], "cpu") as session:
        generated = session.generate(PROMPTS[:20], temperature=0)
        gaps = []
        for prompt, new in zip(PROMPTS[:20], generated, strict=True):
            logits = session.logits([np.concatenate([prompt, new])[:-1]])[0, len(prompt) - 1 :]
            gaps += (logits.max(axis=1) - logits[np.arange(len(new)), new]).tolist()
    assert np.mean(np.array(gaps) == 0) > 0.9 and max(gaps) < 0.3


def test_attention_that_is_scaled_by_layer(scaled: str, tmp_path: Path) -> None:
    export_onnx(load_checkpoint(scaled), tmp_path / "gpt", target="cpu")
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as session:
        generated = session.generate(PROMPTS[:20], temperature=0)
    assert agreement(load_checkpoint(scaled).model, PROMPTS[:20], generated).wrong == 0


@pytest.mark.parametrize("graphs", [["logits"], ["logits", "last"]])
def test_without_a_graph_for_it_the_text_is_computed_again_for_every_token(
    cpu: Session, source: str, tmp_path: Path, graphs: list[str]
) -> None:
    """The same text, in caches that fork and rows that end apart too."""
    export_onnx(load_checkpoint(source), tmp_path / "gpt", graphs=graphs)
    with gptexport_runtime.load(tmp_path / "gpt", "cpu") as session:
        assert cpu.why_slow is None and "decode.onnx" in str(session.why_slow)
        options: dict[str, Any] = {"temperature": 0.8, "seed": [3, 4, 5], "max_new_tokens": 6, "stop": [7, 9, 11]}
        rows = [[5, 6, 7], [1], [2, 3]]
        fast, slow = (gpt.generate(rows, **options) for gpt in (cpu, session))
        assert [row.tolist() for row in fast] == [row.tolist() for row in slow]
        with session.cache() as cache:
            first = session.generate([[4, 5]], temperature=0, max_new_tokens=3, cache=cache)[0].tolist()
            with cache.fork(2) as fork:
                more = session.generate([[4, 5, *first], [4, 5, 1]], temperature=0, max_new_tokens=3, cache=fork)
        alone = [
            cpu.generate([row], temperature=0, max_new_tokens=3)[0].tolist() for row in ([4, 5, *first], [4, 5, 1])
        ]
        assert [row.tolist() for row in more] == alone
