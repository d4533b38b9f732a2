"""How a verifier loads a model of its own, where its options do not say it."""

import inspect
import os
from collections.abc import Mapping
from typing import Any

from bonaware import _lookup
from bonaware.lm import LM

__all__ = ["loaded", "with_engine"]


def loaded(model: Any, dtype: str, threads: int | None, memory: int | None) -> Any:
    """The model of a verifier: what `LM.load` takes is loaded with these options.

    Raises
    ------
    ValueError
        It is an LM, which has its own dtype, threads and memory, and another one is given.
    OSError
        It is a path, and no such model can be read.
    """
    if isinstance(model, str | os.PathLike):
        return LM.load(model, dtype, threads, memory)
    if (dtype, threads, memory) != ("auto", None, None):
        raise ValueError("dtype, threads and memory are for a model that is loaded here, but "
                         f"{'none is given' if model is None else f'{model.name} is an LM'}")
    return model


def with_engine(name: str, options: Mapping[str, Any], **engine: Any) -> dict[str, Any]:
    """Options of a verifier, with those of the engine that it takes for a model that it loads.

    Parameters
    ----------
    name : str
        Of a verifier.
    options : mapping
        What was said of it; that stays.
    **engine
        threads, memory: of the run; None where nothing was said.

    Examples
    --------
    >>> with_engine("reward_model", {"model": "judge", "memory": 10}, threads=1, memory=20)
    {'threads': 1, 'model': 'judge', 'memory': 10}
    >>> with_engine("likelihood", {}, threads=1)
    {}
    """
    if not isinstance(options.get("model"), str):
        return dict(options)
    taken = inspect.signature(_lookup.load("bonaware.verifiers", name, "VERIFIER")).parameters
    given = {key: value for key, value in engine.items() if key in taken and value is not None}
    return {key: value for key, value in given.items() if key not in options} | dict(options)
