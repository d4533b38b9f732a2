"""speculative_rejection: begin with many samples, and drop the worst whenever memory is full."""

from dataclasses import dataclass, field
from typing import ClassVar

from bonaware._checks import count
from bonaware.policies._options import kept, share
from bonaware.policies._pruning import Pruning

__all__ = ["POLICY", "SpeculativeRejection"]


@dataclass(frozen=True)
class SpeculativeRejection(Pruning):
    """Draws n samples; whenever they would fill the budget, the worst of them are dropped.

    Takes the best of the samples that have ended, by their scores as whole samples.

    Parameters
    ----------
    budget : int
        Tokens that the samples of a prompt may hold together, >= n; the prompt, which they
        share, does not count. A single sample that is left may outgrow it.
    n : int
        Samples of a prompt, >= 1.
    alpha : float
        In (0, 1]: which part of the samples is dropped each time, rounded down, but at least
        one, and never the last.

    Attributes
    ----------
    checkpoints : tuple of int
        Follows from the options: with l samples left the budget lasts for budget // l tokens
        of each.

    Raises
    ------
    TypeError, ValueError
        An option is out of its range.

    Notes
    -----
    The schedule counts on no sample ending by itself. One that does makes room, and then so
    many fewer are dropped: as many go on as the budget bears until the next checkpoint.

    Source: Sun et al. 2024, arXiv:2410.20290. There the memory that fills is that of the whole
    device; here it is a share of it that each prompt has.

    Examples
    --------
    >>> SpeculativeRejection(budget=256, n=16).checkpoints
    (16, 32, 64, 128)
    """

    budget: int
    n: int = 16
    alpha: float = 0.5
    checkpoints: tuple[int, ...] = field(init=False, repr=False)
    _stay: tuple[int, ...] = field(init=False, repr=False)
    needs: ClassVar[frozenset[str]] = frozenset({"prefix_scores", "scores"})

    def __post_init__(self) -> None:
        count("n", self.n)
        share("alpha", self.alpha)
        if count("budget", self.budget) < self.n:
            raise ValueError(f"need a budget of at least one token for each of n={self.n} samples, "
                             f"got {self.budget}")
        steps = _schedule(self.budget, self.n, self.alpha)
        object.__setattr__(self, "checkpoints", tuple(steps))
        object.__setattr__(self, "_stay", tuple(steps.values()))

    def stay(self, at: int, held: int) -> int:
        return self._stay[at]


def _schedule(budget: int, n: int, alpha: float) -> dict[int, int]:
    """Tokens per sample at which the budget is full -> samples that it then bears."""
    steps, live = {}, n
    while live > 1:
        tokens = budget // live
        live = min(live - 1, kept(1 - alpha, live))
        steps[tokens] = live  # full again before another token: the same checkpoint
    return steps


POLICY = SpeculativeRejection
