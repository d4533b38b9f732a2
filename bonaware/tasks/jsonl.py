"""jsonl: any file of prompts and answers, one JSON object per line.

For problems of one's own. The prompt goes to the model as it is; the sample is compared with
the answer as text.
"""

import re
from pathlib import Path
from typing import Any

from bonaware.tasks import Problem, Task, read_jsonl, require

__all__ = ["TASK", "Jsonl", "normal"]

# What others call the fields, to suggest it where they are missing.
USUAL = {
    "prompt_field": ("question", "problem", "input", "instruction", "query", "text", "messages"),
    "answer_field": ("solution", "target", "gold", "output", "label", "answers", "reference"),
}
MATCHES = ("exact", "contains", "regex")


class Jsonl(Task):
    """Prompts and answers from a JSONL file.

    Parameters
    ----------
    path : str or Path
        The file.
    prompt_field, answer_field : str
        Names of the fields. A prompt is a str or a list of chat messages; an answer is a
        str, a number, or a list of them of which any will do.
    match : str
        "exact": the sample equals the answer; "contains": the answer occurs in it as whole
        words; "regex": the answer is a regular expression that is found in it. "exact" and
        "contains" look at neither case, blanks nor punctuation at the ends.
    extract : str, optional
        Regular expression: what its last occurrence in the sample holds (its first group, or
        all of it) is compared instead of the whole sample, and is its vote.
    max_new_tokens : int
        Tokens of a sample.

    Raises
    ------
    ValueError
        match is unknown, or a regular expression is broken.

    Examples
    --------
    >>> task = Jsonl("problems.jsonl", extract=r"answer is (\\w+)")
    >>> problem = Problem(id="1", prompt="2 + 2?", answer="4")
    >>> task.reward(problem, "The answer is 4."), task.reward(problem, "4")
    (1.0, 0.0)
    """

    name = "jsonl"

    def __init__(
        self,
        path: str | Path,
        prompt_field: str = "prompt",
        answer_field: str = "answer",
        match: str = "exact",
        extract: str | None = None,
        max_new_tokens: int = 256,
    ) -> None:
        if match not in MATCHES:
            raise ValueError(f"match must be one of {', '.join(MATCHES)}, got {match!r}")
        self.path, self.match = Path(path), match
        self.prompt_field, self.answer_field = prompt_field, answer_field
        self.max_new_tokens = max_new_tokens
        self._extract = None if extract is None else _compile(extract, "extract")

    def load(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        self.check_split(split, "test")
        return [self._problem(*line) for line in read_jsonl(self.path, limit)]

    def _problem(self, number: int, record: dict[str, Any]) -> Problem:
        prompt = self._field(record, "prompt_field", (str, list), number)
        answer = self._field(record, "answer_field", (str, int, float, list), number)
        if self.match == "regex":
            for choice in _choices(answer):
                _compile(choice, f"{self.path}, line {number}: field {self.answer_field!r}")
        return Problem(str(record.get("id", number)), prompt, answer, record)

    def _field(self, record: dict[str, Any], option: str, kinds: tuple[type, ...],
               number: int) -> Any:
        """A field of a record; where it is missing, how to name another that is there."""
        name = getattr(self, option)
        try:
            return require(record, name, kinds, self.path, number)
        except ValueError as error:
            if name in record:
                raise
            other = next((usual for usual in USUAL[option] if usual in record), "NAME")
            raise ValueError(f"{error}; another is named by {option}={other}, in the terminal "
                             f"--task-option {option}={other}") from None

    def answer(self, problem: Problem, text: str) -> str | None:
        return normal(self._extracted(text)) or None

    def reward(self, problem: Problem, text: str) -> float:
        text = self._extracted(text)
        return float(any(self._matches(choice, text) for choice in _choices(problem.answer)))

    def _extracted(self, text: str) -> str:
        if self._extract is None:
            return text
        found = list(self._extract.finditer(text))
        if not found:
            return ""
        return found[-1][1] or "" if self._extract.groups else found[-1][0]

    def _matches(self, choice: str, text: str) -> bool:
        if self.match == "regex":
            return re.search(choice, text) is not None
        choice, text = normal(choice), normal(text)
        if self.match == "exact":
            return choice == text
        return re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", text) is not None


def normal(text: str) -> str:
    """Lower-case, single blanks, no punctuation or quotes at the ends.

    Examples
    --------
    >>> normal('  "New  York." ')
    'new york'
    """
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*")


def _choices(answer: Any) -> list[str]:
    return [str(choice) for choice in (answer if isinstance(answer, list) else [answer])]


def _compile(pattern: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{where}: not a regular expression: {error}") from error


TASK = Jsonl
