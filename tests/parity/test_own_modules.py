"""People's own modules, each right and odd in one way: parity passes them without a crash, an alarm or a doubt, and
sees the smallest change of a weight in every one of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from gptexport.checkpoints import load_checkpoint
from gptexport.export import export_onnx
from gptexport.parity import check_parity
from tests.support import own_modules as own
from tests.support.faults import tampered

# One of each sort; the others take minutes.
QUICK = {own.TiedByFunction, own.Multihead, own.InsistsOnFloat32}
KINDS = [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in own.KINDS]


def largest_weight_by_a_thousandth(model: onnx.ModelProto) -> None:
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) == 2]
    tensor = max(floats, key=lambda t: np.prod(t.dims))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.001), tensor.name))


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_of_ones_own(kind: type[own.Own], tmp_path: Path) -> None:
    source = f"{own.__file__}:{kind.__name__}"
    bundle = export_onnx(load_checkpoint(source), tmp_path / "right").path
    result = check_parity(bundle, source)
    assert result, result.verdict.reasons
    assert result.diagnosis.wrong_step is None and result.notes == () and result.certificate is not None
    doubtful = kind in own.DOUBTFUL
    assert result.verdict.doubtful == doubtful and bool(result.diagnosis.steps) != doubtful
    wrong = check_parity(tampered(bundle, tmp_path / "wrong", largest_weight_by_a_thousandth), source, quick=True)
    assert not wrong and wrong.notes == ()
