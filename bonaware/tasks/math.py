"""math: competition problems whose answer is a mathematical expression.

Reads MATH-500, AIME 2024 or the 5000 problems of the MATH test set. A sample's answer is the
content of its last \\boxed{}; math-verify decides whether it equals the gold answer, in
worker processes with a hard time limit, because LaTeX from a model can make it hang.

Source: Hendrycks et al. 2021, arXiv:2103.03874 (MATH); Lightman et al. 2023,
arXiv:2305.20050 (the 500); math-verify, github.com/huggingface/Math-Verify.
"""

import importlib.util
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bonaware.tasks import (
    Problem,
    Task,
    as_rewards,
    check_texts,
    data_path,
    read_jsonl,
    require,
)
from bonaware.tasks._boxed import last_boxed

__all__ = ["TASK", "Math", "plain_latex"]

FILES = {"math500": "math500.jsonl", "aime24": "aime24.jsonl", "math5000": "math_test_5000.jsonl"}
ASK = "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}."
LAYOUT = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\\displaystyle|[\s$]")
WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\{([^{}]*)\}")


class Math(Task):
    """Competition problems.

    Parameters
    ----------
    dataset : str
        "math500", "aime24" or "math5000".
    path : str or Path, optional
        JSONL with problem, solution and (else the last \\boxed{} of the solution is taken)
        answer. Default: the dataset's file in math/ in the directory that the environment
        variable BONAWARE_DATA names.
    chat : bool
        Whether the prompt is a list of chat messages instead of text to be continued.
    limit : float
        Seconds that one comparison may take; longer counts as wrong, with a warning.
    workers : int, optional
        Processes that compare. Default: the CPUs this process may use.

    Raises
    ------
    ImportError
        math-verify is not installed.

    Examples
    --------
    >>> task = Math()
    >>> problem = Problem(id="0", prompt="What is one half?", answer="\\\\frac{1}{2}")
    >>> task.rewards([problem], [["It is \\\\boxed{0.5}.", "It is \\\\boxed{2}.", None]])
    array([[ 1.,  0., nan]])
    """

    name = "math"
    max_new_tokens = 1024

    def __init__(
        self,
        dataset: str = "math500",
        path: str | Path | None = None,
        chat: bool = False,
        limit: float = 10.0,
        workers: int | None = None,
    ) -> None:
        if dataset not in FILES:
            raise ValueError(f"dataset must be one of {', '.join(FILES)}, got {dataset!r}")
        if importlib.util.find_spec("math_verify") is None:
            raise ImportError("task math needs math-verify: pip install 'bonaware[math]'")
        from bonaware._pool import KillablePool

        self.dataset, self.path, self.chat = dataset, path, chat
        self.stop_strings = () if chat else ("Problem:",)
        self._pool = KillablePool("bonaware.tasks._compare:compare", workers, limit)

    def load(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        self.check_split(split, "test")
        path = data_path("math", self.path)
        path = path / FILES[self.dataset] if path.is_dir() else path
        problems = []
        for number, record in read_jsonl(path, limit):
            answer = record.get("answer")
            if answer is None:
                answer = last_boxed(require(record, "solution", str, path, number))
            if not isinstance(answer, str):
                raise ValueError(f"{path}, line {number}: need a field 'answer' (str), or a "
                                 "\\boxed{} in the field 'solution'")
            id = str(record.get("unique_id", f"{self.dataset}/{number}"))
            text = require(record, "problem", str, path, number)
            problems.append(Problem(id, text, answer, record))
        return problems

    def prompt(self, problem: Problem) -> str | list[dict[str, str]]:
        if self.chat:
            return [{"role": "user", "content": ASK.format(problem=problem.prompt)}]
        return f"Problem:\n{problem.prompt}\n\nSolution:"

    def answer(self, problem: Problem, text: str) -> str | None:
        boxed = last_boxed(text)
        return (plain_latex(boxed) or None) if boxed is not None else None

    def reward(self, problem: Problem, text: str) -> float:
        return float(self.rewards([problem], [[text]])[0, 0])

    def rewards(
        self, problems: Sequence[Problem], texts: Sequence[Sequence[str | None]]
    ) -> NDArray[np.float64]:
        """As in the class Task; equal pairs of gold and answer are compared once."""
        check_texts(problems, texts)
        pairs = [
            [None if text is None else (problem.answer, self.answer(problem, text) or "")
             for text in row]
            for problem, row in zip(problems, texts, strict=True)
        ]
        right = self._compare_all({pair for row in pairs for pair in row if pair is not None})
        return as_rewards([None if pair is None else right[pair] for pair in row]
                          for row in pairs)

    def _compare_all(self, pairs: set[tuple[str, str]]) -> dict[tuple[str, str], float]:
        from bonaware._pool import Failure

        right = {(gold, got): float(plain_latex(gold) == got) for gold, got in pairs}
        unequal = sorted(pair for pair, reward in right.items() if not reward and pair[1])
        results = dict(zip(unequal, self._pool.map(unequal), strict=True))
        failed = {pair: r for pair, r in results.items() if isinstance(r, Failure)}
        if failed:
            pair, failure = next(iter(failed.items()))
            warnings.warn(
                f"{len(failed)} of {len(pairs)} answers could not be compared and count as "
                f"wrong; the first: {pair[1][:80]!r} {failure.reason}", stacklevel=3,
            )
        return right | {pair: float(r is True) for pair, r in results.items()}


def plain_latex(text: str) -> str:
    r"""LaTeX without layout: for votes, and to spare comparisons of equal strings.

    Examples
    --------
    >>> plain_latex(r"\left( 3, \dfrac{\pi}{2} \right)."), plain_latex(r"\text{(A)}")
    ('(3,\\frac{\\pi}{2})', '(A)')
    """
    text = WORDS.sub(r"\1", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return LAYOUT.sub("", text).rstrip(".")


TASK = Math
