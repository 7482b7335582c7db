"""The two TensorRTs, which have one API and are apart in what is said here. To add one, write an object.

TensorRT builds an engine on the GPU that will run it. TensorRT for RTX compiles one anywhere, for the GPUs that are
named, and finishes it where it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Edition:
    """An edition of TensorRT."""

    name: str  # as the command line and the sidecar spell it
    title: str  # for people
    module: str  # of its Python bindings
    extra: str  # of pip, in gptexport and gptexport-runtime
    magic: bytes  # the first four bytes of its engines
    oldest: tuple[int, int]  # the oldest version whose API was held against the code
    names_targets: bool  # an engine is for the compute capabilities that are named, and is built without a GPU
    lacks: Mapping[str, str] = field(default_factory=dict)  # options of the builder that it has not, and why

    def install(self, package: str) -> str:
        """The command that installs it beside `package`."""
        return f"pip install {package}[{self.extra}]"

    def __str__(self) -> str:
        return self.name


TENSORRT = Edition(
    name="tensorrt",
    title="TensorRT",
    module="tensorrt",
    extra="tensorrt",
    magic=b"ftrt",
    oldest=(10, 15),
    names_targets=False,
)
TENSORRT_RTX = Edition(
    name="tensorrt-rtx",
    title="TensorRT for RTX",
    module="tensorrt_rtx",
    extra="rtx",
    magic=b"vtrt",
    oldest=(1, 7),
    names_targets=True,
    lacks={  # [ran with 1.7.1: warnings, or the same bytes with and without]
        "optimization_level": "it builds the same engine at every level",
        "timing_cache": "it times nothing while it builds, so there is nothing to keep",
        "version_compatible": "its engines run with the version that built them",
        "hardware_compatible": "name each GPU with --compute-capability instead: one engine may be for several",
    },
)
EDITIONS = {edition.name: edition for edition in (TENSORRT, TENSORRT_RTX)}
