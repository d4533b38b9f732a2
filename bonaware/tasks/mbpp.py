"""mbpp: write a small Python program from a sentence and three tests, which run in a sandbox.

Reads mbpp.jsonl (974 problems) or sanitized-mbpp.json (427 of them, checked by hand) of
google-research/mbpp. The splits are those of the paper, by task_id: prompt 1-10, test 11-510,
validation 511-600, train 601-974. A sample is a program; the tests are in the prompt.

Source: Austin et al. 2021, arXiv:2108.07732; the prompt for base models, a docstring:
Fried et al. 2022, arXiv:2204.05999, which showed one of the tests.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonaware.tasks import Problem, data_path, read_jsonl, require
from bonaware.tasks._code import CodeTask, cut

__all__ = ["TASK", "Mbpp"]

FILES = {"mbpp": "mbpp.jsonl", "sanitized": "sanitized-mbpp.json"}
SPLITS = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
ASK = "{text}\nAnswer with one fenced block of Python. These tests must hold:\n\n" \
      "```python\n{tests}\n```"
DOCSTRING = '"""\n{text}\n{tests}\n"""\n'


class Mbpp(CodeTask):
    """Programs to be written.

    Parameters
    ----------
    dataset : str
        "mbpp" or "sanitized".
    path : str or Path, optional
        The file, or the folder with mbpp.jsonl and sanitized-mbpp.json. Default: mbpp/ in the
        directory that the environment variable BONAWARE_DATA names.
    shots : int
        Solved problems, the first of the split "prompt", shown before the question.
    chat : bool
        Whether the prompt is a list of chat messages, for instruction-tuned models, instead
        of a docstring to be continued. Then the sample's code is its last fenced block that
        defines what the tests call.
    seconds : float
        Computing time of one program with its tests; by the clock it may last five times that.
    memory : int
        MiB that it may use.
    workers : int, optional
        Programs that run at a time. Default: the CPUs this process may use.

    Raises
    ------
    ValueError
        dataset is unknown, or shots negative.

    Examples
    --------
    >>> task = Mbpp()
    >>> problem = Problem("11", prompt="Write a function that doubles.", answer={
    ...     "tests": "assert double(2) == 4", "names": ["double"]},
    ...     fields={"test_list": ["assert double(2) == 4"]})
    >>> print(task.prompt(problem), end="")
    \"\"\"
    Write a function that doubles.
    assert double(2) == 4
    \"\"\"
    >>> task.program(problem, "def double(x): return 2 * x\\nassert double(1) == 2")
    'def double(x): return 2 * x'
    """

    name = "mbpp"
    plain_stop_strings = ("\nassert", '\n"""', "\nprint", "\nif", "\n```")

    def __init__(
        self,
        dataset: str = "mbpp",
        path: str | Path | None = None,
        shots: int = 0,
        chat: bool = False,
        seconds: float = 10.0,
        memory: int = 512,
        workers: int | None = None,
    ) -> None:
        super().__init__(path, chat, seconds, memory, workers)
        if dataset not in FILES:
            raise ValueError(f"dataset must be one of {', '.join(FILES)}, got {dataset!r}")
        if shots < 0:
            raise ValueError(f"shots must be >= 0, got {shots}")
        self.dataset, self.shots = dataset, shots
        self._examples: list[Problem] | None = None

    def load(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        self.check_split(split, *SPLITS)
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be >= 0 or None, got {limit}")
        path = data_path("mbpp", self.path)
        path = path / FILES[self.dataset] if path.is_dir() else path
        first, last = SPLITS[split]
        problems = [_problem(path, number, record) for number, record in _records(path)
                    if first <= require(record, "task_id", int, path, number) <= last]
        return problems[:limit]

    def prompt(self, problem: Problem) -> str | list[dict[str, str]]:
        if self._examples is None:
            self._examples = self.load("prompt", self.shots) if self.shots else []
        if not self.chat:
            shown = [f"{_ask(DOCSTRING, one)}{_solution(one)}\n\n" for one in self._examples]
            return "".join([*shown, _ask(DOCSTRING, problem)])
        messages = []
        for one in self._examples:
            messages.append({"role": "user", "content": _ask(ASK, one)})
            messages.append({"role": "assistant", "content": f"```python\n{_solution(one)}\n```"})
        return [*messages, {"role": "user", "content": _ask(ASK, problem)}]

    def program(self, problem: Problem, text: str) -> str:
        block = self.block(text, problem.answer["names"])
        return cut(text, self.plain_stop_strings) if block is None else block


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each record; .json is one list of them."""
    if path.suffix != ".json":
        yield from read_jsonl(path)
        return
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
        raise ValueError(f"{path}: need a list of JSON objects")
    yield from enumerate(records, 1)


def _problem(path: Path, number: int, record: dict[str, Any]) -> Problem:
    text = require(record, "prompt" if "prompt" in record else "text", str, path, number)
    code = require(record, "code", str, path, number)
    tests = [*record.get("test_imports", ()), record.get("test_setup_code", ""),
             *require(record, "test_list", list, path, number)]
    called = "\n".join(map(str, tests))
    names = [name for name in re.findall(r"^(?:def|class) +(\w+)", code, re.MULTILINE)
             if re.search(rf"\b{name}\b", called)]
    return Problem(str(record["task_id"]), text, {"tests": called, "names": names}, record)


def _ask(template: str, problem: Problem) -> str:
    return template.format(text=problem.prompt.strip(), tests="\n".join(
        problem.fields["test_list"]))


def _solution(problem: Problem) -> str:
    return "\n".join(problem.fields["code"].splitlines()).rstrip()


TASK = Mbpp
