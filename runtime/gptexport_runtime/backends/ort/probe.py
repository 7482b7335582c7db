"""What there is of ONNX Runtime on this machine, for `gptexport doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from gptexport_runtime.backends.ort.package import Package, conflict, import_onnxruntime, installed_packages
from gptexport_runtime.backends.ort.providers import PROVIDERS
from gptexport_runtime.errors import BackendUnavailableError


@dataclass(frozen=True)
class ProviderProbe:
    """Whether a provider really runs a graph on its device; where not, why, and what to do."""

    device: str  # "cpu"; of a plugin "openvino plugin"
    loads: bool
    reason: str | None
    lacks: str | None = None  # what it runs without and would better have
    about: str | None = None  # its version and what its device can do


@dataclass(frozen=True)
class RuntimeProbe:
    """ONNX Runtime as it is installed, and what it can do."""

    version: str | None  # None: not importable
    packages: tuple[Package, ...]
    conflict: str | None  # why what is installed cannot be relied on
    available: tuple[str, ...]  # the execution providers that the package was built with
    providers: tuple[ProviderProbe, ...]  # of each that a session can run on, as tried
    export_with: str | None = None  # the options of `gptexport onnx` that make most of what runs here


def probe_providers() -> RuntimeProbe:
    """Try each provider in earnest. Raises nothing: what is wrong is in the result."""
    found = installed_packages()
    in_order = sorted(PROVIDERS, key=lambda provider: provider.title)
    try:
        ort = import_onnxruntime()
    except BackendUnavailableError as error:
        nothing = tuple(ProviderProbe(provider.title, False, str(error)) for provider in in_order)
        return RuntimeProbe(None, found, conflict(found), (), nothing)
    tried = [(provider, provider.why_not(ort)) for provider in in_order]
    running = [provider for provider, reason in tried if reason is None]
    advice = (provider.export_with(ort) for provider in PROVIDERS if provider in running)
    return RuntimeProbe(
        version=ort.__version__,
        packages=found,
        conflict=conflict(found),
        available=tuple(ort.get_available_providers()),
        providers=tuple(
            ProviderProbe(provider.title, True, None, provider.lacks(), provider.about(ort))
            if reason is None
            else ProviderProbe(provider.title, False, reason)
            for provider, reason in tried
        ),
        export_with=next(filter(None, advice), None),
    )
