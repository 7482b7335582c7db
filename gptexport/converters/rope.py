"""Rotary positions as a config.json says them: in transformers 5's field, and in those that earlier versions read."""

from __future__ import annotations

from typing import Any

from gptexport.architectures.rotary import Linear, Llama3, Scaling, Yarn


def rope_fields(base: float, scaling: Scaling | None, **more: Any) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and `rope_parameters`.

    Args:
        more: what `rope_parameters` says beside them.
    """
    scaled = _scaling(scaling)
    before = {"rope_theta": base, **({"rope_scaling": scaled} if scaled else {})}
    return {**before, "rope_parameters": {"rope_theta": base, **(scaled or {"rope_type": "default"}), **more}}


def _scaling(scaling: Scaling | None) -> dict[str, Any] | None:
    match scaling:
        case None:
            return None
        case Linear():
            return {"rope_type": "linear", "factor": scaling.factor}
        case Llama3():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_block_size,
            }
        case Yarn():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_block_size,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "attention_factor": scaling.gain,
                "truncate": scaling.truncate,
            }
