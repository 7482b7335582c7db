"""What the page needs from npm: onnxruntime-web and @huggingface/tokenizers, as page/package-lock.json pins them.

The wheel has only the lock file. `npm ci` fetches the packages once, into a cache folder, and compares each with its
hash in the lock file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

from gptexport.errors import OutputError
from gptexport_runtime import ArtifactError, BackendUnavailableError

PAGE = Path(__file__).with_name("page")
LOCKED = ("package.json", "package-lock.json")
MODULES = "node_modules"
SECONDS = 600  # for npm to fetch 35 MB
RUNTIME = "onnxruntime-web"
# where each file goes in the site, by package
FILES = {
    RUNTIME: {
        "dist/ort.wasm.bundle.min.mjs": "ort",
        "dist/ort-wasm-simd-threaded.wasm": "ort",
        "dist/ort.webgpu.bundle.min.mjs": "ort",
        "dist/ort-wasm-simd-threaded.asyncify.wasm": "ort",
    },
    "@huggingface/tokenizers": {"dist/tokenizers.min.mjs": ""},
}


def packages(folder: Path | None) -> Path:
    """The folder that holds the packages, with the versions that the page was made for.

    Args:
        folder: a node_modules, or the folder that it is in; None: fetched by npm unless that was done before.

    Raises:
        ArtifactError: a package is missing there, or is of another version.
        BackendUnavailableError: there is no npm, or it failed; the message says why.
        OutputError: they cannot be kept.
    """
    found = _fetched() if folder is None else folder / MODULES if (folder / MODULES).is_dir() else folder
    for name, expected in pinned().items():
        got = _version(found / name)
        if got != expected:
            state = f"holds {name} {got}" if got else f"does not hold {name}"
            raise ArtifactError(
                f"{found} {state}; expected version {expected}. Copy {' and '.join(LOCKED)} from {PAGE} into a folder, "
                "run `npm ci` there, and name that folder."
            )
    return found


def pinned() -> dict[str, str]:
    """By package, the version that the page takes files from."""
    locked = json.loads((PAGE / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    return {name: locked[f"{MODULES}/{name}"]["version"] for name in FILES}


def copy_packages(found: Path, site: Path) -> None:
    """Put what the page loads into the site.

    Raises:
        ArtifactError: a file is missing.
    """
    for name, files in FILES.items():
        for file, place in files.items():
            (site / place).mkdir(exist_ok=True)
            try:
                shutil.copyfile(found / name / file, site / place / Path(file).name)
            except FileNotFoundError as error:
                raise ArtifactError(f"{found / name} has no {file}. Run `npm ci` again.") from error


def _version(package: Path) -> str | None:
    try:
        found = json.loads((package / "package.json").read_text(encoding="utf-8")).get("version")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _fetched() -> Path:
    """Another lock file has another folder; what npm did not finish has another name."""
    lock = (PAGE / "package-lock.json").read_bytes()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gptexport"
    home = caches / f"web-{sha256(lock).hexdigest()[:16]}"
    if (home / MODULES).is_dir():
        return home / MODULES
    npm = shutil.which("npm")
    if npm is None:
        raise BackendUnavailableError(
            f"the page needs {RUNTIME} {pinned()[RUNTIME]} from npm, and there is no npm here. Install Node.js; or "
            f"copy {' and '.join(LOCKED)} from {PAGE} to a machine that has it, run `npm ci` there, copy the folder "
            "back, and name it with packages."
        )
    work = caches / f"{home.name}.{os.getpid()}"
    try:
        work.mkdir(parents=True)
        for name in LOCKED:
            shutil.copyfile(PAGE / name, work / name)
        _npm_ci(npm, work)
        if not home.exists():
            work.rename(home)
    except OSError as error:
        raise OutputError(f"{caches} cannot hold what npm fetches: {error.strerror}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return home / MODULES


def _npm_ci(npm: str, folder: Path) -> None:
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise BackendUnavailableError(f"npm did not fetch {RUNTIME} within {SECONDS} seconds. Try again.") from None
    if ran.returncode != 0:
        said = next((line for line in ran.stderr.splitlines() if line.strip()), "it says nothing")
        raise BackendUnavailableError(
            f"npm could not fetch {RUNTIME} {pinned()[RUNTIME]}: {said}. Connect once, or fetch it elsewhere and name "
            "the folder with packages."
        )
