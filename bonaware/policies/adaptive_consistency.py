"""adaptive_consistency: sample until it is likely that the leading answer stays the leading one."""

from collections import Counter
from dataclasses import dataclass
from math import comb

from bonaware._checks import count, number
from bonaware.policies._base import Decision, Seen
from bonaware.policies._consensus import Consensus
from bonaware.policies._options import Waves, as_waves, wave_at

__all__ = ["POLICY", "AdaptiveConsistency"]


@dataclass(frozen=True)
class AdaptiveConsistency(Consensus):
    """Draws until one answer leads with confidence, or n samples are drawn; majority vote.

    Parameters
    ----------
    confidence : float
        In (0.5, 1). With a and b votes for the two most frequent answers, the prompt ends when
        the first of them is the more probable one with at least this probability.
    n : int
        Most samples of a prompt, >= 1.
    waves : int or sequence of int
        How many samples begin together, as in `adaptive`.

    Raises
    ------
    TypeError, ValueError
        An option is out of its range.

    Notes
    -----
    The probability is 1 - BetaCDF(1/2; a+1, b+1): of two answers with shares p and 1-p, p uniform
    before the votes. With whole a and b that is the probability of at most a heads in a+b+1
    throws of a coin, a sum of binomial coefficients. Unanimous answers give 1 - 2^-(a+1): 0.95
    takes 4 of them. Samples without an answer do not vote.

    Source: Aggarwal et al. 2023, arXiv:2305.11860, the Beta stopping criterion.

    Examples
    --------
    >>> policy = AdaptiveConsistency(confidence=0.95)
    >>> policy.decide(Seen(prompt=0, finish_reason=["eos"] * 3, answers=["7"] * 3))
    Decision(draw=1, drop=())
    >>> policy.decide(Seen(prompt=0, finish_reason=["eos"] * 4, answers=["7"] * 4))
    Decision(draw=0, drop=())
    """

    confidence: float = 0.95
    n: int = 16
    waves: Waves = 1

    def __post_init__(self) -> None:
        count("n", self.n)
        if not 0.5 < number("confidence", self.confidence) < 1:
            raise ValueError(f"need 0.5 < confidence < 1, got {self.confidence}: without a vote it "
                             "is 0.5, and no number of votes makes it 1")
        object.__setattr__(self, "waves", as_waves(self.waves))

    def decide(self, seen: Seen) -> Decision:
        votes = Counter(filter(None, (seen.answers[i] for i in seen.whole))).most_common(2)
        first, second = (*(times for _, times in votes), 0, 0)[:2]
        if _leads(first, second) >= self.confidence:
            return Decision()
        return Decision(draw=min(wave_at(self.waves, seen.drawn), self.n - seen.drawn))


def _leads(a: int, b: int) -> float:
    """1 - BetaCDF(1/2; a+1, b+1), correctly rounded.

    Examples
    --------
    >>> _leads(3, 0), _leads(4, 0), _leads(2, 2)
    (0.9375, 0.96875, 0.5)
    """
    throws = a + b + 1
    return sum(comb(throws, heads) for heads in range(a + 1)) / 2**throws


POLICY = AdaptiveConsistency
