"""Logs of inspect_ai: .eval, a zip archive with a file per sample, and .json.

A sample and an epoch of the log is a sample of a problem here, in the order of the epochs.
"""

import contextlib
import importlib
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bonaware.logs import Log, read_json

__all__ = ["from_json", "from_zip"]

VALUES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0}  # correct, incorrect, partial, no answer
ATTACHMENT = "attachment://"
ZSTANDARD = 93  # a way of packing, in zip archives
MOST, CHUNK = 1 << 29, 4096  # bytes: of an unpacked file, and what is unpacked at once
HEADERS = ("header.json", "_journal/start.json")  # of a log that is done, or under way


def from_zip(path: Path) -> Log:
    """The rows of an .eval file; see `from_json`.

    Raises
    ------
    ValueError
        The archive is damaged, holds no such log, or a file too large to be one of its samples.
    ImportError
        It is packed by Zstandard, as inspect_ai does since 2026, and Python before 3.14 has
        nothing that unpacks it.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module("zipfile_zstd")  # teaches zipfile Zstandard, before Python 3.14
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: the archive is damaged: {error}") from error
    with archive:
        names = list(dict.fromkeys(archive.namelist()))
        header = next((name for name in HEADERS if name in names), None)
        if header is None:
            raise ValueError(f"{path}: need a log of inspect_ai, but the archive has no "
                             f"{HEADERS[0]}")
        _, head = _member(path, archive, header)
        inside = [name for name in names if name.startswith("samples/") and name.endswith(".json")]
        rows = _in_order(path, head, (_member(path, archive, name) for name in inside))
    return Log(rows, _settings(head))


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[str, dict[str, Any]]:
    """Where a file of the archive stands, and the object in it."""
    info, where = archive.getinfo(name), f"{path}, {name}"
    if info.file_size > MOST:
        raise ValueError(f"{where}: need at most {MOST} bytes, but it unpacks to {info.file_size}")
    try:
        with archive.open(info) as file:
            # Little by little: a file that says less than it holds ends at what it says.
            text = b"".join(iter(lambda: file.read(CHUNK), b""))
    except NotImplementedError as error:
        if info.compress_type != ZSTANDARD:
            raise ValueError(f"{where}: packed in a way that Python cannot unpack: {error}"
                             ) from error
        raise ImportError(
            f"{path} is packed by Zstandard, which Python has from 3.14 on: pip install "
            "'bonaware[logs]', or write it as JSON by `inspect log dump`"
        ) from None
    except Exception as error:  # each way of packing has errors of its own
        raise ValueError(f"{where}: the archive is damaged or locked: {error}") from error
    return where, read_json(text, where)


def from_json(path: Path, log: dict[str, Any]) -> Log:
    """The rows of a whole log, one per sample and epoch.

    Fields of a row: problem (the id), prompt (the input), text (the completion), reference (the
    target), stop_reason; `reward_SCORER` and `answer_SCORER` for each scorer, with
    `reward_SCORER.NAME` where it gives several values; `score_likelihood` where bonaware drew it.

    Raises
    ------
    ValueError
        It holds no samples.
    """
    samples = log.get("samples")
    if not isinstance(samples, list):
        raise ValueError(f"{path}: need a log with samples, found one with {', '.join(log)}")
    numbered = ((f"{path}, sample {number}", sample) for number, sample in enumerate(samples, 1))
    return Log(_in_order(path, log, numbered), _settings(log))


def _settings(head: dict[str, Any]) -> dict[str, Any]:
    told = _object(head.get("eval"))
    return {"model": told.get("model"), "task": told.get("task"), "status": head.get("status")}


def _in_order(path: Path, head: dict[str, Any],
              samples: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows by problem as in the dataset, then by epoch: a log has them as they were finished."""
    listed = _object(_object(head.get("eval")).get("dataset")).get("sample_ids")
    place = {str(name): at for at, name in enumerate(listed if isinstance(listed, list) else ())}
    found, failed = [], 0
    for where, sample in samples:
        if "id" not in _object(sample) or not isinstance(sample.get("epoch"), int):
            raise ValueError(f"{where}: need a sample with an id and the number of its epoch")
        if sample.get("error") and not sample.get("scores"):
            failed += 1
            continue
        at = place.setdefault(str(sample["id"]), len(place))
        found.append((at, sample["epoch"], where, _row(where, sample)))
    if not found:
        raise ValueError(f"{path}: need at least one sample that ended, but {failed} failed")
    if failed:
        warnings.warn(f"{path}: {failed} of {failed + len(found)} samples failed and are left out",
                      stacklevel=2)
    return ((where, row) for _, _, where, row in sorted(found, key=lambda each: each[:2]))


def _row(where: str, sample: dict[str, Any]) -> dict[str, Any]:
    output, stored = _object(sample.get("output")), _object(sample.get("attachments"))
    choices = output.get("choices")
    choice = _object(choices[0] if isinstance(choices, list) and choices else None)
    content = output.get("completion", _object(choice.get("message")).get("content"))
    row = {
        "problem": str(sample["id"]),
        "prompt": _prompt(sample.get("input"), stored),
        "text": _plain(content, stored),
        "reference": sample.get("target"),
        "stop_reason": choice.get("stop_reason"),
    }
    for name, score in _object(sample.get("scores")).items():
        if "value" not in _object(score):
            raise ValueError(f"{where}: score {name!r} must be an object with a value, found "
                             f"{score!r:.80}")
        for key, value in _values(score["value"]):
            known = isinstance(value, str) and value in VALUES
            row[f"reward_{name}{key}"] = VALUES[value] if known else value
        row[f"answer_{name}"] = score.get("answer")
    sum_logp = _object(output.get("metadata")).get("sum_logp")
    return row if sum_logp is None else row | {"score_likelihood": sum_logp}


def _values(given: Any) -> Iterable[tuple[str, Any]]:
    """One value as ("", value); each of several with a dot and its name, or its number."""
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict):
        return [("", given)]
    return [(f".{name}", value) for name, value in given.items()]


def _prompt(given: Any, stored: dict[str, Any]) -> Any:
    """Text, or messages of which the content is text."""
    if not isinstance(given, list):
        return _plain(given, stored)
    return [{"role": message.get("role"), "content": _plain(message.get("content"), stored)}
            for message in given if isinstance(message, dict)]


def _plain(content: Any, stored: dict[str, Any]) -> str | None:
    """The text of a content, which may be in parts, or kept apart as an attachment."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(_plain(part, stored) or "" for part in parts if isinstance(part, str))
    if not isinstance(content, str):
        return None
    if content.startswith(ATTACHMENT):
        kept = stored.get(content.removeprefix(ATTACHMENT))
        return kept if isinstance(kept, str) else content
    return content


def _object(value: Any) -> dict[str, Any]:
    """What a log says where it says nothing of this kind: an empty object."""
    return value if isinstance(value, dict) else {}
