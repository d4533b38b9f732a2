"""Losses: one weight per sample on the gradient of its log-probability.

One file = one loss, found by its name: `get("bon")(k=16)`. A loss file has an attribute
`LOSS`, a class derived from `Loss` (in _base.py, which says what a loss must offer). Losses
are pure functions of arrays `[P, n]`; they know no model.
"""

from bonaware import _lookup
from bonaware.losses._base import Batch, Loss

__all__ = ["Batch", "Loss", "available", "get"]


def available() -> tuple[str, ...]:
    """Names that `get` knows.

    Examples
    --------
    >>> "bon" in available()
    True
    """
    return _lookup.available(__name__)


def get(name: str) -> type[Loss]:
    """A loss class by name; call it with the options of the loss.

    Parameters
    ----------
    name : str
        One of `available()`; see the docstring of each class for its formula.

    Returns
    -------
    type of Loss
        ``get("bon")(k=16)`` is a loss, a frozen dataclass; `dataclasses.replace` makes one
        with another k.

    Raises
    ------
    ValueError
        There is no such loss; the message lists those there are.

    Examples
    --------
    >>> loss = get("bon")(k=2)
    >>> value, weights = loss([[0.0, 0.0, 1.0, 1.0]])
    >>> value, weights
    (array([-0.83333333]), array([[ 0.        ,  0.        , -0.33333333, -0.33333333]]))
    """
    return _lookup.load(__name__, name, "LOSS")
