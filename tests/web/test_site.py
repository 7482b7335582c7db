"""A site holds all that its page asks for, and nothing is written that a browser cannot run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gptexport.checkpoints import load_checkpoint
from gptexport.errors import ExportError, OutputExistsError
from gptexport.export import export_onnx
from gptexport.tokenizers import tokenizer_to_bundle
from gptexport.web import is_site, write_site
from gptexport.web.packages import PAGE, packages, pinned
from gptexport.web.site import ISOLATION, MOST_BYTES, check_browser_runs
from gptexport_runtime import BackendUnavailableError, load
from gptexport_runtime.artifact import Artifact, open_artifact
from gptexport_runtime.errors import ArtifactError
from tests.support.builders import tiny_nanogpt
from tests.support.cli import Cli
from tests.support.web import npm_packages

LOADED = re.compile(r"""["'](?:\./)?([\w./-]+\.(?:m?js|css))["']""")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("web")
    export_onnx(load_checkpoint(str(tiny_nanogpt(made / "ckpt.pt"))), made / "gpt")
    npm_packages(made)
    return made


@pytest.fixture(scope="module")
def site(folder: Path) -> Path:
    return write_site(folder / "gpt", folder / "site", npm_packages=folder).path


def test_all_that_the_page_loads_is_in_the_site(site: Path) -> None:
    """And comes from nowhere else."""
    ours = [path for path in site.iterdir() if path.suffix in (".js", ".html", ".css") and (PAGE / path.name).exists()]
    loaded = {name for path in ours for name in LOADED.findall(path.read_text(encoding="utf-8"))}
    assert {"app.js", "worker.js", "files.js", "style.css", "ort/ort.wasm.bundle.min.mjs"} <= loaded
    assert [name for name in loaded if not (site / name).is_file()] == []
    assert [path.name for path in ours if re.search("https?://", path.read_text(encoding="utf-8"))] == []


def test_its_model_is_a_bundle_that_computes_the_same(site: Path, folder: Path) -> None:
    """With the same bytes; a verdict on the whole bundle is not one on this part of it."""
    with load(site / "model", "cpu", verify=True) as here, load(folder / "gpt", "cpu") as there:
        assert here.logits([[1, 2, 3]]).tobytes() == there.logits([[1, 2, 3]]).tobytes()
        assert here.manifest is not None and here.manifest.parity is None
    for name in ("decode.onnx", "logits.onnx", "weights.data"):
        assert (
            sha256((site / "model" / name).read_bytes()).digest()
            == sha256((folder / "gpt" / name).read_bytes()).digest()
        )
    assert not (site / "model" / "score.onnx").exists() and is_site(site) and not is_site(folder / "gpt")


def test_hosts_are_told_the_headers_that_give_threads(site: Path) -> None:
    told = (site / "_headers").read_text()
    assert told.splitlines()[0] == "/*" and all(f"  {name}: {value}\n" in told for name, value in ISOLATION.items())


def test_the_wheel_has_the_page_without_what_npm_brings() -> None:
    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 100_000


def test_tokenizers_reach_the_page(folder: Path, tmp_path: Path) -> None:
    """Characters by their file, bytes by their name; of a SentencePiece model a person is told."""
    made = load_checkpoint(str(tiny_nanogpt(tmp_path / "ckpt.pt", vocab_size=256)))
    export_onnx(made, tmp_path / "gpt", tokenizer=tokenizer_to_bundle("bytes"))
    found = write_site(tmp_path / "gpt", tmp_path / "site", npm_packages=folder)
    assert found.tokenizer == "bytes" and found.notes == ()
    assert write_site(folder / "gpt", tmp_path / "none", npm_packages=folder).notes == (
        "the bundle has no tokenizer: the page takes ids, not text",
    )


def changed(folder: Path, **changes: Any) -> Artifact:
    artifact = open_artifact(folder / "gpt")
    assert artifact.manifest is not None
    return replace(artifact, manifest=replace(artifact.manifest, **changes))


def test_what_no_browser_runs_is_refused(folder: Path) -> None:
    manifest = open_artifact(folder / "gpt").manifest
    assert manifest is not None and manifest.weights is not None
    with pytest.raises(ExportError, match=r"for cuda alone; a browser runs what a CPU does\. Export it again with"):
        check_browser_runs(changed(folder, runs_on=("cuda",)))
    graphs = {name: entry for name, entry in manifest.graphs.items() if name != "decode"}
    with pytest.raises(ExportError, match=r"needs the graph decode, and .*gpt is without it: no attention was found\."):
        check_browser_runs(changed(folder, graphs=graphs, left_out={"decode": "no attention was found"}))
    with pytest.raises(ExportError, match=r"holds at most 2,146,435,072 in one piece"):
        check_browser_runs(changed(folder, weights=replace(manifest.weights, bytes=MOST_BYTES + 1)))
    with pytest.raises(ArtifactError, match=r"logits.onnx is not a bundle\. Write one"):
        check_browser_runs(open_artifact(folder / "gpt" / "logits.onnx"))


def test_nothing_is_replaced(folder: Path, site: Path) -> None:
    with pytest.raises(OutputExistsError):
        write_site(folder / "gpt", site, npm_packages=folder)


def test_packages_of_another_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"node_modules holds onnxruntime-web 1\.2\.3; expected version 1\.30\.0\."):
        packages(npm_packages(tmp_path, onnxruntime_web="1.2.3"))
    with pytest.raises(ArtifactError, match=r"does not hold onnxruntime-web; expected version"):
        packages(tmp_path / "node_modules" / "onnxruntime-web")


def test_npm_fetches_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch that fails leaves nothing that would be taken for one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(BackendUnavailableError, match=r"there is no npm here\. Install Node.js; or copy package.json"):
        packages(None)
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'npm error network request failed' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(BackendUnavailableError, match=r"1\.30\.0: npm error network request failed\. Connect once"):
        packages(None)
    assert list((tmp_path / "cache" / "gptexport").iterdir()) == []
    npm_packages(tmp_path / "made")
    npm.write_text(f"#!/bin/sh\n/bin/cp -r {tmp_path}/made/node_modules . && /bin/rm {npm}\n")
    first = packages(None)
    assert first == packages(None) and first.parent.parent == tmp_path / "cache" / "gptexport"


def test_the_pins_are_exact() -> None:
    asked = json.loads((PAGE / "package.json").read_text())["dependencies"]
    assert asked == pinned()


def test_the_command_says_what_it_needs(cli: Cli, folder: Path, tmp_path: Path) -> None:
    assert "Missing option '-o'" in cli("web", folder / "gpt").err
    assert "belong together" in cli("web", folder / "gpt", "-o", tmp_path / "site", "--check").err
    assert "is not a site" in cli("web", folder / "gpt", "--check", "--against", folder / "ckpt.pt").err
    ran = cli("web", folder / "gpt", "-o", tmp_path / "site", "--packages", folder)
    assert ran.code == 0 and "python -m http.server -d" in ran.out
