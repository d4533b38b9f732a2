"""Inference-aware fine-tuning for best-of-N on the embedded model: every arm, several seeds.

    python benchmarks/reproduce_bon.py --out runs --tune        # learning rates, once
    python benchmarks/reproduce_bon.py --out runs               # all arms and seeds, then tables
    python benchmarks/reproduce_bon.py --out runs --write-docs  # and docs/reproduction.md

Every arm starts from the same policy and sees the same problems in the same order, equally many
samples in equally many steps. What its models then draw on held-out problems is kept per problem,
in one small JSON file per arm and seed; reproduce_tables.py makes figures, intervals and verdicts
of these files. A run that was stopped, by Ctrl-C or otherwise, goes on with the same command.

Source: Chow et al. 2024, arXiv:2412.15287.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import reproduce_tables as tables
from reproduce_figures import mean_of, packed
from reproduce_jobs import work

import bonaware as bon
from bonaware.config import describe
from bonaware.training import Rollouts

ROOT = Path(__file__).parents[1]
TUNE_SEED = 1000  # of the runs that learning rates are chosen by; no other run has it
SAVE_EVERY = 20  # steps
SETS = {"validation": ("validation", "usual"), "test": ("test", "usual"),
        "heldout": ("test", "heldout")}  # split and kind
Tell = Callable[[int, str], None]


@dataclass(frozen=True)
class Arm:
    """One way to train, and the figure that its learning rate is chosen by.

    `k` is "deployed", half of the samples drawn, where the estimate needs n >= 2k, or "all"
    where k may be n. `aim` is a selector ("pass": a perfect one) and its k.
    """

    loss: str | None = None  # None: the policy as it is
    k: str | None = None
    by_verifier: bool = False  # the loss ranks by the verifier, else by the reward
    expert: bool = False  # a demonstration for every problem
    draws: bool = True
    aim: tuple[str, str] | None = None
    rate: float = 1e-4  # used where nothing was tuned

    def k_of(self, which: str | None, samples: int) -> int:
        return {"one": 1, "deployed": samples // 2, "all": samples}[str(which)]

    def options(self, samples: int) -> dict[str, int]:
        return {} if self.k is None else {"k": self.k_of(self.k, samples)}


ONE, DEPLOYED, ALL = ("pass", "one"), ("pass", "deployed"), ("pass", "all")
VERIFIED = ("verifier", "deployed")
ARMS = {
    "base": Arm(),
    "sft": Arm("sft", expert=True, draws=False, aim=ONE),
    "rl": Arm("reinforce", aim=ONE),
    "grpo": Arm("grpo", aim=ONE),
    "bon_sft": Arm("bon_sft", "deployed", by_verifier=True, expert=True, aim=VERIFIED),
    "bon_rl_v": Arm("bon_rl_v", "deployed", by_verifier=True, aim=VERIFIED),
    "bon_rl_s": Arm("bon_rl_s", "deployed", aim=DEPLOYED),
    "bon_rlb": Arm("bon_rlb", "all", aim=ALL),
    "bon_rlb_p": Arm("bon_rlb_p", "all", aim=ALL),
    "bon": Arm("bon", "deployed", aim=DEPLOYED),
    "bon_v": Arm("bon", "deployed", by_verifier=True, aim=VERIFIED),
}


def _of(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What every run of one folder has in common; the flags of the command."""

    policy: str = _of("folder or name of the model that all arms start from", "countdown")
    verifier: str = _of("model with a score head: trains some arms, and selects",
                        "countdown-verifier")  # fmt: skip
    other: str = _of("another model with a score head, which selects only ('' for none)", "")
    level: str = _of("of the Countdown problems", "medium")
    steps: int = _of("of training", 120)
    prompts: int = _of("problems per step", 64)
    samples: int = _of("samples per problem in training", 32)
    validation: int = _of("problems that temperatures and learning rates are chosen by", 300)
    test: int = _of("problems", 1000)
    heldout: int = _of("problems of the held-out kind", 300)
    draws: int = _of("samples per problem in measuring, a multiple of 8", 32)
    temperatures: tuple[float, ...] = _of("of measuring, rising", (0.1, 0.7, 1.0, 1.5, 2.0, 2.6))

    def __post_init__(self) -> None:
        if self.draws % 8 or self.draws < 8 or self.samples < 4 or self.samples % 2:
            raise ValueError("need draws to be a multiple of 8, and an even number of samples "
                             f">= 4, got {self.draws} and {self.samples}")
        if 1.0 not in self.temperatures or list(self.temperatures) != sorted(self.temperatures):
            raise ValueError(f"temperatures must rise and hold 1, got {self.temperatures}")


@dataclass(frozen=True)
class Job:
    """One arm with one seed and one learning rate; tuning looks at validation problems only."""

    arm: str
    seed: int
    rate: float
    tune: bool = False

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.rate:g}" if self.tune else f"{self.arm}-{self.seed}"

    def file(self, out: Path) -> Path:
        return out / ("tune" if self.tune else "runs") / f"{self.name}.json"

    def points(self, settings: Settings) -> list[tuple[str, float]]:
        """Sets and temperatures at which it is measured."""
        if self.tune:
            return [("validation", 1.0)]
        return [(name, temperature) for name in SETS for temperature in settings.temperatures]

    def size(self, settings: Settings) -> int:
        """Samples that it draws, for the bar."""
        arm = ARMS[self.arm]
        drawn = settings.samples if arm.draws else 1
        trained = 0 if arm.loss is None else settings.steps * settings.prompts * drawn
        measured = sum(getattr(settings, name) for name, _ in self.points(settings))
        return trained + measured * settings.draws


# -- one run -------------------------------------------------------------------


def run(job: Job, settings: Settings, out: Path, tell: Tell) -> None:
    """Train, measure, and write the file of the job.

    `tell` is given the samples drawn since it was last called, and what is being done.
    """
    spent = _Spent(out / "work" / job.name / "cpu_seconds")
    lm = bon.LM.load(settings.policy, dtype="float32", threads=1)
    judges = {"verifier": _reward_model(settings.verifier)}
    if settings.other:
        judges["other"] = _reward_model(settings.other)
    judges["likelihood"] = bon.verifiers.get("likelihood")
    training = train(lm, job, settings, judges["verifier"], out / "work" / job.name, tell, spent)
    training_cpu, trained = spent.now(), time.process_time()
    measured: dict[str, dict[str, Any]] = {}
    for name, temperature in job.points(settings):
        problems, task = _problems(name, settings)
        place = [list(SETS).index(name), settings.temperatures.index(temperature)]
        found = measure(lm, task, problems, judges, settings.draws, temperature,
                        np.random.SeedSequence([job.seed, *place]))  # fmt: skip
        measured.setdefault(name, {})[str(temperature)] = found
        tell(len(problems) * settings.draws, f"{job.name} {name} T={temperature:g}")
    cpu = {"training": training_cpu, "measuring": time.process_time() - trained}
    _write(job.file(out), asdict(job) | {
        "measured": measured, "training": training, "made": made(),
        "cpu_seconds": {name: round(value, 1) for name, value in cpu.items()},
    })  # fmt: skip


def train(lm: Any, job: Job, settings: Settings, verifier: Any, folder: Path,
          tell: Tell, spent: "_Spent") -> dict[str, list[float]]:
    """Make the steps that are missing; how reward and entropy went, in tenths of the run."""
    arm = ARMS[job.arm]
    if arm.loss is None:
        return {}
    samples = settings.samples if arm.draws else 0
    source = Rollouts(
        bon.tasks.get("countdown", level=settings.level), samples, settings.prompts,
        verifier=verifier if arm.by_verifier else None, expert="solution" if arm.expert else None,
        seed=job.seed,
    )  # fmt: skip
    loss = bon.losses.get(arm.loss)(**arm.options(settings.samples))
    optimizer = bon.AdamW(lr=job.rate, warmup=min(10, settings.steps), schedule="linear")
    trainer = bon.Trainer(lm, loss, optimizer)
    if folder.exists():
        trainer.resume(folder)
    per_step = settings.prompts * max(samples, 1)
    tell(trainer.steps * per_step, f"{job.name} goes on")

    def stepped(record: dict[str, Any]) -> None:
        spent.keep()
        tell(per_step, f"{job.name} step {record['step']}")

    trainer.fit(source, settings.steps, out=folder, save_every=SAVE_EVERY, keep=1, progress=stepped)
    if trainer.steps < settings.steps:
        raise KeyboardInterrupt
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shown = [name for name in ("reward", f"pass@{samples}", "entropy", "grad_norm")
             if records[0].get(name) is not None]
    # The record of a step that Ctrl-C came right behind lacks what its source would have added.
    return {name: _tenths([record[name] for record in records if name in record])
            for name in shown}


class _Spent:
    """CPU seconds of a job's training, with those of processes that were ended before."""

    def __init__(self, file: Path) -> None:
        self.file, self.began = file, time.process_time()
        self.before = float(file.read_text()) if file.exists() else 0.0

    def now(self) -> float:
        return self.before + time.process_time() - self.began

    def keep(self) -> None:
        new = self.file.with_name("cpu_seconds.new")
        new.write_text(f"{self.now():.3f}\n")
        os.replace(new, self.file)  # whole, whenever the process is killed


def measure(lm: Any, task: Any, problems: Sequence[Any], judges: dict[str, Any], n: int,
            temperature: float, rng: Any) -> dict[str, Any]:
    """What n samples per problem are worth, in the order in which each judge ranks them.

    Returns
    -------
    dict
        "entropy": mean of -log-probability per sample at this temperature, nats; "by": for each
        judge the rewards, highest score first, as `reproduce_figures.packed` writes them.
    """
    samples = lm.generate([task.prompt(problem) for problem in problems], n,
                          temperature=temperature, max_new_tokens=task.max_new_tokens,
                          rng=rng, progress=False)  # fmt: skip
    if not samples.valid.all() or (samples.finish_reason == "aborted").any():
        raise KeyboardInterrupt
    rewards = task.rewards(problems, samples.text)
    return {
        "entropy": -float(samples.sum_sampled_logp.mean()),
        "by": {name: packed(rewards, judge.score(problems, samples))
               for name, judge in judges.items()},
    }  # fmt: skip


def _reward_model(path: str) -> Any:
    return bon.verifiers.get("reward_model", model=bon.LM.load(path, threads=1))


def _problems(name: str, settings: Settings) -> tuple[list[Any], Any]:
    split, kind = SETS[name]
    task = bon.tasks.get("countdown", level=settings.level, kind=kind)
    return task.load(split, getattr(settings, name)), task


def _tenths(values: Sequence[float]) -> list[float]:
    parts = np.array_split(np.array(values, float), min(10, len(values)))
    return [round(float(part.mean()), 4) for part in parts]


# -- learning rates ------------------------------------------------------------


def choose_rates(out: Path, arms: Sequence[str], settings: Settings) -> dict[str, Any]:
    """The learning rate of each arm: the best of those tried, by the arm's own aim.

    Returns
    -------
    dict
        arm -> "rate", "aim" (such as "pass@32"), and "tried": a figure per rate for the aim,
        for pass@1 and for pass@k with all samples.
    """
    chosen = {}
    for name in arms:
        arm = ARMS[name]
        selector, k = arm.aim or ONE
        aim = selector, min(arm.k_of(k, settings.samples), settings.draws)
        tried = {}
        for path in sorted((out / "tune").glob(f"{name}-*.json")):
            found = json.loads(path.read_text())
            if found["arm"] == name:
                point = found["measured"]["validation"]["1.0"]
                tried[found["rate"]] = [mean_of(point, settings.draws, *figure)
                                        for figure in (aim, ("pass", 1), ("pass", settings.draws))]
        best = max(sorted(tried), key=lambda rate: tried[rate][0])
        chosen[name] = {"rate": best, "aim": "{}@{}".format(*aim),
                        "tried": {f"{rate:g}": tried[rate] for rate in sorted(tried)}}
    return chosen


def rates_of(out: Path) -> dict[str, float]:
    """Learning rate of every arm: as tuned, where that was done."""
    path = out / "learning_rates.json"
    tuned = json.loads(path.read_text()) if path.exists() else {}
    return {name: tuned.get(name, {"rate": arm.rate})["rate"] for name, arm in ARMS.items()}


# -- files ---------------------------------------------------------------------


def made() -> dict[str, Any]:
    """By which version, on which machine."""
    facts = describe()
    return {"commit": _commit(), "bonaware": facts["bonaware"], "python": facts["python"],
            "numpy": facts["numpy"], "processor": facts["processor"], "cores": os.cpu_count(),
            "system": platform.system(), "date": time.strftime("%Y-%m-%d")}  # fmt: skip


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True,
                              check=True).stdout.strip()  # fmt: skip
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "bonaware", "csrc")
        return git("rev-parse", "--short=10", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a clone"


def _write(path: Path, content: Any) -> None:
    """Write JSON; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")
    whole.write_text(json.dumps(content) + "\n")
    os.replace(whole, path)


def begin(out: Path, settings: Settings) -> None:
    """Make the folder, or see to it that its runs have the same settings."""
    path = out / "settings.json"
    models = [path for path in (settings.policy, settings.verifier, settings.other) if path]
    ours = asdict(settings) | {"temperatures": list(settings.temperatures)} | {
        "fingerprints": [bon.LM.load(model, threads=1).fingerprint for model in models]}
    if not path.exists():
        _write(path, ours)
    theirs = json.loads(path.read_text())
    other = [f"{name} is {theirs.get(name)!r} there and {value!r} here"
             for name, value in ours.items() if theirs.get(name) != value]
    if other:
        raise SystemExit(f"{out} holds runs with other settings: {'; '.join(other)}. Give the "
                         "same ones, or another folder")


# -- command -------------------------------------------------------------------


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM",
                        help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... of every arm")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--tune", action="store_true", help="choose the learning rates first")
    parser.add_argument("--rates", type=float, nargs="+", default=(3e-5, 1e-4, 3e-4),
                        help="that --tune tries")
    parser.add_argument("--write-docs", action="store_true",
                        help="copy the summary to benchmarks/results, the tables to docs")
    for one in fields(Settings):
        given = {"type": type(one.default), "default": one.default}
        if isinstance(one.default, tuple):
            given = {"type": float, "nargs": "+", "default": one.default}
        parser.add_argument(f"--{one.name}", help=one.metadata["help"], **given)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    given = arguments().parse_args(words)
    settings = Settings(**{one.name: tuple(value) if isinstance(value, list) else value
                           for one in fields(Settings)
                           for value in [getattr(given, one.name)]})
    begin(given.out, settings)
    trained = [name for name in given.arms if ARMS[name].loss]
    try:
        if given.tune:
            jobs = [Job(arm, TUNE_SEED, rate, True) for arm in trained for rate in given.rates]
            if not do(jobs, settings, given.out, given.jobs):
                return 1
            chosen = choose_rates(given.out, trained, settings)
            _write(given.out / "learning_rates.json", chosen)
            print(tables.rates_table(chosen, settings.draws))
            return 0
        rates = rates_of(given.out)
        jobs = [Job(arm, seed, rates[arm]) for seed in range(given.seeds) for arm in given.arms]
        complete = do(jobs, settings, given.out, given.jobs)
    except KeyboardInterrupt:
        print(f"stopped; what is done is kept in {given.out}, and the same command goes on")
        return 130
    if not list((given.out / "runs").glob("base-*.json")):
        print("run the arm base too: the tables compare with it")
        return 0 if complete else 1
    summary = tables.summarise(given.out)
    _write(given.out / "summary.json", summary)
    print(tables.markdown(summary))
    if given.write_docs and complete:
        tables.write_docs(summary, ROOT)
    return 0 if complete else 1


def do(jobs: Sequence[Job], settings: Settings, out: Path, processes: int) -> bool:
    """Run what is missing; whether all is there now."""
    missing = [job for job in jobs if not job.file(out).exists()]
    sizes = [job.size(settings) for job in missing]
    failed = work(run, [(job, settings, out) for job in missing], sizes, processes)
    for place in failed:
        print(f"{missing[place].name} failed, see above", file=sys.stderr)
    return not failed


if __name__ == "__main__":
    sys.exit(main())
