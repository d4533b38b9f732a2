"""How fast the losses of best-of-k are, against NumPy.

    python benchmarks/bench_losses.py [--rows 100000] [--n 64] [--k 16] [--json]

Losses that rank should take at most a tenth of the time of vectorised NumPy (below; checked to
give the same numbers). NumPy is given its best case: rows are done in blocks that stay in
the cache, tables are made before the clock starts, and where no scores tie it takes a
shorter way. There are two of them: with np.argsort, and with a sort of keys that hold the
index in their last bits, the fastest we could find. Ours are called as a user does, with all
checks, threads and fresh results. bon_rlb does not rank: it reads once and writes once, and
is compared with NumPy operations that do the same, and with a bare copy of the rewards, than
which no function of this shape can be faster.

Every time is a median over repeats; the spread is (slowest - fastest) / median. Our rows are
shared among threads, so ratios depend on the number of processors. On two of them memory is
the bound of the fastest.
"""

import argparse
import json
import os
import statistics
import time
from functools import partial

import numpy as np
from bench_estimators import BLOCK, PAUSE, falling_order, plain_order

from bonaware import losses
from bonaware.estimators import bon_lambda

# -- NumPy: levels of a sorted block -------------------------------------------


def levels(ranked):
    """First place and end of the level of each place, [rows, n]; None where nothing ties."""
    new = np.ones(ranked.shape, bool)
    np.not_equal(ranked[:, 1:], ranked[:, :-1], out=new[:, 1:])
    if new.all():
        return None
    rows, n = ranked.shape
    first = np.flatnonzero(new)
    size = np.diff(first, append=ranked.size)
    low = np.repeat(first % n, size).reshape(rows, n)
    return low, low + np.repeat(size, size).reshape(rows, n)


def sums_below(x):
    """[rows, n + 1]: sum of the first t of each row."""
    out = np.zeros((len(x), x.shape[1] + 1))
    np.cumsum(x, axis=1, out=out[:, 1:])
    return out


# -- NumPy: bon ----------------------------------------------------------------


def subset_tables(n, k):
    """C(t, k-1) / C(n, k) and C(t, k-2) / C(n, k) for place t."""
    first, second = np.zeros((2, n))
    first[-1] = k / n
    second[-1] = k / n * (k - 1) / (n - k + 1)
    for t in range(n - 1, 0, -1):
        first[t - 1] = first[t] * max(t - k + 1, 0) / t
        second[t - 1] = second[t] * max(t - k + 2, 0) / t
    return first, second


def numpy_bon(rewards, scores, tables, order_of):
    """Baseline "subset", k >= 2."""
    first, second = tables
    value, weights = np.empty(len(rewards)), np.empty(rewards.shape)
    for start in range(0, len(rewards), BLOCK):
        block = slice(start, start + BLOCK)
        order, ranked = order_of(-scores[block])  # lowest first
        truth = np.take_along_axis(rewards[block], order, 1)
        tied = levels(ranked)
        if tied is None:
            lower = sums_below(truth * second)[:, :-1]
            result = lower - truth * first
            value[block] = -(truth @ first)
        else:
            low, up = tied
            size = up - low
            sums = sums_below(truth)
            mean = (np.take_along_axis(sums, up, 1) - np.take_along_axis(sums, low, 1)) / size
            lower = np.take_along_axis(sums_below(mean * second), low, 1)
            reached = np.append(0, np.cumsum(first))
            shared = (reached[up] - reached[low]) / size - first[low]
            ahead = (truth - mean) * (size / np.maximum(size - 1, 1))
            result = lower - truth * first[low] - shared * ahead
            value[block] = -(mean @ first)
        np.put_along_axis(weights[block], order, result, 1)
    return value, weights


# -- NumPy: bon_rl -------------------------------------------------------------


def numpy_bon_rl(rewards, scores, strength, order_of):
    """The variational law, draws of the policy."""
    n = rewards.shape[1]
    masses = np.exp(strength * (np.arange(n) / (n - 1) - 1))
    value, weights = np.empty(len(rewards)), np.empty(rewards.shape)
    for start in range(0, len(rewards), BLOCK):
        block = slice(start, start + BLOCK)
        order, ranked = order_of(-scores[block])
        truth = np.take_along_axis(rewards[block], order, 1)
        tied = levels(ranked)
        if tied is None:
            share = masses / masses.sum()
            win = np.arange(n) / (n - 1)
            mean = truth @ share
            spread = 1 - share @ share
            moved = share * (truth - mean[:, None]) / spread
            higher = moved[:, ::-1].cumsum(1)[:, ::-1]
        else:
            low, up = tied
            share = masses[up - 1]
            share /= share.sum(1, keepdims=True)
            win = (up - 1) / (n - 1)
            mean = np.einsum("ij,ij->i", share, truth)
            spread = 1 - np.einsum("ij,ij->i", share, share)
            moved = share * (truth - mean[:, None]) / spread[:, None]
            sums = sums_below(moved)
            higher = sums[:, -1:] - np.take_along_axis(sums, low, 1)
        both = moved * win
        pairs = higher - moved - (both.sum(1, keepdims=True) - both)
        np.put_along_axis(weights[block], order, -moved - strength / (n - 2) * pairs, 1)
        value[block] = -mean
    return value, weights


# -- NumPy: bon_sft ------------------------------------------------------------


def numpy_bon_sft(scores, logp, expert, strength, order_of):
    """Equally many demonstrations in every row."""
    m = int((~expert[0]).sum())
    experts = expert.shape[1] - m
    value, weights = np.empty(len(scores)), np.empty(scores.shape)
    for start in range(0, len(scores), BLOCK):
        block = slice(start, start + BLOCK)
        order, ranked = order_of(-scores[block])
        shown = np.take_along_axis(expert[block], order, 1)
        tied = levels(ranked)
        counted = np.cumsum(~shown, axis=1)
        low = np.arange(scores.shape[1]) if tied is None else tied[0]
        seen = counted if tied is None else np.take_along_axis(counted, tied[1] - 1, 1)
        win = np.where(shown, seen / m, (seen - 1) / (m - 1))
        share = np.where(shown, 0.0, np.exp(strength * (win - 1)))
        total = share.sum(1, keepdims=True)
        share /= total
        both = share * win
        marked = shown / experts
        higher = sums_below(share)
        higher = higher[:, -1:] - np.take_along_axis(higher, np.broadcast_to(low, share.shape), 1)
        above = sums_below(marked)
        above = above[:, -1:] - np.take_along_axis(above, np.broadcast_to(low, share.shape), 1)
        pairs = (higher - share - (both.sum(1, keepdims=True) - both)) / (m - 2)
        pairs -= (above - (marked * win).sum(1, keepdims=True)) / (m - 1)
        result = np.where(shown, -1 / experts, (m * share - 1) / (m - 1) + strength * pairs)
        np.put_along_axis(weights[block], order, result, 1)
        phi = np.take_along_axis(logp[block], order, 1) + strength * (win - 1)
        value[block] = np.log(total[:, 0] / m) - (phi * marked).sum(1)
    return value, weights


# -- NumPy: bon_rlb ------------------------------------------------------------


def numpy_bon_rlb(rewards, k):
    """The exact sign, f from all samples."""
    n = rewards.shape[1]
    value, weights = np.empty(len(rewards)), np.empty(rewards.shape)
    for start in range(0, len(rewards), BLOCK):
        block = slice(start, start + BLOCK)
        mean = rewards[block].mean(1)
        slope = k / (n - 1) * (1 - mean) ** (k - 1)
        np.subtract(mean[:, None], rewards[block], out=weights[block])
        weights[block] *= slope[:, None]
        value[block] = (1 - mean) ** k - 1
    return value, weights


# -- measuring -----------------------------------------------------------------


def measure(run, repeats):
    """Median seconds and spread of run()."""
    run()
    time.sleep(PAUSE)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    middle = statistics.median(times)
    return middle, (max(times) - min(times)) / middle


def cases(rows, n, k):
    """Name, ours, and NumPy's by name."""
    rng = np.random.default_rng(0)
    scores = rng.random((rows, n))
    grades = rng.integers(0, 8, (rows, n)).astype(float)
    rewards = (rng.random((rows, n)) < 0.3).astype(float)
    logp = -10 * rng.random((rows, n))
    expert = np.zeros((rows, n), bool)
    expert[:, :4] = True
    tables, strength = subset_tables(n, k), float(bon_lambda(k))

    def case(name, ours, numpys, *args):
        ways = {"argsort": plain_order, "keys": falling_order}
        return name, ours, {how: partial(numpys, *args, order) for how, order in ways.items()}

    bon, by_score = losses.get("bon")(k=k), losses.get("bon_rl_v")(k=k)
    by_reward, sft = losses.get("bon_rl_s")(k=k), losses.get("bon_sft")(k=k)
    for what, seen in (("no ties", scores), ("8 grades", grades)):
        ours = partial(bon, rewards, seen)
        yield case(f"bon, {what}", ours, numpy_bon, rewards, seen, tables)
        ours = partial(by_score, rewards, seen)
        yield case(f"bon_rl_v, {what}", ours, numpy_bon_rl, rewards, seen, strength)
    ours = partial(bon, rewards)
    yield case("bon, rewards 0 and 1", ours, numpy_bon, rewards, rewards, tables)
    ours = partial(by_reward, rewards)
    yield case("bon_rl_s, rewards 0 and 1", ours, numpy_bon_rl, rewards, rewards, strength)
    ours = partial(sft, rewards, scores, logp, expert=expert)
    yield case("bon_sft, no ties", ours, numpy_bon_sft, scores, logp, expert, strength)
    rlb = losses.get("bon_rlb")(k=k)
    numpys = {"one pass": partial(numpy_bon_rlb, rewards, k), "copy": rewards.copy}
    yield "bon_rlb", partial(rlb, rewards), numpys


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    results = []
    for name, ours, numpys in cases(args.rows, args.n, args.k):
        if not name.startswith(args.only):
            continue
        for how, numpy in numpys.items():
            for mine, theirs in zip(ours(), numpy(), strict=True) if how != "copy" else ():
                np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)
            seconds, spread = measure(ours, args.repeats)
            numpy_seconds, numpy_spread = measure(numpy, max(2, args.repeats // 2))
            results.append({
                "case": name, "numpy": how, "rows": args.rows, "n": args.n, "k": args.k,
                "seconds": seconds, "spread": spread,
                "numpy_seconds": numpy_seconds, "numpy_spread": numpy_spread,
                "ratio": numpy_seconds / seconds,
            })  # fmt: skip
            if not args.json:
                print(
                    f"{name:26} {1e3 * seconds:7.1f} ms (spread {spread:4.0%})   numpy, {how:8} "
                    f"{1e3 * numpy_seconds:7.1f} ms (spread {numpy_spread:4.0%})   ratio "
                    f"{numpy_seconds / seconds:5.1f}",
                    flush=True,
                )
    if args.json:
        about = {"processors": len(os.sched_getaffinity(0)), "numpy": np.__version__}
        print(json.dumps({"machine": about, "results": results}))


if __name__ == "__main__":
    main()
