"""How fast the estimators are, against NumPy and against memory.

    python benchmarks/bench_estimators.py [--rows 100000] [--n 64] [--json] [--clock cpu]

Two claims are measured. `best_of_k` with scores that are not the rewards and
`majority_at_k`, for all k = 1 .. n at once, take at most a tenth of the time of vectorised
NumPy (below; all are checked to give the same numbers). For `best_of_k` there are two of
them: with np.argsort, and with a sort of keys that hold the index in their last bits, the
fastest we could find. Both spend much of their time in NumPy's own vector sort and BLAS;
our rows are shared among threads, so the ratio depends on the number of processors. And
estimators that need one pass run at 70 % or more of memory bandwidth, measured in the same
run by NumPy operations with the same reads and writes, results allocated in both.

Every time is a median over repeats; the spread is (slowest - fastest) / median. With
--clock cpu it is the processor time of the process: for machines where others work too.
"""

import argparse
import json
import os
import statistics
import sys
import time

import numpy as np

from bonaware.estimators import best_of_k, majority_at_k, pass_at_k, win_rate, worst_of_k
from bonaware.select import best_of_n

BLOCK = 1024  # rows at a time in NumPy: its temporaries then stay in the cache
PAUSE = 0.3  # seconds before each side: threads of NumPy's BLAS look for work for a while


# -- NumPy: best-of-k ---------------------------------------------------------


def rank_weights(n):
    """[n, n]: chance that rank i is the best of k, column k - 1."""
    weights = np.zeros((n, n))
    for k in range(1, n + 1):
        weight = k / n
        for i in range(n - k + 1):
            weights[i, k - 1] = weight
            weight *= (n - k - i) / max(n - 1 - i, 1)
    return weights


def falling_order(scores):
    """np.argsort(-scores), as a sort of keys that carry the index in their lowest bits.

    NumPy sorts doubles in vectors and indices one by one, so this is the faster way.
    Rows where those bits matter are sorted again.
    """
    n = scores.shape[1]
    low = (1 << (n - 1).bit_length()) - 1
    keys = (0.0 - scores).view(np.int64)
    keys &= ~low
    keys |= np.arange(n)
    order = np.sort(keys.view(np.float64), axis=1).view(np.int64)
    order &= low
    ranked = np.take_along_axis(scores, order, 1)
    if (wrong := (ranked[:, 1:] > ranked[:, :-1]).any(1)).any():
        order[wrong] = np.argsort(-scores[wrong], axis=1)
        ranked[wrong] = np.take_along_axis(scores[wrong], order[wrong], 1)
    return order, ranked


def plain_order(scores):
    """The same by np.argsort."""
    order = np.argsort(-scores, axis=1)
    return order, np.take_along_axis(scores, order, 1)


def numpy_best_of_k(rewards, scores, weights, order_of=falling_order):
    """All k at once: sort, share ties, one matrix product."""
    out = np.empty_like(rewards)
    for start in range(0, len(rewards), BLOCK):
        block = slice(start, start + BLOCK)
        order, ranked = order_of(scores[block])
        values = np.take_along_axis(rewards[block], order, 1)
        starts = np.ones(values.shape, bool)
        np.not_equal(ranked[:, 1:], ranked[:, :-1], out=starts[:, 1:])
        if not starts.all():
            first = np.flatnonzero(starts)
            count = np.diff(first, append=values.size)
            mean = np.add.reduceat(values.ravel(), first) / count
            values = np.repeat(mean, count).reshape(values.shape)
        np.matmul(values, weights, out=out[block])
    return out


# -- NumPy: majority@k --------------------------------------------------------


def binomials(n):
    """[n + 1, n + 1]: C(c, j), 0 for j > c."""
    table = np.zeros((n + 1, n + 1))
    table[:, 0] = 1
    for c in range(1, n + 1):
        table[c, 1:] = table[c - 1, 1:] + table[c - 1, :-1]
    return table


def numpy_majority_at_k(codes, answers):
    """P(answer 0 wins) for all k at once, exact, as in csrc/majority.h but for rows side by side.

    Rows with the same counts have the same result and are computed once.
    """
    rows, n = codes.shape
    flat = (codes + answers * np.arange(rows)[:, None]).ravel()
    counts = np.bincount(flat, minlength=rows * answers).reshape(rows, answers)
    counts[:, 1:] = -np.sort(-counts[:, 1:], axis=1)
    digits = counts @ (n + 1) ** np.arange(answers - 1, -1, -1.0)  # exact below 2**53
    _, first, inverse = np.unique(digits, return_index=True, return_inverse=True)
    different = counts[first]
    table = binomials(n)
    out = np.zeros((len(different), n + 1))
    for start in range(0, len(different), BLOCK):
        block = slice(start, start + BLOCK)
        out[block] = some_majorities(different[block, 0], different[block, 1:], n, table)
    return (out[:, 1:] / table[n, 1:])[inverse]


def some_majorities(right, wrong, n, table):
    """Subsets of each size that the right answer wins, ties shared: [rows, n + 1]."""
    out = np.zeros((len(right), n + 1))
    for m in range(1, right.max() + 1):
        here = np.flatnonzero(right >= m)
        rivals = wrong[here]
        rivals = rivals[:, (rivals >= m).any(0)]
        ways = [np.ones((len(here), 1))]  # by number of rivals that tie: [rows, samples]
        for votes in rivals.T:
            ways = with_rival(ways, votes, m, table)
        tied = np.zeros((len(here), max(w.shape[1] for w in ways)))
        for ties, w in enumerate(ways):
            tied[:, : w.shape[1]] += w / (ties + 1)
        tied *= table[right[here], m][:, None]
        rest = n - right[here] - np.where(rivals >= m, rivals, 0).sum(1)
        others = table[rest]
        won = np.zeros((len(here), n + 1))
        for x in range(min(tied.shape[1], n + 1 - m)):
            won[:, m + x :] += tied[:, x : x + 1] * others[:, : n + 1 - m - x]
        out[here] += won
    return out


def with_rival(ways, votes, m, table):
    """Multiplies by one more answer; in rows where it has fewer than m votes, by 1."""
    below = table[votes, :m] * (votes >= m)[:, None]
    below[votes < m, 0] = 1
    equal = (table[votes, m] * (votes >= m))[:, None]
    grown = []
    for ties in range(len(ways) + 1):
        parts = []
        if ties < len(ways):
            w = ways[ties]
            product = np.zeros((len(w), w.shape[1] + m - 1))
            for j in range(m):
                product[:, j : j + w.shape[1]] += below[:, j : j + 1] * w
            parts.append(product)
        if ties > 0:
            w = ways[ties - 1]
            product = np.zeros((len(w), w.shape[1] + m))
            product[:, m:] = equal * w
            parts.append(product)
        wide = max(parts, key=lambda p: p.shape[1])
        for part in parts:
            if part is not wide:
                wide[:, : part.shape[1]] += part
        grown.append(wide)
    return grown


# -- measuring ----------------------------------------------------------------


class Bench:
    """Times functions and keeps one line of the table for each."""

    def __init__(self, clock):
        self.clock = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
        self.lines = []

    def time(self, function, repeats):
        time.sleep(PAUSE)
        seconds = []
        for _ in range(repeats):
            start = self.clock()
            function()
            seconds.append(self.clock() - start)
        middle = statistics.median(seconds)
        return {
            "median_s": middle,
            "best_s": min(seconds),
            "spread": (max(seconds) - min(seconds)) / middle,
            "repeats": repeats,
        }

    def against_numpy(self, name, ours, numpys, want, repeats):
        error = np.abs(ours() - numpys()).max()  # also warms both up
        a, b = self.time(ours, repeats), self.time(numpys, max(1, repeats // 3))
        ratio = b["median_s"] / a["median_s"]
        self.add(name, a, numpy=b, ratio=ratio, wanted=want, passed=ratio >= want, error=error)

    def against_memory(self, name, ours, same_traffic, num_bytes, want, repeats):
        ours(), same_traffic()
        a, b = self.time(ours, repeats), self.time(same_traffic, repeats)
        share = b["median_s"] / a["median_s"]
        rate = num_bytes / a["median_s"] / 1e9
        self.add(name, a, gb_per_s=rate, memory=b, share=share, wanted=want, passed=share >= want)

    def add(self, name, ours, **more):
        self.lines.append({"name": name, "ours": ours, **more})
        line, result = self.lines[-1], "reached" if more["passed"] else "MISSED"
        text = f"{name:44} {1e3 * ours['median_s']:9.1f} ms  ±{50 * ours['spread']:3.0f} %"
        if "ratio" in line:
            text += f"  NumPy {1e3 * line['numpy']['median_s']:9.1f} ms  {line['ratio']:7.1f} x"
            text += (
                f"  (wanted {line['wanted']} x: {result}; largest difference {line['error']:.0e})"
            )
        else:
            text += f"  {line['gb_per_s']:5.1f} GB/s  {100 * line['share']:4.0f} % of memory"
            text += f"  (wanted {100 * line['wanted']:.0f} %: {result})"
        print(text, file=sys.stderr, flush=True)


def some_answers(rng, rows, n, answers=9):
    """Codes: 0 is right, with its own chance in each row; wrong answers are skewed."""
    easy = rng.beta(0.8, 0.8, size=(rows, 1))
    wrong = 1 + np.minimum(rng.geometric(0.4, size=(rows, n)) - 1, answers - 2)
    return np.where(rng.random((rows, n)) < easy, 0, wrong)


def run(rows, n, clock, repeats):
    rng = np.random.default_rng(0)
    bench = Bench(clock)
    ks, weights = range(1, n + 1), rank_weights(n)
    rewards = rng.random((rows, n))
    for kind, scores in {
        "all different": rng.normal(size=(rows, n)),
        "10 levels": rng.integers(0, 10, size=(rows, n)).astype(float),
        "0 and 1": rng.integers(0, 2, size=(rows, n)).astype(float),
    }.items():
        for how, order in (("argsort", plain_order), ("keys", falling_order)):
            bench.against_numpy(
                f"best_of_k, all k, {kind}, {how}",
                lambda scores=scores: best_of_k(rewards, ks, scores),
                lambda scores=scores, order=order: numpy_best_of_k(rewards, scores, weights, order),
                10,
                repeats,
            )
    codes = some_answers(rng, rows, n)
    bench.against_numpy(
        "majority_at_k, all k, 9 answers",
        lambda: majority_at_k(codes, codes == 0, ks),
        lambda: numpy_majority_at_k(codes, 9),
        10,
        3,
    )

    many = rng.random((max(rows, 200_000), n))
    a, b = rng.random((2, many.size))
    size, correct = np.full(many.size, n), rng.integers(0, n + 1, many.size)
    for name, ours, same, arrays in [
        (
            "pass_at_k of counts (2 in, 1 out)",
            lambda: pass_at_k(size, correct, 8),
            lambda: a + b,
            3,
        ),
        ("best_of_k, k = 1 (1 in)", lambda: best_of_k(many, 1), lambda: many.sum(), 1),
        ("worst_of_k, k = 1 (1 in)", lambda: worst_of_k(many, 1), lambda: many.sum(), 1),
        ("win_rate (1 in)", lambda: win_rate(many), lambda: many.sum(), 1),
        ("best_of_n (1 in)", lambda: best_of_n(many), lambda: many.max(), 1),
    ]:
        bench.against_memory(name, ours, same, arrays * many.nbytes, 0.7, 3 * repeats)
    return bench.lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--n", type=int, default=64, help="samples per row")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args()
    lines = run(args.rows, args.n, args.clock, args.repeats)
    if args.json:
        about = vars(args) | {"numpy": np.__version__, "processors": os.cpu_count()}
        print(json.dumps({"settings": about, "results": lines}, default=float))
    return 0 if all(line["passed"] for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
