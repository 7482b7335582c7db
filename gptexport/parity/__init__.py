"""Is the export the same model? A verdict measured against the model's own rounding noise; and if not, where it is
wrong, what that looks like, and whom to blame."""

from gptexport.parity.diagnose import Diagnosis, diagnose
from gptexport.parity.measured import Measured, load_measured
from gptexport.parity.parity import check_parity, measure_parity
from gptexport.parity.token_files import read_tokens
from gptexport.parity.tokens import default_grid, quick_grid
from gptexport.parity.verdict import Verdict
from gptexport.precision import Gates

__all__ = [
    "Diagnosis",
    "Gates",
    "Measured",
    "Verdict",
    "check_parity",
    "default_grid",
    "diagnose",
    "load_measured",
    "measure_parity",
    "quick_grid",
    "read_tokens",
]
