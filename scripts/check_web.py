"""What `gptexport web` writes, in a real browser: parity, greedy texts, tokenizers, faults, and its speed.

    make demo
    .venv/bin/python -m scripts.check_web demo/ --out docs/measurements/web
    .venv/bin/python -m scripts.check_web demo/ --peer node_modules --speed     # beside transformers.js, alone

The models are the demo's, which is trained, and two small ones of random weights, by transformers. `--peer` names the
folder into which `npm install @huggingface/transformers` has put it. Exit code 1: something is not as it should be.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from gptexport.architectures.gpt2 import GPT
from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.tokenizers import BundledTokenizer, tokenizer_to_bundle
from gptexport.web import write_site
from gptexport.web.browser import find_browser
from gptexport.web.check import TEXTS, check_site, open_page
from gptexport.web.packages import RUNTIME, pinned
from gptexport_runtime.errors import ExecutionError
from scripts.bench.tables import machine, options, table, write
from scripts.bench.workers import versions
from scripts.web_peer import write_peer

IDS = 512  # of the tokenizers that are trained here
SIZES = {"vocab_size": IDS, "bos_token_id": 0, "eos_token_id": 0}
OTHERS = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
OTHERS |= {"num_key_value_heads": 2, "max_position_embeddings": 64}
KINDS: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "Llama": OTHERS,
    "Qwen3": {**OTHERS, "head_dim": 32},
}
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PROMPTS = 50
PEER = "transformers.js"
STEPS = 32  # tokens of a text whose speed is taken


@dataclass(frozen=True, kw_only=True)
class Case:
    """A checkpoint and its site."""

    name: str
    checkpoint: Path
    site: Path


def main() -> int:
    parser = options(__doc__, writes="OUT.md and OUT.json", rounds=5)
    parser.add_argument("demo", type=Path, help="what `make demo` wrote")
    parser.add_argument("--browser", help="as gptexport web's")
    parser.add_argument("--speed", action="store_true", help="tokens a second alone")
    parser.add_argument("--peer", type=Path, help="node_modules of @huggingface/transformers")
    args = parser.parse_args()
    browser = find_browser(args.browser)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.speed:
            return _speed(folder, browser, args)
        cases = [_demo(args.demo, folder), *(_random(name, folder) for name in KINDS)]
        rows, agent = _right(cases, browser)
        faults = list(_faults(cases[0], folder, browser))
    wrong = [row[0] for row in rows if row[-1] != "PASS"] + [row[0] for row in faults if row[-1] != "yes"]
    of = ", ".join(f"{name} {version}" for name, version in versions(("gptexport", "onnxruntime", "torch")).items())
    lines = [
        "# `gptexport web` in a browser",
        "",
        f"By `scripts/check_web.py`: {of}, onnxruntime-web {pinned()[RUNTIME]};",
        f"{agent}.",
        "",
        *table(["model", "noise ratio", "the same greedy text", "texts with other ids", "threads", "verdict"], rows),
        "",
        "The same greedy text: of prompts of random ids, and one that is typed into the page's form. Texts with other",
        f"ids: of {len(TEXTS)} where tokenizers tend to differ. A text that differs parts from the session's where",
        "rounding decides between two tokens, or the verdict is FAIL.",
        "",
        *table(["what is wrong", "exit code", "what is said", "as it should be"], faults),
    ]
    write(args.out, lines, {"rows": rows, "faults": faults})
    for name in wrong:
        print(f"WRONG: {name}", file=sys.stderr)
    return int(bool(wrong))


def _speed(folder: Path, browser: str, args: Namespace) -> int:
    """Tokens a second of GPT-2 124M, ours and transformers.js in turn, in the same browser."""
    import transformers

    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder / "gpt2")
    checkpoint = load_checkpoint(str(folder / "gpt2"))
    sites: dict[str, Path] = {}
    for target in ("portable", "cpu"):
        bundle = export_onnx(checkpoint, folder / target, target=target).path
        sites[f"gptexport, --target {target}"] = write_site(bundle, folder / f"{target}-site").path
    if args.peer is not None:
        sites[PEER] = folder / "peer"
        assert isinstance(checkpoint.model, GPT)
        write_peer(checkpoint.model, folder / "gpt2", args.peer, sites[PEER])
    ids = list(range(100, 132))
    seconds: dict[str, list[float]] = {name: [] for name in sites}
    texts = {}
    for _ in range(args.rounds):
        for name, site in sites.items():
            with open_page(site, browser) as page:
                seconds[name].append(statistics.median(page.json("speed", ids=ids, count=STEPS)) / 1e3)
                texts[name] = page.json("greedy", ids=ids, count=STEPS)
                threads = page.threads
    same = all(text == texts[next(iter(texts))] for text in texts.values())
    rows = [
        [name, f"{1 / statistics.median(times):.1f}", f"{1e3 * min(times):.0f} to {1e3 * max(times):.0f} ms"]
        for name, times in seconds.items()
    ]
    lines = [
        "# Tokens a second in a browser",
        "",
        f"By `scripts/check_web.py --speed`: GPT-2 124M, float32, random weights, 32 tokens read, {STEPS} written",
        f"greedily; {threads} threads; {machine()}. {args.rounds} rounds in turn, a browser each; the median step.",
        f"The texts are {'the same' if same else 'NOT the same'}.",
        "",
        *table(["", "tokens a second", "a step"], rows),
    ]
    write(args.out, lines, {"seconds": seconds})
    return int(not same)


def _demo(demo: Path, folder: Path) -> Case:
    site = write_site(demo / "gpt", folder / "demo").path
    return Case(name="the demo, trained", checkpoint=demo / "ckpt.pt", site=site)


def _random(kind: str, folder: Path) -> Case:
    """A model of random weights, with a tokenizer of its kind that was trained on this project's pages."""
    import transformers

    torch.manual_seed(0)
    fields = {**SIZES, **KINDS[kind]}
    class_name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, class_name)(getattr(transformers, f"{kind}Config")(**fields))
    for parameter in model.parameters():  # as initialized all logits are alike
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1) * 0.5, std=0.3)
    checkpoint = folder / f"{kind}-checkpoint"
    model.save_pretrained(checkpoint)
    words = _tokenizer(kind, folder / f"{kind}.json")
    bundle = export_onnx(load_checkpoint(str(checkpoint)), folder / kind, tokenizer=words).path
    return Case(name=f"{kind}, random", checkpoint=checkpoint, site=write_site(bundle, folder / f"{kind}-site").path)


def _tokenizer(kind: str, path: Path) -> BundledTokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.BPE(byte_fallback=kind == "Llama", unk_token="<unk>" if kind == "Llama" else None))
    special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))] if kind == "Llama" else ["<|endoftext|>"]
    if kind == "Llama":  # as SentencePiece has it
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        made.decoder = decoders.Sequence(steps)
    else:
        split = [pre_tokenizers.Split(Regex(QWEN), "isolated")] if kind == "Qwen3" else []
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "GPT2")
        made.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level]) if split else byte_level
        made.decoder = decoders.ByteLevel()
    alphabet = [] if kind == "Llama" else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=IDS, special_tokens=special, initial_alphabet=alphabet, show_progress=False, limit_alphabet=256
    )
    made.train([str(page) for page in sorted(Path("docs").glob("*.md"))], trainer)
    made.save(str(path))
    return tokenizer_to_bundle(str(path))


def _right(cases: list[Case], browser: str) -> tuple[list[list[str]], str]:
    """A row for each; and how the browser names itself."""
    rows, agent = [], ""
    for case in cases:
        found = check_site(case.site, str(case.checkpoint), browser=browser, prompts=PROMPTS)
        agent = found.page.agent
        equal = f"{found.prompts - len(found.different)} of {found.prompts}"
        ratio = found.parity.verdict.noise_ratio
        verdict = "PASS" if found else "FAIL"
        others, threads = str(len(found.encoded_otherwise)), str(found.page.threads)
        rows.append([case.name, f"{ratio:.2f}", equal, others, threads, verdict])
    return rows, agent


def _faults(case: Case, folder: Path, browser: str) -> Iterator[list[str]]:
    """What a page says of a fault, and with which exit code; and whether that is right."""
    for what, break_it, code, says in FAULTS:
        site = shutil.copytree(case.site, folder / f"fault-{code}-{len(says)}")
        break_it(site / "model")
        got, said = _command(site, case.checkpoint, browser)
        said = _page_says(site, browser) or said
        shutil.rmtree(site)
        yield [what, str(got), said, "yes" if got == code and says in said else "no"]
    with open_page(case.site, browser, isolated=False) as page:
        yield ["no headers for threads", "-", f"{page.threads} thread", "yes" if page.threads == 1 else "no"]


def _page_says(site: Path, browser: str) -> str | None:
    """Why the page cannot open its model, and go on; None: it can."""
    try:
        with open_page(site, browser) as page:
            page.json("greedy", ids=[1], count=1)
    except ExecutionError as error:
        return str(error)
    return None


def _command(site: Path, checkpoint: Path, browser: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "gptexport", "web", str(site), "--check", "--against", str(checkpoint), "--quick"]
    ran = subprocess.run([*command, "--browser", browser, "--json", "-q"], capture_output=True, text=True, check=False)
    answer = json.loads(ran.stdout.splitlines()[-1] if ran.stdout.count("\n") == 1 else ran.stdout)
    if "check" in answer:
        return ran.returncode, answer["check"]["parity"]["reasons"][0]
    return ran.returncode, answer["error"]["message"]


def _damage(model: Path) -> None:
    with (model / "weights.data").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))


def _truncate(model: Path) -> None:
    weights = model / "weights.data"
    weights.write_bytes(weights.read_bytes()[:-1000])


def _other_weight(model: Path) -> None:
    """A weight that is a hundredth larger, in files that agree with one another: a bundle of another model."""
    from gptexport_runtime.contract.manifest import Manifest

    data = bytearray((model / "weights.data").read_bytes())
    end = data.rindex(b"gptexport-weights ")
    first = torch.frombuffer(data, dtype=torch.float32, count=4096)
    first *= 1.01
    digest = sha256(data[:end]).hexdigest()
    old = data[end:].split()[1]
    data[end:] = data[end:].replace(old, digest.encode())
    (model / "weights.data").write_bytes(data)
    manifest = Manifest.from_json((model / "gptexport.json").read_text())
    assert manifest.weights is not None
    graphs = {}
    for head, entry in manifest.graphs.items():
        graph = (model / entry.file).read_bytes().replace(old, digest.encode())
        (model / entry.file).write_bytes(graph)
        graphs[head] = replace(entry, sha256=sha256(graph).hexdigest())
    weights = replace(manifest.weights, sha256=sha256(data).hexdigest())
    (model / "gptexport.json").write_text(replace(manifest, graphs=graphs, weights=weights).to_json())


FAULTS: tuple[tuple[str, Callable[[Path], object], int, str], ...] = (
    ("a weight is another", _other_weight, 3, "noise"),
    ("a bit of the weights is flipped", _damage, 1, "weights.data is damaged: its SHA-256 is"),
    ("the weights are cut short", _truncate, 1, "weights.data is damaged: it has"),
    ("a graph is missing", lambda model: (model / "decode.onnx").unlink(), 1, "decode.onnx is missing"),
)


if __name__ == "__main__":
    sys.exit(main())
