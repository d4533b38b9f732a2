"""What int8 costs: divergence from bfloat16, agreement, and pass@k where a task can say.

    python benchmarks/int8_quality.py                      # the embedded models
    python benchmarks/int8_quality.py /models/Qwen3-0.6B   # and others, on texts of their own
    python benchmarks/int8_quality.py --route dot          # all products by this route

Every model draws texts in bfloat16. Both read them: reported are the mean over tokens of
KL(bfloat16 || int8) in nats, how often both think the same token most likely, the share of outputs
that have a second digit (csrc/int8.h), and the bytes of the weights. Embedded models also draw in
both, and pass@k is shown with its interval.
"""

import argparse
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

import bonaware as bon
from bonaware import config, routes

EMBEDDED = ("countdown", "countdown-selfeval")
KS = (1, 4, 16)


def log_softmax(logits):
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def compare(near, far, prompts, texts):
    """Mean KL(near || far) in nats a token, and how often their most likely tokens agree."""
    divergence, agree = [], []
    for prompt, row in zip(prompts, texts, strict=True):
        for tokens in row:
            ids = np.concatenate([prompt, tokens])[:near.context]
            p, q = log_softmax(near.logits(ids)), log_softmax(far.logits(ids))
            divergence.append((np.exp(p) * (p - q)).sum(-1))
            agree.append(p.argmax(-1) == q.argmax(-1))
    return np.concatenate(divergence).mean(), np.concatenate(agree).mean()


def load_by(route, path):
    """The model in int8; by a route for all products, or as it is chosen."""
    if route is None:
        return bon.LM.load(path, dtype="int8")
    with (tempfile.TemporaryDirectory() as cache,
          mock.patch.dict("os.environ", BONAWARE_CACHE=cache),
          mock.patch.multiple(routes, SMALL=0,
                              _fastest=lambda _, products, __: dict.fromkeys(products, route))):
        return bon.LM.load(path, dtype="int8")


def report(path, route, samples, tokens, seed):
    models = {"bfloat16": bon.LM.load(path, dtype="bfloat16"), "int8": load_by(route, path)}
    near, far = models.values()
    task = bon.tasks.get("countdown") if path in EMBEDDED else None
    problems = task.load("test", limit=200) if task else []
    rng = np.random.default_rng(seed)
    prompts = ([near.encode(task.prompt(problem)) for problem in problems] if task else
               [rng.integers(0, near.arch.vocab, 1) for _ in range(8)])
    length = task.max_new_tokens if task else min(tokens, near.context - 1)
    drawn = {dtype: lm.generate([list(map(int, prompt)) for prompt in prompts], n=samples,
                                max_new_tokens=length, rng=seed) for dtype, lm in models.items()}
    read = [row[:4] for row in drawn["bfloat16"].tokens[:50]]
    kl, agreement = compare(near, far, prompts[:50], read)
    outputs = sum(rows for _, rows, _ in far._model.matrices())
    print(f"{near.name}: KL {kl:.5f} nats a token, same most likely token {agreement:.2%}, "
          f"second digits {far._model.fine_rows / outputs:.2%} of outputs, weights "
          f"{near._model.bytes / 2**20:.1f} -> {far._model.bytes / 2**20:.1f} MiB")
    for dtype in models if task else ():
        rewards = task.rewards(problems, drawn[dtype].text)
        curve = bon.estimators.best_of_k(rewards, KS)
        low, high = bon.estimators.interval(curve)
        print(f"  {dtype:9}", "  ".join(
            f"pass@{k} {mean:.3f} [{a:.3f}, {b:.3f}]"
            for k, mean, a, b in zip(KS, curve.mean(0), low, high, strict=True)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="folders, read beside the embedded models")
    parser.add_argument("--route", choices=config.describe()["routes"]["int8"],
                        help="of all products of int8 (default: as measured, tile where small)")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of a text without task")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for path in (*EMBEDDED, *args.models):
        report(path if path in EMBEDDED else Path(path), args.route, args.samples, args.tokens,
               args.seed)


if __name__ == "__main__":
    main()
