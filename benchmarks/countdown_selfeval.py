"""Countdown's model that judges itself: what it learns, from which texts.

It is one small Llama with a few more words than the policy has, learnt from nothing in one run
(see `Judge`). It imitates: first random true steps, as these teach arithmetic fastest, then
solutions. It reads made texts, cut behind a step, to tell true from false; and, once it solves
problems, samples of its own, whole and cut, to learn what became of all that begin so.
train_countdown.py runs it.
"""

import time

import numpy as np

import bonaware as bon
from bonaware import _batch
from bonaware.tasks._countdown_arrays import results, write
from bonaware.tasks.countdown import LIMIT, steps_text
from bonaware.train import auroc

# The question is "better?": would a fresh sample be better? Behind it stand more, in training
# only, whose answers help to find that one: whether the target can still be reached, whether all
# steps are true and take numbers that are left, and whether the newest equation is true.
QUESTIONS = ("better?", "open?", "sound?", "true?")
NO, YES = "no", "yes"
MORE = (*QUESTIONS, NO, YES)  # words beside the policy's
WEIGHTS = np.array([8, 4, 2, 2])  # of the questions, beside the sum of a solution's nats
STEP = 6  # tokens of a step: number, sign, number, =, result, and a comma or the end
FEW, MANY, MADE = 64, 192, 128  # solutions and made texts per step
PROBLEMS, DRAWN = 12, 16  # per step, and samples of each
FALSE, LIES = 0.15, 0.6  # shares of made steps and of made ends
# The steps from which on it imitates solutions, reads its own samples, imitates many solutions.
SOLVING, OWN, SOLVING_MANY = 750, 1500, 1600


# -- what is true of a text ------------------------------------------------------


def follow(words, numbers):
    """The steps of a text, one by one.

    Parameters
    ----------
    words : list of str
        The text, or a beginning that ends behind a step.
    numbers : list of int

    Returns
    -------
    true : bool
        Whether the newest equation is.
    left : list of int or None
        The numbers that are left; None if a step was false or took another number.
    """
    left, true = list(numbers), False
    for start in range(0, len(words), STEP):
        one, sign, other, equal, result = [*words[start:start + 5], *[""] * 5][:5]
        true = equal == "=" and _holds(one, sign, other, result)
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
    return true, left


def _holds(one, sign, other, result):
    if not (one.isdecimal() and other.isdecimal() and result.isdecimal()):
        return False
    one, other, result = int(one), int(other), int(result)
    if sign == "/":
        return other > 0 and result * other == one
    return {"+": one + other, "-": one - other, "*": one * other}.get(sign) == result > 0


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


def made(rng, numbers, targets, steps):
    """Texts to tell true steps from false ones by, cut behind a random step.

    Half of them are solutions, half lead to a random number and mostly claim it is the target,
    which is how the policy errs. In all of them some results are random.
    """
    count, last = steps.shape[:2]
    steps, targets, half = steps.copy(), targets.copy(), count // 2
    reached = results(numbers[:half], LIMIT)
    program, other = ((rng.random(reached.shape) * (reached > 0)).argmax(axis=1)
                      for _ in range(2))
    steps[:half] = write(numbers[:half], program)
    targets[:half] = reached[np.arange(half), other]
    lies = rng.random(half) < LIES
    steps[:half, -1, 3] = np.where(lies, targets[:half], steps[:half, -1, 3])
    wrong = rng.random((count, last)) < FALSE
    steps[:, :, 3] = np.where(wrong, rng.integers(1, LIMIT + 1, wrong.shape), steps[:, :, 3])
    cuts = rng.integers(1, last + 1, count)
    for row, target, text, cut in zip(numbers, targets, steps, cuts, strict=True):
        words = [*steps_text(text).split(), "<end>"]
        yield row.tolist(), int(target), words[:STEP * cut]


def beginnings(tokens, steps):
    """The different whole samples and beginnings, with those samples that begin so.

    tokens: samples of a problem that takes so many steps.
    """
    found = {}
    for i, text in enumerate(tokens):
        for cut in (*range(STEP, STEP * steps, STEP), None):
            if cut is None or len(text) > cut:
                found.setdefault(text[:cut].tobytes(), []).append(i)
    return [(np.frombuffer(text, np.int32), alike) for text, alike in found.items()]


class Judge:
    """Steps of a trainer that teach a model to draw and to judge what it drew.

    Parameters
    ----------
    words : list of str
        Of the vocabulary, in its order.
    batch : callable
        From a generator and a count to problems of each size with a solution.
    sharpen : float
        Temperature that the finished model draws at. Solutions are imitated at 1; samples are
        drawn and questions answered at this.
    seed : int
    """

    def __init__(self, words, batch, sharpen, seed):
        self.words, self.batch, self.sharpen = words, batch, sharpen
        self.seed = seed
        self.task = bon.tasks.get("countdown", level="medium")
        self.asked = np.array([words.index(word) for word in QUESTIONS], np.int32)
        # The target of "better?" is "no", that of the others "yes".
        no, yes = words.index(NO), words.index(YES)
        self.answers = np.array([[no, yes]] + [[yes, no]] * (len(QUESTIONS) - 1), np.int32)

    def question(self):
        """As a model's self_evaluation.json holds it."""
        return {"question": [int(self.asked[0])], "target": int(self.answers[0, 0]),
                "other": int(self.answers[0, 1]), "ends": []}

    def __call__(self, trainer):
        began = time.perf_counter()
        rng = np.random.default_rng([self.seed, trainer.steps])
        engine = trainer._learner._engine
        nats = self._imitate(engine, trainer, rng)
        texts = self._made(trainer.lm, rng)
        if trainer.steps >= OWN:
            texts = [mine + given for mine, given in
                     zip(self._drawn(trainer, rng), texts, strict=True)]
        return trainer._update({"nats": nats} | self._read(engine, *texts), began)

    def _imitate(self, engine, trainer, rng):
        prompts, texts, lm = [], [], trainer.lm
        count = FEW if trainer.steps < SOLVING_MANY else MANY
        for _, numbers, targets, steps in self.batch(rng, count):
            if trainer.steps < SOLVING:
                numbers, targets, steps = true_steps(rng, numbers)
            for row, target, text in zip(numbers, targets, steps, strict=True):
                prompts.append(lm.encode(prompt(target, row)))
                texts.append([np.append(lm.encode(steps_text(text)), np.int32(0))])
        weights = [np.full(len(text), -1 / len(texts), np.float32) for text, in texts]
        batch = _batch.predictions(prompts, texts, weights)
        logp, _ = engine.accumulate(*batch.arrays(), 1.0)
        return float(-logp.sum() / len(texts))

    def _made(self, lm, rng):
        prompts, texts, seen = [], [], []
        for _, *given in self.batch(rng, MADE):
            for numbers, target, text in made(rng, *(part.astype(int) for part in given)):
                prompts.append(lm.encode(prompt(target, numbers)))
                texts.append([np.array([self.words.index(word) for word in text], np.int32)])
                seen.append((numbers, target, text))
        return prompts, texts, seen, [None] * len(seen)

    def _drawn(self, trainer, rng):
        """Samples at the model's own temperature, and how often a fresh one is no better."""
        trainer.lm.weights_changed()
        problems = [(row.tolist(), int(target)) for _, numbers, targets, _ in
                    self.batch(rng, PROBLEMS) for row, target in zip(numbers, targets, strict=True)]
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
            for begin, alike in beginnings(samples.tokens[p], len(numbers) - 1):
                texts[-1].append(begin)
                seen.append((numbers, target, [self.words[i] for i in begin.tolist()]))
                known.append((wins[p, alike].mean(), len(alike), right[p, alike].mean()))
        return prompts, texts, seen, known

    def _read(self, engine, prompts, texts, seen, known):
        """All questions behind all texts."""
        labels, weights = labels_of(seen, known)
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
        for i, name in enumerate(QUESTIONS[1:], 1):
            figures[name] = auroc(logp[:, i, 0], labels[:, i] > 0.5)
        own = np.array([i for i, j in enumerate(batch.source) if known[j] is not None], int)
        if own.size:
            right = np.array([known[batch.source[i]][2] for i in own])
            whole = np.array([seen[batch.source[i]][2][-1] == "<end>" for i in own])
            first = np.array([len(seen[batch.source[i]][2]) == STEP for i in own])
            figures["brier"] = float(((np.exp(logp[own, 0, 0]) - labels[own, 0]) ** 2).mean())
            for name, some in (("whole", whole), ("first", first), ("later", ~whole & ~first)):
                figures[name] = auroc(logp[own[some], 0, 0], right[some] > 0.5)
        return figures


def prompt(target, numbers):
    return f"make {target} from {' '.join(map(str, numbers))} :"


def labels_of(seen, known):
    """Labels and their weights [texts, questions]; the first is known of samples only.

    Facts count alike for every text, frequencies by how many samples they were counted in.
    """
    followed = [follow(text, numbers) for numbers, _, text in seen]
    lefts = [left for _, left in followed]
    labels = np.zeros((len(seen), len(QUESTIONS)))
    labels[:, 1] = reachable(lefts, [target for _, target, _ in seen])
    labels[:, 2] = [left is not None for left in lefts]
    labels[:, 3] = [true for true, _ in followed]
    weights = np.tile(WEIGHTS / len(seen), (len(seen), 1))
    weights[:, 0] = [0 if fact is None else fact[1] for fact in known]
    labels[:, 0] = [0 if fact is None else fact[0] for fact in known]
    weights[:, 0] *= WEIGHTS[0] / max(weights[:, 0].sum(), 1)
    return labels, weights
