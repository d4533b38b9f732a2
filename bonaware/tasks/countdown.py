"""countdown: reach a target from given numbers with + - * /, each number used exactly once.

Problems are made, not read: by a seed, in any number, each with a solution in whole numbers.
The splits have no multiset of numbers in common, whatever the seed. A sample is right if it
holds as exact arithmetic: steps such as "25 - 3 = 22 , 22 * 4 = 88", or one expression.

Source: the numbers round of the television game; as a task for language models Gandhi et al.
2024, arXiv:2404.03683.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bonaware.tasks import Problem, Task
from bonaware.tasks._countdown_arrays import SHARES, SIGNS, draw, results, shares, write
from bonaware.tasks._countdown_text import read

__all__ = ["LEVELS", "TASK", "Countdown", "steps_text"]

LEVELS = {"easy": (3,), "medium": (4,), "hard": (5,), "mixed": (3, 4)}  # how many numbers
HIGH = 50  # numbers are 1 to HIGH
SMALL = 25  # a number above is large
LIMIT = 50  # no target and no step of a made solution is larger
KINDS = ("usual", "heldout")
# Shares of all multisets of numbers, and how many problems there are.
SPLITS = {"train": (range(3, SHARES), 20_000), "validation": (range(2, 3), 1000),
          "test": (range(2), 2000)}


class Countdown(Task):
    """Reach a target from given numbers.

    Parameters
    ----------
    level : str
        "easy", "medium", "hard": three, four, five numbers; "mixed": three and four in turn.
        The embedded model was trained for "medium".
    kind : str
        "usual": numbers from 1 to 50, at most one of them above 25; "heldout": two or more
        above 25. To be tried on models that were trained on the usual kind.
    seed : int
        Which problems; >= 0.

    Raises
    ------
    ValueError
        There is no such level or kind, or the seed is negative.

    Examples
    --------
    >>> task = Countdown("easy")
    >>> problem = task.load(limit=1)[0]
    >>> task.prompt(problem)
    'make 22 from 5 5 12 :'
    >>> task.solutions(problem)
    ['5 + 5 = 10 , 12 + 10 = 22']
    >>> task.reward(problem, "5 + 5 = 10 , 12 + 10 = 22"), task.reward(problem, "(5 + 5) + 12")
    (1.0, 1.0)
    >>> task.reward(problem, "12 - 5 = 8 , 8 + 5 = 22"), task.answer(problem, "5 + 12 - 5")
    (0.0, '12+5-5')
    """

    name = "countdown"
    max_new_tokens = 32

    def __init__(self, level: str = "medium", kind: str = "usual", seed: int = 0) -> None:
        for name, value, known in (("level", level, LEVELS), ("kind", kind, KINDS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if seed < 0:
            raise ValueError(f"seed must be >= 0, got {seed}")
        self.level, self.kind, self.seed = level, kind, seed

    def load(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        """The first `limit` problems of a split, all different; all of them for None.

        There are 20 000 problems in "train", 1000 in "validation" and 2000 in "test";
        `arrays` goes on without end.
        """
        self.check_split(split, *SPLITS)
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be >= 0 or None, got {limit}")
        count = SPLITS[split][1] if limit is None else min(limit, SPLITS[split][1])
        sizes = [self._different(split, size) for size in LEVELS[self.level]]
        turns = (next(sizes[number % len(sizes)]) for number in range(count))
        return [_problem(f"{self.name}/{split}/{number}", *turn)
                for number, turn in enumerate(turns, 1)]

    def arrays(self, split: str, size: int) -> Iterator[tuple[NDArray[np.int64], ...]]:
        """Problems of one size without end, as arrays: for training on millions.

        Parameters
        ----------
        split : str
            "train", "validation" or "test".
        size : int
            How many numbers, 2 to 5.

        Yields
        ------
        numbers : int64, shape [P, size]
            Sorted; P differs from chunk to chunk.
        targets : int64, shape [P]
        steps : int64, shape [P, size - 1, 4]
            A solution, always the same for the same problem: number, index into "+*-/",
            number, result. `steps_text` writes it.
        """
        self.check_split(split, *SPLITS)
        key = [self.seed, KINDS.index(self.kind), list(SPLITS).index(split), size]
        wanted = SPLITS[split][0]

        def taken(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
            few = (numbers > SMALL).sum(axis=1) <= 1
            return np.isin(shares(numbers), wanted) & (few == (self.kind == "usual"))

        rng = np.random.default_rng(key)
        for numbers, targets, program in draw(rng, size, HIGH, LIMIT, taken):
            yield numbers, targets, write(numbers, program)

    def _different(self, split: str, size: int) -> Iterator[tuple[list[int], int, str]]:
        """Numbers, target and solution of problems that have not come before."""
        seen = set()
        for numbers, targets, steps in self.arrays(split, size):
            for row, (given, target) in enumerate(zip(numbers.tolist(), targets.tolist(),
                                                      strict=True)):
                if (*given, target) not in seen:
                    seen.add((*given, target))
                    yield given, target, steps_text(steps[row])

    def reward(self, problem: Problem, text: str) -> float:
        found = read(text, problem.answer["numbers"])
        return float(found is not None and found.true
                     and found.value == problem.answer["target"])

    def answer(self, problem: Problem, text: str) -> str | None:
        """The sample as one expression, the same for all orders of terms and factors."""
        found = read(text, problem.answer["numbers"])
        return None if found is None else found.form

    def solutions(self, problem: Problem) -> list[str]:
        """All solutions in whole numbers from 1 to 50 that differ by more than order.

        The first is the one that `load` gives as `problem.fields["solution"]`.
        """
        numbers = np.array([sorted(problem.answer["numbers"])])
        hits = np.flatnonzero(results(numbers, LIMIT)[0] == problem.answer["target"])
        steps = write(numbers.repeat(len(hits), axis=0), hits)
        texts = [steps_text(each) for each in steps]
        first: dict[str | None, str] = {}
        for text in texts:
            first.setdefault(self.answer(problem, text), text)
        return list(first.values())


def steps_text(steps: NDArray[np.integer]) -> str:
    """Steps as a sample has them.

    Parameters
    ----------
    steps : int, shape [size - 1, 4]
        Number, index into "+*-/", number, result.

    Examples
    --------
    >>> import numpy as np
    >>> steps_text(np.array([[25, 2, 3, 22], [22, 1, 4, 88]]))
    '25 - 3 = 22 , 22 * 4 = 88'
    """
    return " , ".join(f"{one} {SIGNS[sign]} {other} = {result}"
                      for one, sign, other, result in steps.tolist())


def _problem(id: str, numbers: list[int], target: int, solution: str) -> Problem:
    prompt = f"make {target} from {' '.join(map(str, numbers))} :"
    answer = {"numbers": numbers, "target": target}
    return Problem(id, prompt, answer, {**answer, "solution": solution})


TASK = Countdown
