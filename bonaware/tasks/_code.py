"""What tasks share whose samples are programs: finding the program, and running its tests."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware.sandbox import Case, Sandbox, Verdict, route
from bonaware.tasks import Problem, Task, as_rewards, check_texts

__all__ = ["CodeTask", "cut", "defines", "fenced"]

FENCE = re.compile(r"^```[^\n]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)


class CodeTask(Task):
    """Base class: a subclass defines `load`, `prompt` and `program`.

    The answer of a problem is a dict: "tests", source text that raises an exception if the
    program is wrong, and "names", what the program has to define.

    Parameters
    ----------
    path : str or Path, optional
        Where the data are.
    chat : bool
        Whether the prompt is a list of chat messages instead of text to be continued.
    seconds, memory, workers : optional
        As in `bonaware.sandbox.Sandbox`.
    """

    max_new_tokens = 512
    plain_stop_strings: tuple[str, ...] = ()  # where a continued text leaves the program

    def __init__(
        self,
        path: str | Path | None = None,
        chat: bool = False,
        seconds: float = 10.0,
        memory: int = 512,
        workers: int | None = None,
    ) -> None:
        self.path, self.chat = path, chat
        self.seconds, self.memory, self.workers = seconds, memory, workers
        self.stop_strings = () if chat else self.plain_stop_strings
        self._words: Counter[str] = Counter()

    def program(self, problem: Problem, text: str) -> str:
        """The program that a sample stands for."""
        raise NotImplementedError

    def block(self, text: str, names: Iterable[str]) -> str | None:
        """The last fenced block that defines one of the names, else the last block, if any.

        Where no chat was asked for, only a sample that begins with a fence has blocks: a later
        fence ends the program.
        """
        blocks = fenced(text) if self.chat or text.lstrip().startswith("```") else []
        defining = [block for block in blocks if defines(block, names)]
        return next(reversed(defining or blocks), None)

    def verdicts(
        self, problems: Sequence[Problem], texts: Sequence[Sequence[str | None]]
    ) -> list[list[Verdict | None]]:
        """What came of each sample; None where there is no text.

        Parameters
        ----------
        problems : sequence of Problem, length P
        texts : sequence of P sequences of n str or None

        Raises
        ------
        RuntimeError
            There is no sandbox on this machine.
        """
        check_texts(problems, texts)
        cases = [[None if text is None else self._case(problem, text) for text in row]
                 for problem, row in zip(problems, texts, strict=True)]
        asked = list(dict.fromkeys(case for row in cases for case in row if case is not None))
        known = dict(zip(asked, self._sandbox.run(asked), strict=True))
        return [[None if case is None else known[case] for case in row] for row in cases]

    def reward(self, problem: Problem, text: str) -> float:
        return float(self.rewards([problem], [[text]])[0, 0])

    def rewards(
        self, problems: Sequence[Problem], texts: Sequence[Sequence[str | None]]
    ) -> NDArray[np.float64]:
        """As in the class Task; equal programs of a problem are run once."""
        verdicts = self.verdicts(problems, texts)
        self._words = Counter(one.word for row in verdicts for one in row if one is not None)
        return as_rewards([None if one is None else float(one.passed) for one in row]
                          for row in verdicts)

    def settings(self) -> dict[str, Any]:
        return {"sandbox": f"{route()}, {self.seconds:g} s and {self.memory} MiB per program"}

    def remarks(self) -> str:
        """How many samples of the last call of `rewards` passed, and what became of the others."""
        counts = ", ".join(f"{count} {word}" for word, count in self._words.most_common())
        return f"programs: {counts}" if counts else ""

    @cached_property
    def _sandbox(self) -> Sandbox:
        return Sandbox(self.seconds, self.memory, self.workers)

    def _case(self, problem: Problem, text: str) -> Case:
        answer = problem.answer
        return Case(self.program(problem, text), answer["tests"], tuple(answer["names"]))


def fenced(text: str) -> list[str]:
    """The contents of fenced blocks; one that is not closed ends with the text.

    Examples
    --------
    >>> fenced("So:\\n```python\\nx = 1\\n```\\nor\\n```\\nx = 2")
    ['x = 1\\n', 'x = 2']
    """
    return [match[1] for match in FENCE.finditer(text)]


def defines(code: str, names: Iterable[str]) -> bool:
    """Whether code defines one of the names, at the beginning of a line.

    Examples
    --------
    >>> defines("import math\\ndef area(r): ...", ["area"]), defines("    def area(r)", ["area"])
    (True, False)
    """
    name = f"(?:{'|'.join(map(re.escape, names))})"
    defined = rf"^(?:(?:async +)?def|class) +{name}\b|^{name} *=(?!=)"
    return re.search(defined, code, re.MULTILINE) is not None


def cut(text: str, stop_strings: Iterable[str]) -> str:
    """The text before the first of the stop strings.

    Examples
    --------
    >>> cut("    return 1\\n\\nprint(f())", ["\\nprint", "\\ndef"])
    '    return 1\\n'
    """
    return text[:min((at for s in stop_strings if (at := text.find(s)) >= 0), default=None)]
