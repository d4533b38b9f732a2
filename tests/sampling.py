"""What tests of sampling share: the stated law in float64, and small helpers."""

import contextlib

import numpy as np

import bonaware as bon

PROMPT = [1, 4, 2, 7, 3]

LAWS = [
    {}, {"temperature": 0.5}, {"temperature": 1.7}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.3},
    {"temperature": 1.5, "top_k": 6, "top_p": 0.8, "min_p": 0.2},
]


def softmax(x):
    p = np.exp(x - x.max())
    return p / p.sum()


def law(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Probability of each token, in float64: the steps in the order of transformers."""
    x = np.asarray(logits, np.float64) / temperature
    if top_k is not None:
        x = np.where(x < np.sort(x)[-top_k], -np.inf, x)
    if top_p is not None:
        order = np.argsort(-x, kind="stable")
        p = softmax(x)[order]
        x[order[p.cumsum() - p >= top_p]] = -np.inf
    if min_p is not None:
        p = softmax(x)
        x = np.where(p < min_p * p.max(), -np.inf, x)
    return softmax(x)


def next_law(lm, tokens, **how):
    return law(lm.logits(tokens)[-1], **how)


def assert_frequencies_follow(counts, probabilities):
    """Pearson's chi-square, cells below 5 expected counts taken together, at 5 sigma."""
    expected = probabilities * counts.sum()
    assert counts[expected == 0].sum() == 0
    small = expected < 5
    counts = np.append(counts[~small], counts[small].sum())
    expected = np.append(expected[~small], expected[small].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(expected) - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 5


def smallest_memory(path, prompt, n_tokens, **options):
    """A budget in bytes, within a factor of two, in which one sample of the prompt fits."""
    for budget in (2**power for power in range(10, 40)):
        with contextlib.suppress(ValueError, MemoryError):
            lm = bon.LM.load(path, memory=budget, **options)
            lm.generate([prompt], n=1, max_new_tokens=n_tokens)
            return budget
    raise AssertionError("no budget is enough")


def drawn(samples):
    """Everything that identifies the samples, for comparison with ==."""
    return [
        (s.prompt, s.index, s.tokens.tolist(), s.logp.tolist(), s.finish_reason, s.text)
        for s in samples
    ]


def draw_in_worker(path):
    lm = bon.LM.load(path, dtype="float32")
    samples = lm.generate([PROMPT], n=8, max_new_tokens=30, rng=1)
    return [s.tokens.tolist() for s in samples]
