"""The command line: bonaware evaluate | report | export | generate | train | selfeval and so on.

Same words as in Python. Results go to standard output; settings, bar and errors to standard
error. Exit code 0: done; 1: it failed, and one sentence says why; 2: wrong command line.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import bonaware
from bonaware.data import policies as embedded_policies

__all__ = ["main"]

SIZES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
HIDDEN = ("routes", "fingerprint")  # long, and in the store
# What `bonaware evaluate` without --model, --task and --samples takes: what comes with the package.
EMBEDDED = {
    "model": "countdown",
    "task": "countdown",
    "limit": 300,
    "verifier": {
        "countdown-verifier": ("reward_model", {"model": "countdown-verifier",
                                                "probabilities": True}),
        "likelihood": ("likelihood", {}),
    },
}
# The same with a --policy: the embedded model that learnt to judge itself.
JUDGE = {"model": "countdown-selfeval", "verifier": None}
# Where no --verifier is given: what selects, and what guides a --policy that needs scores.
SELECTOR: dict[str, tuple[str, dict[str, Any]]] = {"likelihood": ("likelihood", {})}
GUIDE: dict[str, tuple[str, dict[str, Any]]] = {"self_evaluation": ("self_evaluation", {})}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "max_new_tokens", "stop_strings")

EVALUATE = """\
examples:
  bonaware evaluate
  bonaware evaluate --n 64 --limit 1000 --task-option level=hard
  bonaware evaluate --model models/stories --task keywords
  bonaware evaluate --model models/Qwen3-0.6B --task gsm8k --n 32 --limit 100 --plot curves.png
  bonaware evaluate --model models/Qwen3-0.6B --task jsonl --task-option path=mine.jsonl
  bonaware evaluate --model countdown --task countdown --verifier exact \\
                    --verifier reward_model:model=countdown-verifier
  bonaware evaluate --policy adaptive:threshold=0.9,n=16
  bonaware evaluate --policy prune:n=16,checkpoints=[9,18],fractions=[0.75,0.5]
  bonaware evaluate --model models/Qwen3-0.6B --task gsm8k \\
                    --policy prune:n=16,checkpoints=64,fractions=0.5
  bonaware evaluate --samples recorded.jsonl --rewards correct --scores reward_model
  bonaware evaluate --samples completions.jsonl --task humaneval
  bonaware evaluate --samples run.sqlite

Without --model, --task and --samples the embedded model and verifier are measured on 300
problems of the task countdown; with --policy it is another embedded model, countdown-selfeval,
which judges itself (--policy best_of_n:n=16 gives what to compare with). A policy decides how
much is drawn of each problem; if it needs scores, the first --verifier guides it, and where
none is given the model's own self_evaluation.
Every finished sample is stored at once. After Ctrl-C, a crash or a kill the same command goes
on where it stopped; a larger --n draws only what is missing.
The report is one HTML page beside the store: curves, tables, and the samples to look through.
"""

REPORT = """\
examples:
  bonaware report run.sqlite
  bonaware report adaptive.sqlite best_of_16.sqlite --out compared.html
  bonaware report samples_gsm8k_2026-11-22T08-33-22.jsonl --task gsm8k --problem doc.question
  bonaware report logs/2026-11-22_gsm8k.eval --rewards reward_match

Runs beside the first add what they reach for their tokens, and their temperatures.
"""

GENERATE = """\
examples:
  bonaware generate --model models/Qwen3-0.6B --chat --n 4 "Why is the sky blue?"
  bonaware generate --model models/Qwen3-0.6B --file prompts.jsonl --n 32 --json > samples.jsonl
  echo "Once upon a time" | bonaware generate --model models/stories --temperature 0 --n 1
"""

TRAIN = """\
examples:
  bonaware train countdown.toml
  bonaware train countdown.toml --lr 1e-4 --steps 200 --out runs/lr1e-4
  bonaware train --model models/Qwen3-0.6B --task gsm8k --loss bon --k 1,16 --out runs/qwen
  bonaware train --model models/Qwen3-0.6B --texts solutions.jsonl --out runs/sft
  bonaware train --resume runs/qwen

Every option is also a key of the TOML file, with _ for -. What a run depends on is written into
its folder as config.toml, its figures as metrics.jsonl, one line per step, and its checkpoints as
step-NNNNNN: folders for --model, and for transformers. After Ctrl-C, a crash or a kill --resume
goes on from the newest checkpoint, bit for bit as if nothing had happened.
"""


class UsageError(Exception):
    """The command line is wrong in a way that argparse does not see."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        Default: the arguments of the process.

    Returns
    -------
    int
        The exit code.
    """
    args = _parser().parse_args(argv)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "5")  # seconds: a bar in a log stays short
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(f"bonaware: {message}")
        try:
            return _run(args)
        except UsageError as error:
            prog = args.parser.prog
            args.parser.exit(2, f"{prog}: {error}\nsee {prog} --help\n")
        except BrokenPipeError:
            # The reader (head, less) has seen enough; Python would complain again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (Exception, KeyboardInterrupt) as error:
            if args.debug:
                raise
            _say(f"bonaware: {_sentence(error)}")
            return 1
    return 0


def _run(args: argparse.Namespace) -> int:
    with contextlib.ExitStack() as args.opened:
        done = args.run(args)
    sys.stdout.flush()
    return 0 if done else 1


# -- evaluate ----------------------------------------------------------------


def _evaluate(args: argparse.Namespace) -> bool:
    if not (args.samples or args.model or args.task):
        _take_embedded(args)
    _check_evaluate(args)
    run = _recorded(args.samples, args) if args.samples else _drawn(args)
    report = _report_path(run, args)
    print(json.dumps(_as_json(run, report)) if args.json else _shown(run))
    if report:
        _say(f"report: {run.report(report)}")
    if args.export:
        _write_table(run.store, args.export)
    if args.plot:
        run.plot().figure.savefig(args.plot, dpi=150)
        _say(f"plot: {args.plot}")
    if run.store and not args.samples:
        more = "" if args.policy else "a larger --n adds to it, "
        _say(f"samples: {run.store} ({more}--export FILE.parquet makes a table; to start afresh, "
             "delete it or give another --store)")
    return run.complete or bool(args.samples)


def _take_embedded(args: argparse.Namespace) -> None:
    """Fill in what was not given."""
    for name, value in (EMBEDDED | (JUDGE if args.policy else {})).items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def _shown(run: Any) -> str:
    """Table and curves, as wide as the terminal; in a file or a pipe the table is not folded."""
    columns = shutil.get_terminal_size().columns
    text = run.summary(columns if sys.stdout.isatty() else None)
    if run.counted.any():
        text = f"{text}\n\n{run.chart(min(columns, 100), sys.stdout.encoding or 'ascii')}"
    return _printable(text)


def _report_path(run: Any, args: argparse.Namespace) -> Path | None:
    """Beside the store that was drawn into, unless said otherwise."""
    if args.report or args.no_report:
        return Path(args.report) if args.report else None
    return run.store.with_suffix(".report.html") if run.store and not args.samples else None


def _check_evaluate(args: argparse.Namespace) -> None:
    if args.samples and args.model:
        raise UsageError("give --samples, or --model and --task, not both")
    if args.samples and args.policy:
        raise UsageError("--policy decides what is drawn; --samples are drawn: see "
                         "bonaware.policies.replay")
    if args.policy and args.k:
        raise UsageError("--k is for curves, which samples whose number --policy decides do not "
                         "give")
    if not args.samples and not (args.model and args.task):
        given, missing = ("model", "task NAME") if args.model else ("task", "model FOLDER")
        known = embedded_policies() if args.task else bonaware.tasks.available()
        raise UsageError(
            f"--{given} {getattr(args, given)} needs --{missing} too: {', '.join(known)}"
            f"{', or a folder' if args.task else ''}; with neither, the embedded model is measured"
        )
    if args.export and (args.samples or args.no_store):
        raise UsageError("--export writes what is in the store: it needs --model and a store")
    if args.export:
        _check_table(args.export)
    if args.samples:
        _refuse(args, args.drawing, "is for drawing; --samples are drawn")
    if args.report and not Path(args.report).absolute().parent.is_dir():
        raise UsageError(f"--report {args.report}: {Path(args.report).parent} is no folder")
    if args.plot:
        _need("matplotlib", "plots need matplotlib: pip install 'bonaware[plot]'")


def _refuse(args: argparse.Namespace, actions: Iterable[argparse.Action], why: str) -> None:
    """No option is ignored in silence."""
    for action in actions:
        if getattr(args, action.dest) != action.default:
            raise UsageError(f"{action.option_strings[0]} {why}")


def _need(module: str, sentence: str) -> None:
    """Said before the samples are drawn, not after."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(sentence)


def _recorded(path: str, args: argparse.Namespace) -> Any:
    fields = ("rewards", "answers", "gold", "problem", "texts")
    named = {name: getattr(args, name) for name in fields}
    task = bonaware.tasks.get(args.task, **dict(args.task_option)) if args.task else None
    run = bonaware.evaluate_recorded(
        path, task, split=args.split, **named, scores=args.scores, k=args.k
    )
    _say_settings(run.settings)
    _say_remarks(task)
    return run


def _drawn(args: argparse.Namespace) -> Any:
    task = bonaware.tasks.get(args.task, **dict(args.task_option))
    # What is missing is said before a large model is read.
    task.load(split=args.split, limit=1)
    judging = task.settings()
    policy = bonaware.policies.get(args.policy[0], **args.policy[1]) if args.policy else None
    judged = policy is not None and policy.judged
    verifiers = {
        label: _made_verifier(name, options, args) if options else name
        for label, (name, options) in (args.verifier or (GUIDE if judged else SELECTOR)).items()
    }
    guide = next(iter(verifiers)) if judged else None
    lm = _load(args)
    sampling = {name: getattr(args, name) for name in SAMPLING}
    store = None if args.no_store else args.store or _store_name(lm, args, sampling, guide)
    defaults = {"max_new_tokens": task.max_new_tokens, "stop_strings": list(task.stop_strings)}
    given = {name: value for name, value in sampling.items() if value is not None}
    _say_settings(
        lm.settings()
        | {"task": task.name, **dict(args.task_option), "split": args.split, "limit": args.limit}
        | judging
        | {"verifiers": ", ".join(verifiers), "n": _n_of(args, policy), "seed": args.seed}
        | ({"policy": repr(policy), "guide": guide} if policy else {})
        | sampling | defaults | given
    )  # fmt: skip
    if store:
        _say(f"store: {store}{' (continued)' if Path(store).exists() else ''}")
    run = bonaware.evaluate(
        lm, task, args.n, policy=policy, k=args.k, verifiers=verifiers, limit=args.limit,
        split=args.split, rng=args.seed, store=store, progress=True, **sampling,
    )  # fmt: skip
    _say_remarks(task)
    return run


def _made_verifier(name: str, options: dict[str, Any], args: argparse.Namespace) -> Any:
    """A verifier with its options; threads and memory of the run are those of its model too."""
    from bonaware.verifiers._loading import with_engine

    engine = {"threads": args.threads, "memory": args.memory}
    return bonaware.verifiers.get(name, **with_engine(name, options, **engine))


def _n_of(args: argparse.Namespace, policy: Any) -> int:
    """Samples per problem at most."""
    if args.n is None:
        return policy.n if policy else 32
    return args.n


def _store_name(lm: Any, args: argparse.Namespace, sampling: dict[str, Any],
                guide: str | None) -> str:
    """In the current folder; one name for the same samples, whatever n and limit are."""
    same = [lm.fingerprint, args.task, sorted(args.task_option), args.split, args.seed, sampling]
    if args.policy:
        same += [args.policy, guide]
    digest = hashlib.sha256(json.dumps(same).encode()).hexdigest()[:8]
    return f"{'-'.join(dict.fromkeys([lm.name, args.task]))}-{digest}.sqlite"


def _as_json(run: Any, report: Path | None) -> dict[str, Any]:
    stats = run.samples.stats if run.samples else None
    return {
        "settings": run.settings,
        "store": str(run.store) if run.store else None,
        "report": str(report) if report else None,
        "complete": run.complete,
        **run.to_dict(),
        "stats": stats and dataclasses.asdict(stats),
    }


# -- report and export ---------------------------------------------------------


def _page(args: argparse.Namespace) -> bool:
    given = (args.samples, *args.beside)
    out = Path(args.out or Path(args.samples).with_suffix(".report.html"))
    if out.resolve() in [Path(path).resolve() for path in given]:
        raise UsageError(f"--out {out}: the page would replace what it is made of")
    run, *beside = (_recorded(path, args) for path in given)
    out = run.report(out, beside=beside)
    print(json.dumps({"report": str(out)}) if args.json else out)
    return True


def _export(args: argparse.Namespace) -> bool:
    _check_table(args.out)
    _write_table(args.store, args.out)
    if args.json:
        print(json.dumps({"table": args.out}))
    return True


def _check_table(path: str) -> None:
    """Said before samples are drawn, not after."""
    if Path(path).suffix not in (".parquet", ".jsonl"):
        raise UsageError(f"a table needs a name ending in .parquet or .jsonl, got {path}")
    if Path(path).suffix == ".parquet":
        _need("pyarrow", "Parquet needs pyarrow: pip install 'bonaware[arrow]'")


def _write_table(store: str | Path, path: str) -> None:
    from bonaware.store import Store

    with Store(store, readonly=True) as opened:
        opened.export(path)
    _say(f"table: {path}")


# -- generate ----------------------------------------------------------------


def _generate(args: argparse.Namespace) -> bool:
    prompts = [_prompt(text, args) for text in args.prompt] or _read_prompts(args)
    lm = _load(args)
    sampling = {name: getattr(args, name) for name in SAMPLING if getattr(args, name) is not None}
    _say_settings(lm.settings() | {"n": args.n, "seed": args.seed} | sampling)
    samples = lm.generate(prompts, args.n, rng=args.seed, progress=True, **sampling)
    for sample in samples:
        if args.json:
            print(_sample_json(sample))
        else:
            print(_sample_text(sample, titled=len(prompts) * args.n > 1))
    _say(f"{samples.stats!r}")
    return bool(samples.valid.all()) and "aborted" not in samples.finish_reason


def _prompt(text: str, args: argparse.Namespace) -> Any:
    if not args.ids:
        return [{"role": "user", "content": text}] if args.chat else text
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise UsageError(f"--ids needs token ids such as '1 403 407', got {text!r}") from None


def _read_prompts(args: argparse.Namespace) -> list[Any]:
    """The prompts of --file, else of standard input when something is piped in."""
    if args.file is None and sys.stdin.isatty():
        raise UsageError("give a PROMPT, or --file FILE, or pipe prompts in, one per line")
    if args.file in (None, "-"):
        prompts = _line_prompts(sys.stdin, args)
    elif args.file.endswith(".jsonl"):
        prompts = [_row_prompt(args, *row) for row in bonaware.tasks.read_jsonl(args.file)]
    else:
        with open(args.file, encoding="utf-8") as file:
            prompts = _line_prompts(file, args)
    if not prompts:
        raise ValueError(f"{args.file or 'standard input'} holds no prompt")
    return prompts


def _line_prompts(file: Iterable[str], args: argparse.Namespace) -> list[Any]:
    return [_prompt(line.rstrip("\n"), args) for line in file if line.strip()]


def _row_prompt(args: argparse.Namespace, number: int, row: dict[str, Any]) -> Any:
    for name in ("prompt", "messages"):
        if name in row:
            return _prompt(row[name], args) if isinstance(row[name], str) else row[name]
    raise ValueError(
        f"{args.file}, line {number}: need a field 'prompt' or 'messages', found {', '.join(row)}"
    )


def _sample_json(sample: Any) -> str:
    return json.dumps(
        {
            "prompt": sample.prompt,
            "index": sample.index,
            "text": sample.text,
            "finish_reason": sample.finish_reason,
            "tokens": sample.tokens.tolist(),
            "logp": sample.logp.tolist(),
            "sampled_logp": sample.sampled_logp.tolist(),
        }
    )


def _sample_text(sample: Any, titled: bool) -> str:
    ids = " ".join(map(str, sample.tokens.tolist()))
    text = ids if sample.text is None else _printable(sample.text)
    if not titled:
        return text
    return (
        f"--- prompt {sample.prompt}, sample {sample.index}: {sample.finish_reason}, "
        f"{len(sample.tokens)} tokens, log p {sample.logp.sum():.2f}\n{text}"
    )


def _printable(text: str) -> str:
    """A model's text must not steer the terminal: control characters are shown as escapes."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


# -- train -------------------------------------------------------------------


def _train(args: argparse.Namespace) -> bool:
    from bonaware.training import config as training

    if args.resume and (args.file or args.changes.get("out")):
        raise UsageError("--resume says what to go on with: give neither CONFIG.toml nor --out")
    changes = {name: dict(value) if name.endswith("_options") else value
               for name, value in args.changes.items()}
    if args.resume:
        file = Path(args.resume, training.CONFIG)
        config = training.TrainConfig.read(file, **changes | {"out": args.resume})
    elif args.file:
        config = training.TrainConfig.read(args.file, **changes)
    else:
        try:
            config = training.TrainConfig.of(changes)
        except ValueError as error:
            raise UsageError(error) from None
    _say(f"configuration:\n{config.to_toml()}")
    trainer = training.train(config, resume=bool(args.resume), progress=True)
    _report(config, trainer, args.json)
    return trainer.complete


def _report(config: Any, trainer: Any, as_json: bool) -> None:
    """Where the model is, and the newest figures."""
    from bonaware.training.folder import METRICS, newest

    out = Path(config.out)
    lines = (out / METRICS).read_text().splitlines()
    figures = {name: value for line in lines for name, value in json.loads(line).items()}
    model = newest(out) or "none, as no step was completed"
    if as_json:
        print(json.dumps({"steps": trainer.steps, "model": str(model), "metrics": figures}))
        return
    print(f"{trainer.steps} of {config.steps} steps")
    for name, value in figures.items():
        print(f"  {name:<24} {value:.6g}" if isinstance(value, float) else f"  {name:<24} {value}")
    print(f"model: {model}\nfigures of all steps: {out / METRICS}")


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    from bonaware.training.config import TrainConfig

    parser.usage = "bonaware train [CONFIG.toml] [options]\n       bonaware train --resume FOLDER"
    parser.add_argument("file", nargs="?", metavar="CONFIG.toml", help="default: options only")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the run in this folder")
    parser.set_defaults(changes={})
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(TrainConfig):
        name = field.metadata["group"]
        group = groups[name] = groups.get(name) or parser.add_argument_group(name)
        group.add_argument(f"--{field.name.replace('_', '-')}", **_flag(field))


class _Change(argparse.Action):
    """Collects what is given in `changes`, so that defaults stay with the dataclass."""

    def __call__(self, parser: Any, args: Any, values: Any, option: str | None = None) -> None:
        before = args.changes.get(self.dest, []) if self.dest.endswith("_options") else None
        value = values if before is None else [*before, values]
        args.changes = args.changes | {self.dest: value}


def _flag(field: dataclasses.Field) -> dict[str, Any]:
    """How argparse reads a field of TrainConfig."""
    from bonaware.training.config import kind_of

    kind, element, _ = kind_of(field.name)
    words = {str: "TEXT", int: "INT", float: "FLOAT", dict: "NAME=VALUE"}
    text = field.metadata["help"]
    if field.default not in (None, (), dataclasses.MISSING):
        shown = field.default if element is None else ",".join(map(str, field.default))
        text += f" (default: {shown})"
    parse = _bytes if field.name == "memory" else _option if kind is dict else kind
    word = words[element or kind]
    return {
        "action": _Change, "dest": field.name, "default": argparse.SUPPRESS, "help": text,
        "type": parse if element is None else _numbers(element),
        "metavar": word if element is None else f"{word},...",
    }  # fmt: skip


# -- lm-eval -----------------------------------------------------------------


def _lm_eval(args: argparse.Namespace) -> bool:
    """The harness's own command line, with bonaware among its models and filters."""
    importlib.import_module("bonaware.integrations.lm_eval")  # registers them
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["bonaware lm-eval", *args.words]
    cli_evaluate()
    return True


# -- config ------------------------------------------------------------------


def _config(args: argparse.Namespace) -> bool:
    if args.json:
        from bonaware.config import describe

        print(json.dumps(describe()))
    else:
        bonaware.show_config()
    return True


# -- shared ------------------------------------------------------------------


def _load(args: argparse.Namespace) -> Any:
    workers = getattr(args, "workers", None)
    if workers is not None:
        from bonaware.integrations.ray import Cluster  # said before a model is loaded
    lm = bonaware.LM.load(
        args.model, dtype=args.dtype, threads=args.threads, memory=args.memory
    )
    if workers is None:
        return lm
    return args.opened.enter_context(Cluster(lm, workers, threads=args.threads))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _say_remarks(task: Any) -> None:
    if task is not None and (remarks := task.remarks()):
        _say(remarks)


def _say_settings(settings: dict[str, Any]) -> None:
    shown = {name: value for name, value in settings.items()
             if name not in HIDDEN and value is not None}
    _say("settings: " + ", ".join(f"{name} {value}" for name, value in shown.items()))


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    told = ValueError | TypeError | OSError | RuntimeError | ImportError | MemoryError
    if isinstance(error, told) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _numbers(kind: type) -> Any:
    def numbers(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    numbers.__name__ = f"list of {kind.__name__}"
    return numbers


def _temperature(text: str) -> float | list[float]:
    values = [float(part) for part in text.split(",")]
    return values[0] if len(values) == 1 else values


def _bytes(text: str) -> int:
    unit = text[-1:].upper()
    try:
        return int(float(text[:-1]) * SIZES[unit]) if unit in SIZES else int(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"need a size such as 8G, got {text!r}") from None


def _option(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as JSON where it is JSON, else as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"need NAME=VALUE, got {text!r}")
    with contextlib.suppress(ValueError):
        return name, json.loads(value)
    return name, value


def _named(text: str) -> tuple[str, dict[str, Any]]:
    """NAME or NAME:OPTION=VALUE,... as name and options."""
    name, _, rest = text.partition(":")
    # A comma parts options only where another one begins: paths and lists may hold some.
    options = [_option(part) for part in re.split(r",(?=\w+=)", rest) if rest]
    for i, (option, _) in enumerate(options):
        if option in dict(options[:i]):
            raise argparse.ArgumentTypeError(f"{option} is given twice; a list stands in brackets, "
                                             f"{option}=[1,2]")
    return name, dict(options)


class _Verifier(argparse.Action):
    """NAME or NAME:OPTION=VALUE,... into a dict: what was given -> name and options."""

    def __call__(self, parser: Any, args: Any, values: Any, option: str | None = None) -> None:
        try:
            named = _named(values)
        except argparse.ArgumentTypeError as error:
            parser.error(f"{option} {values}: {error}")
        setattr(args, self.dest, {**(getattr(args, self.dest) or {}), values: named})


def _parser() -> argparse.ArgumentParser:
    from bonaware import _cli_selfeval  # which takes its options from here

    parser = argparse.ArgumentParser(
        prog="bonaware", description="Best-of-N on CPU: draw, select, measure."
    )
    parser.add_argument("--version", action="version", version=f"bonaware {bonaware.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, summary: str, epilog: str = "",
                among: Any = commands) -> argparse.ArgumentParser:
        made = among.add_parser(
            name, help=summary, description=summary, epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        made.add_argument("--json", action="store_true", help="results as JSON")
        made.add_argument("--debug", action="store_true", help="errors with their traceback")
        made.set_defaults(run=run, parser=made)
        return made

    summary = "draw n samples per problem, reward and score them, estimate what k tries give"
    _evaluate_arguments(command("evaluate", _evaluate, summary, EVALUATE))
    summary = "write the HTML page of a store, of recorded samples, or of a harness's log"
    _page_arguments(command("report", _page, summary, REPORT))
    summary = "write the samples of a store as a table that DuckDB, polars and pandas read"
    exporting = command("export", _export, summary)
    exporting.add_argument("store", metavar="STORE", help="of a run, an SQLite file")
    exporting.add_argument("out", metavar="TABLE", help="a name ending in .parquet or .jsonl")
    _generate_arguments(command("generate", _generate, "draw samples of prompts", GENERATE))
    summary = "train on the samples of a task, on texts, or a score head on labelled ones"
    _train_arguments(command("train", _train, summary, TRAIN))
    _cli_selfeval.add(commands, command)
    summary = "the lm-evaluation-harness with bonaware as --model bonaware; its own options"
    peer = commands.add_parser("lm-eval", help=summary, add_help=False, prefix_chars="\0")
    peer.add_argument("words", nargs="*")  # no option begins with that prefix: all are passed on
    peer.set_defaults(run=_lm_eval, parser=peer, debug=False)
    command("config", _config, "versions, instruction set, threads and kernels in use")
    return parser


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = (
        "bonaware evaluate [options]\n"
        "       bonaware evaluate --model FOLDER --task NAME [options]\n"
        "       bonaware evaluate --samples FILE [--task NAME] [options]"
    )
    what = parser.add_argument_group("what to evaluate")
    what.add_argument("--model", metavar="FOLDER", help="a Hugging Face folder, or the name of an "
                      f"embedded model: {', '.join(embedded_policies())}")  # fmt: skip
    _task_arguments(what)
    what.add_argument("--limit", type=int, metavar="P", help="the first P problems only")
    what.add_argument("--verifier", metavar="NAME[:OPTION=VALUE,...]", action=_Verifier,
                      help=f"select by it: {', '.join(bonaware.verifiers.available())}, with "
                      "its options, as in reward_model:model=FOLDER; may be repeated "
                      "(default: likelihood)")  # fmt: skip
    what.add_argument("--policy", metavar="NAME[:OPTION=VALUE,...]", type=_named,
                      help="let it decide what is drawn, as in adaptive:threshold=0.9: "
                      + ", ".join(bonaware.policies.available()))
    _model_arguments(parser, n=32, length="the task's")
    parser.set_defaults(n=None)
    where = parser.add_argument_group("where it goes")
    where.add_argument("--store", metavar="FILE", help="default: MODEL-TASK-SETTINGS.sqlite")
    where.add_argument("--no-store", action="store_true", help="keep samples in memory only")
    report = where.add_mutually_exclusive_group()
    report.add_argument("--report", metavar="FILE", help="HTML page (default: beside the store)")
    report.add_argument("--no-report", action="store_true", help="write none")
    where.add_argument("--export", metavar="FILE", help="samples as .parquet or .jsonl")
    where.add_argument("--plot", metavar="FILE", help="the curves as .png, .pdf or .svg")
    _k_argument(where)
    recorded = parser.add_argument_group("recorded samples, instead of a model")
    recorded.add_argument("--samples", metavar="FILE", help="JSONL, JSON, Parquet, a log of "
                          "lm-eval or inspect, or the store of a run")
    _field_arguments(recorded)


def _page_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "bonaware report FILE [BESIDE ...] [--out PAGE.html] [options]"
    parser.add_argument("samples", metavar="FILE", help="a store, JSONL, JSON, Parquet or a log")
    parser.add_argument("beside", metavar="BESIDE", nargs="*", help="runs of the same problems to "
                        "compare with: other policies, other temperatures")
    parser.add_argument("--out", metavar="PAGE.html", help="default: beside FILE")
    _k_argument(parser)
    _task_arguments(parser.add_argument_group("a task that judges recorded texts"))
    _field_arguments(parser.add_argument_group("fields of recorded samples"))


def _k_argument(parser: Any) -> None:
    parser.add_argument("--k", type=_numbers(int), metavar="K,K,...", help="default: 1,2,4,...,n")


def _task_arguments(what: Any) -> None:
    what.add_argument("--task", metavar="NAME", help=", ".join(bonaware.tasks.available()))
    what.add_argument("--task-option", metavar="NAME=VALUE", type=_option, action="append",
                      default=[], help="an option of the task; may be repeated")  # fmt: skip
    what.add_argument("--split", default="test", help="default: test")


def _field_arguments(recorded: Any) -> None:
    recorded.add_argument("--rewards", metavar="FIELD", help="field with the truth")
    recorded.add_argument("--scores", metavar="FIELD", action="append",
                          help="field to select by; may be repeated")  # fmt: skip
    recorded.add_argument("--answers", metavar="FIELD", help="field with the answers that vote")
    recorded.add_argument("--gold", metavar="FIELD", help="field with the right answer")
    recorded.add_argument("--texts", metavar="FIELD", help="field with what --task judges")
    recorded.add_argument("--problem", metavar="FIELD", help="field that names the problem")


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "bonaware generate --model FOLDER [options] [PROMPT ...]"
    parser.add_argument("prompt", nargs="*", metavar="PROMPT", help="default: standard input")
    parser.add_argument("--model", metavar="FOLDER", required=True, help="a Hugging Face folder")
    parser.add_argument("--file", metavar="FILE", help="one prompt per line; .jsonl: rows with "
                        "'prompt' or 'messages'; -: standard input")  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--chat", action="store_true", help="prompts are messages of a user")
    kind.add_argument("--ids", action="store_true", help="prompts are token ids")
    _model_arguments(parser, n=1, length="256")


def _model_arguments(parser: argparse.ArgumentParser, n: int, length: str) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--n", type=int, default=n, help=f"samples per prompt (default: {n})")
    group.add_argument("--temperature", type=_temperature, default=1.0, metavar="T[,T,...]",
                       help="one, or one per sample (default: 1)")  # fmt: skip
    group.add_argument("--top-k", type=int, metavar="K", help="of the K likeliest tokens only")
    group.add_argument("--top-p", type=float, metavar="P",
                       help="of the likeliest tokens that together have probability P")  # fmt: skip
    group.add_argument("--min-p", type=float, metavar="P",
                       help="of tokens with at least P times the largest probability")  # fmt: skip
    group.add_argument("--max-new-tokens", type=int, metavar="T",
                       help=f"default: {length}")  # fmt: skip
    group.add_argument("--stop", dest="stop_strings", action="append", metavar="STRING",
                       help="end a sample here; may be repeated")  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="default: 0")
    engine = _engine_arguments(parser)
    several = parser.add_argument_group("several machines")
    several.add_argument("--workers", type=int, metavar="W", help="draw in W processes of Ray, "
                         "each with --threads: in the cluster of RAY_ADDRESS, else on this "
                         "machine, whose processors they share by default")
    parser.set_defaults(drawing=[*group._group_actions, *engine, *several._group_actions])


def _engine_arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    engine = parser.add_argument_group("engine")
    engine.add_argument("--dtype", default="auto",
                        choices=("auto", "float32", "bfloat16", "int8"),
                        help="of the weights; default: auto, as the checkpoint says")
    engine.add_argument("--threads", type=int, help="default: all this process may use")
    engine.add_argument("--memory", type=_bytes, metavar="SIZE",
                        help="of cache and scratch, such as 8G")  # fmt: skip
    return engine._group_actions
