"""Is the export the same model? A verdict measured against the model's own rounding noise; and if not, where it is
wrong, what that looks like, and what caused it.

`check_parity` is all of it. It measures (`measure/`), judges (`verdict/`), looks for the first wrong step and its cause
(`locate/`); `report/` writes what was found.
"""

from gptexport.parity.check import check_parity, judge_saved, load_for, measure_parity
from gptexport.parity.locate.diagnosis import Diagnosis, diagnose
from gptexport.parity.measure.measured import Measured, load_measured
from gptexport.parity.measure.shapes import ShapeError, default_grid, quick_grid
from gptexport.parity.measure.token_files import read_tokens
from gptexport.parity.result import GeluMismatch, ParityResult
from gptexport.parity.verdict.judge import Verdict, judge
from gptexport.precision import Gates

__all__ = [
    "Diagnosis",
    "Gates",
    "GeluMismatch",
    "Measured",
    "ParityResult",
    "ShapeError",
    "Verdict",
    "check_parity",
    "default_grid",
    "diagnose",
    "judge",
    "judge_saved",
    "load_for",
    "load_measured",
    "measure_parity",
    "quick_grid",
    "read_tokens",
]
