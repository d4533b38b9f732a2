"""What k tries would give, estimated without bias from n >= k samples, and how sure that is.

Python converts, C checks: this file turns whatever the caller has into contiguous arrays;
csrc/py_estimators.c refuses anything else; formulas and their sources are in
csrc/estimators.h and csrc/majority.h. What is not worth C is in NumPy: intervals here, the
law of best-of-k in _bon_law.py, the fit of pass@k over temperatures in _coscaling.py.
Nothing here knows a model.

Everywhere ``k`` is an int, or a sequence of ints, which adds one more (last) axis.
"""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware import _estimators, _memory
from bonaware._arguments import Floats, Ks, as_floats, as_int64, as_ks, need_same_shape, place
from bonaware._bon_law import bon_kl, bon_lambda, bon_policy
from bonaware._coscaling import CoScaling, fit_coscaling
from bonaware._parallel import for_rows
from bonaware._votes import NO_SAMPLE, Answers, as_codes, as_mask

__all__ = [
    "CoScaling",
    "best_of_k",
    "bon_kl",
    "bon_lambda",
    "bon_policy",
    "fit_coscaling",
    "interval",
    "majority_at_k",
    "pass_at_k",
    "win_rate",
    "worst_of_k",
]

Rng = int | np.random.SeedSequence | np.random.Generator | None

RESAMPLES = 5000  # of the bootstrap: the ends of a 95 % interval are good to about 2 % of it


# -- k samples of n -----------------------------------------------------------


def pass_at_k(n: ArrayLike, c: ArrayLike, k: Ks) -> Floats:
    """Probability that at least one of k samples is correct.

    Parameters
    ----------
    n : int, shape [...]
        Samples drawn per problem, ``k <= n <= 2**53``.
    c : int, shape [...], broadcast against n
        Samples that were correct, ``0 <= c <= n``.
    k : int, or sequence of K ints
        Tries that the user will have, >= 1.

    Returns
    -------
    float64, broadcast shape of n and c, and [K] if k is a sequence
        ``1 - C(n-c, k) / C(n, k)``, a probability in [0, 1].

    Raises
    ------
    TypeError
        n, c or k does not hold integers.
    ValueError
        A bound above is broken; the message names the first such problem. In particular
        k > n: below k samples there is no unbiased estimate.

    Notes
    -----
    One table lookup per problem where many neighbours have the same n, else O(min(c, k)).
    Relative error about min(c, k) roundings. Runs without the GIL; Ctrl-C is honoured.
    Source: Chen et al. 2021, arXiv:2107.03374, eq. 1.

    Examples
    --------
    >>> pass_at_k(n=4, c=[0, 1, 2, 4], k=2)
    array([0.        , 0.5       , 0.83333333, 1.        ])
    >>> pass_at_k(n=4, c=1, k=[1, 2, 4])
    array([0.25, 0.5 , 1.  ])
    """
    ks, shape = as_ks(k)
    n, c = np.broadcast_arrays(as_int64(n, "n"), as_int64(c, "c"))
    flat_n, flat_c, out = np.ravel(n), np.ravel(c), _memory.empty((n.size, len(ks)))
    for_rows(
        lambda start, stop: _estimators.pass_at_k(flat_n, flat_c, ks, out, start, stop),
        len(out),
        8 * len(ks),
    )
    return out.reshape(n.shape + shape)


def best_of_k(
    rewards: ArrayLike,
    k: Ks,
    scores: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Floats:
    """Expected reward of the best of k samples, as judged by their scores.

    Parameters
    ----------
    rewards : float, shape [..., n]
        True reward of each of the n samples of a prompt, any unit.
    k : int, or sequence of K ints
        Samples that the selector will see, ``1 <= k <= n``.
    scores : float, shape of rewards, optional
        What the selector ranks by. Default: the rewards themselves, that is, a perfect
        selector (max@k). Equal scores are equally likely to be picked.
    mask : bool, shape of rewards, optional
        False where no sample is. Then n is the number of samples of the row.

    Returns
    -------
    float64, shape [...], and [K] if k is a sequence
        In the unit of rewards. For ``k=1`` this is their mean.

    Raises
    ------
    ValueError
        k is out of range (of a row with fewer samples: the message names it), shapes
        differ, or the value of a sample is NaN or infinite.

    Notes
    -----
    One sort per prompt serves all k: O(n log(n)**2 + n K), in vectors of eight prompts.
    Error: about n roundings, relative to the largest reward. Runs without the GIL; Ctrl-C
    is honoured.
    Source: the U-statistic of the maximum, Hoeffding 1948, Ann. Math. Stat. 19:293.

    Examples
    --------
    >>> best_of_k([0.0, 0.0, 1.0, 1.0], k=2)
    array(0.83333333)
    >>> best_of_k([0.0, 1.0], k=2, scores=[7.0, 7.0])  # a selector that cannot tell
    array(0.5)
    >>> best_of_k([[1.0, 2.0, 3.0]], k=[1, 2, 3])
    array([[2.        , 2.66666667, 3.        ]])
    """
    ks, shape = as_ks(k)
    rewards = as_floats(rewards, "rewards")
    scores = rewards if scores is None else as_floats(scores, "scores")
    need_same_shape(scores, "scores", rewards, "rewards")
    *batch, n = rewards.shape
    rows = (math.prod(batch), n)
    flat_rewards = rewards.reshape(rows)
    flat_scores = flat_rewards if scores is rewards else scores.reshape(rows)
    if mask is None:
        flat = _best_of_rows(flat_scores, flat_rewards, ks)
    else:
        flat_mask = as_mask(mask, rewards.shape, "rewards").reshape(rows)
        flat = _best_of_ragged(flat_scores, flat_rewards, flat_mask, ks)
    return flat.reshape((*batch, *shape))


def worst_of_k(
    rewards: ArrayLike,
    k: Ks,
    scores: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> Floats:
    """Expected reward of the lowest-scored of k samples.

    Parameters
    ----------
    rewards, k, scores, mask
        As in `best_of_k`.

    Returns
    -------
    float64, shape [...], and [K] if k is a sequence
        In the unit of rewards.

    Raises
    ------
    ValueError
        As in `best_of_k`.

    Notes
    -----
    `best_of_k` with the sign of the scores changed; the same cost and accuracy.

    Examples
    --------
    >>> worst_of_k([0.0, 0.0, 1.0, 1.0], k=2)
    array(0.16666667)
    """
    if np.all(np.equal(k, 1)):
        return best_of_k(rewards, k, scores, mask)  # one sample is the best as well
    rewards = as_floats(rewards, "rewards")
    if scores is None:
        worst = best_of_k(-rewards, k, mask=mask)
        return np.negative(worst, out=worst)
    return best_of_k(rewards, k, -as_floats(scores, "scores"), mask)


def majority_at_k(
    answers: Answers,
    correct: ArrayLike,
    k: Ks,
    weights: ArrayLike | None = None,
    rng: Rng = 0,
    mask: ArrayLike | None = None,
) -> Floats:
    """Expected reward of the most frequent answer of k samples (maj@k).

    Parameters
    ----------
    answers : nested sequences of str, shape [P, n]
        The answer of each sample; None and "" do not vote. Or an integer array of codes,
        equal where answers are equal, with -1 for no vote, as `pandas.factorize` gives.
    correct : bool or float, shape [P, n]
        Whether each sample is correct, or its reward.
    k : int, or sequence of K ints
        Samples that vote, ``1 <= k <= n``.
    weights : float, shape [P, n], optional
        Weight of each vote, finite and >= 0. Default: all votes count the same.
    rng : None, int, SeedSequence or Generator
        Used for weighted votes only, see Notes. An int gives the same numbers every time.
    mask : bool, shape [P, n], optional
        False where no sample is. Then n is the number of samples of the row.

    Returns
    -------
    float64, shape [P], and [K] if k is a sequence
        In the unit of `correct`: for bools, the probability that the winner is right.

    Raises
    ------
    TypeError
        An answer is neither str nor None.
    ValueError
        k is out of range (of a row with fewer samples: the message names it), shapes
        differ, a weight is negative, or a value is NaN or infinite.

    Notes
    -----
    The average over all subsets of size k and all orders of their samples of what
    `bonaware.select.majority` picks. Hence answers with equally many votes share evenly:
    in a random order each of them is equally likely to be seen first. Where no sample of
    a subset votes, its first sample is picked.

    Without weights the result is exact up to about 2n roundings for n <= 1500, for all k
    at once, with any number of distinct answers (O(n**2) to O(n**3 / 18) per prompt).

    With weights it is exact where the sums of weights that an answer can collect are few,
    2048 for all answers of a prompt together: always for n <= 10, for many distinct
    answers with few votes each, or for weights with few distinct values (all equal, 0
    and 1, grades). Otherwise, and without weights for n > 1500, it is the mean over 1024
    random orders of the samples: unbiased, with a standard error per prompt of at most
    1/64 of the range of `correct`, independent between prompts, so at most 0.0005 for the
    mean of 1000 prompts.

    Runs without the GIL; Ctrl-C is honoured.
    Source: csrc/majority.h; the selector is that of Wang et al. 2022, arXiv:2203.11171.

    Examples
    --------
    >>> majority_at_k([["4", "4", "5"]], [[True, True, False]], k=[1, 2, 3])
    array([[0.66666667, 0.66666667, 1.        ]])
    >>> majority_at_k([["4", "4", "5"]], [[1, 1, 0]], k=3, weights=[[0.1, 0.2, 0.9]])
    array([0.])
    """
    ks, shape = as_ks(k)
    codes = as_codes(answers, mask)
    correct = as_floats(correct, "correct")
    need_same_shape(correct, "correct", codes, "answers")
    if weights is not None:
        weights = as_floats(weights, "weights")
        need_same_shape(weights, "weights", codes, "answers")
    if mask is not None:
        _need_k_samples(codes != NO_SAMPLE, ks)
    seed = int(np.random.default_rng(rng).integers(2**64, dtype=np.uint64))
    rows, n = codes.shape
    out = _memory.empty((rows, len(ks)))
    for_rows(
        lambda start, stop: _estimators.majority_at_k(
            codes, weights, correct, ks, seed, out, start, stop
        ),
        rows,
        n * n if weights is None else 4096 * n,
    )
    return out.reshape((rows, *shape))


# -- rates and intervals ------------------------------------------------------


def win_rate(preferences: ArrayLike) -> tuple[Floats, Floats]:
    """Mean preference over a reference, with its standard error.

    Parameters
    ----------
    preferences : float, shape [..., n]
        In [0, 1]: 1 wins, 0 loses, 0.5 is a tie; values between are degrees of
        preference. NaN is a comparison that was not made and is dropped.

    Returns
    -------
    rate : float64, shape [...]
        Mean over the last axis.
    standard_error : float64, shape [...]
        ``sd / sqrt(m)`` with m values left and m - 1 in the variance; NaN for m = 1.

    Raises
    ------
    ValueError
        A value is outside [0, 1], or nothing is left of a row.

    Notes
    -----
    Two passes over each row, the second in the cache. Runs without the GIL; Ctrl-C is
    honoured.
    Source: AlpacaEval (Li et al. 2023), whose preferences from 1 to 2 are these plus 1.

    Examples
    --------
    >>> rate, error = win_rate([1.0, 0.0, 0.5, float("nan"), 1.0])
    >>> print(f"{rate:.4f} {error:.4f}")
    0.6250 0.2394
    """
    if np.ndim(preferences) == 0:
        raise ValueError("preferences must have the shape [..., n], got a single number")
    values = as_floats(preferences, "preferences")
    *batch, n = values.shape
    flat = values.reshape(math.prod(batch), n)
    rates, errors = np.empty((2, len(flat), 1))
    for_rows(
        lambda start, stop: _estimators.win_rate(flat, rates, errors, start, stop),
        len(flat),
        n + 1,
    )
    if np.isnan(rates).any():
        _say_why_no_rate(values)
    return rates.reshape(batch)[()], errors.reshape(batch)[()]


def _say_why_no_rate(values: Floats) -> NoReturn:
    outside = (values < 0) | (values > 1)  # NaN is neither
    if outside.any():
        raise ValueError(
            f"preferences must be in [0, 1], but {place(outside)} is {values[outside][0]}"
        )
    none = np.isnan(values).all(-1)
    raise ValueError(f"need a preference that is not NaN, but {place(none)} has none")


def interval(
    values: ArrayLike, axis: int = 0, level: float = 0.95, rng: Rng = 0
) -> tuple[Floats, Floats]:
    """Bootstrap interval of the mean over one axis.

    Parameters
    ----------
    values : float, any shape
        One value per prompt along `axis`, such as what `pass_at_k` returns. The prompts
        are the clusters: their samples are never split, so the interval says how the mean
        would vary over other prompts of the same kind.
    axis : int
        The axis of the prompts, at least 2 of them.
    level : float
        Coverage, in (0, 1).
    rng : None, int, SeedSequence or Generator
        An int gives the same interval every time.

    Returns
    -------
    low, high : float64, shape of values without `axis`
        The percentiles ``(1 - level) / 2`` and ``(1 + level) / 2`` of the means of 5000
        resamples of the prompts. All other axes share the resamples, so differences
        between them can be put through this function too.

    Raises
    ------
    ValueError
        Fewer than 2 values along the axis, a value that is NaN or infinite (the message
        says where), or a level outside (0, 1).

    Notes
    -----
    O(5000 P) random numbers and a matrix product. The percentile interval is a little
    narrow for few prompts: by about a factor sqrt(1 - 1/P).
    Source: Efron 1979, Ann. Statist. 7:1.

    Examples
    --------
    >>> low, high = interval([0.0, 0.25, 0.5, 0.5, 0.75, 1.0] * 20)
    >>> print(f"{low:.2f} {high:.2f}")
    0.44 0.56
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    values = np.moveaxis(np.asarray(values, np.float64), axis, 0)
    if not np.isfinite(values).all():
        raise ValueError(f"values must be finite, but {place(~np.isfinite(values))} is not")
    prompts, shape = len(values), values.shape[1:]
    if prompts < 2:
        raise ValueError(f"need at least 2 values along axis {axis}, got {prompts}")
    means = _resampled_means(values.reshape(prompts, -1), np.random.default_rng(rng))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low.reshape(shape), high.reshape(shape)


def _resampled_means(values: Floats, rng: np.random.Generator) -> Floats:
    """[RESAMPLES, M]: means of [P, M] over P prompts drawn with replacement."""
    prompts = len(values)
    means = np.empty((RESAMPLES, values.shape[1]))
    at_once = max(1, 2**21 // prompts)
    for start in range(0, RESAMPLES, at_once):
        some = min(at_once, RESAMPLES - start)
        drawn = rng.integers(prompts, size=(some, prompts))
        drawn += prompts * np.arange(some)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=some * prompts).reshape(some, prompts)
        means[start : start + some] = counts @ values / prompts
    return means


# -- rows ---------------------------------------------------------------------


def _best_of_rows(scores: Floats, rewards: Floats, ks: NDArray[np.int64]) -> Floats:
    rows, n = rewards.shape
    out = _memory.empty((rows, len(ks)))
    for_rows(
        lambda start, stop: _estimators.best_of_k(scores, rewards, ks, out, start, stop),
        rows,
        n * (len(ks) // 8 + 4),
    )
    return out


def _need_k_samples(mask: NDArray[np.bool_], ks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Samples per row of mask [P, n]; an error where there are fewer than some k."""
    counts = mask.sum(-1)
    k = int(ks.max(initial=1))
    if (counts < k).any():
        row = int(np.argmax(counts < k))
        raise ValueError(f"need 1 <= k <= n, but row {row} has n={counts[row]} samples, k={k}")
    return counts


def _best_of_ragged(
    scores: Floats, rewards: Floats, mask: NDArray[np.bool_], ks: NDArray[np.int64]
) -> Floats:
    """best_of_k [P, K], rows with equally many samples together."""
    counts = _need_k_samples(mask, ks)
    wrong = mask & ~(np.isfinite(scores) & np.isfinite(rewards))
    if wrong.any():
        raise ValueError(f"scores and rewards must be finite, but {place(wrong)} is not")
    out = np.empty((len(mask), len(ks)))
    for n in np.unique(counts):
        rows = counts == n
        some_rewards = rewards[rows][mask[rows]].reshape(-1, n)
        some_scores = some_rewards if scores is rewards else scores[rows][mask[rows]].reshape(-1, n)
        out[rows] = _best_of_rows(some_scores, some_rewards, ks)
    return out
