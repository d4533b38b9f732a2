"""The law of best-of-k: its distance from the policy, exact and variational.

Part of `bonaware.estimators`. Everything is a function of the probability of a lower and
of an equal score, so ties are exact.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._arguments import Floats, Ks, as_ks, as_probability, need_same_shape, place
from bonaware._votes import as_mask

__all__ = ["bon_kl", "bon_lambda", "bon_policy"]


def bon_kl(
    k: Ks,
    scores: ArrayLike | None = None,
    fail: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Floats:
    """KL divergence of the best-of-k policy from the policy it draws from, in nats.

    Parameters
    ----------
    k : int, or sequence of K ints
        Samples that the selector sees, >= 1.
    scores : float, shape [..., n], optional
        Scores of n samples, taken as the whole policy, each sample with probability 1/n:
        the value of the empirical law, which tends to that of the policy as n grows.
    fail : float, shape [...], optional
        Probability of a wrong sample, for a selector that sees right and wrong only.
    mask : bool, shape of scores, optional
        False where no sample is.

    Returns
    -------
    float64, shape [...], and [K] if k is a sequence
        ``log k - (k-1)/k`` without scores and fail: exact if no two samples tie, else an
        upper bound. With fail f: ``(1-f**k) log((1-f**k)/(1-f)) + f**k (k-1) log f``. With
        scores: the sum of ``q log(q/p)`` over groups of equal scores.

    Raises
    ------
    ValueError
        Both scores and fail are given, a value is NaN, fail is outside [0, 1], a row has
        no sample, or k < 1.

    Notes
    -----
    Ties are broken uniformly. Relative accuracy about 1e-13.
    Source: Beirami et al. 2024, arXiv:2401.01879, for the bound; the forms with ties
    follow from the law in `bon_policy`.

    Examples
    --------
    >>> bon_kl([1, 2, 4])
    array([0.        , 0.19314718, 0.63629436])
    >>> bon_kl(4, fail=0.5)
    array(0.45935552)
    >>> bon_kl(4, scores=[0.0, 1.0, 0.0, 1.0])
    array(0.45935552)
    """
    ks, shape = as_ks(k)
    if scores is not None and fail is not None:
        raise ValueError("give scores or fail, not both")
    if mask is not None and scores is None:
        raise ValueError("mask belongs to scores, which are not given")
    if fail is not None:
        kl = _binary_kl(as_probability(fail, "fail")[..., None], ks.astype(np.float64))
    elif scores is not None:
        kl = _empirical_kl(np.asarray(scores, np.float64), ks, mask)
    else:
        kl = np.log(ks) - (ks - 1) / ks
    return kl.reshape(kl.shape[:-1] + shape)


def _binary_kl(fail: Floats, k: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        log_fail = np.log(fail)
        right = -np.expm1(k * log_fail)  # 1 - f**k
        gain = np.where(right > 0, right * (np.log(right) - np.log1p(-fail)), 0.0)
        loss = np.where(fail > 0, fail**k * (k - 1) * log_fail, 0.0)
    return np.where(k > 1, gain + loss, 0.0)


def _empirical_kl(scores: Floats, ks: NDArray[np.int64], mask: ArrayLike | None) -> Floats:
    if scores.ndim == 0:
        raise ValueError("scores must have the shape [..., n], got a single number")
    some = np.ones(scores.shape, bool) if mask is None else as_mask(mask, scores.shape, "scores")
    empty = np.asarray(~some.any(-1))
    if empty.any():
        raise ValueError(f"need at least one sample, but {place(empty)} has none")
    p = some / some.sum(-1, keepdims=True)
    ratio = _tilt(p, np.where(some, scores, 0.0), ks)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(ratio > 0, p[..., None] * ratio * np.log(ratio), 0.0)
    return terms.sum(-2)


def bon_lambda(k: Ks) -> Floats:
    """Strength of the variational best-of-k law with the KL divergence of the exact one.

    Parameters
    ----------
    k : int, or sequence of K ints
        Samples that the selector sees, >= 1.

    Returns
    -------
    float64, shape [] or [K]
        The root of ``lam e**lam / (e**lam - 1) - 1 - log((e**lam - 1) / lam) =
        log k - (k-1)/k``; 0 for k = 1, about k + 1 for large k.

    Raises
    ------
    ValueError
        k < 1.

    Notes
    -----
    The law of strength lam is ``p exp(lam Q)``, normalised, with Q the chance to win
    against or tie with a fresh sample (see `bon_policy`). Without ties Q is uniform on
    [0, 1] and both sides of the equation are KL divergences; with ties a constant
    strength is an approximation. Newton's method; relative accuracy about 1e-13.
    Source: Chow et al. 2024, arXiv:2412.15287 (BoN as a variational problem).

    Examples
    --------
    >>> bon_lambda([1, 2, 4, 8]).round(3)
    array([0.   , 2.289, 4.917, 9.055])
    """
    ks, shape = as_ks(k)
    wanted = np.log(ks) - (ks - 1) / ks
    lam = ks + 1.0
    with np.errstate(over="ignore"):
        for _ in range(50):
            uniform = lam / np.expm1(lam) - 1 + np.log(lam) - np.log(-np.expm1(-lam))
            slope = 1 / lam - lam / (4 * np.sinh(lam / 2) ** 2)
            step = (uniform - wanted) / slope
            lam = np.maximum(lam - step, lam / 4)
            if (np.abs(step) <= 1e-15 * lam).all():
                break
    return np.where(ks == 1, 0.0, lam).reshape(shape)


def bon_policy(
    p: ArrayLike,
    scores: ArrayLike,
    k: Ks,
    law: Literal["exact", "variational"] = "exact",
) -> Floats:
    """Probabilities of the best-of-k policy over a finite set of samples.

    Parameters
    ----------
    p : float, shape [..., n]
        Probabilities of the policy, >= 0 with sum 1 over the last axis.
    scores : float, shape of p
        What the selector ranks by. Equal scores are equally likely to be picked.
    k : int, or sequence of K ints
        Samples that the selector sees, >= 1.
    law : "exact" or "variational"
        The law of the best of k draws, or its approximation by an exponential tilt.

    Returns
    -------
    float64, shape of p, and [K] if k is a sequence
        Exact: ``p (F**k - G**k) / (F - G)`` with F the probability of an equal or lower
        score and G of a lower one. Variational: ``p exp(lam F)``, normalised, with lam from
        `bon_lambda`.

    Raises
    ------
    ValueError
        Shapes differ, p is not a distribution, a score is NaN, k < 1, or the law has
        another name.

    Notes
    -----
    O(n log n) per row. Relative accuracy about 1e-13.
    Source: the exact law with ties is that of the maximum of k draws; the variational law
    is in Chow et al. 2024, arXiv:2412.15287.

    Examples
    --------
    >>> bon_policy([0.5, 0.25, 0.25], [0.0, 1.0, 1.0], k=2)
    array([0.25 , 0.375, 0.375])
    """
    ks, shape = as_ks(k)
    chance, ranked = as_probability(p, "p"), np.asarray(scores, np.float64)
    need_same_shape(ranked, "scores", chance, "p")
    if chance.ndim == 0:
        raise ValueError("p must have the shape [..., n], got a single number")
    total = chance.sum(-1, keepdims=True)
    if not np.allclose(total, 1.0, rtol=0, atol=1e-6):
        wrong = np.abs(total[..., 0] - 1) > 1e-6
        raise ValueError(
            f"p must sum to 1 over the last axis, but {place(wrong)} sums to "
            f"{total[..., 0][wrong][0]}"
        )
    chance = chance / total
    if law == "exact":
        policy = chance[..., None] * _tilt(chance, ranked, ks)
    elif law == "variational":
        below, equal = _levels(chance, ranked)
        win_or_tie = (below + equal)[..., None]
        tilted = chance[..., None] * np.exp(bon_lambda(ks) * (win_or_tie - 1.0))
        policy = tilted / tilted.sum(-2, keepdims=True)
    else:
        raise ValueError(f'law must be "exact" or "variational", got {law!r}')
    return policy.reshape(chance.shape + shape)


def _levels(p: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """Probability of a lower and of an equal score, for each sample of [..., n]."""
    if np.isnan(scores).any():
        raise ValueError(f"scores must not be NaN, but {place(np.isnan(scores))} is")
    n = p.shape[-1]
    order = np.argsort(scores, axis=-1, kind="stable")
    ordered = np.take_along_axis(scores, order, -1).reshape(-1, n)
    starts = np.ones(ordered.shape, bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    group = np.cumsum(starts) - 1  # numbered over all rows
    weight = np.take_along_axis(p, order, -1).ravel()
    of_group = np.bincount(group, weight, minlength=1)
    before = np.cumsum(weight.reshape(-1, n), axis=-1) - weight.reshape(-1, n)
    at_start = before.ravel()[starts.ravel()]  # one per group
    below, equal = np.empty((2, *p.shape))
    np.put_along_axis(below, order, at_start[group].reshape(p.shape), -1)
    np.put_along_axis(equal, order, of_group[group].reshape(p.shape), -1)
    return below, equal


def _tilt(p: Floats, scores: Floats, ks: NDArray[np.int64]) -> Floats:
    """[..., n, K]: probability under best-of-k over probability under p; 0 where p is 0."""
    below, equal = (part[..., None] for part in _levels(p, scores))
    up_to = np.minimum(below + equal, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        # F**k - G**k = F**k (1 - (1 - (F-G)/F)**k), without the difference of powers
        missed = np.expm1(ks * np.log1p(-np.minimum(equal / up_to, 1.0)))
        return np.where(p[..., None] > 0, up_to**ks * -missed / equal, 0.0)
