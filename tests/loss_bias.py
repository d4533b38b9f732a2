"""The tables of docs/design/losses.md: `python tests/loss_bias.py` prints them.

Every number is an expectation over all samples of a small policy, so there is no noise.
test_losses.py checks that the tables in the docs are these.
"""

import numpy as np
from enumeration import (
    bon_objective,
    expected_gradient,
    gradient,
    gradient_variance,
    multisets,
    softmax,
    tuples,
)

from bonaware import losses
from bonaware.estimators import bon_lambda

THETA = np.array([0.8, 0.1, -0.5])
P = softmax(THETA)
SCORES, REWARDS = np.array([0.0, 1.0, 1.0]), np.array([0.1, 1.0, 0.4])  # a tie at the top
RIGHT = np.array([0.0, 0.0, 1.0])


def variational_objective(scores, rewards, k):
    """The expected reward under the variational law, as a function of p."""
    reaches = (scores[None, :] <= scores[:, None]).astype(float)

    def objective(p):
        tilted = p * np.exp(float(bon_lambda(k)) * (reaches @ p - 1))
        return tilted @ rewards / tilted.sum()

    return objective


def sft_objective(scores, experts, k):
    """Minus the mean log-probability of experts under the variational law."""
    reaches = (scores[None, :] <= scores[:, None]).astype(float)

    def objective(p):
        tilted = p * np.exp(float(bon_lambda(k)) * (reaches @ p - 1))
        return -np.log(tilted[experts] / tilted.sum()).mean()

    return objective


def off(found, wanted):
    """How far a gradient is from the wanted one, relative to its length."""
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def table(head, rows):
    return "\n".join(
        "| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]
    )


# -- bon_rlb -------------------------------------------------------------------


def rlb_ratio(name, k, n, fail, **options):
    """Expected gradient over that of pass@k; both point along the gradient of fail."""
    theta = np.array([np.log(fail / (1 - fail)), 0.0])
    draws, orders = multisets(2, n)
    _, weights = losses.get(name)(k=k, **options)(np.array([0.0, 1.0])[draws])
    found = expected_gradient(theta, draws, weights, orders)[1]
    return found / -(k * fail ** (k - 1) * fail * (1 - fail))


def rlb_table():
    settings = [(3, 4), (4, 6), (8, 6), (8, 16), (8, 64), (32, 64)]
    forms = [("bon_rlb", "all"), ("bon_rlb", "loo"), ("bon_rlb_p", "all")]
    rows = []
    for fail in (0.5, 0.7355, 0.9):
        for name, source in forms:
            ratios = [rlb_ratio(name, k, n, fail, estimate_from=source) for k, n in settings]
            rows.append([str(fail), name, source, *(f"{ratio:.2f}" for ratio in ratios)])
    return table(["f", "loss", "f from", *(f"k={k}, n={n}" for k, n in settings)], rows)


# -- bon_rl --------------------------------------------------------------------

SIZES = (4, 8, 16, 32, 64)


def known_of(known, scores, draws, k):
    """Inputs that say what is known of the law: nothing, "Q", or "Q and Z"."""
    win_rate = (scores[None, :] <= scores[:, None]) @ P
    log_z = np.log(P @ np.exp(float(bon_lambda(k)) * win_rate))
    given = {"win_rate": win_rate[draws], "log_normaliser": np.full(len(draws), log_z)}
    return {name: given[name] for name in list(given)[: ("nothing", "Q", "Q and Z").index(known)]}


def rl_weights(name, k, n, variational=True, known="nothing"):
    """Draws, their orders, the weights of a loss and the gradient of its objective."""
    loss = losses.get(name)(k=k, variational=variational)
    scores = SCORES if name == "bon_rl_v" else REWARDS
    objective = variational_objective if variational else bon_objective
    draws, orders = multisets(3, n)
    given = {"scores": scores[draws]} if name == "bon_rl_v" else {}
    _, weights = loss(REWARDS[draws], **given, **known_of(known, scores, draws, k))
    return draws, orders, weights, -gradient(objective(scores, REWARDS, k), THETA)


def rl_off(name, k, n, variational, known):
    draws, orders, weights, wanted = rl_weights(name, k, n, variational, known)
    return off(expected_gradient(THETA, draws, weights, orders), wanted)


def rl_table():
    laws = [("variational", "nothing"), ("variational", "Q"), ("exact", "nothing")]
    rows = []
    for name in ("bon_rl_v", "bon_rl_s"):
        for k in (2, 4, 8):
            for law, known in laws:
                numbers = [rl_off(name, k, n, law == "variational", known) for n in SIZES]
                cells = [f"{100 * number:.1f}" for number in numbers]
                rows.append([name, str(k), law, known, *cells])
    return table(["loss", "k", "law", "known", *(f"n={n}" for n in SIZES)], rows)


def rl_error(name, k, n, known):
    """Root mean square of the gradient's error, relative to the gradient's length."""
    draws, orders, weights, wanted = rl_weights(name, k, n, known=known)
    bias = expected_gradient(THETA, draws, weights, orders) - wanted
    square = gradient_variance(THETA, draws, weights, orders) + bias @ bias
    return np.sqrt(square / (wanted @ wanted))


def error_table():
    rows = [
        [name, str(k), known, *(f"{rl_error(name, k, n, known):.2f}" for n in SIZES)]
        for name in ("bon_rl_v", "bon_rl_s")
        for k in (2, 4, 8)
        for known in ("nothing", "Q", "Q and Z")
    ]
    return table(["loss", "k", "known", *(f"n={n}" for n in SIZES)], rows)


def winners_off(k, n):
    """bon_rl_v with draws="bon" and the exact law."""
    loss = losses.get("bon_rl_v")(k=k, draws="bon", variational=False)
    draws = tuples(3, n)
    _, weights = loss(REWARDS[draws], SCORES[draws])
    found = expected_gradient(THETA, draws, weights)
    return off(found, -gradient(bon_objective(SCORES, REWARDS, k), THETA))


def winners_table():
    sizes = (4, 6, 8, 10)
    rows = [
        [str(k), *(f"{100 * winners_off(k, n):.1f}" if n >= 2 * k else "" for n in sizes)]
        for k in (2, 3)
    ]
    return table(["k", *(f"n={n}" for n in sizes)], rows)


# -- bon_sft -------------------------------------------------------------------

EXPERTS = np.array([2, 1])


def sft_off(k, m, known):
    """With m samples of the policy and two demonstrations."""
    draws, orders = multisets(3, m)
    both = np.concatenate([np.tile(EXPERTS, (len(draws), 1)), draws], axis=1)
    expert = np.broadcast_to(np.arange(m + 2) < 2, both.shape)
    given = {"scores": SCORES[both], "logp": np.log(P)[both], "expert": expert}
    given |= known_of(known, SCORES, both, k)
    _, weights = losses.get("bon_sft")(k=k)(REWARDS[both], **given)
    found = expected_gradient(THETA, draws, weights[:, 2:], orders)
    found += sum(np.eye(3)[y] - P for y in EXPERTS) * -1 / 2
    return off(found, gradient(sft_objective(SCORES, EXPERTS, k), THETA))


def sft_table():
    rows = [
        [str(k), known, *(f"{100 * sft_off(k, n, known):.1f}" for n in SIZES)]
        for k in (2, 4, 8)
        for known in ("nothing", "Q")
    ]
    return table(["k", "known", *(f"m={m}" for m in SIZES)], rows)


# -- bon: variance of its baselines ---------------------------------------------


def bon_variance(scores, rewards, k, n, baseline):
    """Variance of the gradient, relative to the squared length of its mean."""
    draws, orders = multisets(3, n)
    _, weights = losses.get("bon")(k=k, baseline=baseline)(rewards[draws], scores[draws])
    wanted = gradient(bon_objective(scores, rewards, k), THETA)
    return gradient_variance(THETA, draws, weights, orders) / (wanted @ wanted)


def variance_table():
    settings = [(1, 8), (2, 8), (4, 8), (4, 16), (8, 16), (4, 64), (8, 64)]
    cases = [
        ("score, reward", SCORES, REWARDS),
        ("reward, 0 or 1", RIGHT, RIGHT),
        ("verifier, 0 or 1", np.array([0.1, 0.6, 0.3]), RIGHT),
    ]
    rows = [
        [what, baseline, *(f"{bon_variance(s, r, k, n, baseline):.2f}" for k, n in settings)]
        for what, s, r in cases
        for baseline in ("subset", "loo", "none")
    ]
    return table(["selector, truth", "baseline", *(f"k={k}, n={n}" for k, n in settings)], rows)


TABLES = (rlb_table, rl_table, error_table, winners_table, sft_table, variance_table)

if __name__ == "__main__":
    for make in TABLES:
        print(f"{make.__name__}\n\n{make()}\n")
