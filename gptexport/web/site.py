"""Write a site: the page, what it needs from npm, and a bundle of the graphs that it runs.

SITE/index.html  style.css  *.js       the page, as it is in gptexport/web/page
SITE/ort/  tokenizers.min.mjs           from npm
SITE/model/                             a bundle: decode.onnx, logits.onnx, weights.data, gptexport.json, tokenizer
SITE/_headers                           for hosts that read it: what a browser demands before it gives threads
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from gptexport.errors import ExportError
from gptexport.staging import staged
from gptexport.web.packages import PAGE, RUNTIME, copy_packages, packages, pinned
from gptexport_runtime.artifact import Artifact, open_artifact
from gptexport_runtime.backends.ort.providers.cpu import CPU
from gptexport_runtime.contract.heads import DECODE, LOGITS
from gptexport_runtime.contract.manifest import Manifest, TokenizerEntry
from gptexport_runtime.contract.model import FileEntry
from gptexport_runtime.contract.names import MANIFEST_FILE
from gptexport_runtime.errors import ArtifactError

MODEL = "model"  # folder of a site
HEADS = (LOGITS, DECODE)
# so that other origins share nothing with the page, without which a browser gives no threads
ISOLATION = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}
MOST_BYTES = (1 << 31) - (1 << 20)  # of weights: what a browser gives in one piece


@dataclass(frozen=True, kw_only=True)
class Site:
    """A folder that a web server can serve."""

    path: Path
    files: dict[str, int]  # by path in the folder, its bytes
    onnxruntime_web: str
    tokenizer: str | None  # None: the page takes ids
    notes: tuple[str, ...] = ()  # what a person should know

    @property
    def bundle(self) -> Path:
        return self.path / MODEL


def is_site(path: Path) -> bool:
    """Whether `write_site` wrote this folder."""
    return (path / "index.html").is_file() and (path / MODEL / MANIFEST_FILE).is_file()


def write_site(bundle: Path, out: Path, *, npm_packages: Path | None = None) -> Site:
    """Write a page that runs the bundle in the browser.

    Args:
        npm_packages: see `packages`.

    Raises:
        ArtifactError: it is no bundle, or is damaged; or `npm_packages` is not as expected.
        ExportError: a browser cannot run it; the message says why.
        BackendUnavailableError: what the page needs from npm is not there, and cannot be fetched.
        OutputError: it cannot be written, or is there.
    """
    artifact = open_artifact(bundle, verify=True)
    manifest = check_browser_runs(artifact)
    found = packages(npm_packages)
    words, data, note = _tokenizer(artifact.path, manifest)
    with staged(out, force=False) as made:
        for file in sorted(PAGE.iterdir()):
            if file.suffix in (".html", ".css", ".js"):
                shutil.copyfile(file, made / file.name)
        copy_packages(found, made)
        (made / "_headers").write_text("/*\n" + "".join(f"  {name}: {value}\n" for name, value in ISOLATION.items()))
        (made / MODEL).mkdir()
        graphs = {head.name: manifest.graphs[head.name] for head in HEADS}
        for entry in (*graphs.values(), manifest.weights):
            if entry is not None:
                shutil.copyfile(artifact.path / entry.file, made / MODEL / entry.file)
        if words is not None and words.file is not None:
            (made / MODEL / words.file.file).write_bytes(data)
        # a verdict is of all the bundle's graphs, and of another runtime
        kept = replace(manifest, graphs=graphs, tokenizer=words, parity=None)
        (made / MODEL / MANIFEST_FILE).write_text(kept.to_json(), encoding="utf-8")
        sizes = {str(path.relative_to(made)): path.stat().st_size for path in sorted(made.rglob("*")) if path.is_file()}
    return Site(
        path=out,
        files=sizes,
        onnxruntime_web=pinned()[RUNTIME],
        tokenizer=words.name if words else None,
        notes=(note,) if note else (),
    )


def check_browser_runs(artifact: Artifact) -> Manifest:
    """The manifest of a bundle that onnxruntime-web runs: it has the kernels of ONNX Runtime's CPU provider.

    Raises:
        ArtifactError: it is not a bundle.
        ExportError: a browser cannot run it.
    """
    manifest = artifact.manifest
    if manifest is None:
        raise ArtifactError(f"{artifact.path} is not a bundle. Write one with `gptexport onnx CHECKPOINT -o FOLDER`.")
    if CPU.device not in manifest.runs_on:
        raise ExportError(
            f"{artifact.path} was exported with --target {manifest.target} in {manifest.dtype}, for "
            f"{' or '.join(manifest.runs_on)} alone; a browser runs what a CPU does. Export it again with --target "
            "portable or cpu."
        )
    missing = [head.name for head in HEADS if head.name not in manifest.graphs]
    if missing:
        reason = manifest.left_out.get(missing[0], "the bundle has none")
        raise ExportError(f"the page needs the graph {missing[0]}, and {artifact.path} is without it: {reason}.")
    if manifest.weights is not None and manifest.weights.bytes > MOST_BYTES:
        raise ExportError(
            f"the weights take {manifest.weights.bytes:,} bytes; a browser holds at most {MOST_BYTES:,} in one piece. "
            "Export a smaller model, or with --quantize int8."
        )
    return manifest


def _tokenizer(folder: Path, manifest: Manifest) -> tuple[TokenizerEntry | None, bytes, str | None]:
    """The tokenizer as the page reads it, its file's bytes, and what a person should know of it."""
    entry = manifest.tokenizer
    if entry is None:
        return None, b"", "the bundle has no tokenizer: the page takes ids, not text"
    if entry.file is None and entry.name == "bytes":
        return entry, b"", None
    if entry.file is not None and entry.file.file.endswith(".json"):
        return entry, (folder / entry.file.file).read_bytes(), None
    from gptexport.tokenizers import HUGGINGFACE, tokenizer_to_bundle
    from gptexport.tokenizers.as_json import tokenizer_files

    if entry.file is not None:
        return None, b"", f"the page does not read {entry.file.file}: it takes ids. Export with a {HUGGINGFACE}"
    files, notes = tokenizer_files(tokenizer_to_bundle(entry.name), manifest.info.block_size or 0)
    if HUGGINGFACE not in files:
        return None, b"", " ".join(notes)
    data = files[HUGGINGFACE]
    made = FileEntry(file=HUGGINGFACE, bytes=len(data), sha256=sha256(data).hexdigest())
    return TokenizerEntry(name=HUGGINGFACE, file=made), data, None
