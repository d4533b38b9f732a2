"""How a verifier loads a model of its own, where its options do not say it."""

import inspect
from collections.abc import Mapping
from typing import Any

from bonaware import _lookup

__all__ = ["with_engine"]


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
