"""Serve a site on this machine, and talk to the page that is open in it.

The page asks for work (`GET ask`) and brings the result (`POST answer`), so that any browser can be checked: it needs
nothing but the page's address.
"""

from __future__ import annotations

import json
import queue
import secrets
import threading
from collections.abc import Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gptexport.web.site import ISOLATION
from gptexport_runtime.errors import ExecutionError

WAIT = 10  # seconds that a question of the page waits for work


class SiteServer:
    """A server of a site for the page in one browser. Use it in a `with`."""

    def __init__(self, site: Path, *, isolated: bool = True) -> None:
        """
        Args:
            isolated: send the headers without which a browser gives no threads.
        """
        self._work: queue.Queue[bytes] = queue.Queue()
        self._answers: queue.Queue[tuple[bytes, bool]] = queue.Queue()
        self._key = secrets.token_urlsafe(16)
        self._http = _Http(("127.0.0.1", 0), _handler(self, site, ISOLATION if isolated else {}))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/"

    @property
    def check_url(self) -> str:
        """The page that answers `ask`. Its key is a folder, so that nobody else's page can speak for it."""
        return f"{self.url}{self._key}/check.html"

    def __enter__(self) -> SiteServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def ask(self, name: str, timeout: float, **given: Any) -> bytes:
        """What the page answers: float32 logits, or JSON.

        Raises:
            ExecutionError: the page says what went wrong, or says nothing.
        """
        self._work.put(json.dumps({"name": name, "input": given}).encode())
        try:
            body, wrong = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise ExecutionError(
                f"the page did not answer within {timeout:.0f} seconds. Is the browser able to open it, and the "
                "machine large enough for the model?"
            ) from None
        if wrong:
            raise ExecutionError(f"the page says: {body.decode('utf-8', 'replace')}")
        return body

    def within(self, path: str) -> str | None:
        """A path below the key; None: it is not below it."""
        head = f"/{self._key}/"
        return path[len(head) :] if path.startswith(head) else None

    def next_work(self) -> bytes | None:
        """What the page is to do next; None: nothing came within WAIT seconds."""
        try:
            return self._work.get(timeout=WAIT)
        except queue.Empty:
            return None

    def take(self, body: bytes, *, wrong: bool) -> None:
        """What the page has answered."""
        self._answers.put((body, wrong))


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a browser that ends leaves connections behind."""


def _handler(server: SiteServer, site: Path, headers: Mapping[str, str]) -> type[SimpleHTTPRequestHandler]:
    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *args: Any) -> None:
            self.extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript"}
            super().__init__(*args, directory=str(site))

        def do_GET(self) -> None:
            below = server.within(self.path.partition("?")[0])
            if below == "ask":
                work = server.next_work()
                self._send(work or b"", 200 if work else 204)
                return
            self.path = self.path if below is None else f"/{below}"
            super().do_GET()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if server.within(self.path) != "answer":
                self._send(b"", 404)
                return
            server.take(body, wrong=self.headers.get("X-Error") is not None)
            self._send(b"", 204)

        def _send(self, body: bytes, status: int) -> None:
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: the command says what there is to say."""

    return Handler
