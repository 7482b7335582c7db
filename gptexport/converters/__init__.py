"""From gptexport's textbook modules to the files that other systems read. One file for each architecture.

`huggingface.py` writes the folder, `proof.py` shows that it is the same model.
"""

from gptexport.converters.huggingface import Converted, convert

__all__ = ["Converted", "convert"]
