"""Training speed and peak memory of bonaware beside torch in eager mode, in the same run.

    python benchmarks/bench_train.py                                          # all cases, long
    python benchmarks/bench_train.py --cases rl-15m --scale 0.125 --turns 2   # a quick look

Both take the same steps in float32 from the same weights (saved by bonaware, opened by
transformers), on the same tokens and with the same weight of every sample: forward pass,
log-probabilities of the samples, backward pass, norm of the gradient, AdamW. Losses and norms of
the two must agree in every step, else the run ends with an error.

  bonaware  one call with all prompts and samples; a prompt is computed once.
  torch     transformers' model with its default attention (sdpa), `logits_to_keep` so that
            logits exist for samples only, gradients summed over micro-batches of --micro texts
            (prompt + sample); a prompt is computed for each sample, as in other trainers.

Each side lives in a process of its own; only one of them works at a time, and they take turns.
With --apart a process ends behind its turn, so that the two never share the memory: a turn is then
two steps from the first weights, of which the second is measured.
The parent measures the machine before and behind every step; a turn during which it moved by more
than 10 % is marked. Reported: tokens of samples per second, the median ratio of the turns with its
spread, the highest resident memory of each process, and operations/s of bonaware beside those of a
large product.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_decode import TOLERANCE, machine_limits, peak_memory
from make_checkpoint import SHAPES, parameters

CASES = {  # shape, prompts, tokens of a prompt, samples of a prompt, tokens of a sample
    "plain-15m": ("story-15m", 32, 1, 1, 256),
    "plain-0.5b": ("qwen-0.5b", 8, 1, 1, 256),
    "rl-15m": ("story-15m", 16, 256, 32, 64),
}
LR, EPS = 1e-5, 1e-8
AGREEMENT = 1e-3  # relative, of losses and norms


def batch_of(options):
    """ids [P, T], [P, n, L] and weights [P, n] of a case."""
    _, _, length, n, new = CASES[options["case"]]
    prompts, vocab = options["prompts"], SHAPES[options["shape"]]["vocab_size"]
    rng = np.random.default_rng(0)
    return (rng.integers(0, vocab, (prompts, length), np.int32),
            rng.integers(0, vocab, (prompts, n, new), np.int32),
            rng.normal(1, 1, (prompts, n)) / (prompts * n * new))


# -- the two sides: one process each, a line in, a line of JSON out ------------


def bonaware_side(path, options):
    import bonaware as bon
    from bonaware._learner import AdamW, Learner

    lm = bon.LM.load(path, threads=options["threads"])
    learner = Learner(lm, options["memory"])
    optimizer = AdamW(lr=LR, eps=EPS, max_norm=math.inf)
    prompts, samples, weights = batch_of(options)

    def step():
        logp = learner.accumulate(list(prompts), [list(row) for row in samples], -weights)
        norm = learner.step(optimizer, LR)["grad_norm"]
        return -(np.array(logp).sum(axis=-1) * weights).sum(), norm

    return step


def torch_side(path, options):
    import torch
    import transformers

    torch.set_num_threads(options["threads"])
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, eps=EPS, weight_decay=0.0)
    prompts, samples, weights = batch_of(options)
    new = samples.shape[2]
    copies = np.broadcast_to(prompts[:, None], (*samples.shape[:2], prompts.shape[1]))
    texts = np.concatenate([copies, samples], axis=2).reshape(weights.size, -1)
    texts = torch.tensor(texts.astype(np.int64))
    weights = torch.tensor(weights.reshape(-1), dtype=torch.float32)

    def step():
        loss = 0.0
        for text, weight in zip(texts.split(options["micro"]), weights.split(options["micro"]),
                                strict=True):
            logits = model(text[:, :-1], logits_to_keep=new, use_cache=False).logits
            entropy = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), text[:, -new:].flatten(), reduction="none")
            part = (entropy.view(-1, new).sum(1) * weight).sum()
            part.backward()
            loss += part.item()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), math.inf).item()
        optimizer.step()
        optimizer.zero_grad()
        return loss, norm

    return step


SIDES = {"bonaware": bonaware_side, "torch": torch_side}


def serve(name, path, options):
    """The child: one step per line of input, until there is no more."""
    step = SIDES[name](path, options)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss, norm = step()
        print(json.dumps({"seconds": time.perf_counter() - start, "loss": float(loss),
                          "norm": float(norm), "peak_memory": peak_memory()}), flush=True)


class Side:
    """The parent's end of a child."""

    def __init__(self, name, path, options):
        arguments = [sys.executable, __file__, "--serve", name, str(path), json.dumps(options)]
        environment = os.environ | {"OMP_NUM_THREADS": str(options["threads"])}
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment)
        self.name = name
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")
        return line

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.read())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# -- the run -------------------------------------------------------------------


def check_equal_work(results):
    ours, theirs = results["bonaware"], results["torch"]
    for what in ("loss", "norm"):
        if not math.isclose(ours[what], theirs[what], rel_tol=AGREEMENT):
            raise RuntimeError(f"not the same work: the {what} of bonaware is {ours[what]}, "
                               f"torch's is {theirs[what]}")


class Apart:
    """A side whose process lives for two steps."""

    def __init__(self, name, path, options):
        self.name, self.given = name, (name, path, options)

    def step(self):
        side = Side(*self.given)
        try:
            side.step()
            return side.step()
        finally:
            side.close()

    def close(self):
        """Nothing is left."""


def run(path, options):
    """Rows of {"results", "products", "drift"}, one per turn behind the first, which warms up."""
    apart = options["apart"]
    sides = [(Apart if apart else Side)(name, path, options) for name in SIDES]
    rows = []
    try:
        for turn in range(1 if apart else 0, options["turns"] + 1):
            limits = [machine_limits(options["threads"])]
            results = {}
            for side in sides if turn % 2 else sides[::-1]:
                results[side.name] = side.step()
                limits.append(machine_limits(options["threads"]))
            check_equal_work(results)
            products, reads = zip(*limits, strict=True)
            drift = max(max(column) / min(column) - 1 for column in (products, reads))
            if turn:
                rows.append({"results": results, "products": max(products), "drift": drift})
            seconds = ", ".join(f"{name} {results[name]['seconds']:.2f} s" for name in SIDES)
            print(f"{options['case']} turn {turn}: {seconds}; drift {drift:.0%}", file=sys.stderr)
    finally:
        for side in sides:
            side.close()
    return rows


def operations(options):
    """Of one step where a prompt is computed once; products with weights only."""
    config = SHAPES[options["shape"]]
    _, _, length, n, new = CASES[options["case"]]
    head = config["vocab_size"] * config["hidden_size"]
    rows = options["prompts"] * (length + n * (new - 1))
    return 6 * rows * (parameters(config) - head) + 6 * options["prompts"] * n * new * head


def summary(rows, options):
    _, _, _, n, new = CASES[options["case"]]
    tokens = options["prompts"] * n * new
    result = {"options": options, "turns": rows, "tokens": tokens,
              "drifted": sum(row["drift"] > TOLERANCE for row in rows)}
    for name in SIDES:
        steps = [row["results"][name] for row in rows]
        result[name] = {
            "tokens_per_second": tokens / statistics.median(step["seconds"] for step in steps),
            "peak_memory": max(step["peak_memory"] for step in steps),
        }
    ratios = [row["results"]["torch"]["seconds"] / row["results"]["bonaware"]["seconds"]
              for row in rows]
    result["ratio"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    speed = operations(options) * result["bonaware"]["tokens_per_second"] / tokens
    result["share_of_products"] = speed / statistics.median(row["products"] for row in rows)
    return result


def show(result):
    options, ratio = result["options"], result["ratio"]
    print(f"\n{options['case']}: {options['prompts']} prompts, {result['tokens']} tokens of "
          f"samples, {options['threads']} threads, {len(result['turns'])} turns")
    for name in SIDES:
        row = result[name]
        print(f"  {name:10}{row['tokens_per_second']:10.0f} tokens/s"
              f"{row['peak_memory'] / 2**30:8.2f} GiB at most")
    print(f"  bonaware / torch: {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}); "
          f"bonaware's products at {result['share_of_products']:.0%} of a large product's speed")
    if result["drifted"]:
        print(f"  the machine drifted by more than {TOLERANCE:.0%} in {result['drifted']} turns: "
              "run again when nothing else runs")


def main():
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the prompts")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--memory", type=int, default=4 << 30, help="bytes of bonaware's scratch")
    parser.add_argument("--micro", type=int, default=64, help="texts that torch computes at a time")
    parser.add_argument("--apart", action="store_true", help="never both processes in memory")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = vars(parser.parse_args())
    cases, scale, output = (options.pop(name) for name in ("cases", "scale", "json"))

    import bonaware as bon

    results = []
    for case in cases:
        shape, prompts = CASES[case][:2]
        own = options | {"case": case, "shape": shape, "prompts": max(1, round(prompts * scale))}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / shape
            bon.LM.from_config(SHAPES[shape]).save(path)
            results.append(summary(run(path, own), own))
        show(results[-1])
    if output:
        output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
