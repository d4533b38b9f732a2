"""A policy with few outcomes, on which every expectation is a finite sum.

The policy is a softmax of logits theta [m]; d log p(y) = onehot(y) - p. Objectives are
functions of the probabilities p [m], written as sums over all tuples of draws. They are
polynomials in p, so a complex step differentiates them to the last digit, and no formula
of the package is used on this side.
"""

import itertools

import numpy as np

STEP = 1e-30  # of the complex step: its error is of the order STEP**2


def tuples(m, n):
    """int [m**n, n]: all ways to draw n times from m outcomes."""
    return np.array(list(itertools.product(range(m), repeat=n)), np.int64).reshape(-1, n)


def softmax(theta):
    powers = np.exp(theta)
    return powers / powers.sum()


def gradient(objective, theta):
    """d objective(softmax(theta)) / d theta, [m]; the objective takes complex p."""
    theta = np.asarray(theta, np.float64)
    steps = np.eye(len(theta)) * STEP * 1j
    return np.array([np.imag(objective(softmax(theta + step))) / STEP for step in steps])


def score_gradient(p, weights):
    """[m]: sum over outcomes y of weights[y] * d log p(y)."""
    return weights - p.real * weights.sum()


def expected(p, draws, values):
    """Expectation of values [T] of the tuples draws [T, n]."""
    return np.prod(p[draws], axis=1) @ values


def expected_gradient(theta, draws, weights, orders=1.0):
    """[m]: expectation over tuples draws [T, n] of sum_i weights[t, i] * d log p(y_i).

    orders [T]: how many tuples each stands for; see multisets.
    """
    p = softmax(np.asarray(theta, np.float64))
    chances = np.prod(p[draws], axis=1) * orders
    per_outcome = np.zeros(len(p))
    np.add.at(per_outcome, draws, chances[:, None] * weights)
    return score_gradient(p, per_outcome)


def gradient_variance(theta, draws, weights, orders=1.0):
    """Sum over theta of the variance of sum_i weights[t, i] * d log p(y_i)."""
    p = softmax(np.asarray(theta, np.float64))
    chances = np.prod(p[draws], axis=1) * orders
    each = np.zeros((len(draws), len(p)))
    np.add.at(each, (np.arange(len(draws))[:, None], draws), weights)
    each -= weights.sum(1)[:, None] * p
    mean = chances @ each
    return chances @ (each**2).sum(1) - mean @ mean


def best_of(draws, scores, rewards):
    """[T]: mean reward of the samples that tie for the best score of each tuple."""
    ranked = np.asarray(scores, np.float64)[draws]
    best = ranked == ranked.max(1, keepdims=True)
    return (best * np.asarray(rewards, np.float64)[draws]).sum(1) / best.sum(1)


def bon_objective(scores, rewards, k):
    """The reward of best-of-k as a function of p: a sum over all tuples of k draws."""
    draws = tuples(len(rewards), k)
    values = best_of(draws, scores, rewards)
    return lambda p: expected(p, draws, values)


def bon_law(p, scores, k):
    """[m]: probability that best-of-k of the policy p gives each outcome, ties shared."""
    m = len(p)
    draws = tuples(m, k)
    rows = [expected(p, draws, best_of(draws, scores, np.eye(m)[y])) for y in range(m)]
    return np.array(rows)


def multisets(m, n):
    """int [C, n] and float [C]: all draws without their order, and how many orders each has.

    For whatever does not depend on the order of the samples: many fewer than m**n tuples.
    """
    rows = list(itertools.combinations_with_replacement(range(m), n))
    draws = np.array(rows, np.int64)
    counts = np.stack([(draws == y).sum(1) for y in range(m)], axis=1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return draws, np.exp(log_factorial[n] - log_factorial[counts].sum(1))
