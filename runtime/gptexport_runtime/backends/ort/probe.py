"""What there is of ONNX Runtime on this machine, for `gptexport doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from gptexport_runtime.backends.ort.package import Package, conflict, import_onnxruntime, installed_packages
from gptexport_runtime.backends.ort.providers import PROVIDERS
from gptexport_runtime.errors import BackendUnavailableError


@dataclass(frozen=True)
class ProviderProbe:
    """Whether a device really runs a graph; where not, why, and what to do."""

    device: str
    loads: bool
    reason: str | None
    lacks: str | None = None  # what it runs without and would better have


@dataclass(frozen=True)
class RuntimeProbe:
    """ONNX Runtime as it is installed, and what it can do."""

    version: str | None  # None: not importable
    packages: tuple[Package, ...]
    conflict: str | None  # why what is installed cannot be relied on
    available: tuple[str, ...]  # the execution providers that the package was built with
    providers: tuple[ProviderProbe, ...]  # of each that a session can run on, as tried


def probe_providers() -> RuntimeProbe:
    """Try each provider in earnest. Raises nothing: what is wrong is in the result."""
    found = installed_packages()
    in_order = sorted(PROVIDERS, key=lambda provider: provider.device)
    try:
        ort = import_onnxruntime()
    except BackendUnavailableError as error:
        nothing = tuple(ProviderProbe(provider.device, False, str(error)) for provider in in_order)
        return RuntimeProbe(None, found, conflict(found), (), nothing)
    tried = [(provider, provider.why_not(ort)) for provider in in_order]
    return RuntimeProbe(
        version=ort.__version__,
        packages=found,
        conflict=conflict(found),
        available=tuple(ort.get_available_providers()),
        providers=tuple(
            ProviderProbe(provider.device, reason is None, reason, provider.lacks() if reason is None else None)
            for provider, reason in tried
        ),
    )
