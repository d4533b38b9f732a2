"""Store: one run in one SQLite file that survives being killed.

Every finished sample is its own transaction, so a run that is started again draws only
what is missing. The file knows nothing of models: it keeps settings to compare, prompts to
compare, and samples. Tables and guarantees: docs/design/store.md.
"""

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bonaware.samples import Sample

__all__ = ["Store", "StoreError"]

SCHEMA = 1
APPLICATION = 0x626F6E61  # "bona": marks the file as a store, in SQLite's application_id
INT32, FLOAT32 = np.dtype("<i4"), np.dtype("<f4")

LABEL = "model"  # the setting that is shown in errors and not compared: a folder may be renamed
GROWING = "temperature"  # the setting that may be a list, one value per sample, and grow with n

TABLES = """
CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE sessions(
    session INTEGER PRIMARY KEY, started TEXT NOT NULL, settings TEXT NOT NULL);
CREATE TABLE problems(
    prompt INTEGER PRIMARY KEY, id TEXT NOT NULL, text TEXT NOT NULL, tokens BLOB NOT NULL,
    answer TEXT NOT NULL, fields TEXT NOT NULL);
CREATE TABLE samples(
    prompt INTEGER NOT NULL REFERENCES problems, "index" INTEGER NOT NULL,
    session INTEGER NOT NULL REFERENCES sessions, seconds REAL NOT NULL,
    temperature REAL NOT NULL, finish_reason TEXT NOT NULL, text TEXT, tokens BLOB NOT NULL,
    logp BLOB NOT NULL, sampled_logp BLOB NOT NULL, certainty BLOB NOT NULL,
    UNIQUE(prompt, "index"));
CREATE TABLE rewards(
    prompt INTEGER NOT NULL, "index" INTEGER NOT NULL, value REAL NOT NULL, answer TEXT,
    PRIMARY KEY(prompt, "index")) WITHOUT ROWID;
CREATE TABLE scores(
    name TEXT NOT NULL, prompt INTEGER NOT NULL, "index" INTEGER NOT NULL, value REAL NOT NULL,
    PRIMARY KEY(name, prompt, "index")) WITHOUT ROWID;
"""

# Prompts that a policy is done with, and the sample that it took; stores of before have none.
DONE = "CREATE TABLE IF NOT EXISTS done(prompt INTEGER PRIMARY KEY, chosen INTEGER NOT NULL)"

# SQLite's primary result codes -> what they mean to a user.
MEANING = {
    sqlite3.SQLITE_FULL: "the disk is full; what was committed before is safe",
    sqlite3.SQLITE_READONLY: "it is read-only; a run needs a store that it can write to",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened or created; check the folder and its rights",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite file, so it is left untouched",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; a copy by `sqlite3 FILE .recover` may help",
    sqlite3.SQLITE_BUSY: "another program holds it locked",
    sqlite3.SQLITE_IOERR: "reading or writing failed",
}


class StoreError(OSError):
    """A store cannot be opened, read or written; the message names the file and the cause."""


class Store:
    """One run in one SQLite file.

    Parameters
    ----------
    path : str or path
        Created when missing, unless readonly.
    readonly : bool
        Read a store, also while another process draws into it.

    Raises
    ------
    StoreError
        The file or its folder cannot be used; the message says why.
    RuntimeError
        Another process draws into this store; the message names its process id.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with Store(folder.name + "/run.sqlite") as store:
    ...     store.begin({"temperature": 1.0}, [{"id": "a", "prompt": "2 + 2 =",
    ...                  "tokens": np.array([3, 4], np.int32)}])
    ...     list(store.samples())
    []
    >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], *, readonly: bool = False) -> None:
        self.path = Path(path)
        self._lock: int | None = None
        self._db: Any = None
        self._session = 0
        self._started = time.monotonic()
        self._check_path(readonly)
        if not readonly:
            self._lock = _lock(self.path)
        try:
            with self._errors():
                self._db = _connect(self.path, readonly)
            self._open(readonly)
        except BaseException:
            self.close()
            raise

    def _check_path(self, readonly: bool) -> None:
        if self.path.is_dir() or not self.path.parent.is_dir():
            wrong = "it is a folder" if self.path.is_dir() else f"{self.path.parent} is no folder"
            raise StoreError(f"store {self.path}: need a file in an existing folder, but {wrong}")
        if readonly and not self.path.exists():
            raise StoreError(f"store {self.path}: there is no such file")

    def _open(self, readonly: bool) -> None:
        with self._errors():
            kind = self._one("PRAGMA application_id")
            schema = self._one("PRAGMA user_version")
            empty = self._one("SELECT count(*) FROM sqlite_master") == 0
        if kind != APPLICATION and not empty:
            raise StoreError(f"store {self.path}: an SQLite file, but not one of bonaware's stores")
        if schema > SCHEMA:
            raise StoreError(
                f"store {self.path}: need schema {SCHEMA} or older, but a newer bonaware wrote "
                f"it with schema {schema}; upgrade bonaware to read it"
            )
        if readonly and empty:
            raise StoreError(f"store {self.path}: it is empty, so there is nothing to read")
        if readonly:
            return
        with self._errors():
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            if empty:
                with self._transaction():
                    for statement in TABLES.strip().split(";\n"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA application_id={APPLICATION}")
                    self._db.execute(f"PRAGMA user_version={SCHEMA}")

    # -- drawing -------------------------------------------------------------

    def begin(
        self,
        settings: Mapping[str, Any],
        problems: Sequence[Mapping[str, Any]],
        session: Mapping[str, Any] | None = None,
    ) -> None:
        """Open a session of drawing: compare with what the store holds, add what is missing.

        Parameters
        ----------
        settings : mapping
            All that a sample depends on, as JSON values. "model", a name, is shown and not
            compared; a list of temperatures may be longer or shorter than in the store.
        problems : sequence of mapping
            `id`, `prompt` (str, messages or ids), `tokens` (int32), and perhaps `answer` and
            `fields`. Problems may be added or left out at the end.
        session : mapping, optional
            What else is worth keeping: versions, instruction set, threads.

        Raises
        ------
        ValueError
            The store was begun with other settings or other prompts; each difference is
            named with both values.
        """
        with self._errors():
            stored = self.settings
            if stored:
                _compare(self.path, stored, json.loads(json.dumps(settings)))
                self._compare_prompts(problems)
            with self._transaction():
                self._put_settings(stored, settings)
                self._put_problems(problems)
                row = (time.strftime("%Y-%m-%dT%H:%M:%S%z"), json.dumps(dict(session or {})))
                cursor = self._db.execute(
                    "INSERT INTO sessions(started, settings) VALUES(?, ?)", row
                )
        self._session = cursor.lastrowid or 0
        self._started = time.monotonic()

    def _put_settings(self, stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        kept = stored.get(GROWING)
        longest = dict(settings)
        if isinstance(kept, list) and len(kept) > len(settings[GROWING]):
            longest[GROWING] = kept
        rows = [(name, json.dumps(value)) for name, value in longest.items()]
        self._db.executemany("INSERT OR REPLACE INTO settings VALUES(?, ?)", rows)

    def _put_problems(self, problems: Sequence[Mapping[str, Any]]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO problems VALUES(?, ?, ?, ?, ?, ?)",
            [
                (
                    p,
                    str(problem["id"]),
                    json.dumps(problem["prompt"], default=_plain),
                    np.asarray(problem["tokens"], INT32).tobytes(),
                    json.dumps(problem.get("answer"), default=_plain),
                    json.dumps(problem.get("fields", {}), default=_plain),
                )
                for p, problem in enumerate(problems)
            ],
        )

    def _compare_prompts(self, problems: Sequence[Mapping[str, Any]]) -> None:
        for stored, (p, problem) in zip(self.problems(), enumerate(problems), strict=False):
            if stored["id"] != str(problem["id"]) or not np.array_equal(
                stored["tokens"], problem["tokens"]
            ):
                raise ValueError(
                    f"store {self.path} was begun with other prompts: prompt {p} is "
                    f"{stored['id']!r} with {len(stored['tokens'])} tokens there and "
                    f"{str(problem['id'])!r} with {len(problem['tokens'])} tokens here"
                    f"{'' if stored['id'] != str(problem['id']) else ', not the same ones'}; "
                    "give another store"
                )

    def add(self, sample: Sample, scores: Mapping[str, float] | None = None) -> None:
        """Commit one finished sample, and in the same transaction what was said of it.

        Parameters
        ----------
        sample : Sample
        scores : mapping of name -> float, optional
            By the verifiers that read it while it was drawn; NaN: it has none.

        Raises
        ------
        StoreError
            It cannot be written (the disk is full, the file has become read-only); the
            samples before it are safe.
        """
        row = (
            sample.prompt,
            sample.index,
            self._session,
            time.monotonic() - self._started,
            float(sample.temperature),
            sample.finish_reason,
            sample.text,
            np.asarray(sample.tokens, INT32).tobytes(),
            np.asarray(sample.logp, FLOAT32).tobytes(),
            np.asarray(sample.sampled_logp, FLOAT32).tobytes(),
            np.asarray(sample.certainty, FLOAT32).tobytes(),
        )
        scored = [(name, sample.prompt, sample.index, float(score))
                  for name, score in (scores or {}).items() if not np.isnan(score)]
        with self._errors(), self._transaction():
            self._db.execute("INSERT INTO samples VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._db.executemany("INSERT INTO scores VALUES(?, ?, ?, ?)", scored)

    def put_done(self, chosen: Mapping[int, int]) -> None:
        """Prompts that a policy is done with, each with the sample that it took, or -1."""
        with self._errors(), self._transaction():
            self._db.execute(DONE)
            self._db.executemany("INSERT OR REPLACE INTO done VALUES(?, ?)", chosen.items())

    def put_rewards(
        self, rewards: NDArray[np.float64], answers: Sequence[Sequence[str | None]] | None = None
    ) -> None:
        """Replace all rewards `[P, n]`, and the answers that vote; NaN is left out."""
        rows = [
            (int(p), int(i), float(rewards[p, i]), None if answers is None else answers[p][i])
            for p, i in zip(*np.nonzero(~np.isnan(rewards)), strict=True)
        ]
        with self._errors(), self._transaction():
            self._db.execute("DELETE FROM rewards")
            self._db.executemany("INSERT INTO rewards VALUES(?, ?, ?, ?)", rows)

    def put_scores(self, name: str, scores: NDArray[np.float64]) -> None:
        """Replace the scores `[P, n]` of one verifier; NaN is left out."""
        rows = [
            (name, int(p), int(i), float(scores[p, i]))
            for p, i in zip(*np.nonzero(~np.isnan(scores)), strict=True)
        ]
        with self._errors(), self._transaction():
            self._db.execute("DELETE FROM scores WHERE name = ?", (name,))
            self._db.executemany("INSERT INTO scores VALUES(?, ?, ?, ?)", rows)

    # -- reading -------------------------------------------------------------

    @property
    def settings(self) -> dict[str, Any]:
        """What the samples depend on; empty before the first `begin`."""
        with self._errors():
            rows = self._db.execute("SELECT name, value FROM settings ORDER BY rowid").fetchall()
        return {name: json.loads(value) for name, value in rows}

    def problems(self) -> list[dict[str, Any]]:
        """The problems in order: id, prompt, tokens (int32), answer, fields."""
        with self._errors():
            rows = self._db.execute(
                "SELECT id, text, tokens, answer, fields FROM problems ORDER BY prompt"
            ).fetchall()
        return [
            {
                "id": name,
                "prompt": json.loads(text),
                "tokens": np.frombuffer(tokens, INT32),
                "answer": json.loads(answer),
                "fields": json.loads(fields),
            }
            for name, text, tokens, answer, fields in rows
        ]

    def samples(self, prompts: int | None = None, n: int | None = None) -> Iterator[Sample]:
        """Every stored sample with ``prompt < prompts`` and ``index < n``, in order."""
        largest = np.iinfo(np.int64).max
        bounds = tuple(int(largest) if bound is None else bound for bound in (prompts, n))
        with self._errors():
            rows = self._db.execute(
                'SELECT prompt, "index", tokens, logp, sampled_logp, certainty, text, '
                'finish_reason, temperature FROM samples WHERE prompt < ? AND "index" < ? '
                'ORDER BY prompt, "index"',
                bounds,
            )
            for prompt, index, tokens, *floats, text, reason, temperature in rows:
                logp, sampled_logp, certainty = (np.frombuffer(f, FLOAT32) for f in floats)
                yield Sample(
                    prompt, index, np.frombuffer(tokens, INT32), logp, sampled_logp,
                    certainty, text, reason, temperature,
                )  # fmt: skip

    def rewards(self, shape: tuple[int, int]) -> tuple[NDArray[np.float64], list[list[str | None]]]:
        """Rewards `[P, n]`, NaN where there is none, and the answers."""
        values = np.full(shape, np.nan)
        answers: list[list[str | None]] = [[None] * shape[1] for _ in range(shape[0])]
        with self._errors():
            query = 'SELECT * FROM rewards WHERE prompt < ? AND "index" < ?'
            for prompt, index, value, answer in self._db.execute(query, shape):
                values[prompt, index], answers[prompt][index] = value, answer
        return values, answers

    def scores(self, shape: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
        """Scores `[P, n]` of every verifier, NaN where there is none."""
        result: dict[str, NDArray[np.float64]] = {}
        with self._errors():
            query = 'SELECT * FROM scores WHERE prompt < ? AND "index" < ? ORDER BY name'
            for name, prompt, index, value in self._db.execute(query, shape):
                result.setdefault(name, np.full(shape, np.nan))[prompt, index] = value
        return result

    def done(self) -> dict[int, int]:
        """Prompts that a policy is done with -> the sample that it took, or -1."""
        with self._errors():
            if not self._one("SELECT count(*) FROM sqlite_schema WHERE name = 'done'"):
                return {}
            return dict(self._db.execute("SELECT prompt, chosen FROM done").fetchall())

    def shape(self) -> tuple[int, int]:
        """(problems, largest index of a sample + 1)."""
        with self._errors():
            prompts = self._one("SELECT count(*) FROM problems")
            return prompts, self._one('SELECT coalesce(max("index") + 1, 0) FROM samples')

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write one row per sample to a Parquet or JSONL file, replacing it.

        Columns: problem, prompt, index, text, finish_reason, temperature, seconds, tokens,
        logp, sampled_logp, certainty, reward, extracted_answer, and `score_NAME` for each verifier.

        Parameters
        ----------
        path : str or path
            Ends in `.parquet` (needs pyarrow) or `.jsonl`.

        Raises
        ------
        ValueError
            Another ending.
        """
        target = Path(path)
        writers = {".parquet": _write_parquet, ".jsonl": _write_jsonl}
        if target.suffix not in writers:
            raise ValueError(f"need a path that ends in .parquet or .jsonl, got {str(target)!r}")
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            writers[target.suffix](draft, self._rows(), self._score_names())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def _score_names(self) -> list[str]:
        with self._errors():
            return [
                name for (name,) in self._db.execute("SELECT DISTINCT name FROM scores ORDER BY 1")
            ]

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The exported rows, numbers as Python's own."""
        names = self._score_names()
        columns = "".join(
            f', (SELECT value FROM scores WHERE name = ?{i} AND prompt = s.prompt AND "index" '
            f'= s."index") AS "score_{i}"'
            for i in range(1, len(names) + 1)
        )
        query = (
            'SELECT problems.id AS problem, s.prompt, s."index", s.text, s.finish_reason, '
            "s.temperature, s.seconds, s.tokens, s.logp, s.sampled_logp, s.certainty, "
            f"rewards.value AS reward, rewards.answer AS extracted_answer {columns} "
            "FROM samples AS s JOIN problems USING(prompt) "
            "LEFT JOIN rewards ON rewards.prompt = s.prompt "
            'AND rewards."index" = s."index" ORDER BY s.prompt, s."index"'
        )
        with self._errors():
            cursor = self._db.execute(query, names)
            keys = [column[0] for column in cursor.description]
            keys = keys[: len(keys) - len(names)] + [f"score_{name}" for name in names]
            for values in cursor:
                row = dict(zip(keys, values, strict=True))
                row["tokens"] = np.frombuffer(row["tokens"], INT32).tolist()
                for key in ("logp", "sampled_logp", "certainty"):
                    row[key] = np.frombuffer(row[key], FLOAT32).tolist()
                yield row

    # -- the file ------------------------------------------------------------

    def close(self) -> None:
        """Leave one self-contained file and free the lock; a second call does nothing."""
        db, self._db = self._db, None
        lock, self._lock = self._lock, None
        if db is not None:
            if lock is not None:
                # Without WAL the file can be read from read-only media. A reader in another
                # process prevents it, which is harmless.
                with contextlib.suppress(sqlite3.Error):
                    db.execute("PRAGMA busy_timeout=0")
                    db.execute("PRAGMA journal_mode=DELETE")
            db.close()
        if lock is not None:
            _lock_path(self.path).unlink(missing_ok=True)
            os.close(lock)

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _one(self, query: str) -> Any:
        return self._db.execute(query).fetchone()[0]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as StoreError: the file, then the cause in a sentence."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte: primary code
            raise StoreError(f"store {self.path}: {MEANING.get(code, error)}") from error


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    """A connection in autocommit mode: every statement alone is a transaction."""
    uri = path.absolute().as_uri()
    if readonly:
        # A closed store is not in WAL mode. One left by a killed process is: SQLite then
        # needs a folder in which it can put its shared memory.
        return sqlite3.connect(f"{uri}?mode=ro", uri=True, isolation_level=None)
    return sqlite3.connect(f"{uri}?mode=rwc", uri=True, isolation_level=None)


def _lock_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _lock(path: Path) -> int:
    """An open file that holds the store; the kernel frees it when the process ends."""
    import fcntl

    while True:
        try:
            lock = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StoreError(
                f"store {path}: need to write in its folder, but {error.strerror}: "
                f"{_lock_path(path).name}"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode(errors="replace").strip()
            os.close(lock)
            raise RuntimeError(
                f"store {path}: in use by process {holder or 'unknown'}; "
                "wait until it has finished, or give another store"
            ) from None
        if os.fstat(lock).st_nlink:  # else a process that just ended has removed the file
            # On a full disk the lock holds all the same, and only the holder's name is missing.
            with contextlib.suppress(OSError):
                os.ftruncate(lock, 0)
                os.write(lock, f"{os.getpid()}\n".encode())
            return lock
        os.close(lock)


def _compare(path: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    names = [*stored, *(name for name in given if name not in stored)]
    other = [name for name in names if not _same(name, stored.get(name), given.get(name))]
    if set(other) <= {LABEL}:
        return
    differences = "; ".join(
        f"{name} is {json.dumps(stored.get(name))} there and {json.dumps(given.get(name))} here"
        for name in other
    )
    raise ValueError(
        f"store {path} was begun with other settings: {differences}; "
        "give the same settings or another store"
    )


def _same(name: str, stored: Any, given: Any) -> bool:
    """Equal, or lists of temperatures of which one continues the other."""
    if name == GROWING and isinstance(stored, list) and isinstance(given, list):
        shared = min(len(stored), len(given))
        return stored[:shared] == given[:shared]
    return stored == given


def _plain(value: Any) -> Any:
    """What JSON cannot hold: arrays as lists, all else as text."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]], scores: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]], scores: Sequence[str]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError("Parquet needs pyarrow: pip install 'bonaware[arrow]'") from None
    schema = pyarrow.schema(
        {
            "problem": pyarrow.string(), "prompt": pyarrow.int64(), "index": pyarrow.int64(),
            "text": pyarrow.string(), "finish_reason": pyarrow.string(),
            "temperature": pyarrow.float64(), "seconds": pyarrow.float64(),
            "tokens": pyarrow.list_(pyarrow.int32()), "logp": pyarrow.list_(pyarrow.float32()),
            "sampled_logp": pyarrow.list_(pyarrow.float32()),
            "certainty": pyarrow.list_(pyarrow.float32()), "reward": pyarrow.float64(),
            "extracted_answer": pyarrow.string(),
            **{f"score_{name}": pyarrow.float64() for name in scores},
        }
    )  # fmt: skip
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for batch in _batches(rows, 1000):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


def _batches(rows: Iterable[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
