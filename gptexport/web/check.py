"""Is a site's model, in a browser, the same as the checkpoint? Parity's measurements and gates, and greedy texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptexport.artifacts import describe_artifact
from gptexport.parity import ParityResult, check_parity, load_for
from gptexport.parity.measure.metrics import Ids
from gptexport.parity.measure.noise import allowed_change
from gptexport.web.browser import find_browser, opened
from gptexport.web.remote import Page
from gptexport.web.server import SiteServer
from gptexport.web.site import MODEL, is_site
from gptexport_runtime import Session, load
from gptexport_runtime.artifact import open_artifact
from gptexport_runtime.errors import ArtifactError, BackendUnavailableError, InputError
from gptexport_runtime.text import Tokenizer, bundle_tokenizer

PROMPTS = 8
NEW_TOKENS = 32
PROMPT = "Once upon a time"  # that is typed into the page
# where tokenizers tend to differ, a text a line
TEXTS = (
    PROMPT,
    *(
        "",
        " ",
        "  a",
        "a  ",
        "\n\n\tif x:\r\n",
        "\x00\x7f",
        "\u00a0nbsp\u2003em",
        "\ufeffBOM",
        "a\u200bb\u200d",
        "the " * 40,
    ),
    *("don't WE'LL I'm", "3.14159 12345678 1,000", "x = {'a': [1, 2]}  # …", "https://example.org/?q=1&r=%20"),
    *("naïve café Straße", "a\u0301 á e\u0300\u0301", "ﬁ ﷺ ™ ½ ²", "привет мир", "שלום مرحبا हिन्दी", "🙂👩‍👩‍👧 🇩🇪"),
    *("中文，日本語 한국어", "<|endoftext|>", "<s>a</s>", "[MASK] ##ing", "_-_--__", "!?!?!?...", "AAAAaaaa"),
    "supercalifragilisticexpialidocious",
)

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A prompt whose greedy continuation in the page is not the session's."""

    prompt: list[int]
    page: list[int]
    session: list[int]
    tie: bool  # where they part, the two tokens' logits are closer than rounding moves them


@dataclass(frozen=True, kw_only=True)
class WebCheck:
    """Truthy when the page is right."""

    parity: ParityResult
    page: Page
    prompts: int
    different: tuple[Difference, ...]
    encoded_otherwise: tuple[str, ...]  # texts whose ids in the page are not the tokenizer's

    def __bool__(self) -> bool:
        return bool(self.parity) and all(found.tie for found in self.different) and not self.encoded_otherwise


def check_site(
    site: Path,
    checkpoint: str,
    *,
    browser: str | None = None,
    isolated: bool = True,
    quick: bool = False,
    prompts: int = PROMPTS,
    progress: Progress = lambda _step: None,
    **assumed: Any,
) -> WebCheck:
    """Compare a page's logits with the checkpoint's, as `gptexport parity` does, and its greedy texts with a session's.

    Args:
        site: what `write_site` wrote.
        checkpoint: see `gptexport.parity.load_for`.
        browser: see `find_browser`.
        isolated: serve it with the headers that a browser demands before it gives threads.
        quick: two small shapes.
        prompts: whose greedy texts are compared, beside one that is typed into the page.
        assumed: what the checkpoint may not say.

    Raises:
        ArtifactError: it is no site, or its model is damaged.
        BackendUnavailableError: there is no browser, or it does not start.
        ExecutionError: the page says what went wrong.
        CheckpointError: see `load_checkpoint`.
    """
    if not is_site(site):
        raise ArtifactError(f"{site} is not a site. Write one with `gptexport web BUNDLE -o SITE`.")
    program = find_browser(browser)
    artifact = open_artifact(site / MODEL)
    described = describe_artifact(site / MODEL)
    loaded = load_for(described, checkpoint, **assumed)
    with open_page(site, program, isolated=isolated, progress=progress) as page:
        result = check_parity(
            described,
            loaded,
            quick=quick,
            source=checkpoint,
            record=False,  # the verdict is of a browser, and would be taken for one of ONNX Runtime
            open_session=lambda **_: page.session(artifact),
            progress=progress,
        )
        progress("comparing greedy texts")
        words = _words(site / MODEL)
        with load(site / MODEL, "cpu") as session:
            compare = _Compare(page, session, allowed_change(result.measured.stats, described.precision))
            different = (*compare.loops(prompts), *compare.form(words))
        progress("comparing the tokenizer")
        otherwise = _encoded_otherwise(page, words)
    return WebCheck(
        parity=result,
        page=page,
        prompts=prompts + 1,
        different=different,
        encoded_otherwise=otherwise,
    )


def _words(bundle: Path) -> Tokenizer | None:
    try:
        return bundle_tokenizer(bundle)
    except BackendUnavailableError:  # the package that reads it is not installed
        return None


def _encoded_otherwise(page: Page, words: Tokenizer | None) -> tuple[str, ...]:
    if words is None:
        return ()
    return tuple(
        text for text, ids in zip(TEXTS, page.encode(list(TEXTS)), strict=True) if ids != _encoded(words, text)
    )


def _encoded(words: Tokenizer, text: str) -> list[int] | None:
    try:
        return words.encode(text)
    except InputError:
        return None


def _threads(number: int) -> str:
    return "one thread" if number == 1 else f"{number} threads"


@contextmanager
def open_page(
    site: Path, browser: str, *, isolated: bool = True, progress: Progress = lambda _step: None
) -> Iterator[Page]:
    """A site's page in a browser, with its model open.

    Raises:
        BackendUnavailableError: the browser does not start.
        ExecutionError: the page says what went wrong.
    """
    with SiteServer(site, isolated=isolated) as server:
        progress(f"opening the page in {browser}")
        with opened(browser, server.check_url):
            page = Page.at(server)
            progress(f"it runs onnxruntime-web {page.onnxruntime} on {_threads(page.threads)}")
            yield page


@dataclass(frozen=True)
class _Compare:
    """Greedy texts of a page and of a session."""

    page: Page
    session: Session
    allowed: float  # how far rounding may move a logit

    def loops(self, prompts: int) -> Iterator[Difference]:
        """The page's loop, from random ids of growing length."""
        block_size = self.session.config.block_size
        assert block_size is not None, "a bundle says it"
        draw = np.random.default_rng(0)
        for number in range(prompts):
            T = 1 + number % min(32, block_size - 1)
            prompt = draw.integers(0, self.session.config.vocab_size, T)
            count = min(NEW_TOKENS, block_size - T)
            yield from self._differs(prompt, self.page.greedy(prompt, count), count)

    def form(self, words: Tokenizer | None) -> Iterator[Difference]:
        """The page as a person sees it: a prompt is typed, and what it writes is read."""
        known = words is None or _encoded(words, PROMPT) is not None
        prompt = "0 1" if words is None else PROMPT if known else words.decode([0, 1])
        block_size = self.session.config.block_size or 1
        count = max(1, min(NEW_TOKENS, block_size // 2))
        given, ids = self.page.write(prompt, count)
        yield from self._differs(given, ids, min(count, block_size - len(given)))

    def _differs(self, prompt: Ids, there: Ids, count: int) -> Iterator[Difference]:
        here = self.session.generate([prompt], max_new_tokens=count, temperature=0)[0]
        if np.array_equal(here, there):
            return
        shorter = min(len(there), len(here))
        at = int(np.argmax([*(there[:shorter] != here[:shorter]), True]))  # where they part
        tie = False
        if at < shorter:
            logits = self.session.last_logits([np.concatenate([prompt, here[:at]])])[0]
            tie = bool(abs(logits[here[at]] - logits[there[at]]) <= 2 * self.allowed)
        yield Difference(prompt=prompt.tolist(), page=there.tolist(), session=here.tolist(), tie=tie)
