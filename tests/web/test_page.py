"""The page's JavaScript: tests/web/page.test.mjs, by Node's own runner."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")


@pytest.mark.skipif(NODE is None, reason="no Node.js")
def test_the_pages_own_code() -> None:
    assert NODE is not None
    ran = subprocess.run([NODE, "--test", str(Path(__file__).parent)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "# pass 10" in ran.stdout, ran.stdout[-4000:] + ran.stderr
