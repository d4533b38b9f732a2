"""prune_random: drop samples at checkpoints without looking at them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bonaware._checks import count
from bonaware.policies._base import Seen
from bonaware.policies.prune import Prune

__all__ = ["POLICY", "PruneRandom"]


@dataclass(frozen=True)
class PruneRandom(Prune):
    """Drops as many samples as `prune` does, whichever they are: what pruning has to beat.

    Parameters
    ----------
    checkpoints, fractions, n
        As in `Prune`.
    rng : int
        Seed, >= 0. Each sample has a random rank at all checkpoints, which depends on it, the
        position of the prompt and the index of the sample only.

    Raises
    ------
    TypeError, ValueError
        An option is out of its range, or there are not as many fractions as checkpoints.

    Examples
    --------
    >>> policy = PruneRandom(checkpoints=32, fractions=0.5, n=4)
    >>> [policy.decide(Seen(prompt, ["held"] * 4, at=0)).drop for prompt in range(3)]
    [[2, 3], [1, 2], [0, 3]]
    """

    rng: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"scores"})

    def __post_init__(self) -> None:
        super().__post_init__()
        count("rng", self.rng, least=0)

    def ranks(self, seen: Seen) -> NDArray[np.float64]:
        return np.random.default_rng((self.rng, seen.prompt)).random(self.n)[seen.held]


POLICY = PruneRandom
