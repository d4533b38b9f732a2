"""Countdown's model that judges itself: what it learns, from which texts.

It is one small Llama with a few more words than the policy has, learnt from nothing in four runs:

LEARNING  It imitates random true steps, as these teach arithmetic fastest, then solutions. It reads
          made texts, cut behind a step, to tell true from false; and, once it solves problems,
          samples of its own, whole and cut, to learn what became of all that begin so.
READING   More of what is read.
REACHING  What can still be reached from the numbers that are left, mostly two, or from two that are
          a problem of their own; nothing else is read.
NAMING    It learns to name the numbers that are left, as people do, "25 - 3 = 22 left 4 22 , 22 *
          4 = 88", and all the rest anew for texts that do.

Behind each text stand questions, whose answers are known: whether the target can still be reached
("open?"), whether all steps are true and take numbers that are left, and whether the newest
equation is true; and of its own samples how often a fresh sample is no better ("better?"). The
finished model is asked "open?". A sample that ends right wins or ties against any fresh one, and
another ties where the fresh one is wrong too; so as far as what is open ends right, both questions
rank the samples of a problem alike. The first is learnt almost exactly; the labels of the second
hardly differ where a problem is hard.
"""

import time
from dataclasses import dataclass, field

import numpy as np

import bonaware as bon
from bonaware import _batch
from bonaware.tasks._countdown_arrays import results, write
from bonaware.tasks.countdown import LIMIT, steps_text
from bonaware.train import auroc

QUESTIONS = ("open?", "better?", "sound?", "true?")
ASKED = QUESTIONS[0]
NO, YES = "no", "yes"
LEFT, NEXT, END = "left", ",", "<end>"
MORE = (LEFT, *QUESTIONS, NO, YES)  # words beside the policy's
DRAWN = 16  # samples of a problem
LIES = 0.6  # share of made ends that are the target
NEAR = 3  # a target that is near what can be reached is off by so much at most


@dataclass(frozen=True)
class Stage:
    """What a step learns from: how many solutions, made texts, and problems to draw samples of.

    made: with false steps, cut behind any; reaching: with true ones, cut where two numbers or
    three are left; arithmetic: imitate random true steps instead of solutions.
    """

    solutions: int = 64
    made: int = 128
    reaching: int = 0
    problems: int = 0
    arithmetic: bool = False


@dataclass(frozen=True)
class Run:
    """One run of the trainer.

    stages: by the step that each begins with; questions: in their order, with how much an answer
    counts; false: share of false steps in made texts; reached: share of made texts whose target is
    what they lead to, so that their style does not tell whether it can be reached; named: texts
    name the numbers that are left.
    """

    seed: int
    steps: int
    lr: float
    stages: dict[int, Stage]
    questions: dict[str, int] = field(default_factory=lambda: {
        "open?": 4, "better?": 8, "sound?": 2, "true?": 2})
    false: float = 0.1
    reached: float = 0.5
    named: bool = False


RUNS = {
    "learning": Run(
        6, 3000, 2e-3, false=0.15, reached=0.0,
        questions={"better?": 8, "open?": 4, "sound?": 2, "true?": 2},
        stages={0: Stage(arithmetic=True), 750: Stage(), 1500: Stage(problems=12),
                1600: Stage(solutions=192, problems=12)}),
    "reading": Run(7, 1300, 1e-3, false=0.08, stages={0: Stage(made=256, problems=8)}),
    "reaching": Run(5, 800, 1e-3, questions={"open?": 8},
                    stages={0: Stage(solutions=48, made=0, reaching=288)}),
    "naming": Run(
        7, 2800, 1e-3, named=True, questions={"open?": 12, "better?": 8, "sound?": 2, "true?": 2},
        stages={0: Stage(solutions=48, made=32, reaching=288),
                1400: Stage(solutions=48, made=64, reaching=192, problems=8)}),
}


# -- what is true of a text ------------------------------------------------------


def told(numbers, steps, named):
    """A text as the model writes it, in words; the results of the steps need not be right.

    Where a step takes what an earlier one should have given, what that one said is no longer left.
    """
    left, said, words = list(numbers), [], []
    for i, (one, _, other, result) in enumerate(steps.tolist()):
        for number in (one, other):
            left.remove(number if number in left else
                        next(r for r in reversed(said) if r in left))
        left.append(result)
        said.append(result)
        words += steps_text(steps[i:i + 1]).split()
        if i < len(steps) - 1:
            words += [*([LEFT, *map(str, sorted(left))] if named else []), NEXT]
    return [*words, END]


def ends(size, named):
    """Behind how many words the steps of a text end; what they name is included."""
    lengths = [5 + (1 + left if named else 0) for left in range(size - 1, 1, -1)]
    found = [sum(lengths[:i + 1]) + i for i in range(size - 2)]  # a comma behind each
    return [*found, sum(lengths) + size - 2 + 6]


def follow(words, numbers, named):
    """The steps of a text, one by one.

    Parameters
    ----------
    words : list of str
        The text, or a beginning that ends behind a step.
    numbers : list of int
    named : bool
        Whether a step has to name the numbers that are left.

    Returns
    -------
    true : bool
        Whether the newest equation is.
    left : list of int or None
        The numbers that are left; None if a step was false, took another number, or named others
        as left, or these in another order: what follows is then not to be trusted.
    """
    left, true = list(numbers), False
    while words:
        one, sign, other, equal, result = [*words[:5], *[""] * 5][:5]
        true = equal == "=" and _value(one, sign, other) == result
        end = words.index(NEXT) if NEXT in words else len(words)
        said, words = words[5:end], words[end + 1:]
        if left is None or not true or len(left) < 2:
            left = None
            continue
        for number in (int(one), int(other)):
            if left is not None and number in left:
                left.remove(number)
            else:
                left = None
        if left is not None:
            left = sorted([*left, int(result)])
            due = [END] if len(left) == 1 else [LEFT, *map(str, left)] if named else []
            left = left if said == due else None
    return true, left


def _value(one, sign, other):
    """What an equation should end with; "" where it is none, or gives no whole number above 0."""
    if not (one.isdecimal() and other.isdecimal()):
        return ""
    one, other = int(one), int(other)
    if sign == "/":
        return str(one // other) if other > 0 and one % other == 0 and one > 0 else ""
    value = {"+": one + other, "-": one - other, "*": one * other}.get(sign, 0)
    return str(value) if value > 0 else ""


def reachable(lefts, targets):
    """Whether each target can still be reached from the numbers that are left (None: no)."""
    found = np.zeros(len(lefts))
    for size in {len(left) for left in lefts if left is not None}:
        rows = [i for i, left in enumerate(lefts) if left is not None and len(left) == size]
        left = np.array([sorted(lefts[i]) for i in rows])
        reached = left if size == 1 else results(left, LIMIT)
        found[rows] = (reached == np.array(targets)[rows, None]).any(axis=1)
    return found


# -- what is imitated and read ------------------------------------------------------------------


def random_programs(rng, reached):
    """For each problem a random program that gives a number."""
    return (rng.random(reached.shape) * (reached > 0)).argmax(axis=1)


def true_steps(rng, numbers):
    """A random way to combine the numbers, and as target what another one gives."""
    reached = results(numbers, LIMIT)
    rows = np.arange(len(numbers))
    program, other = (random_programs(rng, reached) for _ in range(2))
    kept = reached[rows, program] > 0
    return numbers[kept], reached[rows, other][kept], write(numbers[kept], program[kept])


def made(rng, run, numbers, targets, steps):
    """Texts to tell true steps from false ones by, cut behind a random step.

    Half of them are solutions; half are random steps, of which `run.reached` lead to the target
    and the others to a random number, and mostly claim it is the target, which is how the policy
    errs. In all of them some results are random.
    """
    count, last = steps.shape[:2]
    steps, targets, half = steps.copy(), targets.copy(), count // 2
    reached = results(numbers[:half], LIMIT)
    program, other = (random_programs(rng, reached) for _ in range(2))
    steps[:half] = write(numbers[:half], program)
    other = np.where(rng.random(half) < run.reached, program, other)
    targets[:half] = reached[np.arange(half), other]
    lies = rng.random(half) < LIES
    steps[:half, -1, 3] = np.where(lies, targets[:half], steps[:half, -1, 3])
    wrong = rng.random((count, last)) < run.false
    steps[:, :, 3] = np.where(wrong, rng.integers(1, LIMIT + 1, wrong.shape), steps[:, :, 3])
    cuts = np.array(ends(last + 1, run.named))[rng.integers(0, last, count)]
    for row, target, text, end in zip(numbers.tolist(), targets.tolist(), steps, cuts, strict=True):
        yield row, target, told(row, text, run.named)[:end]


def reaching(rng, run, numbers):
    """Texts to tell what can be reached by, cut where two numbers or three are left.

    All steps are random and true. The target is what they lead to, what other steps lead to, or a
    number near what they lead to. Where numbers that are left are not named, they are the numbers
    of a problem of their own in a third of the texts.
    """
    reached = results(numbers, LIMIT)
    rows, size = np.arange(len(numbers)), numbers.shape[1]
    program, other = (random_programs(rng, reached) for _ in range(2))
    near = reached[rows, program] + rng.integers(-NEAR, NEAR + 1, len(numbers))
    chosen = rng.random(len(numbers))
    targets = np.select([chosen < 0.4, chosen < 0.7],
                        [reached[rows, program], reached[rows, other]], near.clip(1, LIMIT))
    # Most are cut where two numbers are left: there the answer can be known.
    cuts = np.array(ends(size, run.named))[-2 - (rng.random(len(numbers)) < 0.25) * (size > 3)]
    for row, target, text, end in zip(numbers.tolist(), targets.tolist(), write(numbers, program),
                                      cuts, strict=True):
        words = told(row, text, run.named)[:end]
        if not run.named and rng.random() < 1 / 3:
            yield follow(words, row, False)[1], target, []
        else:
            yield row, target, words


def beginnings(tokens, cuts):
    """The different whole samples and beginnings of a problem, with the samples that begin so."""
    found = {}
    for i, text in enumerate(tokens):
        for cut in (*cuts, None):
            if cut is None or len(text) > cut:
                found.setdefault(text[:cut].tobytes(), []).append(i)
    return [(np.frombuffer(text, np.int32), alike) for text, alike in found.items()]


class Judge:
    """Steps of a trainer that teach a model to draw and to judge what it drew.

    Parameters
    ----------
    run : Run
    words : list of str
        Of the vocabulary, in its order.
    batch : callable
        From a generator and a count to problems of each size with a solution.
    sharpen : float
        Temperature that the finished model draws at. Solutions are imitated at 1; samples are
        drawn and questions answered at this.
    """

    def __init__(self, run, words, batch, sharpen):
        self.run, self.words, self.batch, self.sharpen = run, words, batch, sharpen
        self.ids = {word: i for i, word in enumerate(words)}
        self.task = bon.tasks.get("countdown", level="medium")
        self.asked = np.array([self.ids[word] for word in run.questions], np.int32)
        # The target of "better?" is "no", that of the others "yes".
        no, yes = self.ids[NO], self.ids[YES]
        self.answers = np.array([[no, yes] if word == "better?" else [yes, no]
                                 for word in run.questions], np.int32)

    def __call__(self, trainer):
        began = time.perf_counter()
        rng = np.random.default_rng([self.run.seed, trainer.steps])
        engine = trainer._learner._engine
        stage = next(stage for first, stage in reversed(self.run.stages.items())
                     if trainer.steps >= first)
        nats = self._imitate(engine, trainer.lm, stage, rng)
        texts = self._made(trainer.lm, stage, rng)
        if stage.problems:
            texts = [mine + given for mine, given in
                     zip(self._drawn(trainer, stage, rng), texts, strict=True)]
        return trainer._update({"nats": nats} | self._read(engine, *texts), began)

    def _encode(self, words):
        return np.array([self.ids[word] for word in words], np.int32)

    def _imitate(self, engine, lm, stage, rng):
        prompts, texts = [], []
        for _, numbers, targets, steps in self.batch(rng, stage.solutions):
            if stage.arithmetic:
                numbers, targets, steps = true_steps(rng, numbers)
            for row, target, text in zip(numbers.tolist(), targets, steps, strict=True):
                prompts.append(lm.encode(prompt(target, row)))
                texts.append([self._encode(told(row, text, self.run.named))])
        weights = [np.full(len(text), -1 / len(texts), np.float32) for text, in texts]
        batch = _batch.predictions(prompts, texts, weights)
        logp, _ = engine.accumulate(*batch.arrays(), 1.0)
        return float(-logp.sum() / len(texts))

    def _made(self, lm, stage, rng):
        seen = []
        for _, *given in self.batch(rng, stage.made):
            seen += made(rng, self.run, *(column.astype(int) for column in given))
        for _, numbers, *_ in self.batch(rng, stage.reaching):
            seen += reaching(rng, self.run, numbers.astype(int))
        prompts = [lm.encode(prompt(target, numbers)) for numbers, target, _ in seen]
        return prompts, [[self._encode(text)] for *_, text in seen], seen, [None] * len(seen)

    def _drawn(self, trainer, stage, rng):
        """Samples at the model's own temperature, and how often a fresh one is no better."""
        trainer.lm.weights_changed()
        problems = [(row.tolist(), int(target))
                    for _, numbers, targets, _ in self.batch(rng, stage.problems)
                    for row, target in zip(numbers, targets, strict=True)]
        samples = trainer.lm.generate(
            [prompt(target, numbers) for numbers, target in problems], n=DRAWN, progress=False,
            temperature=self.sharpen, max_new_tokens=self.task.max_new_tokens,
            rng=np.random.SeedSequence([self.run.seed, trainer.steps]))
        right = self.task.rewards([
            bon.tasks.Problem("", "", {"numbers": numbers, "target": target}, {})
            for numbers, target in problems], samples.text)
        wrong = (right == 0).sum(axis=1, keepdims=True)
        wins = np.where(right > 0, 1, (wrong - 1) / (DRAWN - 1))  # soft labels, one left out
        prompts, texts, seen, known = [], [], [], []
        for p, (numbers, target) in enumerate(problems):
            prompts.append(trainer.lm.encode(samples.prompts[p]))
            texts.append([])
            for begin, alike in beginnings(samples.tokens[p],
                                           ends(len(numbers), self.run.named)[:-1]):
                texts[-1].append(begin)
                seen.append((numbers, target, [self.words[i] for i in begin.tolist()]))
                known.append((wins[p, alike].mean(), len(alike), right[p, alike].mean()))
        return prompts, texts, seen, known

    def _read(self, engine, prompts, texts, seen, known):
        """All questions behind all texts."""
        labels, weights = labels_of(self.run, seen, known)
        asked = [[np.append(text, self.asked) for text in row] for row in texts]
        batch = _batch.scores(prompts, asked, [np.ones(len(row), np.float32) for row in asked])
        count = len(self.asked)
        rows = batch.target_row[:, None] + np.arange(1 - count, 1).astype(np.uintp)
        labels, weights = labels[batch.source], weights[batch.source]
        both = np.stack([labels, 1 - labels], axis=2)
        logp, _ = engine.accumulate(
            batch.tokens, batch.prompt_rows, batch.branches, batch.branch_rows,
            np.repeat(rows.ravel(), 2), np.tile(self.answers.ravel(), len(labels)),
            np.ascontiguousarray(-(weights[..., None] * both).ravel(), np.float32), self.sharpen)
        logp = logp.reshape(*labels.shape, 2).astype(float)
        figures = {"loss": float(-(weights[..., None] * both * logp).sum())}
        figures |= {name: auroc(logp[:, i, 0], labels[:, i] > 0.5)
                    for i, name in enumerate(self.run.questions) if name != "better?"}
        own = [i for i, j in enumerate(batch.source) if known[j] is not None]
        if own:
            better = tuple(self.run.questions).index("better?")
            figures |= self._ranked(logp[own, better, 0], labels[own, better],
                                    [seen[j] for j in batch.source[own]],
                                    np.array([known[j][2] for j in batch.source[own]]))
        return figures

    def _ranked(self, answer, wins, seen, right):
        """How well "better?" tells right samples of four numbers from wrong ones, by their cut."""
        found = {"brier": float(((np.exp(answer) - wins) ** 2).mean())}
        cuts = ends(4, self.run.named)[:-1]
        at = np.array([-1 if len(numbers) != 4 else len(text) if len(text) in cuts else 0
                       for numbers, _, text in seen])
        for cut in (0, *cuts):
            some = at == cut
            found[f"at {cut}" if cut else "whole"] = auroc(answer[some], right[some] > 0.5)
        return found


def prompt(target, numbers):
    return f"make {target} from {' '.join(map(str, numbers))} :"


def labels_of(run, seen, known):
    """Labels and their weights [texts, questions]; "better?" is known of samples only.

    Facts count alike for every text, frequencies by how many samples they were counted in.
    """
    followed = [follow(text, numbers, run.named) for numbers, _, text in seen]
    counted = np.array([0 if fact is None else fact[1] for fact in known], float)
    labels = {
        "better?": [0 if fact is None else fact[0] for fact in known],
        "open?": reachable([left for _, left in followed], [target for _, target, _ in seen]),
        "sound?": [left is not None for _, left in followed],
        "true?": [true for true, _ in followed],
    }
    weights = {name: np.full(len(seen), weight / len(seen))
               for name, weight in run.questions.items()}
    weights["better?"] = run.questions.get("better?", 0) * counted / max(counted.sum(), 1)
    return tuple(np.stack([np.asarray(of[name], float) for name in run.questions], axis=1)
                 for of in (labels, weights))
