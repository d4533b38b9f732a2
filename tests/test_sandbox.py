"""bonaware.sandbox: what comes of programs, and that none of them does harm."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hostile_programs import HOSTILE, RIGHT, SECRET, TESTS

from bonaware import sandbox as module
from bonaware.sandbox import ROUTES, WORDS, Case, Sandbox, Verdict, route

INSIDE = Path(module.INSIDE)
DOUBLE = "def double(x): return 2 * x"


def works(name):
    return module._problem(name) is None


@pytest.fixture(scope="module", params=ROUTES)
def by(request):
    """The name of each route that works here."""
    if problem := module._problem(request.param):
        pytest.skip(f"no sandbox by {request.param}: {problem}")
    return request.param


@pytest.fixture(scope="module")
def sandbox(by):
    with Sandbox(seconds=1, memory=128, workers=2, by=by) as sandbox:
        yield sandbox


@pytest.fixture
def fresh():
    """Routes are tried anew, before and after the test."""
    module._problem.cache_clear()
    yield
    module._problem.cache_clear()


def processes():
    """Processes inside sandboxes: their ids; not those of tests that run beside these (xdist)."""
    parents, found = {}, set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                pid, stat = int(folder.name), (folder / "stat").read_text()
                parents[pid] = int(stat.rpartition(")")[2].split()[1])
                if str(INSIDE).encode() in (folder / "cmdline").read_bytes():
                    found.add(pid)
            except OSError:
                continue

    def beside(pid):
        """Whether it comes from another process that was started with this one."""
        while pid in parents and parents[pid] != os.getppid():
            pid = parents[pid]
        return pid in parents and pid != os.getpid()

    return {pid for pid in found if not beside(pid)}


def soon(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def word(sandbox, program, tests="", names=()):
    return sandbox.run([Case(program, tests, names)])[0].word


# -- hostile programs ----------------------------------------------------------


@dataclasses.dataclass
class Ran:
    """All hostile programs, run once, and what the machine looked like then."""

    verdicts: dict[str, Verdict]
    before: set[int]
    files: dict[str, str]


@pytest.fixture(scope="module")
def ran(sandbox, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    (folder / "secret").write_text(SECRET)
    (folder / "way").symlink_to(folder / "secret")
    os.environ["BONAWARE_SECRET"] = SECRET
    stands_for = {"PLACE": str(folder), "HOME": str(Path.home()), "PARENT": str(os.getpid()),
                  "SECRET": SECRET}
    try:
        before = processes()
        cases = [
            Case(RIGHT + re.sub("|".join(stands_for), lambda m: stands_for[m[0]], program), TESTS)
            for program, _ in HOSTILE.values()
        ]
        verdicts = dict(zip(HOSTILE, sandbox.run(cases), strict=True))
    finally:
        del os.environ["BONAWARE_SECRET"]
    return Ran(verdicts, before, {path.name: path.read_text() for path in folder.iterdir()})


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_is_reported_as_what_it_is(ran, name):
    expected = HOSTILE[name][1]
    words = (expected,) if isinstance(expected, str) else expected
    assert set(words) <= set(WORDS)
    assert ran.verdicts[name].word in words, ran.verdicts[name]


def test_hostile_programs_change_no_file_and_tell_no_secret(ran):
    assert ran.files == {"secret": SECRET, "way": SECRET}
    for name, verdict in ran.verdicts.items():
        told = verdict.detail.replace(f"assert '{SECRET}'", "")
        assert SECRET not in told, name
        assert len(told) < 1000, name


def test_hostile_programs_leave_no_process_and_right_ones_still_pass(ran, sandbox):
    assert word(sandbox, RIGHT, TESTS) == "passed"
    sandbox.close()
    assert soon(lambda: processes() <= ran.before)
    assert word(sandbox, RIGHT, TESTS) == "passed"


def test_a_forgery_that_is_known_to_pass(sandbox):
    """The documentation says so: tests cannot tell what compares as equal from what is right."""
    program = "class Same:\n def __eq__(self, other): return True\ndef double(x): return Same()"
    assert word(sandbox, program, "assert double(2) == 4") == "passed"


# -- verdicts ------------------------------------------------------------------


@pytest.mark.parametrize(("program", "tests", "verdict"), [
    (DOUBLE, "assert double(2) == 4", Verdict("passed")),
    (DOUBLE, "x = 1\nassert double(2) == 5, x", Verdict("failed", "assert double(2) == 5, x")),
    (DOUBLE, "raise AssertionError('no')", Verdict("failed", "AssertionError: no")),
    (DOUBLE, "assert doubled(2) == 4",
     Verdict("error", "NameError: name 'doubled' is not defined")),
    ("def double(x): return 2 *", "", Verdict(
        "error", "SyntaxError: invalid syntax (program, line 1)")),
    ("assert 1 == 2", "", Verdict("error", "AssertionError: ")),
    ("x = '\ud800'", "", Verdict("error", "UnicodeEncodeError: 'utf-8' codec can't encode "
     "character '\\ud800' in position 5: surrogates not allowed")),
    ("raise SystemExit(3)", "", Verdict("exited", "SystemExit: 3")),
    ("import os\nos.kill(os.getpid(), 11)", "", Verdict(
        "crashed", "killed by signal 11, Segmentation fault")),
    ("import os\nos.kill(os.getpid(), 40)", "", Verdict(
        "crashed", "killed by signal 40, Real-time signal 6")),
    ("import numpy", "", Verdict("error", "ModuleNotFoundError: No module named 'numpy'")),
    ("input()", "", Verdict("error", "EOFError: EOF when reading a line")),
    ("", "", Verdict("passed")),
], ids=lambda value: None if isinstance(value, str) else value.word)  # fmt: skip
def test_verdicts_have_a_word_and_a_detail(sandbox, program, tests, verdict):
    assert sandbox.run([Case(program, tests)]) == [verdict]
    assert verdict.passed == (verdict.word == "passed")


def test_details_are_short(sandbox):
    (verdict,) = sandbox.run([Case(f"raise ValueError('{'x' * 10_000}')", "")])
    assert verdict.word == "error"
    assert len(verdict.detail) == 300


def test_verdicts_are_in_order_and_cases_do_not_see_each_other(sandbox):
    cases = [Case(f"import math\nassert not hasattr(math, 'x')\nmath.x = {i}", f"assert {i} % 3")
             for i in range(30)]
    words = [verdict.word for verdict in sandbox.run(cases)]
    assert words == ["passed" if i % 3 else "failed" for i in range(30)]
    assert sandbox.run([]) == []


def test_equal_cases_are_run_once(sandbox, monkeypatch):
    calls = []
    run = sandbox._pool.map
    monkeypatch.setattr(sandbox._pool, "map", lambda cases: calls.append(cases) or run(cases))
    cases = [Case(DOUBLE, "assert double(1) == 2"), Case("x", "")] * 3
    assert [verdict.word for verdict in sandbox.run(cases)] == ["passed", "error"] * 3
    assert calls == [cases[:2]]


def test_tests_see_the_built_in_functions_that_the_program_was_asked_to_define(sandbox):
    program, tests = "def sum(a, b): return a + b", "assert sum(1, 2) == 3"
    assert word(sandbox, program, tests, ("sum",)) == "passed"
    assert word(sandbox, program, tests) == "error"


def test_verdicts_do_not_depend_on_chance(by):
    program = "import random\nx = (hash('a'), random.random(), list({'a', 'b', 'c', 'd', 'e'}))"
    details = set()
    for _ in range(2):
        with Sandbox(workers=1, by=by) as sandbox:
            details.add(sandbox.run([Case(program, "raise ValueError(x)")])[0].detail)
    assert len(details) == 1


@pytest.mark.parametrize("program", [
    "from collections import namedtuple\nassert namedtuple('P', 'a b')(1, 2).b == 2",
    "from dataclasses import dataclass\n@dataclass\nclass P:\n a: 'int'\nassert P(1) == P(1)",
    "from enum import Enum\nassert Enum('E', 'a b').a.value == 1",
    "from typing import *\nT = TypeVar('T')\nclass A(Generic[T]): pass\nx = NewType('N', int)(1)",
    "import logging\nlogging.warning('x')", "import warnings\nwarnings.warn('x')",
    "import functools\n@functools.lru_cache\ndef g(n): return n\nassert g(1) == 1",
    "import inspect\nassert str(inspect.signature(lambda a: a)) == '(a)'",
    "import contextlib\nwith contextlib.suppress(KeyError): {}[1]",
    "import time\ntime.sleep(0.01)", "import os\nassert os.getcwd() == '/'",
    "import sys\nsys.setrecursionlimit(10**4)\ndef g(n): return n and g(n - 1)\ng(5000)",
    "import io, json, csv, unittest, numbers, abc, pickle, array, struct, uuid, zlib, textwrap",
    "import sys\nassert sys.modules[__name__].__name__ == 'program'",
    "print('x' * 10**6)\nimport sys\nsys.stderr.write('x')",
])  # fmt: skip
def test_ordinary_programs_notice_nothing(sandbox, program):
    assert sandbox.run([Case(program, "")]) == [Verdict("passed")]


# -- limits --------------------------------------------------------------------


def test_a_program_has_its_limits_and_nothing_else(by):
    """Seen from outside, while it runs."""
    before = processes()
    with Sandbox(seconds=7.5, memory=300, workers=1, by=by) as sandbox:
        sandbox.run([Case("", "")])
        workers = processes()
        case = Case("import time\ntime.sleep(3)", "")
        running = threading.Thread(target=sandbox.run, args=([case],))
        running.start()
        assert soon(lambda: any("2" in status(pid, "Seccomp") for pid in processes() - workers))
        (pid,) = processes() - workers - before
        limits = Path(f"/proc/{pid}/limits").read_text()
        for name, soft, hard in [
            ("Max cpu time", 8, 9), ("Max address space", 300 << 20, 300 << 20),
            ("Max open files", 64, 64), ("Max core file size", 0, 0),
            ("Max stack size", 8 << 20, 8 << 20),
        ]:  # fmt: skip
            assert re.search(rf"^{name} +{soft} +{hard} ", limits, re.MULTILINE), limits
        assert (status(pid, "NoNewPrivs"), status(pid, "Seccomp")) == ("1", "2")
        for kind in ("CapEff", "CapPrm", "CapInh"):
            assert int(status(pid, kind), 16) == 0
        assert sorted(map(int, os.listdir(f"/proc/{pid}/fd"))) == [0, 1, 2, 3]
        streams = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)}
        assert streams == {"/dev/null"}
        if by == "bubblewrap":
            for name in ("user", "pid", "net", "ipc", "mnt", "uts"):
                own, its = (os.readlink(f"/proc/{one}/ns/{name}") for one in ("self", pid))
                assert its != own, name
            mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
            assert all("ro" in line.split()[5].split(",") for line in mounts)
        running.join()


def status(pid, name):
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return ""
    return re.search(rf"^{name}:\s*(\S+)", text, re.MULTILINE)[1]


def test_workers_outlive_the_thread_that_used_them_first(by):
    with Sandbox(workers=1, by=by) as sandbox:
        first = threading.Thread(target=sandbox.run, args=([Case("", "")],))
        first.start()
        first.join()
        workers = processes()
        time.sleep(0.2)
        assert word(sandbox, RIGHT, TESTS) == "passed"
        assert processes() == workers


@pytest.mark.parametrize("options", [
    {"seconds": 0}, {"seconds": float("nan")}, {"seconds": float("inf")}, {"memory": 8},
])
def test_bounds_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="need seconds > 0 and memory >= 64 MiB, got"):
        Sandbox(**options)


def script(by, body):
    """A process that uses a sandbox."""
    code = f"from bonaware.sandbox import *\nimport os, signal\nby = {by!r}\n{body}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=environment, check=False)


def test_ctrl_c_leaves_no_process_and_the_sandbox_can_be_used_again(by):
    before = processes()
    run = script(by, "s = Sandbox(workers=2, by=by)\ns.run([Case('x = 1', '')])\n"
                 "signal.signal(signal.SIGALRM, signal.default_int_handler); signal.alarm(1)\n"
                 "cases = [Case(f'while True: {i}', '') for i in range(9)]\n"
                 "try: s.run(cases)\n"
                 "except KeyboardInterrupt: print(s.run([Case('x = 1', '')])[0].word)\n")
    assert (run.stdout, run.stderr) == ("passed\n", "")
    assert soon(lambda: processes() <= before)


def test_programs_end_with_a_caller_that_is_killed(by):
    before = processes()
    run = script(by, "s = Sandbox(workers=2, by=by)\ns.run([Case('x = 1', '')])\n"
                 "signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), 9))\n"
                 "signal.alarm(1)\ns.run([Case('while True: 1', ''), Case('while True: 2', '')])\n")
    assert run.returncode == -9
    assert soon(lambda: processes() <= before)


# -- routes --------------------------------------------------------------------


def no_landlock(monkeypatch, tmp_path):
    """A script in place of the inside, that says what an old kernel says."""
    script = tmp_path / "old.py"
    script.write_text("print('{\"error\": \"Landlock is not available (too old)\"}')")
    monkeypatch.setattr(module, "INSIDE", script)


def fake_bwrap(monkeypatch, tmp_path, text):
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda _: str(program))


@pytest.mark.usefixtures("fresh")
def test_without_any_route_nothing_is_run_and_one_sentence_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    no_landlock(monkeypatch, tmp_path)
    for ask in (route, Sandbox):
        with pytest.raises(RuntimeError, match=(
            r"^programs of a model run only in a sandbox, and none works here: install bubblewrap, "
            r"or use Linux 5\.13 or newer on x86-64 with Landlock and seccomp \(bubblewrap: bwrap "
            r"is not installed; landlock: Landlock is not available \(too old\)\)$"
        )):
            ask()


@pytest.mark.usefixtures("fresh")
@pytest.mark.skipif(not works("landlock"), reason="no Landlock here")
def test_where_user_namespaces_are_refused_landlock_is_taken(monkeypatch, tmp_path):
    fake_bwrap(monkeypatch, tmp_path, "echo bwrap: No permissions >&2; exit 1")
    assert route() == "landlock"
    with pytest.raises(RuntimeError, match=r"by bubblewrap does not work here: bwrap: No permiss"):
        Sandbox(by="bubblewrap")


@pytest.mark.usefixtures("fresh")
def test_a_sandbox_that_does_not_confine_is_not_taken(monkeypatch, tmp_path):
    fake_bwrap(monkeypatch, tmp_path, 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"')
    assert module._problem("bubblewrap") == "`open('/proc/self/mem', 'rb')` inside passed: "


@pytest.mark.usefixtures("fresh")
def test_what_works_is_tried_once(monkeypatch, by):
    tried = []
    pool = module._pool
    monkeypatch.setattr(module, "_pool", lambda name, **o: tried.append(name) or pool(name, **o))
    assert [module._problem(by) for _ in range(3)] == [None] * 3
    assert tried == [by]


def test_an_unknown_route_is_an_error():
    with pytest.raises(ValueError, match="built by bubblewrap or landlock, not 'docker'"):
        Sandbox(by="docker")


def test_only_files_of_python_and_the_system_can_be_read():
    allowed = re.compile(r"/(usr|lib|lib64|etc/ld\.so\.cache)|.*/lib(64|/python3\.\d+t?)?"
                         r"|.*/bin/python3[.\d]*t?|.*/bonaware/_sandboxed\.py")
    assert [path for path in module._readable() if not allowed.fullmatch(path)] == []


# -- the filter of system calls ------------------------------------------------

FILTER = """
import ctypes, errno, importlib.util, os, sys
spec = importlib.util.spec_from_file_location("inside", sys.argv[1])
inside = importlib.util.module_from_spec(spec)
spec.loader.exec_module(inside)
inside.confine(None)
def attempt(number, *arguments):
    child = os.fork()
    if child == 0:
        inside.limit(inside.resource.RLIMIT_CORE, 0)
        inside.seccomp(os.getpid())
        arguments = [os.getpid() if a == "self" else a for a in arguments]
        done = inside.libc.syscall(number, *arguments)
        os._exit(ctypes.get_errno() if done < 0 else 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
path = ctypes.create_string_buffer(sys.argv[1].encode())
"""


def filtered(body):
    """What a script says that tries system calls behind the filter alone."""
    run = subprocess.run([sys.executable, "-S", "-c", FILTER + body, str(INSIDE)],
                         capture_output=True, text=True, check=False)
    assert run.stderr == ""
    return run.stdout.split()


@pytest.fixture(scope="module")
def needs_x86_64():
    if os.uname().machine != "x86_64" or sys.platform != "linux":
        pytest.skip("system calls are known for Linux on x86_64")


@functools.cache
def inside():
    import importlib.util

    spec = importlib.util.spec_from_file_location("inside", INSIDE)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.usefixtures("needs_x86_64")
def test_fatal_system_calls_end_the_process():
    names = filtered("print(*(n for n, number in inside.FATAL.items() if "
                     "attempt(number, -1, -1, -1, -1, -1, -1) != -inside.signal.SIGSYS))")
    assert names == []


@pytest.mark.usefixtures("needs_x86_64")
def test_every_other_system_call_but_those_allowed_is_denied():
    # 335 and 336 belong to the kernel's probes, which no filter sees and no program can use.
    known = "{*inside.ALLOWED.values(), *inside.FATAL.values(), 2, 257, 62, 234, 335, 336}"
    denied = filtered(f"print({{attempt(n, -1, -1, -1, -1, -1, -1) for n in range(470) "
                      f"if n not in {known}}})")
    assert denied == ["{1}"]  # EPERM


@pytest.mark.usefixtures("needs_x86_64")
def test_files_are_opened_for_reading_only():
    flags = "(0, os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_TMPFILE, os.O_RDONLY)"
    assert filtered(f"print(*(attempt(257, -100, path, f) for f in {flags}))") == list("0111110")
    assert filtered(f"print(*(attempt(2, path, f) for f in {flags}))") == list("0111110")


@pytest.mark.usefixtures("needs_x86_64")
def test_a_process_may_send_signals_to_itself_only():
    killed = "(attempt(62, 'self', 0), attempt(62, os.getpid(), 0), attempt(62, -1, 0), " \
             "attempt(62, 0, 0), attempt(234, 'self', 'self', 0), attempt(234, os.getpid(), 1, 0))"
    assert filtered(f"print(*{killed})") == ["0", "-31", "-31", "-31", "0", "-31"]


@pytest.mark.usefixtures("needs_x86_64")
def test_system_calls_have_the_numbers_of_the_system_headers():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("the headers of the C library are not installed")
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
    for name, number in (inside().ALLOWED | inside().FATAL).items():
        assert str(number) == numbers[name], name
    assert not set(inside().ALLOWED) & set(inside().FATAL)
    for name in ("OPEN", "OPENAT", "KILL", "TGKILL"):
        assert str(getattr(inside(), name)) == numbers[name.lower()]


def test_the_inside_is_refused_on_other_processors(monkeypatch):
    monkeypatch.setattr(inside().platform, "machine", lambda: "aarch64")
    with pytest.raises(OSError, match="known for x86_64 only, not aarch64"):
        inside().confine(None)
