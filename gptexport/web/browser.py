"""A browser without a window, to open a page in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gptexport_runtime.errors import BackendUnavailableError

VARIABLE = "GPTEXPORT_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge", "chrome")
PLACES = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",)
FLAGS = (
    "--headless",
    "--remote-debugging-port=0",  # without it some versions end as soon as the page is there
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",  # a container's is 64 MB
)


def find_browser(named: str | None) -> str:
    """The browser that was named, or else that of the environment, or else a usual one.

    Raises:
        BackendUnavailableError: there is none.
    """
    asked = named or os.environ.get(VARIABLE)
    for name in (asked,) if asked else (*NAMES, *PLACES):
        found = shutil.which(name)
        if found is not None:
            return found
    what = f"{asked} is not a program" if asked else f"none of {', '.join(NAMES)} is here"
    raise BackendUnavailableError(
        f"{what}: expected Chromium, Chrome or Edge. Install one, or name it with browser or in {VARIABLE}."
    )


@contextmanager
def opened(browser: str, url: str) -> Iterator[None]:
    """A headless browser at the page, which is gone afterwards with what it stored.

    Raises:
        BackendUnavailableError: it does not start.
    """
    # as root, which has no sandbox to use: the page is our own
    sandbox = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()
    with tempfile.TemporaryDirectory(prefix="gptexport-", ignore_cleanup_errors=True) as profile:
        command = [browser, *FLAGS, *sandbox, f"--user-data-dir={profile}", url]
        try:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
        except OSError as error:
            raise BackendUnavailableError(f"{browser} does not start: {error.strerror}.") from error
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
