"""A forked child may let go of a session that it has inherited: it cannot use it, and need not wait for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.tiny import TINY

CODE = """
import gc, os, sys
from gptexport_runtime import load

def main():
    with load(sys.argv[1], "cpu", threads=2) as gpt:
        gpt.logits([[1, 2]])
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            os._exit(os.waitstatus_to_exitcode(status))
        {leave}

main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize(
    "leave",
    [
        "sys.exit(0)",
        "gpt.close()",
        "del gpt; gc.collect()",
        "return",
        "gpt = load(sys.argv[1], 'cpu', threads=2); gpt.logits([[1, 2]])",
    ],
)
def test_the_child_ends(leave: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    command = [sys.executable, "-W", "ignore", "-c", CODE.replace("{leave}", leave), str(TINY)]
    ran = subprocess.run(command, timeout=60, capture_output=True, text=True, env=environment)
    assert (ran.returncode, ran.stderr) == (0, "")
