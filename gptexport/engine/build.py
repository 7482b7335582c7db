"""ONNX to an engine's bytes: parse, mark attention, configure, build."""

from __future__ import annotations

import re
import threading
import types
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gptexport.engine.cancel import Progress, call_interruptibly, make_monitor
from gptexport.engine.edition import BuildOptions, Library
from gptexport.engine.source import Source
from gptexport.errors import EngineError, OptionError, OutputError
from gptexport.export.targets import PORTABLE
from gptexport.precision import PRECISIONS
from gptexport.staging import write_output
from gptexport_runtime.backends.tensorrt.log import errors_of, open_log
from gptexport_runtime.contract.engine import Profile
from gptexport_runtime.contract.names import INPUT_IDS

NO_KERNEL = "not supported by a dedicated kernel"
_one_build = threading.Lock()  # the logger is the process's, so two builds would mix their messages


@dataclass(frozen=True)
class Request:
    """What to build, with what, and for which GPUs and shapes."""

    library: Library
    source: Source
    graph: bytes  # ready to parse; its external data lies beside `source.path`
    profiles: Sequence[Profile]
    targets: Sequence[str]
    options: BuildOptions


@dataclass(frozen=True)
class Plan:
    """An engine in memory, and what TensorRT said of it."""

    data: memoryview
    activation_bytes: tuple[int, ...]  # by profile
    weight_bytes: int
    fused_attention: int  # attention layers that a kernel was demanded for
    decomposed_attention: int  # attention layers that may fall apart: the scores (B, n_head, T, T) are then in memory
    warnings: tuple[str, ...]


def build_plan(request: Request, progress: Progress) -> Plan:
    """Parse and build.

    Attention must have a fused kernel; only where TensorRT has none it may be decomposed: float32, or an odd head size.

    Raises:
        EngineError: TensorRT cannot parse the graph, or cannot build it; with its reasons.
        KeyboardInterrupt: Ctrl-C; the build has stopped.
    """
    cancelled = threading.Event()
    decompose = PRECISIONS[request.source.dtype].bits > 16
    trt = request.library.trt
    with _one_build:
        while True:
            attempt = partial(_attempt, request, decompose, make_monitor(trt, progress, cancelled))
            # parsing too: Ctrl-C raised in the logger, which TensorRT calls, would be lost
            outcome = call_interruptibly(attempt, cancelled)
            if isinstance(outcome, Plan):
                return outcome
            if decompose or NO_KERNEL not in outcome:
                raise _build_error(request, outcome)
            decompose = True


def _attempt(request: Request, decompose: bool, monitor: Any) -> Plan | str:
    return _Build(request, decompose).run(monitor)


class _Build:
    """One attempt; holds TensorRT's objects, which must outlive what is made of them."""

    def __init__(self, request: Request, decompose: bool) -> None:
        self.library, self.options, self.decompose = request.library, request.options, decompose
        trt = self.library.trt
        self.log = open_log(trt)
        self.builder = trt.Builder(self.log)
        self.network = self.builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(self.network, self.log)
        if not parser.parse(request.graph, path=str(request.source.path)):
            raise _parse_error(parser, request.source)
        self.attention = _mark_attention(trt, self.network, decompose)
        self.config = self.builder.create_builder_config()
        self._add_profiles(request.profiles)
        self._set_options()
        if self.library.edition.names_targets:
            self._set_targets(request.targets)

    def run(self, monitor: Any) -> Plan | str:
        """The engine, or why there is none."""
        self.config.progress_monitor = monitor
        plan = self.builder.build_serialized_network(self.network, self.config)
        if plan is None:
            return errors_of(self.log.lines)
        kept = self._keep_timing_cache()
        lines = self.log.lines
        return Plan(
            data=memoryview(plan),
            activation_bytes=tuple(_sizes(lines, "Total Activation Memory")),
            weight_bytes=sum(_sizes(lines, "Total Weights Memory")),
            fused_attention=0 if self.decompose else self.attention,
            decomposed_attention=self.attention if self.decompose else 0,
            warnings=tuple(text for severity, text in lines if severity == "WARNING" and "Int64 binding" not in text)
            + kept,
        )

    def _keep_timing_cache(self) -> tuple[str, ...]:
        """Write it back. Returns: why it could not be; the engine is none the worse for it."""
        if self.options.timing_cache is None:
            return ()
        data = memoryview(self.config.get_timing_cache().serialize())
        try:
            # TensorRT has read it, and refuses what is none
            write_output(self.options.timing_cache, data, is_ours=lambda _: True, what="timing cache")
        except OutputError as error:
            return (f"the timing cache was not kept: {error}",)
        return ()

    def _add_profiles(self, profiles: Sequence[Profile]) -> None:
        for item in profiles:
            profile = self.builder.create_optimization_profile()
            profile.set_shape(INPUT_IDS, item.min, item.opt, item.max)
            if self.config.add_optimization_profile(profile) < 0:
                raise EngineError(f"TensorRT refuses the profile {item}: {errors_of(self.log.lines)}")

    def _set_options(self) -> None:
        trt, options, config = self.library.trt, self.options, self.config
        flags = {
            "TF32": options.tf32,  # TensorRT's own default is on
            "WEIGHT_STREAMING": options.weight_streaming,
            "REFIT": options.refit,
            "VERSION_COMPATIBLE": options.version_compatible,
        }
        for name, wanted in flags.items():
            flag = getattr(trt.BuilderFlag, name)
            if wanted:
                config.set_flag(flag)
            else:
                config.clear_flag(flag)
        if options.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * 1_000_000)
        if options.optimization_level is not None:
            config.builder_optimization_level = options.optimization_level
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.timing_cache is not None:
            file = options.timing_cache
            self.cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
            if self.cache is None or not config.set_timing_cache(self.cache, False):
                raise OptionError(
                    f"{file} is not a timing cache of this GPU and TensorRT {self.library.version}. "
                    "Name a file that does not exist yet."
                )

    def _set_targets(self, targets: Sequence[str]) -> None:
        self.config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not self.config.set_compute_capability(self.library.targets[target], index):
                raise OptionError(
                    f"{self.library.edition.title} {self.library.version} refuses the target {target}: "
                    f"{errors_of(self.log.lines)}"
                )


def _network_flags(trt: types.ModuleType) -> int:
    """Strongly typed: the graph's dtypes are kept. TensorRT 10 asks for it; since 11 there is nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _mark_attention(trt: types.ModuleType, network: Any, decompose: bool) -> int:
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = decompose
            count += 1
    return count


def _parse_error(parser: Any, source: Source) -> EngineError:
    """Every complaint of the parser, by the node it is about."""
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = f"{error.node_operator()} node {error.node_name()!r}" if error.node_operator() else "the graph"
        reason = " ".join(error.desc().split())
        if "Plugin not found" in reason:  # what it looks for last
            reason = "TensorRT has no such operator"
        lines.append(f"  {node}: {reason} ({error.code().name})")
    advice = "Write the model without this operator, or keep to ONNX Runtime."
    if source.manifest is not None and source.manifest.target != PORTABLE.name:
        advice = f"The bundle is for the target {source.manifest.target!r}: export with --target {PORTABLE.name}."
    return EngineError("\n".join([f"TensorRT cannot parse {source.path}:", *dict.fromkeys(lines), advice]))


def _build_error(request: Request, reasons: str) -> EngineError:
    library, options = request.library, request.options
    if "Cannot compile for target(s)" in reasons and "b16" in reasons:
        advice = "That GPU has no bfloat16. Export with --dtype float16, or leave the target out."
    elif options.workspace is not None and "no tactics" in reasons:
        advice = f"Perhaps --workspace {options.workspace} MB is too small: leave it out, or give more."
    else:
        advice = "If `gptexport parity` passes on the graph, the fault is TensorRT's: keep to ONNX Runtime."
    return EngineError(f"{library.edition} {library.version} cannot build the engine: {reasons} {advice}")


def _sizes(lines: list[tuple[str, str]], title: str) -> list[int]:
    """`Total Activation Memory: 886341632 bytes`: without a GPU the log alone knows."""
    found = (re.search(rf"{title}: (\d+) bytes", text) for _, text in lines)
    return [int(match.group(1)) for match in found if match]
