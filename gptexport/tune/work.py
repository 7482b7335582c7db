"""The folder in which a choice is prepared: bundles, and what was measured of them, for a run that goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptexport.errors import OutputError
from gptexport.staging import replace_file

FILE = "tune.json"


class Work:
    """Beside the output; another checkpoint, version or option begins anew.

    Raises:
        OutputError: a folder of its name is there that tune did not make.
    """

    def __init__(self, out: Path, key: Mapping[str, Any]) -> None:
        self.folder = out.absolute().parent / f".{out.name}.tune"
        self._saved = self.folder / FILE
        if self.folder.exists() and not self._saved.is_file():
            raise OutputError(
                f"{self.folder} is there, and is not a folder that tune made. Move it, or name another -o."
            )
        self._state: dict[str, Any] = {"key": json.loads(json.dumps(key)), "exact": {}}
        if self._saved.is_file():
            try:
                before = json.loads(self._saved.read_text(encoding="utf-8"))
            except ValueError:
                before = {}
            if before.get("key") == self._state["key"]:
                self._state = before
            else:
                self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._save()

    def bundle(self, name: str) -> Path:
        return self.folder / name

    def found(self, name: str) -> dict[str, Any] | None:
        """What was saved of a candidate, whose bundle is whole then."""
        known: dict[str, Any] | None = self._state["exact"].get(name)
        return known

    def keep(self, name: str, exact: Mapping[str, Any]) -> None:
        self._state["exact"][name] = dict(exact)
        self._save()

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _save(self) -> None:
        replace_file(self._saved, json.dumps(self._state, indent=1).encode())
