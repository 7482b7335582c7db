"""Values that several commands take, and how they are written."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import click

from gptexport.assumptions import ASSUMPTIONS, Assumption
from gptexport_runtime.backends.ort.providers import AUTO, devices
from gptexport_runtime.contract import heads

F = TypeVar("F", bound=Callable[..., Any])

# What people call what has another name here.
OTHER_NAMES = {
    **dict.fromkeys(("bf16", "brain"), "bfloat16"),
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("fp32", "f32", "float", "single"), "float32"),
    **dict.fromkeys(("gpu", "nvidia"), "cuda"),
    **dict.fromkeys(("i8", "w8a8"), "int8"),
    **dict.fromkeys(("w8a16", "q8", "q8_0"), "int8w"),
    **dict.fromkeys(("i4", "w4a8", "w4a16", "q4", "q4_0", "q4_k"), "int4"),
}

DEFAULT_DEVICE = "cpu"
DEVICES = [device for device in devices() if device != AUTO]


class Name(click.Choice[str]):
    """One of some names; where another is given, the one that was meant is named."""

    def get_invalid_choice_message(self, value: str, ctx: click.Context | None) -> str:
        meant = OTHER_NAMES.get(str(value).lower(), str(value).lower())
        close = get_close_matches(meant, self.choices, n=1)
        return super().get_invalid_choice_message(value, ctx) + (f" Did you mean {close[0]!r}?" if close else "")


def assumption_options(command: F) -> F:
    """Give a command an option for each choice that weights do not tell."""
    for item in reversed(ASSUMPTIONS):
        kind = Name([*item.shown]) if item.values else click.IntRange(min=1)
        flag = f"--{item.name.replace('_', '-')}"
        command = click.option(flag, type=kind, callback=_parsed(item), help=item.help)(command)
    return command


class OutputPath(click.Path):
    """Where to write. A name that is empty, as of a variable that is not set, is not the current folder."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("", b""):
            self.fail("the name is empty.", param, ctx)
        return super().convert(value, param, ctx)


def check_named(path: Path | None, option: str, is_ours: Callable[[Path], bool], what: str) -> None:
    """Refuse before the work what cannot be written after it."""
    from gptexport.errors import OutputError
    from gptexport.staging import check_output_file

    if path is not None:
        try:
            check_output_file(path, is_ours=is_ours, what=what)
        except OutputError as error:
            raise click.BadParameter(str(error), param_hint=option) from error


def _parsed(item: Assumption) -> Callable[[click.Context, click.Parameter, Any], Any]:
    return lambda _context, _parameter, value: None if value is None else item.parse(value)


class Shapes(click.ParamType[list[tuple[int, int]]]):
    """`1x1,3x17`: a list of (B,T)."""

    name = "BxT,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[tuple[int, int]]:
        shapes = []
        for item in str(value).split(","):
            B, _, T = item.strip().partition("x")
            if not (B.isdecimal() and T.isdecimal() and int(B) and int(T)):
                self.fail(f"{item!r} is not a shape; expected BxT with both at least 1, such as 1x1,3x17.", param, ctx)
            shapes.append((int(B), int(T)))
        return shapes


class Ids(click.ParamType[list[int]]):
    """`15496,11`: token ids."""

    name = "ID,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        items = [item.strip() for item in str(value).split(",")]
        for item in items:
            if not (item.isascii() and item.isdecimal()):
                self.fail(f"{item!r} is not a token id; expected integers of 0 or more, such as 15496,11.", param, ctx)
        return [int(item) for item in items]


class Stop(click.ParamType[int | str]):
    """`50256`, a token id; anything else is text."""

    name = "ID|TEXT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value)
        if not text:
            self.fail("a text to stop at is empty; expected a token id, or some text.", param, ctx)
        return int(text) if text.isascii() and text.isdecimal() else text


class Graphs(click.ParamType[list[str]]):
    """`logits,score`: kinds of graphs, the logits always among them."""

    name = "KIND,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        kinds = [kind.strip() for kind in str(value).split(",")]
        for kind in kinds:
            if kind not in heads.HEADS:
                self.fail(f"{kind!r} is not a graph; expected some of {', '.join(heads.HEADS)}.", param, ctx)
        return list(dict.fromkeys([heads.LOGITS.name, *kinds]))
