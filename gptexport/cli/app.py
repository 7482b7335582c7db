"""The command group, and what every failure becomes: one message and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import click

from gptexport import __version__
from gptexport.cli.bench import bench
from gptexport.cli.doctor import doctor
from gptexport.cli.generate import generate
from gptexport.cli.inspect import inspect
from gptexport.cli.onnx import onnx
from gptexport.cli.output import print_error
from gptexport.cli.parity import parity
from gptexport.cli.trt import trt
from gptexport.errors import UnknownCheckpointError, UnsafeCheckpointError
from gptexport_runtime.errors import BackendUnavailableError, GPTExportError

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_BACKEND_UNAVAILABLE = 4
EXIT_CHECKPOINT = 5
EXIT_INTERRUPTED = 128 + signal.SIGINT


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gptexport")
def gptexport() -> None:
    """Take a GPT out of the notebook: export it, run it without torch, prove that it is the same model.

    \b
    Examples:
      gptexport inspect out/ckpt.pt                  what is in this checkpoint?
      gptexport onnx out/ckpt.pt -o gpt2/            export it to a bundle
      gptexport parity gpt2/ --against out/ckpt.pt   is the bundle the same model?
      gptexport trt gpt2/ -o gpt2.engine             build a TensorRT engine from it
      gptexport generate gpt2/ --prompt "Once upon"  text, as it comes
      gptexport doctor                               what can this machine run?

    \b
    Exit codes: 0 ok, 1 error, 2 usage, 3 parity failed, 4 backend unavailable,
    5 unsafe or unknown checkpoint.
    """


for command in (onnx, trt, parity, generate, inspect, bench, doctor):
    gptexport.add_command(command)


def main() -> None:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that a killed export cleans up as an interrupted one does
    code = run(sys.argv[1:])
    if code == EXIT_INTERRUPTED:
        # An interrupt that passed through exec() of a string, as in dataclasses and sympy, marks the interpreter: it
        # would kill itself with SIGINT on the way out, though the interrupt was handled (CPython's pythonrun.c).
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    sys.exit(code)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; no exception leaves but, with -v, that of a bug."""
    as_json = "--json" in arguments
    try:
        result = gptexport.main(arguments, prog_name="gptexport", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        print_error("Interrupted", f"interrupted; {str(error) or 'nothing was written.'}", as_json)
        return EXIT_INTERRUPTED
    except BackendUnavailableError as error:
        print_error(type(error).__name__, str(error), as_json)
        return EXIT_BACKEND_UNAVAILABLE
    except (UnknownCheckpointError, UnsafeCheckpointError) as error:
        print_error(type(error).__name__, str(error), as_json)
        return EXIT_CHECKPOINT
    except GPTExportError as error:
        print_error(type(error).__name__, str(error), as_json)
        return EXIT_ERROR
    except MemoryError:
        print_error("MemoryError", "out of memory. Close other programs, or use a machine with more.", as_json)
        return EXIT_ERROR
    except BrokenPipeError:  # `gptexport inspect … | head`
        sys.stdout = None
        return EXIT_ERROR
    except Exception as error:
        if {"-v", "--verbose"} & set(arguments):
            raise
        advice = "This is a bug in gptexport: run again with -v and report the traceback."
        print_error(type(error).__name__, f"{error}\n{advice}", as_json)
        return EXIT_ERROR
