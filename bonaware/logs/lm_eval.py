"""Logs of the lm-evaluation-harness: samples_TASK_TIME.jsonl, which --log_samples writes.

A document has one line for each filter; its repeats are the samples of one problem. What a metric
says of a single response is a reward. Of several responses a metric says one thing, which is no
reward of any one of them: these are judged by a task, or by comparing their answers.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonaware.logs import Log, read, read_json

__all__ = ["from_results", "from_samples"]

TIME = r"_(?P<time>\d{4}-\d\d-\d\dT[^_]+)"
SAMPLES, RESULTS = re.compile(rf"samples_(?P<task>.+){TIME}\.jsonl"), re.compile(rf".*{TIME}\.json")


def from_samples(path: Path, lines: Iterator[tuple[str, dict[str, Any]]]) -> Log:
    """The rows of a file of samples, one per document; settings from the results beside it.

    Fields of a row: problem (the number of the document), prompt, texts, reference (the target);
    for each filter `answer_FILTER`, where it keeps the responses apart, and
    `reward_METRIC,FILTER`, where there is one response or one value for each; `doc.NAME` for what
    the document itself holds.

    Raises
    ------
    ValueError
        The task asks for log-likelihoods, so that there are no samples.
    """
    found = SAMPLES.fullmatch(path.name)
    settings: dict[str, Any] = {"task": found["task"]} if found else {}
    beside = path.parent.glob(f"*_{found['time']}.json") if found else ()
    for results in beside:
        told = read_json(results.read_bytes(), results)
        settings |= {"model": told.get("model_name"), "lm_eval": told.get("lm_eval_version")}
    return Log(_rows(lines), settings)


def from_results(path: Path, results: dict[str, Any]) -> Log:
    """The samples that lie beside a file of results.

    Raises
    ------
    ValueError
        It is no such file, or beside it lie no samples, or those of several tasks.
    """
    found = RESULTS.fullmatch(path.name)
    if "results" not in results or not found:
        raise ValueError(f"{path}: need a list of rows, a log of inspect_ai, or results_TIME.json "
                         f"of lm-eval, found an object with {', '.join(results)}")
    beside = sorted(path.parent.glob(f"samples_*_{found['time']}.jsonl"))
    if len(beside) != 1:
        raise ValueError(
            f"{path}: results hold no samples; " +
            (f"give one of {', '.join(each.name for each in beside)}" if beside else
             "lm-eval writes them beside it with --log_samples")
        )  # fmt: skip
    return read(beside[0])


def _rows(lines: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """One row per document, in order of appearance, made of its lines."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for where, line in lines:
        key = str(line.get("doc_id"))
        if key not in rows:
            rows[key] = where, _document(where, key, line)
        row = rows[key][1]
        filtered, count = line.get("filtered_resps"), len(row["texts"])
        if not isinstance(filtered, list) or len(filtered) != 1:
            raise ValueError(f"{where}: filtered_resps must be a list of one entry, what the "
                             f"filter made of the responses, found {filtered!r:.80}")
        kept = filtered[0] if isinstance(filtered[0], list) else filtered
        name = line.get("filter")
        if len(kept) == count:
            row[f"answer_{name}"] = kept
        metrics = line.get("metrics", [])
        if not isinstance(metrics, list) or not all(isinstance(each, str) for each in metrics):
            raise ValueError(f"{where}: metrics must be a list of names, found {metrics!r:.80}")
        for metric in metrics:
            value = line.get(metric)
            values = value if isinstance(value, list) else [value]
            if len(values) == count == len(kept):
                row[f"reward_{metric},{name}"] = values
    yield from rows.values()


def _document(where: str, key: str, line: dict[str, Any]) -> dict[str, Any]:
    """What all lines of a document say alike."""
    responses = line.get("resps")
    texts = responses[0] if isinstance(responses, list) and len(responses) == 1 else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: need a task that generates texts, but its responses are "
                         f"{responses!r:.80}, such as log-likelihoods of choices")
    try:
        prompt = line["arguments"]["gen_args_0"]["arg_0"]
    except (KeyError, TypeError):
        prompt = ""
    doc = line.get("doc")
    own = {f"doc.{name}": value for name, value in doc.items()} if isinstance(doc, dict) else {}
    return {"problem": key, "prompt": prompt, "texts": texts, "reference": line.get("target"),
            **own}
