"""Outputs are whole or not there at all, and what gptexport did not write stays. Torch-free.

`staged` makes a bundle, a graph or an engine; `replace_file`, `replacing` and `write_output` make one file. Whatever
happens in between, a full disk, Ctrl-C or SIGKILL, there is the old one or the new one, and the next run clears away
what is left.
"""

from gptexport.staging.outputs import (
    check_output,
    check_output_file,
    replace_file,
    replacing,
    staged,
    sweep,
    update_file,
    write_output,
)
from gptexport.staging.pair import data_file
from gptexport.staging.steps import watched, write_file

__all__ = [
    "check_output",
    "check_output_file",
    "data_file",
    "replace_file",
    "replacing",
    "staged",
    "sweep",
    "update_file",
    "watched",
    "write_file",
    "write_output",
]
