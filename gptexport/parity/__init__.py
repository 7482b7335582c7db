"""Is the export the same model? A verdict measured against the model's own rounding noise."""

from gptexport.parity.parity import check_parity
from gptexport.parity.token_files import read_tokens
from gptexport.parity.tokens import default_grid
from gptexport.parity.verdict import Verdict

__all__ = ["Verdict", "check_parity", "default_grid", "read_tokens"]
