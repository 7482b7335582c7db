"""The command group, and what every failure becomes: one message and an exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from types import FrameType

import click
from click.shell_completion import get_completion_class

from gptexport import __version__
from gptexport.cli.bench import bench
from gptexport.cli.doctor import doctor
from gptexport.cli.generate import generate
from gptexport.cli.gguf import gguf
from gptexport.cli.hf import hf
from gptexport.cli.inspect import inspect
from gptexport.cli.onnx import onnx
from gptexport.cli.options import Name
from gptexport.cli.output import print_error, print_json_error, say
from gptexport.cli.parity import parity
from gptexport.cli.score import score
from gptexport.cli.terminal import forgiving, give_up, in_color
from gptexport.cli.triton import triton
from gptexport.cli.trt import trt
from gptexport.cli.tune import tune
from gptexport.cli.web import web
from gptexport.errors import UnknownCheckpointError, UnsafeCheckpointError
from gptexport_runtime.errors import BackendUnavailableError, GPTExportError

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_BACKEND_UNAVAILABLE = 4
EXIT_CHECKPOINT = 5
EXIT_INTERRUPTED = 128 + signal.SIGINT

BUG = "This is a bug in gptexport: run again with -v and report the traceback."
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF, errno.EAGAIN}  # of a stream


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gptexport")
def gptexport() -> None:
    """Take a GPT out of the notebook: export it, run it without torch, prove that it is the same model.

    \b
    Examples:
      gptexport inspect out/ckpt.pt                  what is in this checkpoint?
      gptexport onnx out/ckpt.pt -o gpt2/            export it to a bundle
      gptexport parity gpt2/ --against out/ckpt.pt   is the bundle the same model?
      gptexport tune out/ckpt.pt -o gpt2/            export whichever is fastest here
      gptexport trt gpt2/ -o gpt2.engine             build a TensorRT engine from it
      gptexport generate gpt2/ --prompt "Once upon"  continue a text
      gptexport hf out/ckpt.pt -o gpt2-hf/           write it as a folder for transformers
      gptexport score gpt2/ val.bin -o scores/       perplexity of a corpus, token by token
      gptexport triton gpt2/ -o repository/          a model repository for Triton and KServe
      gptexport web gpt2/ -o site/                   a page that runs it in the browser
      gptexport doctor                               what can this machine run?

    \b
    Exit codes: 0 ok, 1 error, 2 usage, 3 parity failed, 4 backend unavailable,
    5 unsafe or unknown checkpoint.
    """


@click.command(hidden=True, short_help="As --help.")
@click.argument("names", metavar="COMMAND", nargs=-1)
@click.pass_context
def help_of(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Say what COMMAND does, or what commands there are."""
    gptexport.main([*names, "--help"], prog_name="gptexport", standalone_mode=False, color=ctx.color)


@click.command(hidden=True, short_help="As --version.")
@click.pass_context
def version(ctx: click.Context) -> None:
    """Say which version this is."""
    gptexport.main(["--version"], prog_name="gptexport", standalone_mode=False, color=ctx.color)


@click.command(short_help="Print a script that completes commands and options.")
@click.argument("shell", type=Name(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what SHELL needs to complete gptexport's commands, options and values.

    \b
    Examples:
      gptexport completion bash > ~/.local/share/bash-completion/completions/gptexport
      gptexport completion zsh > ~/.zfunc/_gptexport           with fpath+=~/.zfunc before compinit in ~/.zshrc
      gptexport completion fish > ~/.config/fish/completions/gptexport.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(gptexport, {}, "gptexport", "_GPTEXPORT_COMPLETE").source())


for command in (
    onnx,
    tune,
    trt,
    parity,
    generate,
    score,
    triton,
    web,
    inspect,
    bench,
    hf,
    gguf,
    doctor,
    completion,
    version,
):
    gptexport.add_command(command)
gptexport.add_command(help_of, "help")


def main() -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that a killed export cleans up as an interrupted one does
    try:
        code = run(sys.argv[1:])
    except Exception:  # of a bug, with -v: its message may hold a file's names
        say("", traceback.format_exc().rstrip())
        code = EXIT_ERROR
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            give_up(stream)
    if code == EXIT_INTERRUPTED:
        # An interrupt that passed through exec() of a string, as in dataclasses and sympy, marks the interpreter: it
        # would kill itself with SIGINT on the way out, though the interrupt was handled (CPython's pythonrun.c).
        os._exit(code)
    sys.exit(code)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; no exception leaves but, with -v, that of a bug."""
    with forgiving():
        try:
            result = gptexport.main(arguments, prog_name="gptexport", standalone_mode=False, color=in_color())
            return result if isinstance(result, int) else 0
        except click.ClickException as error:
            told = io.StringIO()
            error.show(file=told)
            say("", told.getvalue().rstrip())
            if "--json" in arguments:
                print_json_error(type(error).__name__, error.format_message())
            return error.exit_code
        except BrokenPipeError:  # `gptexport inspect … | head`
            return EXIT_ERROR
        except (Exception, KeyboardInterrupt) as error:
            found = _told(error)
            if found is None and {"-v", "--verbose"} & set(arguments):
                raise
            kind, message, code = found or (type(error).__name__, f"{_message(error)}\n{BUG}", EXIT_ERROR)
            print_error(kind, message, "--json" in arguments)
            return code


def _told(error: BaseException) -> tuple[str, str, int] | None:
    """The name of what went wrong, a message, and the exit code; None: that is not foreseen."""
    name = type(error).__name__
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "Interrupted", f"interrupted; {_message(error) or 'nothing was written.'}", EXIT_INTERRUPTED
    if isinstance(error, BackendUnavailableError):
        return name, _message(error), EXIT_BACKEND_UNAVAILABLE
    if isinstance(error, UnknownCheckpointError | UnsafeCheckpointError):
        return name, _message(error), EXIT_CHECKPOINT
    if isinstance(error, GPTExportError):
        return name, _message(error), EXIT_ERROR
    if isinstance(error, MemoryError):
        return name, "out of memory. Close other programs, or use a machine with more.", EXIT_ERROR
    if isinstance(error, OSError) and error.filename is None and error.errno in NO_ROOM:  # --help > /dev/full
        return name, f"the output cannot be written: {error.strerror}.", EXIT_ERROR
    return None


def _message(error: BaseException) -> str:
    """Even of an exception that cannot say what it is."""
    try:
        return str(error)
    except Exception:
        return type(error).__name__
