"""bon_rl_s: REINFORCE on best-of-k as the reward itself selects it."""

from dataclasses import dataclass

from bonaware._arguments import Floats
from bonaware.losses._base import Batch
from bonaware.losses._bon_law import BonRl

__all__ = ["LOSS", "BonRlS"]


@dataclass(frozen=True)
class BonRlS(BonRl):
    """Raises the expected largest reward of k samples, pass@k if binary (BoN-RL-S).

    Parameters
    ----------
    k, variational, draws, enumerated, kl
        As in `bonaware.losses.bon_rl_v`.

    Notes
    -----
    `bon_rl_v` with the rewards as scores: formula, value, bias and cost are given there.
    Source: Chow et al. 2024, arXiv:2412.15287, BoN-RL-S.

    Examples
    --------
    >>> value, weights = BonRlS(k=4)([[0.0, 1.0, 0.0, 1.0]])
    >>> value.round(3), weights.round(3)
    (array([-0.964]), array([[ 0.086, -0.086,  0.086, -0.086]]))
    """

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        return self.weigh(batch, batch.rewards)


LOSS = BonRlS
