"""raft: supervised fine-tuning on the best sample of every prompt."""

from dataclasses import dataclass

import numpy as np

from bonaware._arguments import Floats
from bonaware.losses._base import Batch, Loss

__all__ = ["LOSS", "Raft"]


@dataclass(frozen=True)
class Raft(Loss):
    """Imitates the best of the n samples of each prompt.

    Parameters
    ----------
    kl : float
        Strength of the KL term, see `Loss`.

    Notes
    -----
    Minimises ``-E[log pi(y)]`` over the best y of n samples of the policy as it was when
    they were drawn, that is, the KL divergence of best-of-n from the policy; ``weight = -1``
    on the best sample, shared evenly between equals, 0 on the others. Unbiased for that
    objective, in which the law of the samples is held fixed. The best is that of the highest
    score; without ``scores``, of the highest reward. Without ``logp``, which the weights do
    not need, the value is NaN. A prompt whose samples are all equal is imitated as it is,
    which moves the policy nowhere on average.
    Source: Dong et al. 2023, arXiv:2304.06767, algorithm 1, with one of n samples kept.

    Examples
    --------
    >>> Raft()([[0.0, 1.0, 1.0]], logp=[[-3.0, -2.0, -4.0]])
    (array([3.]), array([[ 0. , -0.5, -0.5]]))
    """

    kl: float = 0.0

    takes = ("scores", "logp")

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        scores = batch.rewards if batch.scores is None else batch.scores
        best = scores == scores.max(1, keepdims=True)
        weights = np.where(best, -1.0 / best.sum(1, keepdims=True), 0.0)
        if batch.logp is None:
            return np.full(len(weights), np.nan), weights
        return (weights * batch.logp).sum(1), weights


LOSS = Raft
