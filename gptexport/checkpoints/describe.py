"""`describe_checkpoint`: what a checkpoint is, without running anything and without its weights in memory."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

from gptexport.checkpoints.formats import module
from gptexport.checkpoints.load import notes_of, read
from gptexport.checkpoints.locate import locate
from gptexport.checkpoints.sizes import MissingChoiceError
from gptexport.checkpoints.strict import dtype_name, problems_of
from gptexport.checkpoints.torch_file import UnsafeGlobalsError
from gptexport.checkpoints.types import CheckpointInfo, Foreign, Stored
from gptexport.errors import UnknownCheckpointError, UnsafeCheckpointError

_WHAT = {
    "build-nanogpt": "a build-nanogpt checkpoint",
    "huggingface": "a Hugging Face {title} folder",
    "litgpt": "a LitGPT folder, {title}-shaped",
    "llama2.c": "a llama2.c checkpoint",
    "llm.c": "a llm.c model",
    "llms-from-scratch": "a model of LLMs-from-scratch, {title}-shaped",
    "minimind": "a minimind model",
    "nanochat": "a nanochat checkpoint",
    "nanogpt": "a nanoGPT checkpoint",
    "state-dict": "{title} weights alone, a state_dict without a config",
}


def describe_checkpoint(source: str) -> CheckpointInfo:
    """What `source` is, for `gptexport inspect`, also where load_checkpoint refuses it. A hub id may be downloaded.

    Raises:
        CheckpointError: it is not there, truncated or corrupt, or its config is malformed.
    """
    if module.is_module(source):
        return _describe_module(source)
    path = locate(source)
    try:
        stored = read(path)
    except UnsafeCheckpointError as error:
        return _describe_unsafe(source, path, error)
    except MissingChoiceError as error:
        found = Foreign(format="state-dict", what="weights alone, which do not say all that they are")
        return replace(_describe_foreign(source, path, found), problems=(str(error),))
    except UnknownCheckpointError as error:  # a Hugging Face folder of another model
        return _describe_foreign(source, path, Foreign(format="huggingface", what=str(error)))
    if isinstance(stored, Foreign):
        return _describe_foreign(source, path, stored)
    return _describe_stored(source, stored)


def _describe_stored(source: str, stored: Stored) -> CheckpointInfo:
    problems = problems_of(stored)
    return CheckpointInfo(
        source=source,
        format=stored.format,
        description=_WHAT[stored.format].format(title=stored.architecture.title),
        readable=not problems,
        config=stored.config,
        assumed=stored.assumed,
        tied=stored.config.tied,
        parameters=sum(
            math.prod(weight.shape)
            for name, weight in stored.weights.items()
            if not (stored.config.tied and name == stored.architecture.head)
        ),
        dtypes=dict(Counter(map(dtype_name, {id(weight): weight for weight in stored.weights.values()}.values()))),
        training=stored.training,
        problems=problems,
        notes=notes_of(stored),
        files=tuple(path.name for path in stored.files),
        file_size=sum(path.stat().st_size for path in stored.files),
    )


def _describe_unsafe(source: str, path: Path, error: UnsafeCheckpointError) -> CheckpointInfo:
    return CheckpointInfo(
        source=source,
        format="unsafe",
        description="a PyTorch file that names code to be run on loading; none of it was",
        readable=False,
        unsafe_globals=error.names if isinstance(error, UnsafeGlobalsError) else (),
        files=(path.name,),
        file_size=_size(path),
        problems=(str(error),),
    )


def _describe_foreign(source: str, path: Path, foreign: Foreign) -> CheckpointInfo:
    return CheckpointInfo(
        source=source,
        format=foreign.format,
        description=foreign.what,
        readable=False,
        files=(path.name,) if path.is_file() else tuple(sorted(inner.name for inner in path.iterdir())),
        file_size=_size(path),
        notes=(foreign.advice,) if foreign.advice else (),
    )


def _describe_module(source: str) -> CheckpointInfo:
    path, name = module.split(source)
    names = module.names_in(path)
    problems = () if name in names else (f"{path.name} binds no {name!r} that can be seen without running it",)
    return CheckpointInfo(
        source=source,
        format=module.FORMAT,
        description=f"a user's own module, made by {name} in {path.name}; not imported, so nothing more is known",
        readable=not problems,
        files=(path.name,),
        file_size=_size(path),
        problems=problems,
        notes=(f"names in {path.name}: {', '.join(names)}",) if problems and names else (),
    )


def _size(path: Path) -> int:
    files = path.iterdir() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
