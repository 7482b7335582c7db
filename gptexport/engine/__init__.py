"""Engine: an exported graph to TensorRT or TensorRT for RTX, with its identity beside it."""

from gptexport.engine.edition import BuildOptions, Library, choose_targets, open_library
from gptexport.engine.engine import BuiltEngine, build_engine, record_parity
from gptexport.engine.profiles import make_profiles, propose_profiles
from gptexport.engine.source import Source, open_source

__all__ = [
    "BuildOptions",
    "BuiltEngine",
    "Library",
    "Source",
    "build_engine",
    "choose_targets",
    "make_profiles",
    "open_library",
    "open_source",
    "propose_profiles",
    "record_parity",
]
