"""Which of the n samples of a prompt to hand out.

A selector sees scores or answers and knows neither model nor reward. What it cannot tell
apart is decided by the lowest index, that is, for the sample drawn first. The rules are
in csrc/select.h.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware import _select
from bonaware._arguments import as_floats
from bonaware._parallel import for_rows
from bonaware._votes import Answers, as_codes, as_mask

__all__ = ["best_of_n", "majority", "weighted_majority"]


def best_of_n(scores: ArrayLike, mask: ArrayLike | None = None) -> NDArray[np.int64]:
    """The sample with the highest score.

    Parameters
    ----------
    scores : float, shape [P, n]
        What the selector ranks by, higher is better, any unit. Infinite scores are fine.
    mask : bool, shape [P, n], optional
        False where no sample is; scores there are not looked at.

    Returns
    -------
    int64, shape [P]
        Index of the chosen sample. Equal scores: the lowest index.

    Raises
    ------
    ValueError
        A score is NaN (the message says where), a row has no sample, or a shape is wrong.

    Notes
    -----
    One pass over the scores. Runs without the GIL; Ctrl-C is honoured.

    Examples
    --------
    >>> best_of_n([[0.1, 0.7, 0.7], [3.0, 1.0, 2.0]])
    array([1, 0])
    """
    scores = as_floats(scores, "scores")
    if mask is not None:
        mask = as_mask(mask, scores.shape, "scores")
    if scores.ndim != 2:
        raise ValueError(f"scores must have the shape [P, n], got {scores.shape}")
    rows, n = scores.shape
    out = np.empty(rows, np.int64)
    for_rows(lambda start, stop: _select.best_of_n(scores, mask, out, start, stop), rows, n)
    return out


def majority(answers: Answers, mask: ArrayLike | None = None) -> NDArray[np.int64]:
    """The first sample of the most frequent answer (self-consistency).

    Parameters
    ----------
    answers : nested sequences of str, shape [P, n]
        The answer of each sample; None and "" do not vote. Or an integer array of codes,
        equal where answers are equal, with -1 for no vote, as `pandas.factorize` gives.
    mask : bool, shape [P, n], optional
        False where no sample is; answers there are not looked at.

    Returns
    -------
    int64, shape [P]
        Index of the chosen sample. Equally frequent answers: the one seen first. Where no
        sample votes: the first sample.

    Raises
    ------
    TypeError
        An answer is neither str nor None.
    ValueError
        A row has no sample, prompts have different numbers of answers, a code is below
        -1, or a shape is wrong.

    Notes
    -----
    O(n) per prompt. Runs without the GIL; Ctrl-C is honoured.
    Source: Wang et al. 2022, "Self-consistency", arXiv:2203.11171.

    Examples
    --------
    >>> majority([["4", "5", "5", None], ["a", "b", "", None]])
    array([1, 0])
    """
    return _winners(as_codes(answers, mask), None)


def weighted_majority(
    answers: Answers, scores: ArrayLike, mask: ArrayLike | None = None
) -> NDArray[np.int64]:
    """The first sample of the answer with the largest sum of scores.

    Parameters
    ----------
    answers : nested sequences of str, shape [P, n]
        As in `majority`.
    scores : float, shape [P, n]
        Weight of each vote, >= 0. Scores that can be negative, such as log-probabilities
        or raw reward-model outputs, must be mapped first, for instance by exp or the
        logistic function. Scores of samples that do not vote are not looked at.
    mask : bool, shape [P, n], optional
        False where no sample is.

    Returns
    -------
    int64, shape [P]
        Index of the chosen sample; ties and rows without a vote as in `majority`.

    Raises
    ------
    TypeError, ValueError
        As in `majority`; also where a score is negative, NaN or infinite.

    Notes
    -----
    O(n) per prompt. Sums do not depend on the order of samples: they are formed in
    integers, in units of 2**-52 of about the sum of all scores of the prompt.
    Source: Li et al. 2022, "Making large language models better reasoners with
    step-aware verifier", arXiv:2206.02336.

    Examples
    --------
    >>> weighted_majority([["4", "5", "5"]], [[0.9, 0.3, 0.4]])
    array([0])
    """
    codes = as_codes(answers, mask)
    scores = as_floats(scores, "scores")
    if scores.shape != codes.shape:
        raise ValueError(
            f"scores and answers must have the same shape, got {scores.shape} and {codes.shape}"
        )
    return _winners(codes, scores)


def _winners(codes: NDArray[np.int64], weights: NDArray[np.float64] | None) -> NDArray[np.int64]:
    rows, n = codes.shape
    out = np.empty(rows, np.int64)
    for_rows(lambda start, stop: _select.majority(codes, weights, out, start, stop), rows, 8 * n)
    return out
