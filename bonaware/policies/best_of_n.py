"""best_of_n: n samples of every prompt, and the one with the best score."""

from dataclasses import dataclass

from bonaware._checks import count
from bonaware.policies._base import Decision, Policy, Seen

__all__ = ["POLICY", "BestOfN"]


@dataclass(frozen=True)
class BestOfN(Policy):
    """Draws n samples of every prompt, and takes the one with the best score.

    Parameters
    ----------
    n : int
        Samples per prompt, >= 1.

    Examples
    --------
    >>> BestOfN(n=4).decide(Seen(prompt=0))
    Decision(draw=4, drop=())
    """

    n: int = 16

    def __post_init__(self) -> None:
        count("n", self.n)

    def decide(self, seen: Seen) -> Decision:
        return Decision(draw=self.n - seen.drawn)


POLICY = BestOfN
