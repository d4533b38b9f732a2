"""What dropping samples early saves: prompts finished per second, with and without.

    python benchmarks/bench_policies.py [--model FOLDER] [--prompts 100] [--n 16] [--turns 5]

Every sample is drawn to the same length (no end token), so that what is saved follows from the
policy alone: dropping 75 % at a quarter of the length leaves 1 - 0.75 * 0.75 = 44 % of the tokens.
The seconds are those of whole calls, prompts and questions included; medians and ranges of turns
that alternate.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from reproduce_bon import made

import bonaware as bon
from bonaware.policies import cost


def cases(n, length):
    """Name -> policy."""
    def policy(name, **options):
        return bon.policies.get(name, n=n, **options)

    quarter, half = max(1, length // 4), max(1, length // 2)
    return {
        "no pruning": policy("best_of_n"),
        "75 % at a quarter, random": policy("prune_random", checkpoints=quarter, fractions=0.25),
        "75 % at a quarter": policy("prune", checkpoints=quarter, fractions=0.25),
        "50 % at a quarter": policy("prune", checkpoints=quarter, fractions=0.5),
        "50 % at a half": policy("prune", checkpoints=half, fractions=0.5),
    }


def load(path, threads):
    if path:
        return bon.LM.load(path, threads=threads)
    config = bon.LM.load("countdown").config | {"max_position_embeddings": 512}
    return bon.LM.from_config(config, rng=0, threads=threads)


def turn(lm, prompts, policy, verifier, length, seed):
    """Seconds of one call, and what it drew."""
    began = time.perf_counter()
    samples = lm.generate(prompts, policy=policy, verifier=verifier, max_new_tokens=length,
                          rng=seed, progress=False)
    return time.perf_counter() - began, samples


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder (default: random weights in the shape of the "
                        "embedded model countdown, with a longer context)")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--prompt-tokens", type=int, default=8)
    parser.add_argument("--n", type=int, default=16, help="samples per prompt")
    parser.add_argument("--length", type=int, default=128, help="tokens of every sample")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="figures as JSON")
    args = parser.parse_args()
    lm = load(args.model, args.threads)
    lm.eos_token_ids = ()  # all samples as long as each other
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, lm.arch.vocab, (args.prompts, args.prompt_tokens)).tolist()
    question = [1, 2, 3, 4, 5]
    verifier = bon.verifiers.get("self_evaluation", question=question, target=1, other=2)
    seconds, costs = {}, {}
    for seed in range(args.turns):
        for name, policy in cases(args.n, args.length).items():
            taken, samples = turn(lm, prompts, policy, verifier, args.length, seed)
            seconds.setdefault(name, []).append(taken)
            costs[name] = cost(samples, args.prompt_tokens, policy, len(question))
    base = seconds["no pruning"]
    for name, times in seconds.items():
        gains = [one / other for one, other in zip(base, times, strict=True)]
        print(f"{name:<28} {args.prompts / statistics.median(times):8.1f} prompts/s  "
              f"{statistics.median(gains):.2f}x ({min(gains):.2f}-{max(gains):.2f})  "
              f"{costs[name].tokens.mean():.0f} tokens per prompt")
    if args.out:
        args.out.write_text(json.dumps({"seconds": seconds} | made()) + "\n")


if __name__ == "__main__":
    main()
