"""bon: the exact gradient of the expected reward of best-of-k."""

from dataclasses import dataclass

from bonaware import _losses
from bonaware._arguments import Floats
from bonaware._parallel import for_rows
from bonaware.losses._base import Batch, Loss, empty, need_choice, need_count

__all__ = ["BASELINES", "LOSS", "Bon", "bon_weights"]

#: What is subtracted, by the names that csrc/losses.h numbers.
BASELINES = ("subset", "loo", "none")
STEPS_PER_SAMPLE = 5  # about a nanosecond each, as in _parallel.py


@dataclass(frozen=True)
class Bon(Loss):
    """Raises the expected reward of the best of k samples, for any selector and reward.

    Parameters
    ----------
    k : int
        Samples that the selector will see, ``1 <= k <= n``.
    baseline : "subset", "loo" or "none"
        What the reward of a subset's best is compared with, for one of its samples:
        "subset", the best of the subset without that sample; "loo", best-of-k of the other
        n - 1 samples, which takes ``n > k``; "none", nothing. The expectation is the same,
        the variance is not (docs/design/losses.md).
    kl : float
        Strength of the KL term, see `Loss`.

    Notes
    -----
    Minimises ``-E[R(best of k)]``; the best is that of the highest score, equal scores are
    equally likely to be picked. Without ``scores`` it is that of the highest reward. With
    subsets S of size k of the n samples, ``weight_i = -1/C(n,k) * sum over S with i of
    (R(best of S) - R(best of S without i))``, in closed form; for ``k = 1`` this is ``-(R_i -
    mean of the others) / n``. Unbiased, for any ties and any rewards. The value is minus
    the unbiased estimate of best-of-k. Fewer than k samples are an error: nothing unbiased
    exists; `bon_rlb` can be used there.

    Binary rewards without scores: right samples have ``-C(n-c,k-1) / C(n,k)`` and wrong
    ones 0, so only prompts with ``1 <= c <= n-k+1`` right samples move the policy: use
    n >= 2k.

    O(n log n) per prompt, without the GIL. Error: about n roundings.
    Source: objective J of Chow et al. 2024, arXiv:2412.15287; the derivation with ties is
    in docs/design/losses.md. For scores = rewards it is the leave-one-out-minus-one
    estimator of Walder & Karkhanis 2025, arXiv:2505.15201.

    Examples
    --------
    >>> loss = Bon(k=2)
    >>> loss([[0.0, 0.0, 1.0, 1.0]])
    (array([-0.83333333]), array([[ 0.        ,  0.        , -0.33333333, -0.33333333]]))
    >>> loss([[0.0, 1.0, 1.0]], scores=[[3.0, 1.0, 2.0]])[1]  # a selector that is wrong
    array([[0.66666667, 0.        , 0.        ]])
    """

    k: int
    baseline: str = "subset"
    kl: float = 0.0

    takes = ("scores",)
    kernel_checks = ("rewards", "scores")

    def __post_init__(self) -> None:
        super().__post_init__()
        need_count(self.k, "k")
        need_choice(self.baseline, "baseline", *BASELINES)

    @property
    def fewest(self) -> int:
        return {"subset": max(self.k, 2), "loo": self.k + 1, "none": self.k}[self.baseline]

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        scores = batch.rewards if batch.scores is None else batch.scores
        return bon_weights(batch, scores, self.k, self.baseline)


def bon_weights(batch: Batch, scores: Floats, k: int, baseline: str) -> tuple[Floats, Floats]:
    """Value and weights of `Bon` for these scores."""
    value, weights = empty(batch)
    number = BASELINES.index(baseline)
    for_rows(
        lambda start, stop: _losses.bon(
            scores, batch.rewards, k, number, value, weights, start, stop
        ),
        len(value),
        STEPS_PER_SAMPLE * scores.shape[1],
    )
    return value, weights


LOSS = Bon
