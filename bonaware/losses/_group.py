"""What several losses ask of the samples of one prompt: distance from the mean, ranks."""

import numpy as np

from bonaware._arguments import Floats

__all__ = ["centred", "lower"]


def centred(x: Floats) -> Floats:
    """x [P, n] minus the mean of its row; exactly 0 where all of a row are equal."""
    from_first = x - x[:, :1]
    return from_first - from_first.mean(1, keepdims=True)


def lower(scores: Floats, among: Floats) -> Floats:
    """[P, n]: how many of the same row of among [P, m] are lower than each of scores [P, n].

    A stable sort of both and a running sum: the scores stand first, so what is equal to
    them comes after them.
    """
    n = scores.shape[1]
    order = np.argsort(np.concatenate([scores, among], axis=1), axis=1, kind="stable")
    before = np.cumsum(order >= n, axis=1)
    below = np.empty(order.shape)
    np.put_along_axis(below, order, before, 1)
    return below[:, :n]
