"""Scores of the beginnings of samples, for verifiers that read what was drawn."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bonaware.samples import Samples

__all__ = ["of_beginnings"]


def of_beginnings(samples: Samples, values: Sequence[Sequence[NDArray[np.float32]]],
                  checkpoints: Sequence[int],
                  score: Callable[[NDArray[np.float32]], float]) -> NDArray[np.float64]:
    """What `score` makes of the first values of each sample.

    Parameters
    ----------
    samples : Samples
    values : nested list [P][n] of float32 arrays [length]
        A number per token.
    checkpoints : sequence of C ints
        Numbers of tokens.
    score : callable
        Of the first values of one sample.

    Returns
    -------
    float64, shape [P, n, C]
        NaN where a sample has no token behind the checkpoint, or does not exist.
    """
    found = np.full((*samples.valid.shape, len(checkpoints)), np.nan)
    for p, i, c in zip(*np.nonzero(samples.lengths[:, :, None] > np.array(checkpoints, int)),
                       strict=True):
        found[p, i, c] = score(values[p][i][:checkpoints[c]])
    return found
