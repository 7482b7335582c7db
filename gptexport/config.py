"""What a GPT-2 is made of. Torch-free, so that inspecting and printing a config costs nothing."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Gelu = Literal["tanh", "erf"]
DType = Literal["float32", "float16", "bfloat16"]
Target = Literal["portable", "cpu", "cuda"]
Quantize = Literal["int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTConfig:
    """The shape of a GPT-2 and the choices that change its result.

    Raises:
        ValueError: a size is not a positive integer, n_head does not divide n_embd, or the GELU has no such kind.
    """

    block_size: int = 1024  # longest sequence T, rows of wpe
    vocab_size: int = 50257  # V, rows of wte and of the head
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768  # C, the width of the residual stream
    n_inner: int | None = None  # width of the MLP; None means 4 * n_embd
    bias: bool = True  # biases in the linears and layer norms
    gelu: Gelu = "tanh"  # the weights do not tell: see docs of each checkpoint format
    tied: bool = True  # lm_head shares wte's weight
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True  # scores divided by sqrt(head size)
    scale_attn_by_inverse_layer_idx: bool = False  # and by layer index + 1 (Mistral's GPT-2s)

    def __post_init__(self) -> None:
        sizes = ["block_size", "vocab_size", "n_layer", "n_head", "n_embd"] + ["n_inner"] * (self.n_inner is not None)
        for name in sizes:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; expected a positive integer")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.gelu not in get_args(Gelu):
            raise ValueError(f"gelu is {self.gelu!r}; expected one of {', '.join(get_args(Gelu))}")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def mlp_width(self) -> int:
        return self.n_inner if self.n_inner is not None else 4 * self.n_embd

    @property
    def parameters(self) -> int:
        """How many numbers the model holds, a tied head once."""
        C, M, V = self.n_embd, self.mlp_width, self.vocab_size
        weights = self.n_layer * (4 * C * C + 2 * C * M + 2 * C) + C  # and the gains of the layer norms
        biases = (self.n_layer * (3 * C + C + M + C + 2 * C) + C) * self.bias
        return (V + self.block_size) * C + weights + biases + V * C * (not self.tied)

    def attn_scale(self, layer: int) -> float:
        """What attention scores of block `layer` (0-based) are multiplied by before the softmax."""
        scale = self.head_size**-0.5 if self.scale_attn_weights else 1.0
        return scale / (layer + 1) if self.scale_attn_by_inverse_layer_idx else scale

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
