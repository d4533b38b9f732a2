"""prune: drop the samples that look worst while they are under way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from bonaware._checks import count
from bonaware.policies._options import kept, rising, share
from bonaware.policies._pruning import Pruning

__all__ = ["POLICY", "Prune"]


@dataclass(frozen=True)
class Prune(Pruning):
    """Draws n samples, and lets only the best of those at a checkpoint go on.

    Takes the best of the samples that have ended, by their scores as whole samples.

    Parameters
    ----------
    checkpoints : int or sequence of int
        Numbers of tokens, rising, at which the beginnings of samples are scored.
    fractions : float or sequence of float
        One per checkpoint, in (0, 1]: which part of the samples that have come there goes on,
        rounded up, so at least one does. Equal scores: the lower index goes on.
    n : int
        Samples of a prompt, >= 1.

    Raises
    ------
    TypeError, ValueError
        An option is out of its range, or there are not as many fractions as checkpoints.

    Notes
    -----
    A sample that ends before a checkpoint, or right there, is one of the n and is neither
    dropped, which would save nothing, nor replaced. The fraction is of the samples that do wait
    at the checkpoint: what is still to be paid for. Were those that have ended to fill the places
    of the ones to keep, a prompt with many short samples would lose its long ones unread.

    Source: Manvi et al. 2024, arXiv:2410.02725 (pruning of samples mid-generation).

    Examples
    --------
    >>> from bonaware.policies import Seen
    >>> policy = Prune(checkpoints=32, fractions=0.5, n=3)
    >>> seen = Seen(prompt=0, finish_reason=["held", "eos", "held"], at=0,
    ...             prefix_scores=np.array([[0.2], [np.nan], [0.7]]))
    >>> policy.decide(seen)
    Decision(draw=0, drop=[0])
    """

    checkpoints: tuple[int, ...] = field()
    fractions: tuple[float, ...] = field()
    n: int = 16
    needs: ClassVar[frozenset[str]] = frozenset({"prefix_scores", "scores"})

    def __post_init__(self) -> None:
        count("n", self.n)
        given = self.fractions
        several = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str)
        fractions = tuple(share("a fraction", f) for f in (given if several else [given]))
        checkpoints = rising("checkpoints", self.checkpoints)
        if len(fractions) != len(checkpoints):
            raise ValueError(f"need one fraction for each of {len(checkpoints)} checkpoints, got "
                             f"{len(fractions)}")
        object.__setattr__(self, "checkpoints", checkpoints)
        object.__setattr__(self, "fractions", fractions)

    def stay(self, at: int, held: int) -> int:
        return kept(self.fractions[at], held)


POLICY = Prune
