"""humaneval: complete a Python function; its tests run in a sandbox.

Reads HumanEval.jsonl.gz of openai/human-eval (task_id, prompt, entry_point, test). A prompt
is the beginning of a program that ends with the function's docstring; the sample goes on from
there, or is (in a chat: has a fenced block with) a program that defines the function.

Source: Chen et al. 2021, arXiv:2107.03374, and its stop strings.
"""

from bonaware.tasks import Problem, data_path, read_jsonl, require
from bonaware.tasks._code import CodeTask, cut, defines

__all__ = ["TASK", "HumanEval"]

FILE = "HumanEval.jsonl.gz"
ASK = "Complete this Python function. Answer with one fenced block that holds all of it.\n\n" \
      "```python\n{prompt}```"


class HumanEval(CodeTask):
    """Functions to be completed.

    Parameters
    ----------
    path : str or Path, optional
        HumanEval.jsonl.gz, a file like it, or the folder it lies in. Default: humaneval/ in
        the directory that the environment variable BONAWARE_DATA names.
    chat : bool
        Whether the prompt is a list of chat messages, for instruction-tuned models, instead
        of the beginning of a program. Then the sample's code is its last fenced block that
        defines the function.
    seconds : float
        Computing time of one program with its tests; by the clock it may last five times that.
    memory : int
        MiB that it may use.
    workers : int, optional
        Programs that run at a time. Default: the CPUs this process may use.

    Examples
    --------
    >>> task = HumanEval()
    >>> problem = Problem("0", prompt="def double(x):\\n", answer={
    ...     "tests": "assert double(2) == 4", "names": ["double"]})
    >>> task.program(problem, "    return 2 * x\\n\\nprint(double(3))")
    'def double(x):\\n    return 2 * x\\n'
    >>> task.rewards([problem], [["    return 2 * x", "    return x"]])  # doctest: +SKIP
    array([[1., 0.]])
    """

    name = "humaneval"
    plain_stop_strings = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

    def load(self, split: str = "test", limit: int | None = None) -> list[Problem]:
        self.check_split(split, "test")
        path = data_path("humaneval", self.path)
        path = path / FILE if path.is_dir() else path
        problems = []
        for number, record in read_jsonl(path, limit):
            id, prompt, entry_point, test = (
                require(record, field, str, path, number)
                for field in ("task_id", "prompt", "entry_point", "test")
            )
            answer = {"tests": f"{test}\n\ncheck({entry_point})\n", "names": [entry_point]}
            problems.append(Problem(id, prompt, answer, record))
        return problems

    def prompt(self, problem: Problem) -> str | list[dict[str, str]]:
        if self.chat:
            return [{"role": "user", "content": ASK.format(prompt=problem.prompt)}]
        return problem.prompt

    def program(self, problem: Problem, text: str) -> str:
        names = problem.answer["names"]
        code = self.block(text, names)
        if code is None:
            whole = defines(text, names) and not text.lstrip("\n")[:1].isspace()
            code = text if whole else cut(text, self.plain_stop_strings)
        if not defines(code, names):
            return problem.prompt + code
        before = problem.prompt.rpartition(f"def {names[0]}")[0]  # imports and helpers
        return f"{before}\n{code}"


TASK = HumanEval
