"""The commands bonaware selfeval build | train | calibrate; see `bonaware.selfeval`."""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import bonaware
from bonaware import cli

__all__ = ["add"]

MODEL = "a Hugging Face folder, or the name of an embedded model"
ENGINE = ("dtype", "threads", "memory")
SUMMARY = "teach a model to say whether starting over would do better, and measure it"

BUILD = """\
examples:
  bonaware selfeval build --model countdown --task countdown --limit 2000 --out rows.jsonl
  bonaware selfeval build --model models/Qwen3-0.6B --task gsm8k --split train --n 8 \\
                          --verifier reward_model:model=models/rm --eps 0.1 --out rows.parquet
  bonaware selfeval build --samples run.sqlite --out rows.jsonl
  bonaware selfeval build --samples scored.jsonl --scores rating --model m --out rows.jsonl

Samples are drawn as bonaware evaluate draws them, into a store: rows.sqlite beside rows.jsonl.
After Ctrl-C, a crash or a kill the same command goes on where it stopped. A sample's label is the
share of the other samples of its prompt that it is at least as good as.
"""

TRAIN = """\
examples:
  bonaware selfeval train --model countdown --rows rows.jsonl --question-ids 15 --target 16 \\
                          --other 17 --steps 500 --lr 1e-4 --out runs/selfeval
  bonaware selfeval train --model models/Qwen3-0.6B --rows rows.parquet --lora-rank 16 --kl 0.1 \\
                          --out runs/qwen --eval-rows held-out.parquet --eval-every 50
  bonaware selfeval train --model countdown --task countdown --n 16 --out runs/selfeval ...

With --task samples are drawn and labelled afresh for every step. Checkpoints are folders for
--model; each says in self_evaluation.json what is asked. After Ctrl-C, a crash or a kill the same
command with --resume goes on.
"""

CALIBRATE = """\
examples:
  bonaware selfeval calibrate --model runs/selfeval/step-000500 --rows held-out.jsonl
  bonaware selfeval calibrate --model m --rows held-out.jsonl --plot calibration.png --json

Rows come from bonaware selfeval build, of problems that were not learned from.
"""


def add(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to those of `bonaware`; command makes one among others."""
    group = commands.add_parser("selfeval", help=SUMMARY, description=SUMMARY)
    among = group.add_subparsers(required=True, metavar="COMMAND")
    summary = "label samples, whole and cut, from what their rewards or a verifier say"
    _build_arguments(command("build", _build, summary, BUILD, among))
    _train_arguments(command("train", _train, SUMMARY, TRAIN, among))
    summary = "reliability, ECE, Brier score and AUROC by fraction generated"
    _calibrate_arguments(command("calibrate", _calibrate, summary, CALIBRATE, among))


# -- build -------------------------------------------------------------------


def _build(args: argparse.Namespace) -> bool:
    from bonaware import selfeval

    _check_source(args, "--samples FILE", args.samples)
    _check_build(args)
    if args.samples:
        lm = cli._load(args) if args.model else None
        found = selfeval.recorded(args.samples, args.scores, lm)
        samples, scores, problems = found.samples, found.scores, found.problems
    else:
        run = _drawn(args)
        if not run.complete:
            return False
        samples, scores = run.samples, next(iter(run.scores.values()), run.rewards)
        problems = [problem.id for problem in run.problems]
    rows = selfeval.build(samples, scores, labels=args.labels, eps=args.eps,
                          fractions=args.fractions, per_sample=args.per_sample, problems=problems,
                          rng=args.seed)
    seen = _Seen()
    count = selfeval.write_rows(args.out, seen.through(rows))
    figures = {"rows": count, "prompts": len(seen.prompts), "whole": seen.whole,
               "label": seen.total / max(count, 1), "file": str(args.out)}
    print(json.dumps(figures) if args.json else
          f"{count} rows of {len(seen.prompts)} prompts, {seen.whole} of whole samples, mean label "
          f"{figures['label']:.4f}: {args.out}")
    return True


def _check_build(args: argparse.Namespace) -> None:
    """What would be ignored, or fail behind the drawing."""
    from bonaware.selfeval.rows import writer_of

    if args.samples:
        used = {"model", "seed", *(ENGINE if args.model else ())}
        ignored = [action for action in args.drawing if action.dest not in used]
        cli._refuse(args, ignored, "is for drawing; --samples are drawn")
    elif args.scores:
        raise cli.UsageError("--scores is for --samples; with --task give --verifier")
    elif args.n < 2:
        raise cli.UsageError(f"--n must be at least 2, to compare samples, got {args.n}")
    writer_of(Path(args.out))
    if Path(args.out).suffix == ".parquet":
        cli._need("pyarrow", "Parquet needs pyarrow: pip install 'bonaware[arrow]'")


class _Seen:
    """Counts rows that go by."""

    def __init__(self) -> None:
        self.prompts: set[str] = set()
        self.whole, self.total = 0, 0.0

    def through(self, rows: Iterable[Any]) -> Iterator[Any]:
        for row in rows:
            self.prompts.add(row.problem)
            self.whole += row.fraction == 1
            self.total += row.label
            yield row


def _drawn(args: argparse.Namespace) -> Any:
    """The run that the rows are made from, drawn into its store."""
    task = bonaware.tasks.get(args.task, **dict(args.task_option))
    task.load(split=args.split, limit=1)  # missing data are said before a large model is read
    verifiers = {label: cli._made_verifier(name, options, args) if options else name
                 for label, (name, options) in (args.verifier or {}).items()}
    if len(verifiers) > 1:
        raise cli.UsageError("--verifier is given twice, but labels come from one")
    lm = cli._load(args)
    store = Path(args.store or Path(args.out).with_suffix(".sqlite"))
    cli._say(f"store: {store}{' (continued)' if store.exists() else ''}")
    sampling = {name: getattr(args, name) for name in cli.SAMPLING}
    return bonaware.evaluate(
        lm, task, args.n, verifiers=verifiers, limit=args.limit, split=args.split, rng=args.seed,
        store=store, progress=True, **sampling,
    )  # fmt: skip


def _check_source(args: argparse.Namespace, other: str, given: Any) -> None:
    """Either of two things to begin with, and a model to draw with."""
    if bool(given) == bool(args.task):
        raise cli.UsageError(f"give either {other} or --task NAME")
    if args.task and not args.model:
        raise cli.UsageError("--task draws samples: it needs --model FOLDER")


def _build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = ("bonaware selfeval build --model FOLDER --task NAME --out FILE [options]\n"
                    "       bonaware selfeval build --samples FILE --out FILE [options]")
    parser.add_argument("--out", metavar="FILE", required=True, help="rows as .jsonl or .parquet")
    drawn = parser.add_argument_group("samples that are drawn")
    drawn.add_argument("--model", metavar="FOLDER", help=MODEL)
    _task_arguments(drawn)
    drawn.add_argument("--verifier", metavar="NAME[:OPTION=VALUE,...]", action=cli._Verifier,
                       help="its scores make the labels (default: the task's rewards)")
    drawn.add_argument("--store", metavar="FILE", help="default: beside --out, as .sqlite")
    recorded = parser.add_argument_group("recorded samples, instead")
    recorded.add_argument("--samples", metavar="FILE", help="the store of a run, or JSONL with "
                          "prompt, tokens or completion, and a score")  # fmt: skip
    recorded.add_argument("--scores", metavar="NAME", help="verifier of the store, or field of the "
                          "JSONL (default: the rewards)")  # fmt: skip
    _label_arguments(parser)
    cli._model_arguments(parser, n=16, length="the task's")
    parser.set_defaults(drawing=[*drawn._group_actions, *parser.get_default("drawing")])


def _task_arguments(group: Any) -> None:
    group.add_argument("--task", metavar="NAME", help=", ".join(bonaware.tasks.available()))
    group.add_argument("--task-option", metavar="NAME=VALUE", type=cli._option, action="append",
                       default=[], help="an option of the task; may be repeated")  # fmt: skip
    group.add_argument("--split", default="train", help="default: train")
    group.add_argument("--limit", type=int, metavar="P", help="the first P problems only")


def _label_arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    group = parser.add_argument_group("labels")
    group.add_argument("--labels", default="soft", choices=("soft", "pairs"),
                       help="against all other samples of the prompt, or one (default: soft)")
    group.add_argument("--eps", type=float, default=0.0, metavar="E",
                       help="worse by at most this counts as good (default: 0)")  # fmt: skip
    group.add_argument("--fractions", type=cli._numbers(float), default=[0.25, 0.5, 0.75, 1.0],
                       metavar="F,F,...", help="cut each sample at a random token between each and "
                       "the one before (default: .25,.5,.75,1)")  # fmt: skip
    group.add_argument("--per-sample", type=int, metavar="K",
                       help="so many rows of each sample at random (default: all)")
    return group._group_actions


# -- train -------------------------------------------------------------------


def _train(args: argparse.Namespace) -> bool:
    from bonaware import selfeval
    from bonaware.training.folder import holds_run

    _check_source(args, "--rows FILE", args.rows)
    if args.rows:
        cli._refuse(args, args.fresh, "is for --task, which draws; --rows are labelled")
    else:
        cli._refuse(args, args.stored, "is for --rows")
    if not args.eval_rows:
        cli._refuse(args, args.measured, "needs --eval-rows FILE to measure on")
    if args.resume and not holds_run(args.out):
        raise cli.UsageError(f"--resume: {args.out} holds no run to go on with")
    question = _question(args)
    evaluation = selfeval.HeldOut(args.eval_rows) if args.eval_rows else None
    lora = bonaware.LoRA(rank=args.lora_rank, alpha=args.lora_alpha) if args.lora_rank else None
    optimizer = bonaware.AdamW(lr=args.lr, warmup=args.warmup, schedule=args.schedule)
    trainer = selfeval.train(
        cli._load(args), _source(args), args.steps, **question, optimizer=optimizer, lora=lora,
        kl=args.kl, out=args.out, resume=args.resume, save_every=args.save_every,
        evaluation=evaluation, eval_every=args.eval_every if evaluation else 0, progress=True,
    )  # fmt: skip
    cli._report(args, trainer, args.json)
    return trainer.steps >= args.steps


def _source(args: argparse.Namespace) -> Any:
    """What is learned from."""
    from bonaware import selfeval

    if args.rows:
        return selfeval.Answers(args.rows, args.prompts, per_prompt=args.per_prompt, seed=args.seed)
    return selfeval.OnPolicy(
        bonaware.tasks.get(args.task, **dict(args.task_option)), args.n, args.prompts,
        labels=args.labels, eps=args.eps, fractions=args.fractions, per_sample=args.per_sample,
        temperature=args.temperature, split=args.split, limit=args.limit, seed=args.seed,
        max_new_tokens=args.max_new_tokens,
    )  # fmt: skip


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = ("bonaware selfeval train --model FOLDER --rows FILE --out FOLDER [options]\n"
                    "       bonaware selfeval train --model FOLDER --task NAME --out FOLDER "
                    "[options]")
    parser.add_argument("--model", metavar="FOLDER", required=True, help=MODEL)
    parser.add_argument("--out", metavar="FOLDER", required=True, help="of the run")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    rows = parser.add_argument_group("rows of bonaware selfeval build")
    rows.add_argument("--rows", metavar="FILE", help=".jsonl or .parquet")
    rows.add_argument("--per-prompt", type=int, metavar="K",
                      help="at most so many rows of a prompt per step (default: all)")
    fresh = parser.add_argument_group("samples drawn for every step, instead")
    _task_arguments(fresh)
    fresh.add_argument("--n", type=int, default=16, help="samples per prompt (default: 16)")
    fresh.add_argument("--temperature", type=float, default=1.0, help="default: 1")
    fresh.add_argument("--max-new-tokens", type=int, metavar="T", help="default: the task's")
    labels = _label_arguments(parser)
    _question_arguments(parser)
    how = parser.add_argument_group("training")
    how.add_argument("--steps", type=int, default=100, help="of the whole run (default: 100)")
    how.add_argument("--prompts", type=int, default=16, help="prompts per step (default: 16)")
    how.add_argument("--lr", type=float, default=1e-5, help="default: 1e-5")
    how.add_argument("--warmup", type=int, default=0, metavar="STEPS", help="default: 0")
    how.add_argument("--schedule", default="constant", choices=("constant", "linear", "cosine"))
    how.add_argument("--kl", type=float, default=0.0, help="strength of the divergence from the "
                     "model as it was, nats per token (default: 0)")  # fmt: skip
    how.add_argument("--lora-rank", type=int, default=0, metavar="R",
                     help="of low-rank adapters (default: all weights are trained)")
    how.add_argument("--lora-alpha", type=float, default=16.0, metavar="A", help="default: 16")
    how.add_argument("--seed", type=int, default=0, help="default: 0")
    how.add_argument("--save-every", type=int, default=0, metavar="STEPS",
                     help="a checkpoint after so many steps (default: at the end only)")
    how.add_argument("--eval-rows", metavar="FILE", help="rows that are not learned from")
    every = how.add_argument("--eval-every", type=int, default=50, metavar="STEPS",
                             help="measure on them (default: 50)")  # fmt: skip
    cli._engine_arguments(parser)
    parser.set_defaults(fresh=[*fresh._group_actions, *labels], stored=rows._group_actions,
                        measured=[every])


# -- calibrate ---------------------------------------------------------------


def _calibrate(args: argparse.Namespace) -> bool:
    from bonaware import selfeval

    if args.plot:
        cli._need("matplotlib", "plots need matplotlib: pip install 'bonaware[plot]'")
    question = _question(args)
    rows = selfeval.read_rows(args.rows)
    lm = cli._load(args)
    scores = selfeval.score_rows(lm, rows, **question, renormalise=args.renormalise, progress=True)
    found = selfeval.calibration(scores, [row.label for row in rows], args.bins,
                                 fractions=[row.fraction for row in rows])
    print(json.dumps(found.to_dict() | {"model": lm.name, "rows": args.rows}) if args.json
          else found.to_text())
    if args.plot:
        _figure(found).savefig(args.plot, dpi=150)
        cli._say(f"plot: {args.plot}")
    return True


def _figure(found: Any) -> Any:
    """Reliability, and AUROC by fraction."""
    from bonaware import plot

    axes = plot._plt().subplots(1, 2, figsize=(11, 4.4), layout="constrained")[1]
    plot.reliability(found, axes[0])
    return plot.auroc_by_fraction(found, axes[1]).figure


def _calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="FOLDER", required=True, help=MODEL)
    parser.add_argument("--rows", metavar="FILE", required=True, help=".jsonl or .parquet")
    parser.add_argument("--bins", type=int, default=10, help="of the scores (default: 10)")
    parser.add_argument("--renormalise", action="store_true",
                        help="over the two answers in place of the whole vocabulary")
    parser.add_argument("--plot", metavar="FILE", help="as .png, .pdf or .svg")
    _question_arguments(parser)
    cli._engine_arguments(parser)


# -- shared ------------------------------------------------------------------


def _question(args: argparse.Namespace) -> dict[str, Any]:
    """What is asked, as `Question.of` takes it."""
    question: Any = args.question_ids
    if args.question is not None:
        question = [{"role": "user", "content": args.question}]
    return {"question": question, "target": args.target, "other": args.other}


def _question_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("question (default: the model's own, else the paper's)")
    asked = group.add_mutually_exclusive_group()
    asked.add_argument("--question", metavar="TEXT", help="asked as a user of a chat")
    asked.add_argument("--question-ids", type=cli._numbers(int), metavar="ID,ID,...",
                       help="tokens that stand behind the sample, such as a special one")
    group.add_argument("--target", type=_answer, metavar="ID|TEXT", help="token for: starting over "
                       "would do no better (default: No)")  # fmt: skip
    group.add_argument("--other", type=_answer, metavar="ID|TEXT", help="for: it would (default: "
                       "Yes)")  # fmt: skip


def _answer(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
