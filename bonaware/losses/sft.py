"""sft: supervised fine-tuning, the log-likelihood of expert samples."""

from dataclasses import dataclass

import numpy as np

from bonaware._arguments import Floats
from bonaware.losses._base import Batch, Loss

__all__ = ["LOSS", "Sft"]


@dataclass(frozen=True)
class Sft(Loss):
    """Imitates the expert samples.

    Notes
    -----
    Minimises ``-mean of logp over the expert samples``; each of m of them has the weight
    ``-1/m``, other samples have 0. Without ``expert`` every sample is one. A prompt without
    expert samples has the value 0 and no weights. Without ``logp``, which the weights do not
    need, the value is NaN. The rewards are not looked at.

    With the experts drawn from a fixed law the weights are the unbiased gradient of its
    cross-entropy.
    Source: maximum likelihood; the arm "SFT, N'=1" of Chow et al. 2024, arXiv:2412.15287.

    Examples
    --------
    >>> value, weights = Sft()([[0, 1, 1]], logp=[[-3, -2, -4]], expert=[[False, True, True]])
    >>> value, weights
    (array([3.]), array([[ 0. , -0.5, -0.5]]))
    """

    takes = ("logp", "expert")

    def estimate(self, batch: Batch) -> tuple[Floats, Floats]:
        expert = batch.expert
        if expert is None:
            expert = np.ones(batch.rewards.shape, bool)
        count = expert.sum(1, keepdims=True)
        weights = np.where(expert, -1.0 / np.maximum(count, 1), 0.0)
        if batch.logp is None:
            return np.full(len(weights), np.nan), weights
        return (weights * batch.logp).sum(1), weights


LOSS = Sft
