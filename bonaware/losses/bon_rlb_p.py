"""bon_rlb_p: best-of-k for rewards 0 and 1, from the right samples only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonaware._arguments import Floats
from bonaware.losses._base import Batch, Loss, has_gaps, need_choice, need_count
from bonaware.losses._binary import by_count, fail_by_reward, need_binary

__all__ = ["LOSS", "BonRlbP"]


@dataclass(frozen=True)
class BonRlbP(Loss):
    """Raises pass@k by its right samples only (BoN-RLB(P)).

    Parameters
    ----------
    k : int
        Tries that the user will have, >= 1; may be larger than n.
    estimate_from : "all" or "loo"
        Which samples the probability of failure is estimated from where ``fail`` is not
        given: all n, or for each sample the other n - 1.
    kl : float
        Strength of the KL term, see `Loss`.

    Notes
    -----
    Minimises ``-(1 - f**k)``, f the probability of a wrong sample. A right winner of k draws
    has the factor ``k f**(k-1) (1 - f) / (1 - f**k)``, which is in [0, 1]; samples of the
    policy stand for winners with the ratio of both laws, ``(1 - f**k) / (1 - f)``, so

    ``weight_i = -(k/n) f**(k-1) R_i``.

    Unbiased for a given ``fail`` [P]; biased where f is estimated, see `bon_rlb` and
    docs/design/losses.md. With estimate_from="loo", f is that of the others, the weight is
    unbiased for k = 2, and the only right sample of a prompt counts fully. The value is
    ``-(1 - f**k)`` for the given f or the share of wrong samples.

    O(n) per prompt, without the GIL.
    Source: Chow et al. 2024, arXiv:2412.15287, BoN-RLB(P).

    Examples
    --------
    >>> BonRlbP(k=4)([[0, 0, 0, 1]])
    (array([-0.68359375]), array([[ 0.      ,  0.      ,  0.      , -0.421875]]))
    """

    k: int
    estimate_from: str = "all"
    kl: float = 0.0

    takes = ("fail",)
    kernel_checks = ("rewards",)

    def __post_init__(self) -> None:
        super().__post_init__()
        need_count(self.k, "k")
        need_choice(self.estimate_from, "estimate_from", "all", "loo")

    @property
    def fewest(self) -> int:
        return 2 if self.estimate_from == "loo" else 1

    def check(self, batch: Batch, there: NDArray[np.bool_]) -> None:
        if has_gaps(there):  # otherwise counting them checks them
            need_binary(batch, there)

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        n = batch.rewards.shape[1]

        def figures(correct: Floats) -> tuple[Floats, Floats, Floats]:
            of_right, _ = fail_by_reward(correct, n, batch.fail, self.estimate_from)
            overall = 1 - correct / n if batch.fail is None else batch.fail
            hit = -self.k / n * of_right ** (self.k - 1)
            return overall**self.k - 1, hit, np.zeros(len(hit))

        return by_count(batch, figures)


LOSS = BonRlbP
