"""early_stopping_consistency: sample in windows until one of them is of one mind."""

from dataclasses import dataclass

from bonaware._checks import count
from bonaware.policies._base import Decision, Seen
from bonaware.policies._consensus import Consensus

__all__ = ["POLICY", "EarlyStoppingConsistency"]


@dataclass(frozen=True)
class EarlyStoppingConsistency(Consensus):
    """Draws windows of samples until all of one give the same answer; majority vote over all.

    Parameters
    ----------
    window : int
        Samples that are drawn together and must agree, >= 1.
    n : int
        Most samples of a prompt, >= window; what is left for the last window may be less.

    Raises
    ------
    TypeError, ValueError
        An option is out of its range.

    Notes
    -----
    A sample without an answer agrees with no other. With probabilities p_t of the answers,
    q = sum_t p_t^w and m = n / w windows at most, a prompt takes on average
    w (sum_{i=0}^{m-2} q (1-q)^i (i+1) + (1-q)^(m-1) m) samples.

    Source: Li et al. 2024, arXiv:2401.10480.

    Examples
    --------
    >>> policy = EarlyStoppingConsistency(window=2, n=4)
    >>> policy.decide(Seen(prompt=0, finish_reason=["eos", "eos"], answers=["7", "8"]))
    Decision(draw=2, drop=())
    >>> policy.decide(Seen(prompt=0, finish_reason=["eos", "eos"], answers=["7", "7"]))
    Decision(draw=0, drop=())
    """

    window: int = 4
    n: int = 16

    def __post_init__(self) -> None:
        if count("window", self.window) > count("n", self.n):
            raise ValueError(f"need window <= n, got window={self.window}, n={self.n}")

    def decide(self, seen: Seen) -> Decision:
        last = set(seen.answers[-self.window:])
        if len(last) == 1 and last.pop():
            return Decision()
        return Decision(draw=min(self.window, self.n - seen.drawn))


POLICY = EarlyStoppingConsistency
