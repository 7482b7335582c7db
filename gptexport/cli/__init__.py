"""`gptexport`: one small file per command. Torch is imported only by the command that needs it, when it runs."""

from gptexport.cli.app import main

__all__ = ["main"]
