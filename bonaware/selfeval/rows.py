"""Rows: a sample, whole or cut, with its label; in memory, as JSONL and as Parquet."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware._checks import as_ids
from bonaware.tasks import read_jsonl, require

__all__ = ["Row", "read_rows", "write_rows"]

TOGETHER = 1000  # rows of a row group in Parquet
KINDS: dict[str, Any] = {"problem": str, "prompt": (str, list), "sample": int, "tokens": list,
                         "length": int, "label": (float, int)}


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sample to learn from.

    Parameters
    ----------
    problem : str
        Name of its prompt.
    prompt : str, list of int, or list of chat messages
        As given to `LM.generate`.
    sample : int
        Index of the sample within its prompt.
    tokens : int32, shape [T], T >= 1
        The first T tokens of the sample as drawn; of a whole one with its end token.
    length : int >= T
        Tokens of the whole sample.
    label : float
        In [0, 1]: how likely it is that starting over does no better.
    """

    problem: str
    prompt: Any
    sample: int
    tokens: NDArray[np.int32]
    length: int
    label: float

    @property
    def fraction(self) -> float:
        """Share of the sample that was generated; 1 for a whole one."""
        return len(self.tokens) / self.length


def write_rows(path: str | os.PathLike[str], rows: Iterable[Row]) -> int:
    """Write rows to a file, replacing it when all are written.

    Parameters
    ----------
    path : str or path
        Ends in `.parquet` (needs pyarrow) or `.jsonl`.
    rows : iterable of Row
        Read once: what `build` yields need not fit into memory.

    Returns
    -------
    int
        How many.

    Raises
    ------
    ValueError
        Another ending, or no rows; or, in Parquet, prompts of several kinds.
    OSError
        The file cannot be written.

    Notes
    -----
    Columns: the parameters of `Row`, and fraction. Prompts are text, a list of ids, or a list of
    messages.
    """
    target = Path(path)
    write = writer_of(target)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        if not (count := write(draft, rows)):
            raise ValueError(f"need at least one row to write {target}, got none: a sample is "
                             "compared with others of its prompt")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return count


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The rows that `write_rows` wrote.

    Raises
    ------
    ValueError
        The file has another ending or no rows, or a row lacks a field or has one of another kind;
        the message names it.
    OSError
        The file cannot be read.
    """
    source = Path(path)
    writer_of(source)
    records = read_jsonl(source) if source.suffix == ".jsonl" else _read_parquet(source)
    rows = [_row(record, source, number) for number, record in records]
    if not rows:
        raise ValueError(f"need at least one row, but {source} has none")
    return rows


def writer_of(path: Path) -> Callable[[Path, Iterable[Row]], int]:
    """Who writes files of this ending; refuses other ones."""
    writers = {".parquet": _write_parquet, ".jsonl": _write_jsonl}
    if path.suffix not in writers:
        raise ValueError(f"need a path that ends in .parquet or .jsonl, got {str(path)!r}")
    return writers[path.suffix]


def _row(record: dict[str, Any], path: Path, number: int) -> Row:
    values = [require(record, name, kind, path, number) for name, kind in KINDS.items()]
    problem, prompt, sample, tokens, length, label = values
    ids = ids_of(tokens)
    if ids is None or not 1 <= len(ids) <= length:
        raise ValueError(f"{path}, line {number}: tokens must be a list of 1 to length ids, found "
                         f"length={length} and {tokens!r:.80}")
    if not 0 <= label <= 1:
        raise ValueError(f"{path}, line {number}: label must be in [0, 1], found {label}")
    return Row(problem, prompt, sample, ids, length, float(label))


def ids_of(tokens: list[Any]) -> NDArray[np.int32] | None:
    """Token ids that a file lists; None where something else is among them."""
    try:
        return as_ids(tokens, "tokens")
    except (TypeError, ValueError):
        return None


def _record(row: Row) -> dict[str, Any]:
    """The row as JSON has it."""
    prompt = row.prompt
    if not isinstance(prompt, str) and len(prompt) and not isinstance(prompt[0], dict):
        prompt = [int(token) for token in prompt]
    return {"problem": row.problem, "prompt": prompt, "sample": row.sample,
            "tokens": row.tokens.tolist(), "length": row.length, "label": row.label,
            "fraction": row.fraction}


def _write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(_record(row), ensure_ascii=False) + "\n")
            count += 1
    return count


# -- Parquet -------------------------------------------------------------------


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError("Parquet needs pyarrow: pip install 'bonaware[arrow]'") from None
    return pyarrow


def _write_parquet(path: Path, rows: Iterable[Row]) -> int:
    arrow, rest, count = _pyarrow(), iter(rows), 0
    records = [_record(row) for row in islice(rest, TOGETHER)]
    try:
        schema = _schema(arrow, [record["prompt"] for record in records])
        with arrow.parquet.ParquetWriter(path, schema) as writer:
            while records:
                writer.write_table(arrow.Table.from_pylist(records, schema=schema))
                count += len(records)
                records = [_record(row) for row in islice(rest, TOGETHER)]
    except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
        raise ValueError("Parquet needs prompts of one kind, all of them text, ids or messages: "
                         f"{error}; JSONL takes all kinds") from None
    return count


def _schema(arrow: Any, prompts: list[Any]) -> Any:
    """Of the file; prompts have the type of the first ones."""
    return arrow.schema({
        "problem": arrow.string(), "prompt": arrow.array(prompts).type,
        "sample": arrow.int64(), "tokens": arrow.list_(arrow.int32()), "length": arrow.int64(),
        "label": arrow.float64(), "fraction": arrow.float64()})


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    arrow = _pyarrow()
    try:
        with arrow.parquet.ParquetFile(path) as file:
            records = (record for batch in file.iter_batches() for record in batch.to_pylist())
            yield from enumerate(map(_plain, records), 1)
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """The record without the keys that Parquet gives to all messages where one has them."""
    prompt = record.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], dict):
        prompt = [{key: value for key, value in turn.items() if value is not None}
                  for turn in prompt]
    return record | {"prompt": prompt}
