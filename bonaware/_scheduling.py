"""Scheduling: drawing as a policy wants it - samples rest, are read, go on, or are dropped.

The engine runs; samples that have ended or come to a checkpoint rest until there are some of
them, and are read by the verifier on their live cache in one batch; where all samples of a
prompt are at rest, its policy is asked what happens next. Slots that fall free are taken by the
samples of the next prompt, so that policies which draw little make a run short.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bonaware._checks import as_ids
from bonaware._drawing import MAX_SLOTS, STEPS, Drawing, Room
from bonaware.config import engine
from bonaware.policies import Policy
from bonaware.policies._course import Course
from bonaware.samples import Request, Sample, Stats
from bonaware.verifiers._live import score_live

if TYPE_CHECKING:
    from bonaware.lm import LM

__all__ = ["Guide", "Live", "Scheduled"]

# Share of the cache that questions may take, as one part of so many.
ASK_SHARE = 8
# Samples asked in one call of the engine, which gives all logits of each.
ASKED_TOGETHER = 32
# Samples are read when one in so many rests, as a batch costs less than its samples one by one.
READ_SHARE = 8


class Live:
    """Samples that rest in the engine, for the `read` of a verifier.

    Attributes
    ----------
    lm : LM
        The model that draws them.
    samples : list of Sample, length m
        As drawn so far; finish_reason "held" where a sample may go on. No text then.
    prompts : list, length m
        Of each sample, as given.
    problems : list of Problem or None, length m
        Of each sample; None where there are only prompts.
    """

    def __init__(self, drawing: "Scheduled", numbers: ArrayLike,
                 samples: Sequence[Sample]) -> None:
        self._drawing = drawing
        self._numbers = np.asarray(numbers, np.uintp)
        self.lm = drawing.lm
        self.samples = list(samples)
        self.prompts = [drawing.prompts[sample.prompt] for sample in self.samples]
        self.problems = [drawing.guide.problem(sample.prompt) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def part(self, which: NDArray[np.intp]) -> "Live":
        """Those at some places."""
        return Live(self._drawing, self._numbers[which], [self.samples[i] for i in which])

    def ask(self, question: ArrayLike, named: ArrayLike,
            which: Sequence[int] | None = None) -> NDArray[np.float32]:
        """What the model would say behind its sample and a question; the sample stays as it is.

        Parameters
        ----------
        question : int, shape [q]
            Token ids, q >= 1.
        named : int, shape [r]
            Tokens whose probability is wanted.
        which : sequence of int, optional
            Places of the samples that are asked; default all.

        Returns
        -------
        float32, shape [len(which), r]
            Natural log-probabilities at temperature 1.

        Raises
        ------
        ValueError
            A token is outside the vocabulary, or the context has no room for the question.
        """
        numbers = self._numbers if which is None else self._numbers[np.asarray(which, np.intp)]
        return self._drawing._ask(numbers, as_ids(question, "the question"),
                                  as_ids(named, "the named tokens"))


class Guide:
    """What a policy is told of samples: scores by one verifier, and answers.

    Parameters
    ----------
    policy : Policy
    verifier : Verifier or None
        Its `read` scores samples in the engine, whole ones and beginnings; one without `read`
        scores whole samples by `score`.
    problems : sequence of Problem, optional
    answer : callable, optional
        (prompt position, text) -> what the sample votes for, or None.

    Raises
    ------
    ValueError
        The policy needs what nobody here gives.
    """

    def __init__(self, policy: Policy, verifier: Any, problems: Sequence[Any] | None = None,
                 answer: Callable[[int, str], str | None] | None = None) -> None:
        needs = policy.needs
        if verifier is None and policy.judged:
            raise ValueError(f"policy {policy!r} needs the scores of a verifier, but none is given")
        if "prefix_scores" in needs and not hasattr(verifier, "read"):
            raise ValueError(f"policy {policy!r} needs scores of samples that are under way, which "
                             f"verifier {verifier!r} does not give: use self_evaluation, "
                             "likelihood or self_certainty, or give it a method `read` "
                             "(docs/own_verifier.md)")
        if policy.probabilities and not getattr(verifier, "probabilities", True):
            raise ValueError(f"policy {policy!r} compares scores with a probability, but those of "
                             f"verifier {verifier!r} are none: use self_evaluation, or "
                             "reward_model with probabilities=True")
        if "answers" in needs and answer is None:
            raise ValueError(f"policy {policy!r} needs answers to vote with, which a task reads "
                             "from texts: use bonaware.evaluate")
        self.policy, self.verifier = policy, verifier
        self._problems, self._answer = problems, answer

    def problem(self, prompt: int) -> Any:
        return None if self._problems is None else self._problems[prompt]

    def ask_tokens(self, lm: "LM") -> int:
        """Most tokens of a question that the verifier asks; 0 where it asks nothing."""
        count = getattr(self.verifier, "question_tokens", None)
        return count(lm) if callable(count) else 0

    def scores(self, live: Live) -> NDArray[np.float64]:
        """Of each sample that rests; NaN where the policy does not need it."""
        found = np.full(len(live), np.nan)
        held = np.array([sample.finish_reason == "held" for sample in live.samples], bool)
        wanted = np.where(held, "prefix_scores" in self.policy.needs, self.verifier is not None)
        if wanted.any():
            found[wanted] = self._read(live.part(np.flatnonzero(wanted)))
        return found

    def _read(self, live: Live) -> NDArray[np.float64]:
        if hasattr(self.verifier, "read"):
            return self.verifier.read(live)
        return score_live(self.verifier, live)

    def answer(self, sample: Sample) -> str | None:
        """What a sample votes for, where the policy wants to know."""
        if "answers" not in self.policy.needs or sample.text is None:
            return None
        return self._answer(sample.prompt, sample.text)


class Scheduled(Drawing):
    """Samples under way as a policy wants them; made by `LM.stream`.

    Attributes
    ----------
    scores : dict of (prompt, index) -> float
        Of the samples that have ended.
    chosen : dict of prompt -> int
        Which sample the policy takes, of the prompts that are done.
    """

    def __init__(self, lm: "LM", requests: Sequence[Request], prompts: Sequence[Any],
                 policy: Policy, guide: Guide,
                 kept: Mapping[tuple[int, int], tuple[Sample, float]] | None = None,
                 **sampling: Any) -> None:
        self.policy, self.guide, self.prompts = policy, guide, prompts
        self.scores: dict[tuple[int, int], float] = {}
        self.chosen: dict[int, int] = {}
        self._kept = dict(kept or {})
        self._courses = {r.prompt: Course(policy, r.prompt) for r in requests}
        self._numbers: dict[tuple[int, int], int] = {}  # (prompt, index) -> the engine's number
        self._prompts: dict[int, int] = {}  # position -> the engine's number
        self._queue = deque(requests)
        self._resting: dict[int, None] = {}  # the engine's numbers, in the order of coming to rest
        self._done: dict[int, int] = {}  # prompts whose last samples are being handed out
        self._room = _room(lm, policy, guide.ask_tokens(lm))
        self._asked, self._ask_seconds = 0, 0.0
        super().__init__(lm, requests, **sampling)
        _check_checkpoints(policy, self.settings["max_new_tokens"])

    @property
    def stats(self) -> Stats:
        """Tokens and seconds so far."""
        return replace(super().stats, question_tokens=self._asked, ask_seconds=self._ask_seconds)

    def found(self, shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Scores `[P, n]` and the sample taken `[P]`; NaN and -1 where there is none."""
        scores, chosen = np.full(shape, np.nan), np.full(shape[0], -1)
        for place, score in self.scores.items():
            scores[place] = score
        for prompt, index in self.chosen.items():
            chosen[prompt] = index
        return scores, chosen

    def _begin(self) -> None:
        """Nothing is queued yet: prompts begin as others end."""
        self._of = {request.prompt: (request, temperatures) for request, temperatures
                    in zip(self.requests, self._temperatures, strict=True)}

    def _run(self) -> Iterator[Sample]:
        try:
            while True:
                yield from self._begin_prompts()
                if not self._samples:
                    return
                events = self._session.run(STEPS)
                self._seconds = time.monotonic() - self._started
                self._resting |= {number: None for number, state in events
                                  if number in self._samples and self._rests(number, state)}
                if not (events or self._resting or self._session.pending):
                    raise RuntimeError(f"policy {self.policy!r}: samples rest and nothing moves")
                if not events or self._enough():
                    yield from self._read()
        except KeyboardInterrupt:
            yield from self._rest()
            raise

    def _enough(self) -> bool:
        """Whether so many samples rest that they are read; at once where nothing is asked."""
        resting = len(self._resting)
        drawing = self._session.stats()["live"] if self._room.ask_blocks else 0
        return resting * READ_SHARE >= resting + drawing

    def _begin_prompts(self) -> Iterator[Sample]:
        """Let prompts begin while slots would be empty."""
        while self._queue and len(self._samples) < MAX_SLOTS:
            request = self._queue.popleft()
            self._prompts[request.prompt] = self._add_prompt(request)
            yield from self._leave({}, self._advance([request.prompt]))

    def _read(self) -> Iterator[Sample]:
        """Read the samples that rest, and ask the policies of their prompts."""
        live = Live(self, list(self._resting), [self._sample(number) for number in self._resting])
        ended = {}
        scores = self.guide.scores(live).tolist()
        self._seconds = time.monotonic() - self._started
        resting, self._resting = self._resting, {}
        for number, sample, score in zip(resting, live.samples, scores, strict=True):
            if sample.finish_reason == "held":
                self._courses[sample.prompt].held(sample.index, score)
            else:
                self._end(sample, score)
                ended[number] = sample
        # The policies first: a prompt stays in the cache while it may want more samples.
        yield from self._leave(ended, self._advance({s.prompt: None for s in live.samples}))

    def _end(self, sample: Sample, score: float) -> None:
        """A sample has ended by itself."""
        self.scores[sample.prompt, sample.index] = score
        self._courses[sample.prompt].ended(sample.index, sample.finish_reason, len(sample.tokens),
                                           score, self.guide.answer(sample))

    def _leave(self, ended: Mapping[int, Sample], dropped: Sequence[int]) -> Iterator[Sample]:
        """Hand out samples that are over; then the prompts that are done count as done."""
        for number, sample in ended.items():
            self._drop(number)
            yield sample
        for number in dropped:
            yield self._finish(number)
        self.chosen |= self._done
        self._done = {}

    def _advance(self, prompts: Iterable[int]) -> list[int]:
        """Do what the policies want of the prompts that are at rest; the samples they drop."""
        dropped = []
        for prompt in prompts:
            course = self._courses[prompt]
            while course.at_rest:
                step = course.next()
                if step.nothing:
                    self._done[prompt] = course.choose()
                    break
                for index in step.drop:
                    dropped.append(self._numbers[prompt, index])
                    self._session.end(dropped[-1], "pruned")
                if step.go_on:
                    numbers = [self._numbers[prompt, index] for index in step.go_on]
                    self._session.go_on(np.array(numbers, np.uintp),
                                        course.checkpoint(step.go_on[0]))
                self._begin_samples(course, step.begin)
        return dropped

    def _begin_samples(self, course: Course, indices: Sequence[int]) -> None:
        """Queue samples, but for those that were drawn in an earlier run."""
        prompt = course.prompt
        new = [index for index in indices if (prompt, index) not in self._kept]
        for index in set(indices).difference(new):
            self._end(*self._kept[prompt, index])
        if new:
            request, temperatures = self._of[prompt]
            numbers = self._add(request, self._prompts[prompt], new, temperatures[new],
                                course.checkpoint(new[0]))
            self._numbers |= {(prompt, i): number for i, number in zip(new, numbers, strict=True)}

    def _ask(self, numbers: NDArray[np.uintp], question: NDArray[np.int32],
             named: NDArray[np.int32]) -> NDArray[np.float32]:
        began = time.monotonic()
        parts = [self._session.ask(numbers[at:at + ASKED_TOGETHER], question, named)[0]
                 for at in range(0, len(numbers), ASKED_TOGETHER)]
        self._asked += len(numbers) * len(question)
        self._ask_seconds += time.monotonic() - began
        return np.concatenate([np.empty((0, len(named)), np.float32), *parts])


def _check_checkpoints(policy: Policy, max_new_tokens: int) -> None:
    if policy.checkpoints and policy.checkpoints[0] >= max_new_tokens:
        raise ValueError(f"the first checkpoint of a policy must be < max_new_tokens, which is "
                         f"{max_new_tokens}, got {policy.checkpoints[0]}: nothing could be "
                         "dropped")


def _room(lm: "LM", policy: Policy, ask_tokens: int) -> Room:
    """Samples that rest at checkpoints keep their slots until all of their prompt are there."""
    n = policy.n if policy.checkpoints else 1
    words = f"{n} samples at once, as policy {policy!r} wants them," if n > 1 else "one sample"
    if not ask_tokens:
        return Room(n, words, hold_ends=True)
    return Room(n, words, True, _ask_blocks(lm, n, ask_tokens), ask_tokens + 1)


def _ask_blocks(lm: "LM", together: int, ask_tokens: int) -> int:
    """Cache blocks for questions: of some samples at a time."""
    each = 2 + ask_tokens // engine().BLOCK_TOKENS
    budget = lm.memory // lm._model.block_bytes // ASK_SHARE
    return each * max(1, min(max(together, MAX_SLOTS), budget // each))
