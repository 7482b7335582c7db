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
from gptexport_runtime.errors import ArtifactError

PROMPTS = 8
NEW_TOKENS = 32

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

    def __bool__(self) -> bool:
        return bool(self.parity) and all(found.tie for found in self.different)


def check_site(
    site: Path,
    checkpoint: str,
    *,
    browser: str | None = None,
    isolated: bool = True,
    quick: bool = False,
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
    with _page(site, program, isolated, progress) as page:
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
        with load(site / MODEL, "cpu") as session:
            different = _differences(page, session, allowed_change(result.measured.stats, described.precision))
    return WebCheck(parity=result, page=page, prompts=PROMPTS, different=different)


def _threads(number: int) -> str:
    return "one thread" if number == 1 else f"{number} threads"


@contextmanager
def _page(site: Path, browser: str, isolated: bool, progress: Progress) -> Iterator[Page]:
    with SiteServer(site, isolated=isolated) as server:
        progress(f"opening the page in {browser}")
        with opened(browser, server.check_url):
            page = Page.at(server)
            progress(f"it runs onnxruntime-web {page.onnxruntime} on {_threads(page.threads)}")
            yield page


def _differences(page: Page, session: Session, allowed: float) -> tuple[Difference, ...]:
    """`allowed`: how far rounding may move a logit."""
    block_size = session.config.block_size
    assert block_size is not None, "a bundle says it"
    draw = np.random.default_rng(0)
    found = []
    for number in range(PROMPTS):
        T = 1 + number % max(1, block_size - 1)
        prompt = draw.integers(0, session.config.vocab_size, T)
        count = min(NEW_TOKENS, block_size - T)
        here = session.generate([prompt], max_new_tokens=count, temperature=0)[0]
        there = page.greedy(prompt, count)
        if not np.array_equal(here, there):
            found.append(_difference(session, prompt, there, here, allowed))
    return tuple(found)


def _difference(session: Session, prompt: Ids, there: Ids, here: Ids, allowed: float) -> Difference:
    shorter = min(len(there), len(here))
    at = int(np.argmax([*(there[:shorter] != here[:shorter]), True]))  # where they part
    tie = False
    if at < shorter:
        logits = session.last_logits([np.concatenate([prompt, here[:at]])])[0]
        tie = bool(abs(logits[here[at]] - logits[there[at]]) <= 2 * allowed)
    return Difference(prompt=prompt.tolist(), page=there.tolist(), session=here.tolist(), tie=tie)
