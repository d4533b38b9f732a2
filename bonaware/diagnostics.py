"""What a training step had to learn from: groups without signal, how uneven the weights are.

A group is the n samples of one prompt. Everything is a function of the arrays `[P, n]` that
a loss takes and gives; nothing here knows a loss or a model. The trainer writes what
`diagnose` returns into its metrics.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._arguments import Floats, as_floats, need_same_shape, place
from bonaware._votes import as_mask

__all__ = ["diagnose", "effective_samples", "weight_variance", "without_signal"]


def without_signal(weights: ArrayLike, mask: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Which prompts do not move the policy: all their weights are 0.

    Parameters
    ----------
    weights : float, shape [P, n]
        Of a loss, see `bonaware.losses`.
    mask : bool, shape of weights, optional
        False where no sample is.

    Returns
    -------
    bool, shape [P]
        True also for a prompt without samples.

    Raises
    ------
    ValueError
        Shapes do not fit, or the weight of a sample is NaN or infinite.

    Examples
    --------
    >>> without_signal([[0.0, 0.0], [-0.5, 0.5]])
    array([ True, False])
    """
    return np.asarray(~_samples(weights, "weights", mask)[0].any(-1))


def weight_variance(weights: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """Variance of n times the weight over the samples of a prompt.

    Parameters
    ----------
    weights, mask
        As in `without_signal`.

    Returns
    -------
    float64, shape [P]
        ``mean((n w)**2) - mean(n w)**2`` in the unit of the loss, squared. Losses average
        over the n samples, so n w is what each sample adds (in RL: the advantage, with the
        sign changed) and its variance can be compared between losses and between n. 0 for
        a prompt without samples.

    Raises
    ------
    ValueError
        As in `without_signal`.

    Examples
    --------
    >>> weight_variance([[-0.5, 0.5], [0.25, 0.25]])
    array([1., 0.])
    """
    weights, some = _samples(weights, "weights", mask)
    n = some.sum(-1)
    spread = np.where(some, weights * n[:, None] - weights.sum(-1)[:, None], 0.0)
    return (spread**2).sum(-1) / np.maximum(n, 1)


def effective_samples(weights: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """How many equally weighted samples would carry as much as these do.

    Parameters
    ----------
    weights, mask
        As in `without_signal`.

    Returns
    -------
    float64, shape [P]
        ``sum(abs(w))**2 / sum(w**2)``, from 1 (one sample has all the weight) to n (all
        weights are equally large); 0 where all weights are 0.

    Raises
    ------
    ValueError
        As in `without_signal`.

    Notes
    -----
    Source: Kish 1965, Survey Sampling, for weights >= 0; here their sizes.

    Examples
    --------
    >>> effective_samples([[-0.5, 0.5], [1.0, 0.0], [0.0, 0.0]])
    array([2., 1., 0.])
    """
    size = np.abs(_samples(weights, "weights", mask)[0])
    largest = size.max(-1, keepdims=True, initial=0.0)
    share = np.divide(size, largest, out=np.zeros_like(size), where=largest > 0)
    squares = (share**2).sum(-1)
    return share.sum(-1) ** 2 / np.where(squares > 0, squares, 1.0)


def diagnose(
    weights: ArrayLike, rewards: ArrayLike, mask: ArrayLike | None = None,
    expert: ArrayLike | None = None,
) -> dict[str, float | None]:
    """One number per diagnostic of a batch, for a log.

    Parameters
    ----------
    weights : float, shape [P, n]
        Of a loss.
    rewards : float, shape [P, n]
        What the loss was given.
    mask : bool, shape [P, n], optional
        False where no sample is.
    expert : bool, shape [P, n], optional
        True for a demonstration: its weight counts, its reward says nothing of the policy.

    Returns
    -------
    dict of float
        "reward": mean over prompts of the mean reward; "all_equal" and "all_zero": share
        of prompts whose rewards are all equal, and all 0 (with rewards 0 and 1 the
        difference is the share of prompts solved by every sample); "no_signal",
        "weight_variance" and "effective_samples": means over prompts of `without_signal`,
        `weight_variance` and `effective_samples`. Prompts without samples count nowhere, and
        those with demonstrations alone not in the first three, which are None without others.

    Raises
    ------
    ValueError
        No prompt has a sample, shapes do not fit, or a value of a sample is NaN or
        infinite.

    Examples
    --------
    >>> for name, value in diagnose([[0.0, 0.0], [-0.5, 0.5]], [[0, 0], [1, 0]]).items():
    ...     print(name, value)
    reward 0.25
    all_equal 0.5
    all_zero 0.5
    no_signal 0.5
    weight_variance 0.5
    effective_samples 1.0
    """
    rewards, some = _samples(rewards, "rewards", mask)
    weights, _ = _samples(weights, "weights", mask)
    need_same_shape(weights, "weights", rewards, "rewards")
    drawn = some.any(-1)
    if not drawn.any():
        raise ValueError(f"need at least one sample, got shape {rewards.shape} without any")
    own = some if expert is None else some & ~as_mask(expert, rewards.shape, "rewards")
    weights, some = weights[drawn], some[drawn]
    per_prompt = _of_rewards(rewards[own.any(-1)], own[own.any(-1)]) | {
        "no_signal": without_signal(weights, some),
        "weight_variance": weight_variance(weights, some),
        "effective_samples": effective_samples(weights, some),
    }
    return {name: float(value.mean()) if len(value) else None
            for name, value in per_prompt.items()}


def _of_rewards(rewards: Floats, some: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Of prompts that all have samples."""
    lowest = np.where(some, rewards, np.inf).min(-1, initial=np.inf)
    highest = np.where(some, rewards, -np.inf).max(-1, initial=-np.inf)
    return {
        "reward": np.where(some, rewards, 0.0).sum(-1) / some.sum(-1),
        "all_equal": lowest == highest,
        "all_zero": ~(some & (rewards != 0)).any(-1),
    }


def _samples(
    values: ArrayLike, name: str, mask: ArrayLike | None
) -> tuple[Floats, NDArray[np.bool_]]:
    """values [P, n] with 0 where no sample is, and where one is."""
    values = as_floats(values, name)
    if values.ndim != 2:
        raise ValueError(f"{name} must have the shape [P, n], got {values.shape}")
    some = np.ones(values.shape, bool) if mask is None else as_mask(mask, values.shape, name)
    bad = some & ~np.isfinite(values)
    if bad.any():
        raise ValueError(f"{name} must be finite, but {place(bad)} is {values[bad][0]}")
    return np.where(some, values, 0.0), some
