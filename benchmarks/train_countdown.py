"""Trains the embedded models of the task countdown from nothing: policy, verifier, self-evaluation.

    python benchmarks/train_countdown.py OUT

Eight runs in OUT, each of which goes on where it was stopped, and what they give:

    policy-run      a small Llama imitates the first solution of millions of problems; then the
                    vocabulary projection is divided by SHARPEN, which folds that temperature
                    into the weights: at T=1 the model is as narrow as people's models are
    arithmetic-run  the same with true steps at random, whose last result is not the target of
                    the prompt: nothing but arithmetic helps to predict it
    checking-run    the arithmetic model with two more layers and a score head learns to tell
                    true steps from false ones, behind each of them
    verifier-run    and then which samples of the policy are right: each batch draws new ones,
                    and their labels are free
    judge-...-run   four runs of another policy, learnt from nothing, that judges itself behind
                    every step of what it draws (countdown_selfeval.py); sharpened likewise

    countdown/      the policy, as bonaware ships it
    countdown-verifier/
    countdown-selfeval/
    figures.json    what they give on test problems, with the commands' options

Why so: 92 % of the policy's wrong samples end with a false equation, as it has learnt to write the
target as its last result. Labels of whole samples are one bit for that: prototypes that learnt from
them alone, from the policy's weights or from those of the arithmetic model, reached an AUROC of .77
and .76 after 150 000 and 200 000 samples. Labels behind every step of made texts, where equations
are false at random places, teach the same in two minutes; what is left to the samples is to tell
which of them are right as a whole (AUROC .95 after 150 000).

The model that judges itself is not the first policy trained on: that one is stiff, once it is
sharpened. At every learning rate that taught it to judge (3e-4 and more) its law was 3 to 40
nats per sample away within 60 steps, held by the exact divergence or not, with more layers, or in
a wider stream in which it was the exact start. From nothing, both are learnt together.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import countdown_selfeval as selfeval
import numpy as np
import tokenizers

import bonaware as bon
from bonaware import estimators
from bonaware.tasks.countdown import LIMIT, steps_text
from bonaware.train import AdamW, Trainer, auroc

SHARPEN = 0.4
WORDS = ["<end>", "make", "from", ":", "=", ",", "+", "-", "*", "/"]
SHARES = {3: 1 / 3, 4: 2 / 3}  # of the problems in a batch, by how many numbers they have
POOL = 300_000  # problems of each size that training draws from
BATCH = 96  # solutions per step
PROBLEMS, SAMPLES = 64, 8  # of the policy, per batch of the verifier
FALSE = 0.3  # share of false steps where telling them is learnt
TASK = bon.tasks.get("countdown", level="medium")
VOCABULARY = [*WORDS, *map(str, range(LIMIT + 1))]


def config(layers=4):
    """A Llama whose heads share one key and value: that halves the time of drawing."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "vocab_size": len(VOCABULARY), "hidden_size": 64, "intermediate_size": 192,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 1,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "initializer_range": 0.08,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 0,
        "pad_token_id": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }


def optimizer(lr):
    return AdamW(lr=lr, betas=(0.9, 0.98), weight_decay=0.01, warmup=100, schedule="linear")


# -- problems ------------------------------------------------------------------


def make_tokenizer(path, words):
    """One token per word."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(
        {word: i for i, word in enumerate(words)}))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(path))


def read_pool(path, size):
    """Numbers, targets and steps of POOL training problems; kept in a file."""
    if not path.exists():
        parts, count = [], 0
        for part in TASK.arrays("train", size):
            parts.append(part)
            count += len(part[1])
            if count >= POOL:
                break
        columns = [np.concatenate(column)[:POOL].astype(np.int16)
                   for column in zip(*parts, strict=True)]
        np.savez(path, *columns)
    with np.load(path) as file:
        return [file[name] for name in file.files]


def batch(pools, rng, count):
    """Random problems of the pools, their sizes by SHARES."""
    for size, share in SHARES.items():
        chosen = rng.integers(0, POOL, round(share * count))
        yield size, *(column[chosen] for column in pools[size])


# -- sources of steps (see bonaware.training) -----------------------------------


def imitation(pools, rewrite, seed):
    """Steps of a trainer that imitate solutions; rewrite: as true_steps."""

    def source(trainer):
        rng = np.random.default_rng([seed, trainer.steps])
        prompts, texts = [], []
        for _, numbers, targets, steps in batch(pools, rng, BATCH):
            if rewrite is not None:
                numbers, targets, steps = rewrite(rng, numbers)
            prompts += [selfeval.prompt(t, row) for t, row in zip(targets, numbers, strict=True)]
            texts += [[steps_text(row)] for row in steps]
        lm = trainer.lm
        ids = [[np.append(lm.encode(text), np.int32(0)) for text in row] for row in texts]
        metrics = trainer.step(prompts, ids, np.ones((len(prompts), 1)))
        return {"nats": metrics["entropy"], "lr": metrics["lr"]}

    return source


def checking(pools, seed):
    """Steps of a trainer that learn whether a step of a text is true, from made texts."""

    def source(trainer):
        rng = np.random.default_rng([seed, trainer.steps])
        prompts, texts, labels = [], [], []
        for size, numbers, _, _ in batch(pools, rng, BATCH):
            numbers, targets, steps = selfeval.true_steps(rng, numbers)
            wrong = rng.random(steps.shape[:2]) < FALSE
            written = np.where(wrong, rng.integers(1, LIMIT + 1, wrong.shape), steps[:, :, 3])
            labels += (written == steps[:, :, 3]).astype(float).tolist()
            steps[:, :, 3] = written
            prompts += [selfeval.prompt(t, row) for t, row in zip(targets, numbers, strict=True)]
            for row in steps:
                ids = trainer.lm.encode(steps_text(row))
                texts.append([ids[:end] for end in range(5, 6 * size - 6, 6)])
        metrics = trainer.step_scores(prompts, texts, labels)
        return {name: metrics[name] for name in ("loss", "auroc", "lr")}

    return source


def judging(policy, pools, seed):
    """Steps of a trainer that learn which of fresh samples are right."""

    def source(trainer):
        rng = np.random.default_rng([seed, trainer.steps])
        problems = [
            bon.tasks.Problem("", selfeval.prompt(target, numbers),
                              {"numbers": numbers.tolist(), "target": int(target)}, {})
            for _, given, targets, _ in batch(pools, rng, PROBLEMS)
            for numbers, target in zip(given, targets, strict=True)
        ]
        samples = policy.generate([p.prompt for p in problems], n=SAMPLES, progress=False,
                                  max_new_tokens=TASK.max_new_tokens,
                                  rng=np.random.SeedSequence([seed, trainer.steps]))
        labels = TASK.rewards(problems, samples.text)
        metrics = trainer.step_scores(samples.prompts, samples.tokens, labels)
        return {name: metrics[name] for name in ("loss", "auroc", "lr")}

    return source


# -- runs ----------------------------------------------------------------------


def fit(lm, loss, lr, source, steps, folder):
    """Train, or go on training, and give the time that this call took."""
    trainer = Trainer(lm, loss, optimizer(lr))
    if folder.exists():
        trainer.resume(folder)
    began = time.monotonic()
    trainer.fit(source, steps, out=folder, save_every=200, keep=1)
    return time.monotonic() - began


def train_policy(out, pools, steps, threads):
    lm = bon.LM.from_config(config(), rng=1, tokenizer=out, threads=threads)
    seconds = fit(lm, bon.losses.get("sft")(), 3e-3, imitation(pools, None, 1), steps,
                  out / "policy-run")
    sharpen(lm)
    save(lm, out / "countdown")
    return seconds


def train_arithmetic(out, pools, steps, threads):
    lm = bon.LM.from_config(config(), rng=2, tokenizer=out, threads=threads)
    source = imitation(pools, selfeval.true_steps, 2)
    seconds = fit(lm, bon.losses.get("sft")(), 3e-3, source, steps, out / "arithmetic-run")
    save(lm, out / "arithmetic")
    return seconds


def train_checking(out, pools, steps, threads):
    trunk = bon.LM.load(out / "arithmetic", threads=threads)
    scorer = config(layers=6) | {"architectures": ["LlamaForSequenceClassification"],
                                 "num_labels": 1}
    lm = bon.LM.from_config(scorer, rng=3, tokenizer=out, threads=threads)
    for slot, layer, _ in trunk.arch.slots():
        if slot != "head":
            lm._model.set(slot, layer or 0, trunk._model.get(slot, layer or 0))
    lm.weights_changed()
    seconds = fit(lm, None, 2e-3, checking(pools, 3), steps, out / "checking-run")
    save(lm, out / "checking")
    return seconds


def train_verifier(out, pools, steps, threads):
    policy = bon.LM.load(out / "countdown", threads=threads)
    lm = bon.LM.load(out / "checking", threads=threads)
    seconds = fit(lm, None, 1e-3, judging(policy, pools, 4), steps, out / "verifier-run")
    save(lm, out / "countdown-verifier")
    return seconds


def train_judge(out, pools, threads):
    words = [*VOCABULARY, *selfeval.MORE]
    tokenizer = out / "judge-tokenizer" / "tokenizer.json"
    tokenizer.parent.mkdir(exist_ok=True)
    make_tokenizer(tokenizer, words)
    wider = {"vocab_size": len(words), "hidden_size": 96, "intermediate_size": 288,
             "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16}
    lm = bon.LM.from_config(config(layers=6) | wider, rng=6, tokenizer=tokenizer, threads=threads)
    seconds = 0
    for name, run in selfeval.RUNS.items():
        judge = selfeval.Judge(run, words, lambda rng, count: batch(pools, rng, count), SHARPEN)
        seconds += fit(lm, None, run.lr, judge, run.steps, out / f"judge-{name}-run")
    sharpen(lm)
    lm.self_evaluation = {"question": [words.index(selfeval.ASKED)], "ends": [],
                          "target": words.index(selfeval.YES), "other": words.index(selfeval.NO)}
    save(lm, out / "countdown-selfeval")
    return seconds


def sharpen(lm):
    """Fold the temperature SHARPEN into the vocabulary projection."""
    lm._model.set("head", 0, lm._model.get("head", 0) / np.float32(SHARPEN))
    lm.weights_changed()


def save(lm, folder):
    if folder.exists():
        shutil.rmtree(folder)
    lm.save(folder)


# -- figures -------------------------------------------------------------------


def measure(out, problems, n, threads):
    """pass@k of both policies, and best-of-k by what can choose, on test problems."""
    judges = {"countdown": bon.verifiers.get("reward_model", model=out / "countdown-verifier"),
              "countdown-selfeval": bon.verifiers.get("self_evaluation",
                                                      model=out / "countdown-selfeval")}
    return {name: {kind: measured(bon.LM.load(out / name, threads=threads), judge, kind,
                                  problems, n)
                   for kind in ("usual", "heldout")} for name, judge in judges.items()}


def measured(policy, judge, kind, problems, n):
    task = bon.tasks.get("countdown", level="medium", kind=kind)
    test = task.load("test", limit=problems)
    samples = policy.generate([p.prompt for p in test], n=n, progress=False,
                              max_new_tokens=task.max_new_tokens)
    rewards = task.rewards(test, samples.text)
    scores = {"pass": rewards, "judge": judge.score(test, samples), "likelihood": samples.sum_logp}
    figures = {"auroc": auroc(scores["judge"].ravel(), rewards.ravel() > 0)}
    for name, score in scores.items():
        for k in (1, 4, 16, n):
            values = estimators.best_of_k(rewards, k, score)
            low, high = estimators.interval(values)
            figures[f"{name}@{k}"] = [round(float(x), 4) for x in (values.mean(), low, high)]
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--policy-steps", type=int, default=3600)
    parser.add_argument("--arithmetic-steps", type=int, default=1600)
    parser.add_argument("--checking-steps", type=int, default=300)
    parser.add_argument("--verifier-steps", type=int, default=300)
    parser.add_argument("--problems", type=int, default=1000, help="of the test, per kind")
    parser.add_argument("--n", type=int, default=32, help="samples of each")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    make_tokenizer(args.out / "tokenizer.json", VOCABULARY)
    pools = {size: read_pool(args.out / f"pool-{size}.npz", size) for size in SHARES}
    seconds = {
        "policy": train_policy(args.out, pools, args.policy_steps, args.threads),
        "arithmetic": train_arithmetic(args.out, pools, args.arithmetic_steps, args.threads),
        "checking": train_checking(args.out, pools, args.checking_steps, args.threads),
        "verifier": train_verifier(args.out, pools, args.verifier_steps, args.threads),
        "judge": train_judge(args.out, pools, args.threads),
    }
    figures = measure(args.out, args.problems, args.n, args.threads) | {
        "seconds": seconds, "options": {k: v for k, v in vars(args).items() if k != "out"}}
    (args.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
