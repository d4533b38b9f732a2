"""Countdown's model that judges itself: what it learns, from which texts.

It is one small Llama with a few more words than the policy has, learnt from nothing. It imitates:
first random true steps, as these teach arithmetic fastest, then solutions. It reads made texts, cut
behind a step, to tell true from false; and, once it solves problems, samples of its own, whole and
cut, to learn what became of all that begin so. train_countdown.py makes the two runs, `LEARNING`
and `READING`.

Behind each text stand `QUESTIONS`. The one that counts is "better?": would a fresh sample be
better? The answers to the others are known of every text, and help to find that one: whether the
target can still be reached, whether all steps are true and take numbers that are left, and whether
the newest equation is true.
"""

import time
from dataclasses import dataclass

import numpy as np

import bonaware as bon
from bonaware import _batch
from bonaware.tasks._countdown_arrays import results, write
from bonaware.tasks.countdown import LIMIT, steps_text
from bonaware.train import auroc

QUESTIONS = {"better?": 8, "open?": 4, "sound?": 2, "true?": 2}  # and how much an answer counts
NO, YES = "no", "yes"
MORE = (*QUESTIONS, NO, YES)  # words beside the policy's
STEP = 6  # tokens of a step: number, sign, number, =, result, and a comma or the end
DRAWN = 16  # samples of a problem
INSIDE = 2  # tokens of a step that is cut behind its sign
LIES = 0.6  # share of made ends that are the target


@dataclass(frozen=True)
class Stage:
    """What a step learns from: how many solutions, made texts, and problems to draw samples of.

    arithmetic: imitate random true steps instead of solutions; inside: texts are cut within their
    last step too, behind its sign.
    """

    solutions: int = 64
    made: int = 128
    problems: int = 12
    arithmetic: bool = False
    inside: bool = False


@dataclass(frozen=True)
class Run:
    """One run of the trainer.

    stages: by the step that each begins with; order: of the questions; false: share of false
    steps in made texts; reached: share of made texts whose target is what they lead to, so that
    their style does not tell whether it can be reached; cuts: how often made texts are cut behind
    the last step but two, but one, and are whole (None: equally often).
    """

    lr: float
    stages: dict[int, Stage]
    order: tuple[str, ...]
    false: float
    reached: float
    cuts: tuple[float, ...] | None


LEARNING = Run(
    lr=2e-3, order=("better?", "open?", "sound?", "true?"), false=0.15, reached=0.0, cuts=None,
    stages={0: Stage(problems=0, arithmetic=True), 750: Stage(problems=0), 1500: Stage(),
            1600: Stage(solutions=192)})
# The question that counts is asked behind the one that helps most, and the model is asked both.
READING = Run(
    lr=1e-3, order=("open?", "better?", "sound?", "true?"), false=0.08, reached=0.5, cuts=(1, 2, 1),
    stages={0: Stage(made=256, problems=8), 600: Stage(made=256, problems=8, inside=True)})
ASKED = ("open?", "better?")


# -- what is true of a text ------------------------------------------------------


def follow(words, numbers):
    """The steps of a text, one by one.

    Parameters
    ----------
    words : list of str
        The text, or a beginning that ends behind a step or behind the last sign.
    numbers : list of int

    Returns
    -------
    true : bool
        Whether the newest equation is.
    left : list of int or None
        The numbers that are left; None if a step was false or took another number.
    after : list of int or None
        The same; behind a sign those that will be left.
    """
    left, true, inside = list(numbers), False, len(words) % STEP == INSIDE
    for start in range(0, len(words) - INSIDE * inside, STEP):
        one, sign, other, equal, result = [*words[start:start + 5], *[""] * 5][:5]
        true = equal == "=" and _value(one, sign, other) == result
        if left is None or not true or len(left) < 2:
            left = None
            continue
        for number in (int(one), int(other)):
            if left is not None and number in left:
                left.remove(number)
            else:
                left = None
        if left is not None:
            left.append(int(result))
    if not inside or left is None:
        return true, left, left
    one, sign = words[-INSIDE:]
    rest = list(left)
    if not one.isdecimal() or int(one) not in rest:
        return true, None, None
    rest.remove(int(one))
    value = _value(one, sign, str(rest[0])) if len(rest) == 1 else ""
    return true, left, [int(value)] if value else None


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


def true_steps(rng, numbers):
    """A random way to combine the numbers, and as target what another one gives."""
    reached = results(numbers, LIMIT)
    rows = np.arange(len(numbers))
    program, other = ((rng.random(reached.shape) * (reached > 0)).argmax(axis=1)
                      for _ in range(2))
    kept = reached[rows, program] > 0
    return numbers[kept], reached[rows, other][kept], write(numbers[kept], program[kept])


def made(rng, run, inside, numbers, targets, steps):
    """Texts to tell true steps from false ones by, cut behind a random step.

    Half of them are solutions; half are random steps, of which `run.reached` lead to the target
    and the others to a random number, and mostly claim it is the target, which is how the policy
    errs. In all of them some results are random.
    """
    count, last = steps.shape[:2]
    steps, targets, half = steps.copy(), targets.copy(), count // 2
    reached = results(numbers[:half], LIMIT)
    program, other = ((rng.random(reached.shape) * (reached > 0)).argmax(axis=1)
                      for _ in range(2))
    steps[:half] = write(numbers[:half], program)
    if run.reached:
        other = np.where(rng.random(half) < run.reached, program, other)
    targets[:half] = reached[np.arange(half), other]
    lies = rng.random(half) < LIES
    steps[:half, -1, 3] = np.where(lies, targets[:half], steps[:half, -1, 3])
    wrong = rng.random((count, last)) < run.false
    steps[:, :, 3] = np.where(wrong, rng.integers(1, LIMIT + 1, wrong.shape), steps[:, :, 3])
    cuts = rng.integers(1, last + 1, count)
    if run.cuts is not None:
        shares = np.array(run.cuts[-last:]) / sum(run.cuts[-last:])
        cuts = rng.choice(np.arange(1, last + 1), count, p=shares)
    ends = STEP * cuts
    if inside:
        ends[(cuts == last) & (rng.random(count) < 0.5)] -= STEP - INSIDE
    for row, target, text, end in zip(numbers, targets, steps, ends, strict=True):
        words = [*steps_text(text).split(), "<end>"]
        yield row.tolist(), int(target), words[:end]


def beginnings(tokens, steps, inside):
    """The different whole samples and beginnings, with those samples that begin so.

    tokens: samples of a problem that takes so many steps.
    """
    found = {}
    cuts = [*range(STEP, STEP * steps, STEP), *[STEP * (steps - 1) + INSIDE] * inside]
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
    seed : int
    """

    def __init__(self, run, words, batch, sharpen, seed):
        self.run, self.words, self.batch = run, words, batch
        self.sharpen, self.seed = sharpen, seed
        self.task = bon.tasks.get("countdown", level="medium")
        self.asked = np.array([words.index(word) for word in run.order], np.int32)
        # The target of "better?" is "no", that of the others "yes".
        no, yes = words.index(NO), words.index(YES)
        self.answers = np.array([[no, yes] if word == "better?" else [yes, no]
                                 for word in run.order], np.int32)
        self.better = run.order.index("better?")

    def __call__(self, trainer):
        began = time.perf_counter()
        rng = np.random.default_rng([self.seed, trainer.steps])
        engine = trainer._learner._engine
        stage = next(stage for first, stage in reversed(self.run.stages.items())
                     if trainer.steps >= first)
        nats = self._imitate(engine, trainer.lm, stage, rng)
        texts = self._made(trainer.lm, stage, rng)
        if stage.problems:
            texts = [mine + given for mine, given in
                     zip(self._drawn(trainer, stage, rng), texts, strict=True)]
        return trainer._update({"nats": nats} | self._read(engine, *texts), began)

    def _imitate(self, engine, lm, stage, rng):
        prompts, texts = [], []
        for _, numbers, targets, steps in self.batch(rng, stage.solutions):
            if stage.arithmetic:
                numbers, targets, steps = true_steps(rng, numbers)
            for row, target, text in zip(numbers, targets, steps, strict=True):
                prompts.append(lm.encode(prompt(target, row)))
                texts.append([np.append(lm.encode(steps_text(text)), np.int32(0))])
        weights = [np.full(len(text), -1 / len(texts), np.float32) for text, in texts]
        batch = _batch.predictions(prompts, texts, weights)
        logp, _ = engine.accumulate(*batch.arrays(), 1.0)
        return float(-logp.sum() / len(texts))

    def _made(self, lm, stage, rng):
        prompts, texts, seen = [], [], []
        for _, *given in self.batch(rng, stage.made):
            columns = (column.astype(int) for column in given)
            for numbers, target, text in made(rng, self.run, stage.inside, *columns):
                prompts.append(lm.encode(prompt(target, numbers)))
                texts.append([np.array([self.words.index(word) for word in text], np.int32)])
                seen.append((numbers, target, text))
        return prompts, texts, seen, [None] * len(seen)

    def _drawn(self, trainer, stage, rng):
        """Samples at the model's own temperature, and how often a fresh one is no better."""
        trainer.lm.weights_changed()
        problems = [(row.tolist(), int(target))
                    for _, numbers, targets, _ in self.batch(rng, stage.problems)
                    for row, target in zip(numbers, targets, strict=True)]
        samples = trainer.lm.generate(
            [prompt(target, numbers) for numbers, target in problems], n=DRAWN, progress=False,
            temperature=self.sharpen, max_new_tokens=self.task.max_new_tokens,
            rng=np.random.SeedSequence([self.seed, trainer.steps]))
        right = self.task.rewards([
            bon.tasks.Problem("", "", {"numbers": numbers, "target": target}, {})
            for numbers, target in problems], samples.text)
        wrong = (right == 0).sum(axis=1, keepdims=True)
        wins = np.where(right > 0, 1, (wrong - 1) / (DRAWN - 1))  # soft labels, one left out
        prompts, texts, seen, known = [], [], [], []
        for p, (numbers, target) in enumerate(problems):
            prompts.append(trainer.lm.encode(samples.prompts[p]))
            texts.append([])
            for begin, alike in beginnings(samples.tokens[p], len(numbers) - 1, stage.inside):
                texts[-1].append(begin)
                seen.append((numbers, target, [self.words[i] for i in begin.tolist()]))
                known.append((wins[p, alike].mean(), len(alike), right[p, alike].mean()))
        return prompts, texts, seen, known

    def _read(self, engine, prompts, texts, seen, known):
        """All questions behind all texts."""
        labels, weights = labels_of(self.run.order, seen, known)
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
        loss = -(weights[..., None] * both * logp).sum()
        figures = {"loss": float(loss)}
        for i, name in enumerate(self.run.order):
            if i != self.better:
                figures[name] = auroc(logp[:, i, 0], labels[:, i] > 0.5)
        own = np.array([i for i, j in enumerate(batch.source) if known[j] is not None], int)
        if own.size:
            right = np.array([known[batch.source[i]][2] for i in own])
            whole = np.array([seen[batch.source[i]][2][-1] == "<end>" for i in own])
            first = np.array([len(seen[batch.source[i]][2]) == STEP for i in own])
            answer = logp[own, self.better, 0]
            figures["brier"] = float(((np.exp(answer) - labels[own, self.better]) ** 2).mean())
            for name, some in (("whole", whole), ("first", first), ("later", ~whole & ~first)):
                figures[name] = auroc(answer[some], right[some] > 0.5)
        return figures


def prompt(target, numbers):
    return f"make {target} from {' '.join(map(str, numbers))} :"


def labels_of(order, seen, known):
    """Labels and their weights [texts, questions]; "better?" is known of samples only.

    Facts count alike for every text, frequencies by how many samples they were counted in.
    """
    followed = [follow(text, numbers) for numbers, _, text in seen]
    counted = np.array([0 if fact is None else fact[1] for fact in known], float)
    labels = {
        "better?": [0 if fact is None else fact[0] for fact in known],
        "open?": reachable([after for *_, after in followed],
                           [target for _, target, _ in seen]),
        "sound?": [left is not None for _, left, _ in followed],
        "true?": [true for true, *_ in followed],
    }
    weights = {name: np.full(len(seen), weight / len(seen)) for name, weight in QUESTIONS.items()}
    weights["better?"] = QUESTIONS["better?"] * counted / max(counted.sum(), 1)
    return tuple(np.stack([np.asarray(of[name], float) for name in order], axis=1)
                 for of in (labels, weights))
