"""The threshold of `adaptive`, fitted on scores of samples that are there."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._arguments import Floats, as_floats, need_same_shape, place
from bonaware._checks import count, number
from bonaware.policies._options import Waves, as_waves, wave_at

__all__ = ["Sweep", "fit_threshold", "sweep"]

ROUNDING = 1e-9  # of means that were wished for as decimal fractions


@dataclass(frozen=True, eq=False)
class Sweep:
    """What `adaptive` gives at every threshold that makes a difference.

    Parameters
    ----------
    thresholds : float64, shape [T]
        Rising, in [0, 1]; the last is 1. Whatever lies above one of them and not above the
        next gives the same as the next.
    mean_samples : float64, shape [T]
        Samples per prompt, rising.
    mean_reward : float64, shape [T], or None
        Of the sample that is taken, in the unit of the rewards; None without rewards.
    """

    thresholds: Floats
    mean_samples: Floats
    mean_reward: Floats | None


def sweep(scores: ArrayLike, rewards: ArrayLike | None = None, *, n: int | None = None,
          waves: Waves = 1) -> Sweep:
    """Mean samples, and mean reward, of `adaptive` at all its thresholds at once.

    Parameters
    ----------
    scores : float, shape [P, N]
        Of validation samples in the order they were drawn, in [0, 1]; NaN is a sample without
        a score: it reaches no threshold and is taken last.
    rewards : float, shape [P, N], optional
        True reward of each sample, finite.
    n : int, optional
        Most samples of a prompt, ``1 <= n <= N``; default N.
    waves : int or sequence of int
        As in `adaptive`.

    Returns
    -------
    Sweep

    Raises
    ------
    TypeError, ValueError
        A shape is wrong, a score is outside [0, 1], a reward is not finite, or an option out of
        its range.

    Notes
    -----
    A prompt goes on behind a wave where the best score so far is below the threshold, so all
    there is to know are these running maxima, sorted: O(P W log(P W)) for W waves, exact.

    Examples
    --------
    >>> found = sweep([[0.2, 0.9], [0.6, 0.1]], rewards=[[0, 1], [1, 0]])
    >>> found.thresholds, found.mean_samples, found.mean_reward
    (array([0.2, 0.6, 1. ]), array([1. , 1.5, 2. ]), array([0.5, 1. , 1. ]))
    """
    truth = None if rewards is None else as_floats(rewards, "rewards")
    scores = _checked(scores, truth, n)
    prompts, n = scores.shape
    ends = _wave_ends(n, as_waves(waves))
    maxima = np.maximum.accumulate(scores, axis=1)
    steps = maxima[:, ends[:-1] - 1].ravel()  # a step: one more wave for one prompt
    order = np.argsort(steps)
    candidates = np.unique(np.append(steps[steps >= 0], 1.0))
    below = np.searchsorted(steps[order], candidates)

    def means(at_ends: Floats) -> Floats:
        """[P, W], what holds behind each wave, to [T], its mean at each threshold."""
        gains = np.diff(at_ends, axis=1).ravel()[order]
        return (at_ends[:, 0].sum() + np.append(0.0, np.cumsum(gains))[below]) / prompts

    rewarded = None
    if truth is not None:
        best = _first_of_largest(scores, maxima)[:, ends - 1]
        rewarded = means(np.take_along_axis(truth, best, axis=1))
    return Sweep(candidates, means(np.tile(ends.astype(np.float64), (prompts, 1))), rewarded)


def fit_threshold(scores: ArrayLike, mean_samples: float | None = None, *, n: int | None = None,
                  waves: Waves = 1, rewards: ArrayLike | None = None,
                  accuracy: float | None = None) -> tuple[float, float]:
    """The threshold of `adaptive` for a wished mean number of samples, or a wished accuracy.

    Parameters
    ----------
    scores : float, shape [P, N]
        Of validation samples, see `sweep`.
    mean_samples : float, optional
        Wished mean number of samples per prompt.
    n, waves
        As in `adaptive`; n default N.
    rewards : float, shape [P, N], optional
        True reward of each sample; needed for `accuracy`.
    accuracy : float, optional
        Wished mean reward of the samples that are taken, instead of `mean_samples`.

    Returns
    -------
    threshold : float
        The one whose mean number of samples is closest to the wished one and not above it;
        or the lowest one that reaches the wished accuracy.
    mean_samples : float
        What it takes on these samples.

    Raises
    ------
    TypeError
        Not one of `mean_samples` and `accuracy` is given, or rewards are missing.
    ValueError
        No threshold gives what is wished: the message says what can be had. And as in `sweep`.

    Notes
    -----
    Fit on prompts that are not reported on: the threshold is chosen to look right on these.

    Examples
    --------
    >>> scores = [[0.2, 0.9], [0.6, 0.1]]
    >>> fit_threshold(scores, mean_samples=1.6)
    (0.6, 1.5)
    >>> fit_threshold(scores, rewards=[[0, 1], [1, 0]], accuracy=0.9)
    (0.6, 1.5)
    """
    if (mean_samples is None) == (accuracy is None):
        raise TypeError("give either mean_samples or accuracy")
    if accuracy is not None and rewards is None:
        raise TypeError("a threshold for a wished accuracy needs rewards")
    found = sweep(scores, rewards, n=n, waves=waves)
    if mean_samples is not None:
        at = _last_within(found.mean_samples, number("mean_samples", mean_samples))
    else:
        assert found.mean_reward is not None
        at = _first_reaching(found.mean_reward, number("accuracy", accuracy))
    return float(found.thresholds[at]), float(found.mean_samples[at])


def _last_within(means: Floats, wished: float) -> int:
    if not means[0] <= wished + ROUNDING:
        raise ValueError(f"no threshold takes {wished:g} samples on average or less; the least "
                         f"here is {means[0]:g}")
    return int(np.flatnonzero(means <= wished + ROUNDING)[-1])


def _first_reaching(means: Floats, wished: float) -> int:
    reached = np.flatnonzero(means >= wished - ROUNDING)
    if not reached.size:
        raise ValueError(f"no threshold reaches an accuracy of {wished:g}; the best here is "
                         f"{means.max():g}")
    return int(reached[0])


def _checked(scores: ArrayLike, rewards: Floats | None, n: int | None) -> Floats:
    """The scores of the first n samples, -inf where there is none."""
    array = as_floats(scores, "scores")
    if array.ndim != 2 or not array.size:
        raise ValueError(f"scores must have the shape [P, N], none of them 0, got {array.shape}")
    wrong = (array < 0) | (array > 1)  # NaN is neither
    if wrong.any():
        raise ValueError("a threshold is in [0, 1], so scores must be, but "
                         f"{place(wrong)} is {array[wrong][0]}")
    if rewards is not None:
        need_same_shape(rewards, "rewards", array, "scores")
        if not np.isfinite(rewards).all():
            raise ValueError(f"rewards must be finite, but {place(~np.isfinite(rewards))} is not")
    n = array.shape[1] if n is None else count("n", n)
    if n > array.shape[1]:
        raise ValueError(f"need scores of n={n} samples per prompt, got {array.shape[1]}")
    return np.where(np.isnan(array), -np.inf, array)[:, :n]


def _wave_ends(n: int, waves: Waves) -> NDArray[np.int64]:
    """Samples drawn behind each wave, the last n."""
    ends = [min(n, wave_at(waves, 0))]
    while ends[-1] < n:
        ends.append(min(n, ends[-1] + wave_at(waves, ends[-1])))
    return np.array(ends)


def _first_of_largest(scores: Floats, maxima: Floats) -> NDArray[np.int64]:
    """[P, n]: index of the best of the samples so far, at equal scores the first."""
    larger = scores[:, 1:] > maxima[:, :-1]
    index = np.where(larger, np.arange(1, scores.shape[1]), 0)
    return np.maximum.accumulate(np.pad(index, ((0, 0), (1, 0))), axis=1)
