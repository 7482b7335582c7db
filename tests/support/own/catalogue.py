"""The catalogue of modules that people write: what it is called, what makes it, and what can be expected of it.

Each part of `Own` (norm, positions, projections, scores, mask, MLP, block, head) is varied alone, and then together as
the models that people know put them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch.nn as nn

from tests.support import own_modules as kinds
from tests.support.own import attention, layers, positions, wrapped
from tests.support.own_modules import H, Own

Make = Callable[[], nn.Module]
Part = type[Own]


@dataclass(frozen=True)
class Variant:
    group: str
    name: str
    make: Make
    nodes: int = 2  # Attention nodes there should be: one a block
    refused: str | None = None  # what the refusal must say; None: it exports


def together(*parts: Part) -> Part:
    """A class that does what each of its parts does, the first ones before the others."""
    return type("".join(part.__name__ for part in parts), parts, {})


GROUPS: dict[str, dict[str, Part]] = {
    "norm": {
        "LayerNorm": Own,
        "LayerNorm without bias, nanoGPT's": layers.NormWithoutBias,
        "LayerNorm by hand": kinds.OwnLayerNorm,
        "RMSNorm by hand, in float32": kinds.OwnRMSNorm,
        "RMSNorm by hand, gain plus one": kinds.GemmasNorm,
        "nn.RMSNorm": kinds.TorchsRMSNorm,
        "F.rms_norm without gain": layers.NormWithoutGain,
        "BatchNorm before the head": kinds.BatchNorm,
    },
    "positions": {
        "none": positions.NoPositions,
        "a parameter cut to T": positions.CutParameter,
        "ids in a buffer": positions.IdsInABuffer,
        "ids counted from ones": positions.IdsCounted,
        "ids expanded to (B,T)": positions.IdsExpanded,
        "ids with an offset, OPT's": positions.IdsWithAnOffset,
        "sinusoidal, a buffer": positions.SinusoidalBuffer,
        "sinusoidal, computed": positions.SinusoidalInForward,
        "sinusoidal, written into zeros": positions.SinusoidalWrittenInto,
        "rotary halves, computed": kinds.Rotary,
        "rotary halves, buffers": positions.HalvesFromBuffers,
        "rotary halves, by position ids": positions.HalvesByIds,
        "rotary halves, frequencies in a buffer": positions.FrequenciesInABuffer,
        "rotary halves, before heads are turned": positions.TurnedBeforeHeads,
        "rotary halves of a part of each head": positions.PartOfAHead,
        "rotary even and odd": positions.EvenAndOdd,
        "rotary pairs": positions.Pairs,
        "rotary pairs, angles repeated": positions.RepeatedAngles,
        "rotary complex, an attribute": positions.ComplexAttribute,
        "rotary complex, a buffer": kinds.ComplexRotary,
        "rotary in every other layer": positions.SomeLayersWithout,
        "ALiBi computed": kinds.Alibi,
        "ALiBi buffer cut to T": positions.AlibiBuffer,
        "ALiBi buffer cut to T, by hand": positions.AlibiBufferByHand,
        "ALiBi of keys alone, BLOOM's": positions.AlibiOfKeys,
        "a bias for each distance, T5's": positions.DistancesLookedUp,
        "a bias for each distance, by hand": positions.DistancesLookedUpByHand,
        "a key for each distance, Shaw's": positions.KeysByDistance,
    },
    "scaled_dot_product_attention": {
        "mask of truth": kinds.Masked,
        "mask of truth, a buffer cut to T": attention.BufferOfTruth,
        "mask of minus infinity": kinds.FloatMask,
        "mask of the least number": kinds.MaskOfTheLeastNumber,
        "is_causal=T > 1": attention.CausalIfLonger,
        "is_causal=mask is None": attention.CausalWithoutMask,
        "(B*H,T,D)": attention.BmmWithoutHeads,
        "window": kinds.Window,
        "window of triangles": attention.WindowOfTriangles,
        "window in every other layer": attention.LocalAndGlobal,
        "chunks": attention.Chunked,
        "grouped, repeat_interleave": attention.Grouped,
        "grouped, repeat_kv": attention.GroupedByExpansion,
        "grouped, enable_gqa": attention.GroupedByTheKernel,
        "one key head, broadcast": attention.OneKeyHead,
        "queries and keys normed": attention.NormedHeads,
        "heads gated": attention.GatedHeads,
        "latent keys, heads of 12 and 8": attention.LatentKeys,
        "value residual": attention.ValuesOfTheFirstLayer,
    },
    "attention by hand": {
        "compared": attention.Compared,
        "tril": kinds.ByHand,
        "tril buffer": attention.TrilBuffer,
        "hidden, then scaled": attention.HiddenBeforeItIsScaled,
        "where, a large number": attention.Chosen,
        "where, the least number": attention.LeastNumber,
        "added minus infinity": attention.AddedInfinity,
        "added buffer cut to T": attention.AddedBuffer,
        "times mask, less 10,000": attention.AddedNumber,
        "queries scaled": attention.ScaledQueries,
        "queries and keys scaled": attention.ScaledBoth,
        "a learned scale": attention.LearnedScale,
        "baddbmm, (B*H,T,D)": attention.Baddbmm,
        "bmm, (B*H,T,D)": attention.Bmm,
        "einsum, heads first": attention.EinsumOfHeads,
        "einsum, time first": kinds.Einsum,
        "softmax in float32": attention.WideSoftmax,
        "softmax by hand": attention.SoftmaxByHand,
        "exp of log_softmax": attention.ExpOfLogSoftmax,
        "softcap": kinds.Softcaps,
        "softcap, Gemma's": attention.CappedScores,
        "window": attention.WindowByHand,
        "grouped in five axes": attention.GroupedInFiveAxes,
        "one key head, broadcast": attention.OneKeyHeadByHand,
        "heads in a loop": attention.HeadsInALoop,
        "heads as modules": attention.HeadsAsModules,
        "a sink": attention.Sink,
        "talking heads": attention.TalkingHeads,
        "differential": attention.Differential,
    },
    "projections": {
        "separate": attention.Separate,
        "(B,T,3,H,D) permuted": attention.Permuted,
        "q, k and v by head, NeoX's": attention.ByHead,
        "heads interleaved": attention.HeadsInterleaved,
        "einsum with (H,C,D)": attention.ProductsOfHeads,
        "addmm of flat rows": attention.FlatRows,
    },
    "torch.nn": {
        "MultiheadAttention, mask": kinds.Multihead,
        "MultiheadAttention, mask of floats": attention.MultiheadWithFloats,
        "MultiheadAttention, is_causal": attention.MultiheadWithHint,
        "MultiheadAttention, weights": kinds.MultiheadWithWeights,
        "MultiheadAttention, time first": attention.MultiheadTimeFirst,
        "MultiheadAttention, time first, weights": attention.MultiheadTimeFirstWithWeights,
        "TransformerEncoder, is_causal": kinds.Encoder,
        "TransformerEncoder, mask": attention.EncoderWithoutHint,
        "TransformerEncoder of the tutorial": attention.EncoderOfTheTutorial,
    },
    "MLP": {
        "SwiGLU": layers.Gated,
        "GEGLU in one linear": layers.GatedInOne,
        "GELU tanh": layers.TanhGelu,
        "GELU by hand, tanh": kinds.GeluByHand,
        "GELU by hand, erf": layers.ErfGelu,
        "x * sigmoid(1.702 x), a function of its own": kinds.CustomFunction,
        "ReLU squared": layers.SquaredRelu,
        "low-rank adapter": kinds.LowRank,
        "experts in a loop, Mixtral's": layers.ExpertsInALoop,
        "experts by masks": layers.ExpertsByMask,
        "experts, gates scattered": layers.ExpertsScattered,
        "experts, others hidden": layers.ExpertsHidden,
        "experts, outputs gathered": kinds.Experts,
        "experts, matrices gathered": layers.ExpertsGathered,
        "the best expert, Switch's": layers.ExpertsOfOne,
        "experts and one for all": layers.ExpertsAndOneForAll,
    },
    "block": {
        "norms behind": layers.NormBehind,
        "parallel, one norm": layers.Parallel,
        "parallel, two norms": layers.ParallelOfTwo,
        "norms in front and behind": layers.Sandwich,
        "residuals with a gain": layers.ScaledResiduals,
        "embedding in every block": layers.BackToTheStart,
        "a table in every block": layers.EmbeddingsOfEachLayer,
        "one block three times": kinds.OneBlockManyTimes,
        "in place": kinds.InPlace,
        "checkpointed": kinds.Recomputed,
    },
    "head": {
        "tied by the parameter": layers.Tied,
        "tied by F.linear": kinds.TiedByFunction,
        "tied by a product": kinds.TiedByProduct,
        "tied by einsum": kinds.TiedByEinsum,
        "tied by data": kinds.TiedByMemory,
        "bias added": kinds.BiasAfterTheHead,
        "padded vocabulary, cut": layers.PaddedVocabulary,
        "softcap": layers.CappedLogits,
        "scaled": layers.ScaledLogits,
        "a layer before it": layers.DeepHead,
        "weight_norm": kinds.WeightNorm,
        "log_softmax": layers.LogProbs,
        "ids that are forbidden": kinds.ForbiddenIds,
    },
    "models that people know": {
        "the lecture's": together(attention.HeadsAsModules, layers.Sequential),
        "nanoGPT's": together(attention.DroppedWeights, attention.TrilBuffer, layers.NormWithoutBias, layers.Tied),
        "LLMs-from-scratch's": together(
            attention.HiddenBeforeItIsScaled, attention.Separate, kinds.OwnLayerNorm, kinds.GeluByHand
        ),
        "Llama's": together(
            attention.GroupedByExpansion, attention.AddedInfinity, positions.ComplexAttribute, positions.NoPositions,
            kinds.OwnRMSNorm, layers.Gated,
        ),
        "Qwen3's": together(
            attention.NormedHeads, attention.GroupedByTheKernel, positions.HalvesByIds, positions.NoPositions,
            kinds.OwnRMSNorm, layers.Gated, layers.Tied,
        ),
        "nanochat's": together(
            layers.CappedLogits, attention.GroupedByTheKernel, positions.NormThenTurned, positions.NoPositions,
            layers.NormWithoutGain, layers.SquaredRelu,
        ),
        "Mistral's": together(
            kinds.Window, positions.HalvesFromBuffers, positions.NoPositions, kinds.OwnRMSNorm, layers.Gated
        ),
        "Mixtral's": together(
            attention.GroupedByExpansion, positions.HalvesFromBuffers, positions.NoPositions, kinds.OwnRMSNorm,
            layers.ExpertsInALoop,
        ),
        "Gemma 2's": together(
            layers.Sandwich, attention.CappedScores, positions.HalvesByIds, kinds.GemmasNorm, layers.GatedInOne,
            layers.CappedLogits,
        ),
        "GPT-J's": together(
            layers.Parallel, positions.PartOfAHead, positions.NoPositions, attention.LeastNumber, layers.TanhGelu
        ),
        "GPT-NeoX's": together(
            layers.ParallelOfTwo, attention.ByHead, positions.PartOfAHead, positions.NoPositions, attention.Baddbmm
        ),
        "MPT's": together(positions.AlibiBufferByHand, positions.NoPositions, layers.NormWithoutBias, layers.Tied),
        "modded-nanogpt's": together(
            layers.BackToTheStart, layers.CappedLogits, attention.ValuesOfTheFirstLayer, positions.NormThenTurned,
            positions.NoPositions, layers.NormWithoutGain, layers.SquaredRelu,
        ),
    },
    "what is not attention alone": {
        "a convolution in front": attention.ConvolvedFirst,
        "tokens shifted": attention.ShiftedTokens,
        "linear attention": attention.Linear,
        "a running mean": attention.RunningMean,
        "a prefix token": attention.Prefix,
        "padding hidden": kinds.PaddingMask,
        "documents apart": kinds.Documents,
    },
    "forward": {
        "a tuple with a loss": layers.ReturnsATuple,
        "a dict": layers.ReturnsADict,
        "an object": layers.ReturnsAnObject,
        "asserts its length": layers.ChecksAndCrops,
        "start_pos with a default": layers.TakesAStart,
        "hooks": kinds.Hooked,
        "inference_mode": kinds.InferenceMode,
    },
}  # fmt: skip

WRAPPED: dict[str, Make] = {
    "torch.compile": wrapped.compiled,
    "model.compile": kinds.CompiledInPlace,
    "torch.compile of a part": kinds.CompiledInside,
    "DataParallel": wrapped.data_parallel,
    "DistributedDataParallel": wrapped.distributed,
    "torch.compile of DistributedDataParallel": wrapped.compiled_and_distributed,
    "train mode, with dropout": wrapped.in_train_mode,
    "bfloat16": wrapped.in_bfloat16,
    "bfloat16, rotary buffers too": wrapped.half_rotary,
    "float16": kinds.HalfPrecision,
    "linears alone in bfloat16": wrapped.mixed,
}

TRANSFORMERS: dict[str, Make] = {
    name: partial(wrapped.of_transformers, *classes, **sizes)
    for name, classes, sizes in (
        ("LlamaForCausalLM", ("LlamaConfig", "LlamaForCausalLM"), {}),
        ("LlamaForCausalLM, eager", ("LlamaConfig", "LlamaForCausalLM"), {"attn_implementation": "eager"}),
        ("Qwen3ForCausalLM", ("Qwen3Config", "Qwen3ForCausalLM"), {}),
        ("MistralForCausalLM", ("MistralConfig", "MistralForCausalLM"), {"sliding_window": 7}),
        ("GPTNeoXForCausalLM", ("GPTNeoXConfig", "GPTNeoXForCausalLM"), {}),
        ("GemmaForCausalLM", ("GemmaConfig", "GemmaForCausalLM"), {}),
        ("GPT2LMHeadModel", ("GPT2Config", "GPT2LMHeadModel"), {"n_positions": kinds.BS}),
        ("OPTForCausalLM", ("OPTConfig", "OPTForCausalLM"), {"ffn_dim": 48, "word_embed_proj_dim": kinds.C}),
    )
}

REFUSED: dict[str, tuple[Make | type[nn.Module], str]] = {
    "nn.LSTM": (wrapped.Recurrent, "LSTM"),
    "a loop over T": (wrapped.Scan, "fixes T"),
    "the last position only": (wrapped.LastPositionOnly, "last position only"),
    "dropout that is always on": (wrapped.AlwaysDrops, "random numbers"),
    "start_pos without a default": (wrapped.NeedsAStart, "forward needs start_pos"),
    "a factory that needs arguments": (wrapped.NeedsAConfig, "needs config"),
    "a factory that raises": (wrapped.raises, "out/ckpt.pt"),
    "autocast inside": (wrapped.Autocast, "computes in bfloat16 by itself"),
    "TorchScript": (wrapped.scripted, "TorchScript"),
    "pooled over T": (wrapped.Pooled, "last position only"),
}


def _all() -> Iterator[Variant]:
    for group, parts in GROUPS.items():
        for name, part in parts.items():
            yield Variant(group, name, part, _nodes(part))
    for group, made in (("wrapped", WRAPPED), ("transformers", TRANSFORMERS)):
        for name, make in made.items():
            yield Variant(group, name, make)
    for name, (refused, reason) in REFUSED.items():
        yield Variant("refused", name, refused, 0, reason)


def _nodes(part: Part) -> int:
    if issubclass(part, attention.HeadsAsModules | attention.HeadsInALoop):
        return 2 * H
    return 3 if part is kinds.OneBlockManyTimes else 2


CATALOGUE: dict[str, Variant] = {f"{variant.group}: {variant.name}": variant for variant in _all()}
