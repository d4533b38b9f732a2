"""Builds what self-evaluation learns from: labels from scores, and samples whole and cut.

The label of a sample is the share of the other samples of its prompt that it is at least as good
as: what a fresh sample would do, leaving the sample itself out. It is not correctness: where all
samples are wrong, all of them tie, and starting over would not help.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._arguments import Floats, as_floats
from bonaware.samples import Samples, seed_of
from bonaware.selfeval.rows import Row

__all__ = ["FRACTIONS", "LABELS", "build", "pair_labels", "soft_labels"]

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
LABELS = ("soft", "pairs")
UNFINISHED = ("aborted", "pruned", "held")  # nobody knows what would have become of them
CUTS, PAIRS = 0, 1  # what a key with this number is for


def soft_labels(scores: ArrayLike, eps: float = 0.0) -> Floats:
    """Share of the other samples of a prompt that a sample is at least as good as.

    Parameters
    ----------
    scores : float, shape [P, n]
        Rewards, or what a verifier gives; NaN where there is no sample.
    eps : float >= 0
        A sample that is worse by no more than this counts as good as the other.

    Returns
    -------
    float64, shape [P, n]
        ``q[i] = mean over j != i of 1{scores[i] >= scores[j] - eps}``; NaN where there is no
        sample, or no other one.

    Raises
    ------
    ValueError
        scores have another shape or are infinite, or eps is negative or not finite.

    Notes
    -----
    O(P n log n). The unbiased estimate, from the samples themselves, of the chance that a fresh
    sample of the policy would not be better. **Source:** arXiv:2410.02725, section 4.1, where the
    same is learned from pairs; see `pair_labels`.

    Examples
    --------
    >>> soft_labels([[1, 0, 0, 1], [0, 0, 0, 0]])
    array([[1.        , 0.33333333, 0.33333333, 1.        ],
           [1.        , 1.        , 1.        , 1.        ]])
    """
    found = _checked(scores, eps)
    labels = np.full(found.shape, np.nan)
    for row, label in zip(found, labels, strict=True):
        there = ~np.isnan(row)
        if (count := int(there.sum())) > 1:
            own = row[there]
            below = np.searchsorted(np.sort(own) - eps, own, side="right")
            label[there] = (below - 1) / (count - 1)
    return labels


def pair_labels(scores: ArrayLike, eps: float = 0.0,
                rng: int | np.random.SeedSequence | np.random.Generator | None = 0) -> Floats:
    """Whether a sample is at least as good as one other of its prompt, in random pairs.

    Parameters
    ----------
    scores, eps
        As for `soft_labels`.
    rng : None, int, SeedSequence or Generator
        Who is compared with whom.

    Returns
    -------
    float64, shape [P, n]
        1 for both of a pair that ties, else 1 for the better and 0 for the other; NaN where there
        is no sample, and for the one without a partner where a prompt has an odd number.

    Raises
    ------
    ValueError
        As for `soft_labels`.

    Notes
    -----
    Over all ways to pair, the mean label of a sample is its soft label: both have the same
    optimum, and the soft ones less variance. **Source:** arXiv:2410.02725, section 4.1.
    """
    found, seed = _checked(scores, eps), seed_of(rng)
    labels = np.full(found.shape, np.nan)
    for p, (row, label) in enumerate(zip(found, labels, strict=True)):
        there = np.random.default_rng([seed, PAIRS, p]).permutation(np.flatnonzero(~np.isnan(row)))
        half = len(there) // 2
        one, two = there[:half], there[half : 2 * half]
        label[one], label[two] = row[one] >= row[two] - eps, row[two] >= row[one] - eps
    return labels


def _checked(scores: ArrayLike, eps: float) -> Floats:
    found = as_floats(scores, "scores")
    if found.ndim != 2:
        raise ValueError(f"scores must have the shape [P, n], got {found.shape}")
    if np.isinf(found).any():
        raise ValueError("scores must be finite, or NaN where there is no sample, got inf")
    if not 0 <= eps < np.inf:
        raise ValueError(f"need a finite eps >= 0, got {eps}")
    return found


def build(samples: Samples, scores: ArrayLike, *, labels: str = "soft", eps: float = 0.0,
          fractions: Sequence[float] = FRACTIONS, per_sample: int | None = None,
          problems: Sequence[str] | None = None,
          rng: int | np.random.SeedSequence | np.random.Generator | None = 0) -> Iterator[Row]:
    """Rows to learn self-evaluation from: every sample whole, and cut in every part of its length.

    Parameters
    ----------
    samples : Samples
        Of P prompts, drawn by the model that will be trained. Unfinished ones are left out.
    scores : float, shape [P, n]
        What makes a sample better than another: rewards, or what any verifier gives.
    labels : {"soft", "pairs"}
        `soft_labels` or `pair_labels`.
    eps : float >= 0
        Ties: see `soft_labels`.
    fractions : sequence of float
        Rising, in (0, 1]. A cut is made at a random token between each and the one before (0
        first), so that all parts of a sample are equally frequent; a part that has no token is
        left out. Empty: whole samples only.
    per_sample : int, optional
        How many of these rows, the whole sample being one, each sample gives, at random. Default:
        all of them.
    problems : sequence of P str, optional
        Names of the prompts in the rows. Default: their positions.
    rng : None, int, SeedSequence or Generator
        Of cuts and pairs. Those of a sample depend on it, the prompt's position and the sample's
        index only, pairs on the prompt's samples too.

    Yields
    ------
    Row
        Prompt by prompt, sample by sample, short beginnings first. A cut sample has the label of
        the whole one: what will become of it.

    Raises
    ------
    ValueError
        Shapes do not fit, or an option is none of the above.

    Examples
    --------
    >>> import bonaware as bon
    >>> lm = bon.LM.from_config({
    ...     "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16,
    ...     "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    ... }, rng=0, threads=1)
    >>> samples = lm.generate([[1, 2]], n=3, max_new_tokens=8, rng=0)
    >>> for row in build(samples, [[1, 0, 0]], fractions=[0.5, 1]):
    ...     print(row.sample, len(row.tokens), row.fraction, row.label)
    0 4 0.5 1.0
    0 5 0.625 1.0
    0 8 1.0 1.0
    1 1 0.125 0.5
    1 5 0.625 0.5
    1 8 1.0 0.5
    2 3 0.375 0.5
    2 7 0.875 0.5
    2 8 1.0 0.5
    """
    edges = check_fractions(fractions)
    if labels not in LABELS:
        raise ValueError(f"labels must be 'soft' or 'pairs', got {labels!r}")
    if per_sample is not None and not 1 <= per_sample <= len(edges) + 1:
        raise ValueError(f"need 1 <= per_sample <= {len(edges) + 1}, the parts of a sample, got "
                         f"{per_sample}")
    found = as_floats(scores, "scores")
    if found.shape != samples.valid.shape:
        raise ValueError(f"scores must have the shape [P, n] of the samples, "
                         f"{samples.valid.shape}, got {found.shape}")
    names = [str(p) for p in range(len(samples))] if problems is None else list(problems)
    if len(names) != len(samples):
        raise ValueError(f"problems must name each of {len(samples)} prompts, got {len(names)}")
    found = np.where(samples.valid & ~np.isin(samples.finish_reason, UNFINISHED), found, np.nan)
    seed = seed_of(rng)
    made = soft_labels(found, eps) if labels == "soft" else pair_labels(found, eps, seed)
    return _rows(samples, made, edges, per_sample, names, seed)


def _rows(samples: Samples, labels: Floats, edges: Floats, per_sample: int | None,
          names: Sequence[str], seed: int) -> Iterator[Row]:
    for p, prompt in enumerate(samples.prompts):
        cuts = _cuts(samples.lengths[p], samples.start, edges, per_sample, [seed, CUTS, p])
        for i in np.flatnonzero(~np.isnan(labels[p])).tolist():
            tokens = samples.tokens[p][i]
            for length in cuts[i]:
                yield Row(names[p], prompt, samples.start + i, tokens[:length], len(tokens),
                          float(labels[p, i]))


def _cuts(lengths: NDArray[np.int64], start: int, edges: Floats, per_sample: int | None,
          key: Sequence[int]) -> list[list[int]]:
    """How many tokens of each of n samples stand in its rows, rising; their lengths [n]."""
    parts = len(edges)
    # A row of random numbers for each index from 0 on: later samples do not change earlier ones.
    drawn = np.random.default_rng(key).random((start + len(lengths), 2 * parts + 1))[start:]
    bounds = np.floor(np.multiply.outer(lengths, [0.0, *edges])).astype(np.int64)
    first, last = bounds[:, :-1] + 1, np.minimum(bounds[:, 1:], lengths[:, None] - 1)
    cuts = first + np.floor(drawn[:, :parts] * (last - first + 1)).astype(np.int64)
    rows = np.concatenate([np.where(first <= last, cuts, 0), lengths[:, None]], axis=1)
    if per_sample is not None:
        order = np.argsort(np.where(rows > 0, drawn[:, parts:], np.inf), axis=1)
        np.put_along_axis(rows, order[:, per_sample:], 0, axis=1)
    return [[length for length in row if length > 0] for row in rows.tolist()]


def check_fractions(fractions: Any) -> Floats:
    """Fractions as an array, checked."""
    edges = as_floats(fractions, "fractions")
    if edges.ndim != 1 or (np.diff(edges, prepend=0) <= 0).any() or not (edges <= 1).all():
        raise ValueError(f"fractions must rise from above 0 to at most 1, got {fractions!r}")
    return edges
