"""bon_sft: imitation of experts by the best of k samples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bonaware import _losses
from bonaware._arguments import Floats
from bonaware._parallel import for_rows
from bonaware.estimators import bon_lambda
from bonaware.losses._base import Batch, Loss, empty, has_gaps, need_count
from bonaware.losses._bon_law import STEPS_PER_SAMPLE, chances, need_normaliser

__all__ = ["LOSS", "BonSft"]


@dataclass(frozen=True)
class BonSft(Loss):
    """Raises the log-probability that best-of-k gives to expert samples (BoN-SFT).

    Parameters
    ----------
    k : int
        Samples that the selector will see, >= 1.
    enumerated : bool
        True: the samples of a prompt that are not experts' are all its outcomes, once each,
        and ``exp(logp)`` their probabilities. Then the weights give the exact gradient.

    Notes
    -----
    Every prompt has demonstrations (``expert`` True) and samples of the policy (False), all
    with ``scores`` and ``logp``. Minimises the mean over demonstrations y* of ``-log
    law(y*)`` for the variational law of best-of-k, ``pi(y) exp(lam Q(y)) / Z`` (see
    `bonaware.losses.bon_rl_v`). The gradient of ``log law(y*)`` is ``grad phi(y*) -
    E[grad phi(y)]`` with ``phi = log pi + lam Q`` and y from the law. With m samples of the
    policy and their shares ``v_i`` of the law, ``sum v = 1``:

    ``weight = -1 / number of demonstrations`` for a demonstration, and for a sample j of the
    policy ``(m v_j - 1) / (m - 1) + lam / (m - 2) * sum over i != j of v_i (1{r_i >= r_j} -
    Q_i) - lam / (m - 1) * mean over demonstrations of (1{r* >= r_j} - Q*)``

    (m - 1 and m in place of m - 2 and m - 1 for a given ``win_rate`` [P, n], the Q of all
    samples). The value is the loss in nats, with Z and Q estimated from the same samples.
    Consistent, biased for finite m (docs/design/losses.md). Rewards are not used.

    With ``win_rate`` and ``log_normaliser`` [P], the logarithm of ``Z = E[exp(lam Q)]``, the
    value is exact and the weights are unbiased: ``v_i = exp(lam Q_i) / (m Z)``, and the first
    term is ``v_j - 1 / m``. See `bonaware.losses.bon_rl_v`.

    O(n log n) per prompt, without the GIL.
    Source: Chow et al. 2024, arXiv:2412.15287, BoN-SFT.

    Examples
    --------
    >>> loss = BonSft(k=4)
    >>> value, weights = loss(
    ...     [[1.0, 0.0, 0.0, 1.0]],
    ...     scores=[[0.9, 0.1, 0.2, 0.8]],
    ...     logp=[[-4.0, -2.0, -3.0, -5.0]],
    ...     expert=[[True, False, False, False]],
    ... )
    >>> value.round(3), weights.round(3)
    (array([2.99]), array([[-1.   , -0.297, -0.383,  0.68 ]]))
    """

    k: int
    enumerated: bool = False

    needs = ("scores", "logp", "expert")
    kernel_checks = ("scores", "logp")

    def __post_init__(self) -> None:
        super().__post_init__()
        need_count(self.k, "k")

    @property
    def takes(self) -> tuple[str, ...]:
        return ("win_rate",) if self.enumerated else ("win_rate", "log_normaliser")

    def check(self, batch: Batch, there: NDArray[np.bool_]) -> None:
        if has_gaps(there):  # otherwise the kernel says the same
            experts = (batch.expert & there).sum(1)
            policy = there.sum(1) - experts
            fewest = 1 if self.enumerated else 3
            few = (experts < 1) | (policy < fewest)
            if few.any():
                row = int(np.argmax(few))
                raise ValueError(
                    f"need 1 demonstration (expert True) and {fewest} samples of the policy in "
                    f"every row, but row {row} has {experts[row]} and {policy[row]}"
                )
        if self.enumerated:
            chances(batch.logp, ~batch.expert & there)
        need_normaliser(batch, self.k)

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        chance = chances(batch.logp, ~batch.expert) if self.enumerated else None
        strength = float(bon_lambda(self.k))
        value, weights = empty(batch)
        for_rows(
            lambda start, stop: _losses.bon_sft(
                batch.scores, batch.logp, batch.expert, chance, batch.win_rate,
                batch.log_normaliser, self.k, strength, value, weights, start, stop,
            ),
            len(value),
            STEPS_PER_SAMPLE * weights.shape[1],
        )  # fmt: skip
        return value, weights


LOSS = BonSft
