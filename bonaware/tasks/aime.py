"""aime: competition problems whose answer is a whole number from 0 to 999.

Reads JSONL or Parquet with one problem per row, such as the 30 of AIME 2024 or 2025. A sample's
answer is the whole number in its last \\boxed{}, else the one that it states last ("the answer is
025"); a number in passing is none, so that a sample that was cut off is wrong.

Source: American Invitational Mathematics Examination, Mathematical Association of America.
"""

import re
from pathlib import Path
from typing import Any

from bonaware import logs
from bonaware.tasks import Problem, Task, data_path
from bonaware.tasks._boxed import last_boxed

__all__ = ["TASK", "Aime"]

FILE = "aime24.jsonl"
LARGEST = 999
# In bold and in brackets too, as published solutions have it. "*+" never goes back: what a model
# writes may be thousands of spaces.
WHOLE = re.compile(r"\$?\s*+(?:\\(?:text|math)\w*+\s*+\{\s*+)?\(?0*(\d{1,3})\)?\s*+\}?\s*+\$?\.?")
# A number with its decimals and thousands, and no beginning of 25/3, 2^5 or 3x.
STATED = re.compile(r"\banswer\**+\s*+(?:is|[:=])[\s:*$]*+"
                    r"(\d++(?:[.,]\d++)*+)(?!\s*+[/^]|\\?[a-z])", re.IGNORECASE)
ASK = ("{problem}\nPlease reason step by step, and put your final answer, a whole number from 0 to "
       "999, within \\boxed{{}}.")


class Aime(Task):
    """Competition problems with whole numbers as answers.

    Parameters
    ----------
    path : str or Path, optional
        JSONL or Parquet with the fields problem and answer, and perhaps id. Default: aime24.jsonl
        in math/ in the directory that the environment variable BONAWARE_DATA names.
    chat : bool
        Whether the prompt is a list of chat messages instead of text to be continued.

    Examples
    --------
    >>> task = Aime()
    >>> problem = Problem(id="0", prompt="What is 5 squared?", answer="25")
    >>> [task.reward(problem, text) for text in (r"So \\\\boxed{025}.", "The answer is 25.", "25?")]
    [1.0, 1.0, 0.0]
    """

    name = "aime"
    max_new_tokens = 4096

    def __init__(self, path: str | Path | None = None, chat: bool = False) -> None:
        self.path, self.chat = path, chat
        self.stop_strings = () if chat else ("Problem:",)

    def load(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        self.check_split(split, "test")
        path = data_path("math", self.path)
        path = path / FILE if path.is_dir() else path
        problems = [_problem(where, number, row)
                    for number, (where, row) in enumerate(logs.read(path).rows, 1)]
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be >= 0 or None, got {limit}")
        return problems[:limit]

    def prompt(self, problem: Problem) -> str | list[dict[str, str]]:
        if self.chat:
            return [{"role": "user", "content": ASK.format(problem=problem.prompt)}]
        return f"Problem:\n{problem.prompt}\n\nSolution:"

    def answer(self, problem: Problem, text: str) -> str | None:
        said = last_boxed(text)
        if said is None:
            said = next(iter(STATED.findall(text)[-1:]), "")
        found = WHOLE.fullmatch(said)
        return found[1] if found else None

    def reward(self, problem: Problem, text: str) -> float:
        return float(self.answer(problem, text) == problem.answer)


def _problem(where: str, number: int, row: dict[str, Any]) -> Problem:
    """A row as a problem, its answer written plainly."""
    text, answer = row.get("problem"), row.get("answer")
    if not isinstance(text, str):
        raise ValueError(f"{where}: need a field 'problem' (str); there are {', '.join(row)}")
    plain = str(answer).strip()
    if not re.fullmatch(r"\d+", plain) or int(plain) > LARGEST:
        raise ValueError(f"{where}: need a field 'answer', a whole number from 0 to {LARGEST}, "
                         f"found {answer!r:.80}")
    return Problem(str(row.get("id", number)), text, str(int(plain)), row)


TASK = Aime
