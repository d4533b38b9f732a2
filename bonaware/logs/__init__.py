"""What others have written down, as rows: JSONL, JSON and Parquet, logs of evaluation harnesses.

One file = one format: a function of a path that gives a `Log`. `read` tells by its content which
one a file needs. A row is a dict; which of its fields hold what is for `bonaware.recorded` to say,
and these are named so that it finds them: `reward_NAME`, `answer_NAME`, `score_NAME`. Nothing that
is read is executed.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bonaware.tasks import read_jsonl

__all__ = ["Log", "read", "read_json"]

ZIP_MAGIC, PARQUET_MAGIC = b"PK\x03\x04", b"PAR1"
LM_EVAL_FIELDS = {"doc_id", "resps", "filtered_resps"}


class Log(NamedTuple):
    """What a file holds.

    Parameters
    ----------
    rows : iterator of (str, dict)
        Where a row stands, for errors, and the row.
    settings : dict
        What the file says of the run: model, task and the like.
    """

    rows: Iterator[tuple[str, dict[str, Any]]]
    settings: dict[str, Any]


def read(path: str | os.PathLike[str]) -> Log:
    """The rows of a file, whatever its format.

    Parameters
    ----------
    path : str or path
        JSONL (also packed, ``.gz``), ``.json`` with a list of rows, Parquet; samples_*.jsonl or
        results_*.json of lm-eval; a log of inspect_ai, ``.eval`` or ``.json``; annotations.json
        of AlpacaEval.

    Raises
    ------
    ValueError
        The file is none of these, or it is broken; the message says where.
    ImportError
        A package is missing that reads the format; the message names it.
    """
    from bonaware.logs import alpaca_eval, inspect_ai, lm_eval

    path = Path(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start == ZIP_MAGIC:
        return inspect_ai.from_zip(path)
    if start == PARQUET_MAGIC:
        return _parquet(path)
    if path.suffix == ".json":
        try:
            whole = read_json(path.read_bytes(), path, (dict, list))
        except ValueError as error:
            if getattr(error.__cause__, "msg", "") != "Extra data":
                raise
            whole = None  # several values: JSONL by another name
        if isinstance(whole, list):
            rows = list(_listed(path, whole))
            if rows[0][1].keys() >= alpaca_eval.FIELDS:
                return alpaca_eval.from_annotations(path, rows)
            return Log(iter(rows), {})
        if whole is not None:
            own = inspect_ai.from_json if "eval" in whole else lm_eval.from_results
            return own(path, whole)
    lines = ((f"{path}, line {line}", row) for line, row in read_jsonl(path))
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path}: need at least one row, but the file is empty")
    lines = itertools.chain([first], lines)
    if first[1].keys() >= LM_EVAL_FIELDS:
        return lm_eval.from_samples(path, lines)
    return Log(lines, {})


def read_json(text: bytes, where: object, kinds: type | tuple[type, ...] = dict) -> Any:
    """A value of one of these kinds, or one sentence that says where it should be."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, kinds):
        raise ValueError(f"{where}: need a JSON object, got {type(value).__name__}")
    return value


def _listed(path: Path, rows: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not rows:
        raise ValueError(f"{path}: need at least one row, but the list is empty")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number}: need a JSON object, got {type(row).__name__}")
        yield f"{path}, row {number}", row


def _parquet(path: Path) -> Log:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError("Parquet needs pyarrow: pip install 'bonaware[arrow]'") from None
    @contextlib.contextmanager
    def reading() -> Iterator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a Parquet file that can be read: {error}") from error

    def rows() -> Iterator[dict[str, Any]]:
        with reading():
            for batch in table.iter_batches(1000):
                yield from batch.to_pylist()

    with reading():
        table = pyarrow.parquet.ParquetFile(path)
    if not table.metadata.num_rows:
        raise ValueError(f"{path}: need at least one row, but the table is empty")
    return Log(((f"{path}, row {number}", row) for number, row in enumerate(rows(), 1)), {})
