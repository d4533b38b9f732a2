"""Adaptive inference-time compute on the embedded model that evaluates itself: several seeds.

    python benchmarks/reproduce_selfeval.py --out runs                # draw, measure, tables
    python benchmarks/reproduce_selfeval.py --out runs --write-docs   # and docs/self_evaluation.md

Of each seed the samples are drawn whole once, at T = 1 and along the annealing schedule, and scored
as a whole and at checkpoints; every policy is then replayed on them (which gives what drawing with
the policy gives, see tests/test_scheduling.py). Thresholds are fitted on validation problems.
Seconds are measured by drawing with the policies. A seed that is done is kept in one file: after
Ctrl-C the same command goes on.

Source: Manvi, Singh, Ermon 2024, arXiv:2410.02725.
"""

import argparse
import itertools
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from reproduce_bon import made
from selfeval_tables import markdown, summarise, write_docs

import bonaware as bon
from bonaware.policies import CostModel, cost, fit_threshold, replay
from bonaware.train import auroc

ROOT = Path(__file__).parents[1]
SPLITS = ("validation", "test")
SELECTORS = ("self_evaluation", "likelihood", "self_certainty")
SHARES = 5  # calls in which a case of the seconds is measured
MEANS = (1.1, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # samples per prompt, wished of `adaptive`


@dataclass(frozen=True)
class Settings:
    """What all seeds of a folder have in common."""

    model: str = "countdown-selfeval"
    level: str = "medium"
    n: int = 16
    validation: int = 500
    test: int = 1000
    checkpoints: tuple[int, ...] = (9, 18)

    def task(self):
        return bon.tasks.get("countdown", level=self.level)

    def problems(self, split):
        return self.task().load(split, getattr(self, split))


# -- one seed ------------------------------------------------------------------


class Drawn:
    """Samples of one split and schedule, all drawn whole, with their scores."""

    def __init__(self, lm, settings, split, anneal, seed):
        task, self.problems = settings.task(), settings.problems(split)
        prompts = [task.prompt(problem) for problem in self.problems]
        schedule = bon.policies.get("adaptive", threshold=1, n=settings.n, anneal=anneal)
        place = [SPLITS.index(split), int(anneal == "constant")]
        self.samples = lm.generate(
            prompts, settings.n, temperature=schedule.temperatures(1.0), progress=False,
            max_new_tokens=task.max_new_tokens, rng=np.random.SeedSequence([seed, *place]))
        self.prompt_tokens = [len(lm.encode(prompt)) for prompt in prompts]
        self.rewards = task.rewards(self.problems, self.samples.text)
        judges = {name: bon.verifiers.get(name) for name in SELECTORS[1:]}
        self.judge = bon.verifiers.get("self_evaluation", lm=lm)
        judges["self_evaluation"] = self.judge
        self.scores = {name: judge.score(self.problems, self.samples)
                       for name, judge in judges.items()}

    def under(self, policy, prefix_scores=None):
        """Reward of what a policy takes, [P], and what it cost."""
        found = replay(policy, self.samples, self.scores["self_evaluation"], prefix_scores)
        rows = np.arange(len(self.rewards))
        question = len(self.judge.lm.self_evaluation["question"])
        spent = cost(found.samples, self.prompt_tokens, policy, question)
        return self.rewards[rows, found.chosen], spent


def run_seed(lm, settings, seed):
    """All figures of one seed: per problem, so that intervals can be had over problems."""
    drawn = {(split, anneal): Drawn(lm, settings, split, anneal, seed)
             for split in SPLITS for anneal in ("constant", "exponential")}
    test = drawn["test", "constant"]
    prefix = test.judge.prefix_scores(test.problems, test.samples, settings.checkpoints)
    return {
        "selected": selected(test, settings.n),
        "adaptive": {anneal: adaptive(drawn["validation", anneal], drawn["test", anneal],
                                      settings, anneal)
                     for anneal in ("constant", "exponential")},
        "first": {anneal: drawn["test", anneal].rewards[:, 0].tolist()
                  for anneal in ("constant", "exponential")},
        "pruned": pruned(test, prefix, settings, seed),
        "calibration": calibration(test, prefix, settings),
    }


def selected(test, n):
    """Best-of-k by each selector, k -> [P]; "random" is one sample at T = 1, "oracle" pass@k."""
    ks = list(range(1, n + 1))
    scores = test.scores | {"oracle": test.rewards}
    found = {name: bon.estimators.best_of_k(test.rewards, ks, score).T.round(6).tolist()
             for name, score in scores.items()}
    return {"ks": ks, "by": found | {"random": [test.rewards.mean(1).round(6).tolist()] * len(ks)}}


def adaptive(validation, test, settings, anneal):
    """Thresholds fitted on validation problems for some means, and what they give."""
    rows = []
    for mean in MEANS:
        threshold = fit_threshold(validation.scores["self_evaluation"], mean, n=settings.n)[0]
        policy = bon.policies.get("adaptive", threshold=threshold, n=settings.n, anneal=anneal)
        rewards, spent = test.under(policy)
        rows.append({"wished": mean, "threshold": threshold, "rewards": rewards.tolist(),
                     "samples": spent.samples.tolist(), "tokens": spent.tokens.tolist()})
    return rows


def pruned(test, prefix, settings, seed):
    """Best-of-n without pruning, and with it at each checkpoint and rate."""
    full, spent = test.under(bon.policies.get("best_of_n", n=settings.n))
    rows = [{"name": "none", "rewards": full.tolist(), "tokens": spent.tokens.tolist(),
             "new_tokens": spent.new_tokens.tolist()}]
    for c, checkpoint in enumerate(settings.checkpoints):
        for share in (0.5, 0.75):
            options = {"n": settings.n, "checkpoints": checkpoint, "fractions": 1 - share}
            for name, more in (("prune", {}), ("prune_random", {"rng": seed})):
                policy = bon.policies.get(name, **options, **more)
                given = prefix[:, :, c:c + 1] if name == "prune" else None
                rewards, spent = test.under(policy, given)
                rows.append({"name": name, "checkpoint": checkpoint, "share": share,
                             "rewards": rewards.tolist(), "tokens": spent.tokens.tolist(),
                             "new_tokens": spent.new_tokens.tolist()})
    return rows


def calibration(test, prefix, settings):
    """AUROC of being right, whole and at each checkpoint, by each selector."""
    right = test.rewards > 0
    found = {name: auroc(score.ravel(), right.ravel()) for name, score in test.scores.items()}
    for c, checkpoint in enumerate(settings.checkpoints):
        there = ~np.isnan(prefix[:, :, c])
        found[f"self_evaluation at {checkpoint} tokens"] = auroc(prefix[there, c], right[there])
    return found


# -- seconds -------------------------------------------------------------------


def timed(lm, settings, turns, threads):
    """Seconds of drawing with policies, and what a cost model of other runs foretells.

    The machine is slower in one minute than in the next. So the problems are dealt out to SHARES
    calls of a few seconds, the cases follow each other with the same share, in an order of chance
    and again in every turn, and what counts is the median over turns of each call.
    """
    task, problems = settings.task(), settings.problems("test")
    prompts = [task.prompt(problem) for problem in problems]
    asked = len(lm.self_evaluation["question"])
    last = settings.checkpoints[-1]

    def policy(name, **options):
        return bon.policies.get(name, **{"n": settings.n, **options})

    longest = task.max_new_tokens
    unread, read = ("likelihood", longest), ("self_evaluation", longest)
    fitted = {
        "16 samples, not read": (policy("best_of_n"), *unread),
        "16 samples of at most 12 tokens, not read": (policy("best_of_n"), "likelihood", 12),
        "4 samples, not read": (policy("best_of_n", n=4), *unread),
        "1 sample, not read": (policy("best_of_n", n=1), *unread),
        "4 samples": (policy("best_of_n", n=4), *read),
        "16 samples, read at 14 tokens too": (
            policy("prune", checkpoints=14, fractions=1.0), *read),
    }
    foretold = {"no pruning": (policy("best_of_n"), *read)} | {
        f"{share:.0%} dropped at {c} tokens": (
            policy("prune", checkpoints=c, fractions=1 - share), *read)
        for c in settings.checkpoints for share in (0.5, 0.75)
    } | {f"75% at {last} at random": (
        policy("prune_random", checkpoints=last, fractions=0.25), *read)}
    cases = fitted | foretold
    shares = [list(share) for share in np.array_split(prompts, SHARES)]
    seconds = {name: np.empty((turns, SHARES)) for name in cases}
    costs = {name: [None] * SHARES for name in cases}
    order = np.random.default_rng(0)
    for turn, (s, share) in itertools.product(range(turns), enumerate(shares)):
        for name in order.permutation(list(cases)):
            each, verifier, most = cases[name]
            began = time.perf_counter()
            samples = lm.generate(share, policy=each, verifier=verifier, rng=0,
                                  max_new_tokens=most, progress=False)
            seconds[name][turn, s] = time.perf_counter() - began
            costs[name][s] = cost(samples, [len(lm.encode(prompt)) for prompt in share], each,
                                  asked if verifier == "self_evaluation" else 0)
    model = CostModel.of(lm).fit(
        [each for name in fitted for each in costs[name]],
        np.concatenate([np.median(seconds[name], axis=0) for name in fitted]))
    return {"threads": threads, "turns": turns, "shares": SHARES, "model": asdict(model),
            "rows": [{
                "name": name, "fitted": name in fitted,
                "seconds": float(np.median(seconds[name], axis=0).sum()),
                "turns": seconds[name].sum(1).tolist(),
                "foretold": float(sum(model.seconds(each).sum() for each in costs[name])),
                "tokens": int(sum(each.tokens.sum() for each in costs[name]))} for name in cases]}


# -- command -------------------------------------------------------------------


def write(path, content):
    """Write JSON; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(content) + "\n")
    os.replace(draft, path)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... of drawing")
    parser.add_argument("--turns", type=int, default=5, help="of measuring seconds; 0: none")
    parser.add_argument("--threads", type=int, help="default: all")
    parser.add_argument("--write-docs", action="store_true",
                        help="copy the summary to benchmarks/results, the tables to docs")
    for name, default in asdict(Settings()).items():
        many = {"nargs": "+", "type": int} if isinstance(default, tuple) else {}
        parser.add_argument(f"--{name}", default=default, **({"type": type(default)} | many))
    return parser


def main():
    args = arguments().parse_args()
    settings = Settings(**{name: tuple(value) if isinstance(value, list) else value
                           for name in asdict(Settings()) for value in [getattr(args, name)]})
    lm = bon.LM.load(settings.model, threads=args.threads)
    said = asdict(settings) | {"checkpoints": list(settings.checkpoints),
                               "fingerprint": lm.fingerprint}
    kept = args.out / "settings.json"
    if kept.exists() and (there := json.loads(kept.read_text())) != said:
        raise SystemExit(f"{args.out} holds runs with other settings: {there}")
    write(kept, said)
    for seed in range(args.seeds):
        path = args.out / f"seed-{seed}.json"
        if not path.exists():
            began = time.monotonic()
            write(path, run_seed(lm, settings, seed) | {"made": made()})
            print(f"seed {seed}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    if args.turns and not (args.out / "seconds.json").exists():
        write(args.out / "seconds.json", timed(lm, settings, args.turns, lm.threads) |
              {"made": made()})
    summary = summarise(args.out)
    write(args.out / "summary.json", summary)
    print(markdown(summary))
    if args.write_docs:
        write_docs(summary, ROOT)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped; the seeds that are done are kept, and the same command goes on")
        sys.exit(130)
