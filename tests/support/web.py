"""What stands in for npm and for a browser, so that a site can be written and checked without them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gptexport.web.packages import FILES, MODULES, pinned

BROWSER = '''#!{python}
"""Answers as the page does, by the runtime; the last argument is the page's address."""
import json, sys, urllib.request
from gptexport_runtime import load
from gptexport_runtime.contract.heads import LOGITS
import numpy as np

base = sys.argv[-1].rsplit("/", 1)[0]
session = load({site!r} + "/model", "cpu")
caches = []

def logits(ids):
    return session.logits(ids) + np.float32({wrong!r}) * (np.arange(session.config.vocab_size) == 1)

def decode(cache, ids, length, past):
    caches[cache][past:] = ids[:length]
    return logits([caches[cache]])[0, -1]

def allocate():
    caches.append([])
    return len(caches) - 1

answers = {{
    "open": lambda: {{"onnxruntime": "0", "threads": 1, "agent": "a test"}},
    "logits": logits, "allocate": allocate, "decode": decode,
    "encode": lambda texts: [list(text.encode()) for text in texts],
    "write": lambda prompt, count: {{"given": [0, 1], "ids": answers["greedy"]([0, 1], count)}},
    "greedy": lambda ids, count: session.generate([ids], max_new_tokens=count, temperature=0)[0].tolist(),
}}
while True:
    with urllib.request.urlopen(base + "/ask") as asked:
        if asked.status == 204:
            continue
        work = json.loads(asked.read())
    headers = {{}}
    try:
        value = answers[work["name"]](**work["input"])
        body = value.astype("<f4").tobytes() if isinstance(value, np.ndarray) else json.dumps(value).encode()
    except Exception as error:
        headers, body = {{"X-Error": "1"}}, str(error).encode()
    urllib.request.urlopen(urllib.request.Request(base + "/answer", data=body, headers=headers, method="POST"))
'''


def npm_packages(folder: Path, **versions: str) -> Path:
    """A node_modules with empty files, in the versions that are pinned but for those that are named."""
    for name, files in FILES.items():
        package = folder / MODULES / name
        for file in files:
            (package / file).parent.mkdir(parents=True, exist_ok=True)
            (package / file).write_text("")
        version = versions.get(name.replace("-", "_"), pinned()[name])
        (package / "package.json").write_text(json.dumps({"name": name, "version": version}))
    return folder


def browser_of(program: Path, site: Path, *, wrong: float = 0) -> str:
    """A program that is started as a browser is. `wrong` is added to the logits of id 1."""
    program.write_text(BROWSER.format(python=sys.executable, site=str(site), wrong=wrong))
    program.chmod(0o755)
    return str(program)
