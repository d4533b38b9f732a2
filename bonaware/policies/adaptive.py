"""adaptive: sample until one scores well enough, the later ones hotter where that is wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bonaware._checks import count, number
from bonaware.policies._base import Decision, Policy, Seen
from bonaware.policies._options import Waves, as_waves, schedule, wave_at

__all__ = ["POLICY", "Adaptive"]


@dataclass(frozen=True)
class Adaptive(Policy):
    """Draws in waves until the best score reaches a threshold or n samples are drawn.

    Takes the sample with the best score, which need not be the last.

    Parameters
    ----------
    threshold : float
        In [0, 1]; a score at or above it ends the prompt. With scores of self-evaluation: the
        probability that starting over would not do better.
    n : int
        Most samples of a prompt, >= 1.
    waves : int or sequence of int
        How many samples begin together: a number each time, or one number after another, the
        last again and again. Fewer waves take less time, smaller ones fewer samples.
    anneal : "exponential", "constant" or sequence of n floats
        Temperature of sample k = 1 ... n over that of the call: 1 - 2^-(k-1), cold first; 1;
        or what is given.

    Raises
    ------
    ValueError
        An option is out of its range.

    Notes
    -----
    With a wave of more than one sample the schedule makes the first one cold only.

    Source: Manvi et al. 2024, arXiv:2410.02725 (adaptive sampling, annealing).

    Examples
    --------
    >>> policy = Adaptive(threshold=0.9, n=4)
    >>> policy.temperatures(1.0)
    array([0.   , 0.5  , 0.75 , 0.875])
    >>> policy.decide(Seen(prompt=0))
    Decision(draw=1, drop=())
    """

    threshold: float
    n: int = 16
    waves: Waves = 1
    anneal: str | Sequence[float] = "exponential"
    probabilities: ClassVar[bool] = True

    def __post_init__(self) -> None:
        count("n", self.n)
        if not 0 <= number("threshold", self.threshold) <= 1:
            raise ValueError(f"need 0 <= threshold <= 1, got {self.threshold}: no score reaches "
                             "more than 1")
        schedule(self.anneal, self.n)
        object.__setattr__(self, "waves", as_waves(self.waves))
        if not isinstance(self.anneal, str):
            object.__setattr__(self, "anneal", tuple(map(float, self.anneal)))

    def temperatures(self, temperature: float) -> NDArray[np.float64]:
        return schedule(self.anneal, self.n) * temperature

    def decide(self, seen: Seen) -> Decision:
        scores = seen.scores[seen.whole]
        if (scores >= self.threshold).any():
            return Decision()
        return Decision(draw=min(wave_at(self.waves, seen.drawn), self.n - seen.drawn))


POLICY = Adaptive
