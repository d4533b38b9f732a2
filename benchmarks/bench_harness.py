"""Repeats in evaluation harnesses: bonaware beside the harness's own `hf` model, in the same run.

    python benchmarks/make_checkpoint.py story-15m /data/story-15m --dtype float32
    python benchmarks/bench_harness.py /data/story-15m --turns 5 --json harness.json

Each question is asked n times at temperature 1, in lm-eval as `repeats`, in inspect_ai as epochs
scored by pass_at_k, in lighteval as `num_samples`. Timed is the harness's whole call, from its
prompts to its metrics, with the model loaded; in lighteval the call of the model. Both sides get
the same questions, number of new tokens and threads, and an end token that random weights draw
once in 32000 tokens; `hf` gets n as batch size, so that its repeats run together (its default, 1,
is slower). The checkpoint gets a tokenizer of its own here.

Sides take turns in one process, which loads both models once; a turn of one question before the
first warms up. Reported is the median ratio of the turns with its spread.
"""

import argparse
import json
import os
import shutil
import statistics
import string
import sys
import tempfile
import time
from pathlib import Path

WORDS = ("the", "dog", "ran", "and", "saw", "a", "red", "ball", "in", "house")


def with_tokenizer(checkpoint, folder):
    """The checkpoint under links, with a byte-pair tokenizer as large as its vocabulary."""
    from tokenizers import Tokenizer, decoders, models

    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file.absolute())
    vocab = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    pieces = ["<s>", "</s>", *string.printable[:95]]
    pieces += [f"<{i}>" for i in range(vocab - len(pieces))]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(pieces[:2])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def questions(count, length):
    """Texts of `length` characters, which are as many tokens."""
    texts = (" ".join(WORDS[(q * 7 + i * i) % len(WORDS)] for i in range(length))
             for q in range(count))
    return [f"{q}: {text}"[:length] for q, text in enumerate(texts)]


def lm_eval_sides(folder, options):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from bonaware.integrations.lm_eval import BonawareLM

    tasks = TaskManager(include_defaults=False)

    def asked(texts):
        rows = folder / f"questions-{len(texts)}.jsonl"
        rows.write_text("".join(f"{json.dumps({'question': text})}\n" for text in texts))
        return {
            "task": f"questions{len(texts)}", "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "output_type": "generate_until", "repeats": options["n"],
            "doc_to_text": "{{question}}", "doc_to_target": "",
            "generation_kwargs": {"do_sample": True, "temperature": 1.0, "until": [],
                                  "max_gen_toks": options["new"]},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean",
                             "higher_is_better": True}],
        }  # fmt: skip

    def run(model):  # not simple_evaluate, which lists all installed packages: seconds
        return lambda texts: lm_eval.evaluate(
            lm=model, task_dict=tasks.load([asked(texts)]), bootstrap_iters=0, log_samples=False)

    return {
        "bonaware": run(BonawareLM(str(folder), dtype="float32", threads=options["threads"])),
        "hf": run(HFLM(pretrained=str(folder), device="cpu", dtype="float32",
                       batch_size=options["n"])),
    }


def inspect_sides(folder, options):
    import inspect_ai
    from inspect_ai.dataset import Sample
    from inspect_ai.model import GenerateConfig, get_model
    from inspect_ai.scorer import includes

    config = GenerateConfig(max_tokens=options["new"], temperature=1.0,
                            max_connections=options["n"] * options["questions"])

    def run(model):
        def evaluate(texts):
            task = inspect_ai.Task(
                dataset=[Sample(input=text, target="a") for text in texts], scorer=includes(),
                epochs=inspect_ai.Epochs(options["n"], ["mean", "pass_at_4"]))
            (log,) = inspect_ai.eval(task, model=model, display="none", log_dir=str(folder / "log"))
            if log.status != "success":
                raise RuntimeError(log.error.message if log.error else log.status)
        return evaluate

    return {
        "bonaware": run(get_model(f"bonaware/{folder}", config=config, dtype="float32",
                                  threads=options["threads"], chat=False)),
        "hf": run(get_model("hf/local", config=config, model_path=str(folder), dtype="float32")),
    }


def lighteval_sides(folder, options):
    """Its models alone: a pipeline loads 646 tasks first, and drops the model at its end."""
    from lighteval.models.model_input import GenerationParameters
    from lighteval.models.transformers.transformers_model import (
        TransformersModel,
        TransformersModelConfig,
    )
    from lighteval.tasks.requests import Doc

    from bonaware.integrations.lighteval import BonawareConfig, BonawareModel

    settings = {"model_name": str(folder), "dtype": "float32", "cache_dir": str(folder / "said"),
                "generation_parameters": GenerationParameters(temperature=1.0)}
    bonaware = BonawareModel(BonawareConfig(threads=options["threads"], **settings))
    hf = TransformersModel(TransformersModelConfig(batch_size=1, **settings))  # n run together
    hf._cache = None
    hf.model.generation_config.do_sample = True  # which it leaves to the checkpoint

    def run(model):
        return lambda texts: model.greedy_until([
            Doc(query=text, choices=[], gold_index=0, generation_size=options["new"],
                stop_sequences=[], num_samples=options["n"]) for text in texts])

    return {"bonaware": run(bonaware), "hf": run(hf)}


HARNESSES = {"lm-eval": lm_eval_sides, "inspect": inspect_sides, "lighteval": lighteval_sides}


def measured(sides, options):
    """Seconds of each side in each turn; the first side of a turn is the second of the next."""
    texts = questions(options["questions"], options["prompt"])
    for side in sides.values():
        side(texts[:1])
    rows = []
    for turn in range(options["turns"]):
        seconds = {}
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            sides[name](texts)
            seconds[name] = time.perf_counter() - start
        rows.append(seconds)
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {s:.2f} s" for name, s in seconds.items()),
              file=sys.stderr)
    return rows


def ratio(rows):
    ratios = [row["hf"] / row["bonaware"] for row in rows]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def run(checkpoint, options):
    # Before torch is imported: the threads of both sides.
    os.environ |= {"OMP_NUM_THREADS": str(options["threads"]), "HF_HUB_OFFLINE": "1",
                   "HF_DATASETS_OFFLINE": "1"}
    import bonaware.integrations.inspect_ai  # noqa: F401 - registers the provider

    folder = Path(tempfile.mkdtemp())
    os.environ["HF_HOME"] = str(folder / "hf")
    try:
        with_tokenizer(checkpoint, folder)
        turns = {name: measured(HARNESSES[name](folder, options), options)
                 for name in options["harnesses"]}
    finally:
        shutil.rmtree(folder)
    return {"options": options, "turns": turns,
            "ratio": {name: ratio(rows) for name, rows in turns.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="folder of make_checkpoint.py")
    parser.add_argument("--harnesses", nargs="+", default=list(HARNESSES), choices=HARNESSES)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("-n", type=int, default=16, help="repeats, epochs")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a question")
    parser.add_argument("--new", type=int, default=64, help="new tokens of a sample")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = vars(parser.parse_args())
    checkpoint, output = options.pop("checkpoint"), options.pop("json")
    result = run(checkpoint, options)
    for name, found in result["ratio"].items():
        print(f"{name}: bonaware is {found['median']:.2f} times as fast as hf "
              f"({found['low']:.2f} to {found['high']:.2f} in {options['turns']} turns), "
              f"n={options['n']}, {options['questions']} questions of {options['prompt']} tokens, "
              f"{options['new']} new, {options['threads']} threads")
    if output:
        output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
