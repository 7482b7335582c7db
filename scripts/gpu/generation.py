"""Generation on a GPU: ours with captured graphs and without, beside transformers with its own caches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from scripts.gpu.part import Part
from scripts.gpu.profiles import events_of, graph_launches

OWN, OWN_PLAIN = "gptexport", "gptexport without CUDA graphs"
DYNAMIC, STATIC = "transformers", "transformers, static cache and compile"
ROWS = (1, 8)
PROMPT = 16  # tokens


def decode(part: Part) -> None:
    """Seconds a token of one row and of eight; that graphs were replayed; and a prompt of a length not seen before."""
    if part.setting.torch_device == "cuda":
        import torch

        torch.zeros(1, device="cuda")  # before the session: the profiler must have seen the context
    ours(part)
    theirs(part)


def ours(part: Part) -> None:
    from gptexport_runtime import CudaOptions, load

    steps = part.setting.new_tokens
    spent: dict[str, float] = {}
    launches: dict[str, int] = {}
    for name, graphs in ((OWN, None), (OWN_PLAIN, False)):
        with load(part.bundle(part.setting.dtype), part.setting.device, cuda=CudaOptions(graphs=graphs)) as gpt:
            for rows in ROWS:
                label = f"{name}, {rows} rows"
                call = partial(gpt.generate, [[1] * PROMPT] * rows, max_new_tokens=steps, temperature=0, stop=())
                spent[label] = median_seconds(call) / steps
                launches[label] = graph_launches(events_of(call))
                part.found(seconds_per_token=spent, graph_launches=launches)
            first = []
            for length in range(PROMPT + 1, PROMPT + 6):
                began = time.perf_counter()
                gpt.generate([[1] * length], max_new_tokens=1, temperature=0, stop=())
                first.append(time.perf_counter() - began)
            part.found(**{f"first_token_of_new_lengths_{name}": first})


def theirs(part: Part) -> None:
    """Of transformers, with the default cache and with what it compiles; a reason where it does not run."""
    spent: dict[str, float] = dict(part.data["seconds_per_token"])
    reasons: dict[str, str] = {}
    for name, options in ((DYNAMIC, {}), (STATIC, {"cache_implementation": "static"})):
        try:
            generate = transformers_model(part)
            for rows in ROWS:
                seconds = median_seconds(partial(generate, rows, options))
                spent[f"{name}, {rows} rows"] = seconds / part.setting.new_tokens
                part.found(seconds_per_token=spent)
        except Exception as error:
            reasons[name] = f"{type(error).__name__}: {error}"[:300]
            part.found(missing=reasons)


def transformers_model(part: Part) -> Callable[[int, dict[str, Any]], object]:
    """Rows to their continuation, greedily, of the bench's dtype."""
    import torch
    import transformers

    setting, dtype = part.setting, getattr(torch, part.setting.dtype)
    # float32, then cast: `dtype=` of from_pretrained has had two names
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(str(part.folder / setting.dtypes[0] / "hf"))
    model = model.to(device=setting.torch_device, dtype=dtype).eval()
    model.generation_config.eos_token_id = None

    def generate(rows: int, options: dict[str, Any]) -> object:
        ids = torch.ones(rows, PROMPT, dtype=torch.long, device=setting.torch_device)
        steps = {"max_new_tokens": setting.new_tokens, "min_new_tokens": setting.new_tokens}
        return model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **steps, **options
        ).cpu()

    return generate


def median_seconds(call: Callable[[], object], tries: int = 5) -> float:
    """After two calls that do not count: they compile and capture."""
    spent = []
    for number in range(-2, tries):
        began = time.perf_counter()
        call()
        if number >= 0:
            spent.append(time.perf_counter() - began)
    return statistics.median(spent)
