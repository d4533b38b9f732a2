"""gsm8k: grade-school problems whose answer is a whole number.

Reads train.jsonl and test.jsonl of openai/grade-school-math (question, answer; the gold
number stands behind `####`). A sample's answer is the number right behind its last `####`,
else in its last \\boxed{}, else its last number.

Source: Cobbe et al. 2021, arXiv:2110.14168.
"""

import re
from pathlib import Path

from bonaware.tasks import Problem, Task, data_path, read_jsonl, require
from bonaware.tasks._boxed import last_boxed

__all__ = ["TASK", "Gsm8k", "last_number"]

# 1,319 and 1319 and .5; a comma only between groups of three; a minus not behind a digit,
# so that "3-4" holds 3 and 4.
NUMBER = (
    r"((?<![\w.)\]])[-\N{MINUS SIGN}])?\$?(?:(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?|(\.\d+))"
)
MARKED = re.compile(rf"####\s*({NUMBER})")
ASK = "{question}\nThink step by step, then write the answer, a number, behind ####."


class Gsm8k(Task):
    """Grade-school problems.

    Parameters
    ----------
    path : str or Path, optional
        Folder with train.jsonl and test.jsonl. Default: gsm8k/ in the directory that the
        environment variable BONAWARE_DATA names.
    shots : int
        Solved problems, the first of train.jsonl, shown before the question.
    chat : bool
        Whether the prompt is a list of chat messages, for instruction-tuned models, instead
        of text to be continued ("Question: ... Answer:").

    Examples
    --------
    >>> task = Gsm8k()
    >>> problem = Problem(id="0", prompt="What is 2 + 2?", answer="4")
    >>> task.prompt(problem)
    'Question: What is 2 + 2?\\nAnswer:'
    >>> task.reward(problem, " 2 + 2 = <<2+2=4>>4\\n#### 4"), task.reward(problem, "It is 5.")
    (1.0, 0.0)
    """

    name = "gsm8k"
    max_new_tokens = 512

    def __init__(
        self, path: str | Path | None = None, shots: int = 0, chat: bool = False
    ) -> None:
        if shots < 0:
            raise ValueError(f"shots must be >= 0, got {shots}")
        self.path, self.shots, self.chat = path, shots, chat
        self.stop_strings = () if chat else ("Question:",)
        self._examples: list[Problem] | None = None

    def load(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        self.check_split(split, "train", "test")
        path = data_path("gsm8k", self.path) / f"{split}.jsonl"
        problems = []
        for number, record in read_jsonl(path, limit):
            solution = require(record, "answer", str, path, number)
            gold = MARKED.search(solution)
            if gold is None:
                raise ValueError(f"{path}, line {number}: no number behind #### in the answer")
            question = require(record, "question", str, path, number)
            id, answer = f"gsm8k/{split}/{number}", last_number(gold[1])
            problems.append(Problem(id, question, answer, record))
        return problems

    def prompt(self, problem: Problem) -> str | list[dict[str, str]]:
        if self._examples is None:
            self._examples = self.load("train", self.shots) if self.shots else []
        shown = [(example, example.fields["answer"]) for example in self._examples]
        if not self.chat:
            text = "".join(f"Question: {e.prompt}\nAnswer: {gold}\n\n" for e, gold in shown)
            return f"{text}Question: {problem.prompt}\nAnswer:"
        messages = []
        for example, gold in shown:
            messages.append({"role": "user", "content": ASK.format(question=example.prompt)})
            messages.append({"role": "assistant", "content": gold})
        return [*messages, {"role": "user", "content": ASK.format(question=problem.prompt)}]

    def answer(self, problem: Problem, text: str) -> str | None:
        marked = list(MARKED.finditer(text))
        if marked:
            return last_number(marked[-1][1])
        return last_number(last_boxed(text) or "") or last_number(text)

    def reward(self, problem: Problem, text: str) -> float:
        return float(self.answer(problem, text) == problem.answer)


def last_number(text: str) -> str | None:
    """The last number in a text, written plainly; None if there is none.

    Examples
    --------
    >>> last_number("3 - 1 = 2 eggs, so $1,319.50."), last_number("-$07.0"), last_number("none")
    ('1319.5', '-7', None)
    """
    found = re.findall(NUMBER, text)
    if not found:
        return None
    sign, whole, part, bare = found[-1]
    whole = whole.replace(",", "").lstrip("0") or "0"
    part = (part or bare).rstrip("0").rstrip(".")
    return ("-" if sign and whole + part != "0" else "") + whole + part


TASK = Gsm8k
