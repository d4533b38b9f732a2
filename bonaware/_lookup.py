"""One file = one of its kind: find tasks, verifiers, losses, policies by file name.

A kind is a package; what it offers is its modules without a leading underscore, each with
one fixed attribute. Adding a file is all it takes to add one.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

__all__ = ["available", "load", "make"]


def available(package: str) -> tuple[str, ...]:
    """Names in a package, sorted.

    Examples
    --------
    >>> available("bonaware.verifiers")
    ('exact', 'likelihood', 'reward_model', 'self_certainty', 'self_evaluation')
    """
    path = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def load(package: str, name: str, attribute: str) -> Any:
    """The attribute of the module `name` in `package`; only that module is imported.

    Raises
    ------
    TypeError
        name is not a str.
    ValueError
        There is no such name; the message lists those there are.
    """
    if not isinstance(name, str):
        raise TypeError(f"need a name in {package} as a str, got {type(name).__name__}")
    if name not in available(package):
        raise ValueError(
            f"there is no {name!r} in {package}; there are: {', '.join(available(package))}"
        )
    return getattr(importlib.import_module(f"{package}.{name}"), attribute)


def make(package: str, name: str, attribute: str, options: Mapping[str, Any]) -> Any:
    """What `load` finds, called with options.

    Raises
    ------
    TypeError
        There is no such option, or one that has no default is missing; the message lists
        those there are. And as `load`.
    ValueError
        As `load`.
    """
    kind = load(package, name, attribute)
    taken = inspect.signature(kind).parameters
    wrong = [option for option in options if option not in taken]
    missing = [o.name for o in taken.values() if o.default is o.empty and o.name not in options]
    if wrong or missing:
        said = f"there is no {wrong[0]!r}" if wrong else f"{missing[0]!r} is missing"
        raise TypeError(
            f"options of {attribute.lower()} {name}: {said}; there are: "
            f"{', '.join(taken) or 'none'}"
        )
    return kind(**options)
