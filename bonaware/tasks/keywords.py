"""keywords: a text must go on from its opening so that it contains given words.

For small story models without instruction following: the words are not in the prompt, only
the selector and the reward know them. The problems beside this file, keywords.jsonl, were
written for this project. Reward 1 if every word occurs as a whole word, in any case
or simple inflection (dance, dances, danced, dancing), else 0.
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from bonaware.tasks import Problem, Task, read_jsonl, require

__all__ = ["TASK", "Keywords", "forms"]

VOWELS = "aeiou"
PROBLEMS = Path(__file__).with_suffix(".jsonl")


class Keywords(Task):
    """Texts that must contain given words.

    Parameters
    ----------
    path : str or Path, optional
        JSONL with id, prompt and words (list of str). Default: the shipped problems,
        64 openings with one word or two, chosen for the small checkpoint "aidreams260K":
        at temperature 1 it solves between 4 % and 61 % of the time, 22 % on average.

    Examples
    --------
    >>> task = Keywords()
    >>> problem = task.load(limit=1)[0]
    >>> problem.prompt, problem.answer
    ('"Echoes of data', ['whisper'])
    >>> task.reward(problem, " unfold, Whispering of vectors.")
    1.0
    """

    name = "keywords"
    max_new_tokens = 96

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = PROBLEMS if path is None else Path(path)

    def load(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        self.check_split(split, "test")
        return [self._problem(*line) for line in read_jsonl(self.path, limit)]

    def _problem(self, number: int, record: dict[str, Any]) -> Problem:
        prompt = require(record, "prompt", str, self.path, number)
        words = require(record, "words", list, self.path, number)
        if not words or not all(isinstance(word, str) and word for word in words):
            raise ValueError(f"{self.path}, line {number}: words must be one str or more, "
                             f"got {words}")
        return Problem(str(record.get("id", number)), prompt, words, record)

    def reward(self, problem: Problem, text: str) -> float:
        return float(all(_pattern(word).search(text) for word in problem.answer))


def forms(word: str) -> tuple[str, ...]:
    """A word with its regular inflections, lower-case.

    Examples
    --------
    >>> forms("dance")
    ('dance', 'dances', 'danced', 'dancing')
    >>> forms("blur")
    ('blur', 'blurs', 'blured', 'bluring', 'blurred', 'blurring')
    >>> forms("tapestry")
    ('tapestry', 'tapestries', 'tapestried', 'tapestrying')
    """
    word = word.lower()
    stem, last = word[:-1], word[-1:]
    if last == "e":
        return word, word + "s", word + "d", stem + "ing"
    if last == "y" and stem and stem[-1] not in VOWELS:
        return word, stem + "ies", stem + "ied", word + "ing"
    plural = word + ("es" if word.endswith(("s", "x", "z", "o", "ch", "sh")) else "s")
    regular = (word, plural, word + "ed", word + "ing")
    if last not in VOWELS + "wxy" and stem and stem[-1] in VOWELS:
        return *regular, word + last + "ed", word + last + "ing"
    return regular


@lru_cache(maxsize=4096)
def _pattern(word: str) -> re.Pattern[str]:
    choices = "|".join(map(re.escape, forms(word)))
    return re.compile(rf"(?<!\w)(?:{choices})(?!\w)", re.IGNORECASE)


TASK = Keywords
