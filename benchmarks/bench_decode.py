"""Decoding speed and memory of bonaware beside other programs, in the same run.

    python benchmarks/make_checkpoint.py llama-1b /data/llama-1b
    python benchmarks/bench_decode.py /data/llama-1b --json decode.json --plot decode.png
    python benchmarks/bench_decode.py /data/llama-1b --sides "bonaware int8" "openvino int8" \\
        --python openvino=/venvs/openvino/bin/python

All draw n samples of one random prompt at temperature 1 with the same number of threads. Measured
is decoding alone, by the wall clock: new tokens after the first, over the seconds they took.

  bonaware      generate() twice, with 1 + new tokens and with 1; the difference of their seconds.
                Weights as --dtype says, or int8.
  transformers  in bfloat16 and in float32. The prompt runs once (not n times, as generate would)
                and its cache is expanded to n; then a bare loop: forward, softmax, multinomial.
                generate() does more per token, so this is its upper bound.
  openvino      OpenVINO GenAI's pipeline for many requests, one request of n sequences that share
                the prompt; measured like bonaware. Sums in float32; weights in float16 (float32
                with --dtype float32) or int8. The cache is in its own default format. As `openvino
                bfloat16` it rounds activations to bfloat16, for processors that are faster so.
  llama.cpp     as llama-batched-bench: the prompt once, its cache copied to n sequences, one token
                of each per call. Nothing is sampled. Weights as --dtype says, or Q8_0.

Each side lives in a process of its own that loads the model once; only one of them works at a
time, and they take turns. Each counts the tokens of its prompt and the new ones it has been given,
and the run ends with an error where these are not what was asked for. Before and behind every
measurement the parent measures the machine (a large product and a large read); a turn during
which that moved by more than 10 % is repeated, at most once.

Reported is the median ratio of the turns with its spread, the share of the machine's limit
max(bytes of weights / read speed, operations / product speed), and the highest resident memory
of each process beside the weights and the cache that the task needs. For int8 the weights
count one byte each, and products with weights may run at four times the measured float32 speed,
since a register holds four times as many numbers (vpmaddubsw, vpdpbusd; not AMX, which does more);
for bfloat16, and for attention beside int8, at twice that speed on AMD's processors with vdpbf16ps
(nor does this know of AMX).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import peers

TOLERANCE = 0.10  # by which the machine may drift during a turn
INT8_SPEED = 4  # products of bytes per product of float32 in registers of one width
CPU = Path("/proc/cpuinfo").read_text()
BF16_SPEED = 2 if "AuthenticAMD" in CPU and "avx512_bf16" in CPU else 1


# -- the sides: one process each, a line of JSON in, a line of JSON out ---


def bonaware_side(path, options, dtype=None):
    import bonaware as bon

    lm = bon.LM.load(path, dtype=dtype or options["dtype"], threads=options["threads"])
    prompt = peers.prompt_of(options)

    def draw(new, rng):
        start = time.perf_counter()
        samples = lm.generate([prompt], n=options["n"], max_new_tokens=new, rng=rng)
        seconds = time.perf_counter() - start
        if not (samples.lengths == new).all():
            raise RuntimeError("samples ended early: use a checkpoint without end tokens")
        return seconds, samples.lengths.sum(), samples.stats

    def measure(rng):
        one, first, _ = draw(1, rng)
        all_of_them, tokens, stats = draw(1 + options["new"], rng)
        return {"seconds": all_of_them - one, "prefill": stats.prefill_seconds,
                "prompt": len(prompt), "tokens": int(tokens - first)}

    return measure


def transformers_side(path, options, dtype):
    import copy

    import torch
    import transformers

    torch.set_num_threads(options["threads"])
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=getattr(torch, dtype)
    ).eval()
    prompt = torch.tensor([peers.prompt_of(options)])
    with torch.inference_mode():
        start = time.perf_counter()
        first = model(prompt, use_cache=True, logits_to_keep=1)
        prefill = time.perf_counter() - start

    @torch.inference_mode()
    def measure(rng):
        torch.manual_seed(rng)
        cache = copy.deepcopy(first.past_key_values)
        cache.batch_repeat_interleave(options["n"])
        logits = first.logits[:, -1].expand(options["n"], -1)
        tokens = torch.multinomial(torch.softmax(logits.float(), -1), 1)
        drawn, start = 0, time.perf_counter()
        for _ in range(options["new"]):
            out = model(tokens, past_key_values=cache, use_cache=True)
            tokens = torch.multinomial(torch.softmax(out.logits[:, -1].float(), -1), 1)
            drawn += tokens.numel()
        return {"seconds": time.perf_counter() - start, "prefill": prefill,
                "prompt": prompt.numel(), "tokens": drawn}

    return measure


SIDES = {
    "bonaware": bonaware_side,
    "bonaware int8": partial(bonaware_side, dtype="int8"),
    "transformers bfloat16": partial(transformers_side, dtype="bfloat16"),
    "transformers float32": partial(transformers_side, dtype="float32"),
    "openvino": peers.openvino_side,
    "openvino bfloat16": partial(peers.openvino_side, precision="bf16"),
    "openvino int8": peers.openvino_side,
    "llama.cpp": peers.llama_cpp_side,
    "llama.cpp Q8_0": peers.llama_cpp_side,
}
HERE = ["bonaware", "transformers bfloat16", "transformers float32"]  # in this environment
ONE_BYTE = {"bonaware int8", "openvino int8", "llama.cpp Q8_0"}  # per weight
# What a peer's side calls the format of its copy of the weights, by --dtype.
COPIES = {
    "openvino": {"bfloat16": "float16", "float32": "float32"},
    "openvino bfloat16": {"bfloat16": "float16", "float32": "float16"},
    "openvino int8": {"bfloat16": "int8", "float32": "int8"},
    "llama.cpp": {"bfloat16": "BF16", "float32": "F32"},
    "llama.cpp Q8_0": {"bfloat16": "Q8_0", "float32": "Q8_0"},
}


def peak_memory():
    """Highest resident memory of this process so far, bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def serve(name, path, options):
    """The child: measures once per line of input, until there is no more."""
    copy = {"kind": COPIES[name][options["dtype"]]} if name in COPIES else {}
    measure = SIDES[name](Path(path), options, **copy)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        result = measure(int(line))
        print(json.dumps(result | {"peak_memory": peak_memory()}), flush=True)


class Side:
    """The parent's end of a child."""

    def __init__(self, name, path, options):
        program = name.split()[0]
        python = options["python"].get(program, sys.executable)
        if name in COPIES:  # in a process of its own, so that its memory does not count
            kind = COPIES[name][options["dtype"]]
            subprocess.run([python, peers.__file__, str(path), program, kind], check=True)
        arguments = [python, __file__, str(path), "--serve", name, json.dumps(options)]
        environment = os.environ | {"OMP_NUM_THREADS": str(options["threads"])}
        if program == "llama.cpp":
            environment["OMP_PROC_BIND"] = "true"  # it gains by that, others do not
        self.options = options
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment)
        self.name = name
        self.read()

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def measure(self, rng):
        self.process.stdin.write(f"{rng}\n")
        self.process.stdin.flush()
        result = self.read()
        wanted = (self.options["prompt"], self.options["n"] * self.options["new"])
        if (result["prompt"], result["tokens"]) != wanted:
            raise RuntimeError(f"{self.name} was asked for {wanted} tokens of the prompt and new, "
                               f"but did {result['prompt']} and {result['tokens']}")
        return result

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# -- the machine and the task -------------------------------------------------


def machine_limits(threads, seconds=0.2):
    """(float32 operations/s of a large product, bytes/s read), each the best within `seconds`."""
    import numpy as np

    a = np.ones((1024, 1024), np.float32)
    parts = [np.ones(2**25, np.float32) for _ in range(threads)]  # 128 MB each

    def read_all():
        workers = [threading.Thread(target=np.dot, args=(part, part)) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def best(work, amount):
        end, least = time.perf_counter() + seconds, float("inf")
        while time.perf_counter() < end:
            start = time.perf_counter()
            work()
            least = min(least, time.perf_counter() - start)
        return amount / least

    return best(lambda: a @ a, 2 * 1024**3), best(read_all, sum(part.nbytes for part in parts))


def task_size(config, options):
    """Bytes of weights and cache, operations per token: what the task itself needs."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from make_checkpoint import parameters

    size = {"float32": 4, "bfloat16": 2}[options["dtype"]]
    weights = parameters(config)
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    looked_up = 0 if config["tie_word_embeddings"] else config["vocab_size"] * hidden
    head_dim = config.get("head_dim") or hidden // heads
    kept = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim
    tokens = options["prompt"] + options["n"] * (options["new"] + 1)
    seen = options["prompt"] + options["new"] / 2
    attention = 4 * config["num_hidden_layers"] * heads * head_dim * seen
    return {"weights": {name: weights * (1 if name in ONE_BYTE else size)
                        for name in options["sides"]},
            "cache": tokens * kept * size,
            "operations": 2 * (weights - looked_up), "attention": attention}


def limit_of(task, name, options, products, reads):
    """Tokens/s that no program exceeds whose weights are of this size."""
    bf16 = "bfloat16" in name or (options["dtype"] == "bfloat16" and "float32" not in name)
    faster = INT8_SPEED if name in ONE_BYTE else BF16_SPEED if bf16 else 1
    attention = task["attention"] / (BF16_SPEED if bf16 or name in ONE_BYTE else 1)
    work = options["n"] * (task["operations"] / faster + attention)
    return options["n"] / max(task["weights"][name] / reads, work / products)


# -- the run ------------------------------------------------------------------


def measured_turn(sides, rng, threads):
    """One measurement of each side, and by how much the machine drifted meanwhile."""
    limits = [machine_limits(threads)]
    results = {}
    for side in sides:
        results[side.name] = side.measure(rng)
        limits.append(machine_limits(threads))
    drift = max(max(column) / min(column) - 1 for column in zip(*limits, strict=True))
    return results, [max(column) for column in zip(*limits, strict=True)], drift


def run(path, options, turns):
    sides = [Side(name, path, options) for name in options["sides"]]
    rows = []
    try:
        for rng in range(turns + 1):
            ordered = sides if rng % 2 else sides[::-1]
            results, limits, drift = measured_turn(ordered, rng, options["threads"])
            if rng and drift > TOLERANCE:
                results, limits, drift = measured_turn(ordered, rng, options["threads"])
            if rng:  # the first turn warms up
                rows.append({"results": results, "limits": limits, "drift": drift})
                show_turn(rng, rows[-1], options)
    finally:
        for side in sides:
            side.close()
    return rows


def tokens_per_second(row, name, options):
    return options["n"] * options["new"] / row["results"][name]["seconds"]


def show_turn(number, row, options):
    speeds = ", ".join(f"{name} {tokens_per_second(row, name, options):.1f} tokens/s"
                       for name in row["results"])
    print(f"turn {number}: {speeds}; machine drift {row['drift']:.0%}", file=sys.stderr)


def summary(rows, config, options):
    task = task_size(config, options)
    shown = {name: value for name, value in options.items() if name != "python"}  # no paths
    result = {"options": shown, "task": task, "turns": rows}
    products, reads = (statistics.median(row["limits"][i] for row in rows) for i in (0, 1))
    result["machine"] = {"products": products, "reads": reads}
    result["drifted"] = sum(row["drift"] > TOLERANCE for row in rows)
    for name in options["sides"]:
        speeds = [tokens_per_second(row, name, options) for row in rows]
        limit = limit_of(task, name, options, products, reads)
        peak = max(row["results"][name]["peak_memory"] for row in rows)
        prefill = statistics.median(row["results"][name]["prefill"] for row in rows)
        result[name] = {
            "tokens_per_second": statistics.median(speeds), "low": min(speeds),
            "high": max(speeds), "limit": limit,
            "share_of_limit": statistics.median(speeds) / limit, "peak_memory": peak,
            "memory_ratio": peak / (task["weights"][name] + task["cache"]),
            "prefill_tokens_per_second": options["prompt"] / prefill,
        }
    result["ratio"] = {}
    for peer in (name for name in options["sides"] if not name.startswith("bonaware")):
        ours = "bonaware int8" if peer in ONE_BYTE else "bonaware"
        if ours in options["sides"]:
            result["ratio"][f"{ours} / {peer}"] = {
                "decode": ratio(rows, ours, peer, "seconds"),
                "prefill": ratio(rows, ours, peer, "prefill"),
            }
    return result


def ratio(rows, ours, peer, what):
    """How many times faster ours is: the median of the turns with its spread."""
    ratios = [row["results"][peer][what] / row["results"][ours][what] for row in rows]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def show(result):
    options, machine, task = result["options"], result["machine"], result["task"]
    print(f"\n{options['dtype']}, n={options['n']}, prompt {options['prompt']}, "
          f"{options['new']} new tokens, {options['threads']} threads; the machine: "
          f"{machine['products'] / 1e9:.0f} GFLOP/s float32, {machine['reads'] / 1e9:.1f} GB/s; "
          f"cache {task['cache'] / 2**30:.2f} GiB; prompts and tokens of all sides are equal\n")
    print(f"{'':22}{'decode tok/s':>14}{'limit':>10}{'of limit':>10}{'prefill tok/s':>15}"
          f"{'peak GiB':>10}{'/ (weights + cache)':>21}")
    for name in options["sides"]:
        row = result[name]
        print(f"{name:22}{row['tokens_per_second']:14.1f}{row['limit']:10.1f}"
              f"{row['share_of_limit']:10.0%}{row['prefill_tokens_per_second']:15.0f}"
              f"{row['peak_memory'] / 2**30:10.2f}{row['memory_ratio']:21.2f}")
    for pair, ratios in result["ratio"].items():
        print(f"{pair}: " + "; ".join(
            f"{what} {of['median']:.2f} ({of['low']:.2f} to {of['high']:.2f})"
            for what, of in ratios.items()) + f" in {len(result['turns'])} turns")
    if result["drifted"]:
        print(f"the machine drifted by more than {TOLERANCE:.0%} in {result['drifted']} turns: "
              "run again when nothing else runs")


def plot(result, output):
    """Bars of the medians with the spread of the turns, and each side's limit as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names, options = result["options"]["sides"][::-1], result["options"]
    speeds = [result[name]["tokens_per_second"] for name in names]
    spread = [[abs(result[name][end] - speed) for name, speed in zip(names, speeds, strict=True)]
              for end in ("low", "high")]
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.4 * len(names)), layout="constrained")
    axes.barh(names, speeds, xerr=spread, capsize=3)
    for place, name in enumerate(names):
        axes.plot([result[name]["limit"]] * 2, [place - 0.4, place + 0.4], "k--", lw=1)
    axes.set(xlabel="tokens/s, all samples together (dashed: limit of the machine)",
             title=f"n={options['n']}, prompt {options['prompt']}, {options['new']} new tokens, "
                   f"{options['threads']} threads")
    figure.savefig(output)


def main():
    if sys.argv[2:3] == ["--serve"]:
        serve(sys.argv[3], sys.argv[1], json.loads(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder without end tokens")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("-n", type=int, default=32, help="samples")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=64, help="new tokens that are timed")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--sides", nargs="+", default=HERE, choices=SIDES)
    parser.add_argument("--python", nargs="+", default=[], metavar="PROGRAM=PYTHON",
                        help="interpreter of a program, e.g. openvino=/venv/bin/python")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--plot", type=Path, help="draw them here (needs matplotlib)")
    options = vars(parser.parse_args())
    path, turns, output, picture = (
        options.pop(name) for name in ("checkpoint", "turns", "json", "plot"))
    path = path.resolve()
    options["python"] = dict(item.split("=", 1) for item in options["python"])
    config = json.loads((path / "config.json").read_text())
    result = summary(run(path, options, turns), config, options)
    show(result)
    if output:
        output.write_text(json.dumps(result, indent=1))
    if picture:
        plot(result, picture)


if __name__ == "__main__":
    main()
