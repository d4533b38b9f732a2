"""The inside of the sandbox: run as a script, it judges programs that nobody trusts.

`bonaware.sandbox` starts it, in bubblewrap or not, with a bare environment and the standard
library only. It confines itself, then reads one case per line and answers with a verdict (the
protocol of `bonaware._pool`). Each case runs in a process of its own, forked from this one,
so it costs a millisecond and leaves nothing behind. That process has

- limits of memory, computing time and open files (`run`);
- a filter of system calls that allows what a computation needs: no process, thread, socket,
  signal to others, nor any change to a file (`seccomp`);
- no file but those of Python and the system to read (`landlock`, or bubblewrap outside);
- nothing on its standard streams, and one pipe for the verdict (`judge`).

A verdict counts only with a token that is drawn for each case. The program shares its process
with the code that knows the token; `conceal` takes away the ways in which Python code could
look for it. That is a hurdle, not a wall: docs/code_tasks.md says what remains possible.
"""

import builtins
import ctypes
import importlib
import json
import os
import platform
import random
import resource
import signal
import struct
import sys
import types

# What programs import most often; loaded once, for all of them.
LOADED = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib",
    "heapq", "itertools", "math", "operator", "re", "statistics", "string", "time", "typing",
)  # fmt: skip
CHANNEL = 3  # file descriptor for the verdict, the only one beside the standard streams
OPEN_FILES = 64
STACK = 8 << 20  # bytes
LONGEST_DETAIL = 300  # characters of what a verdict says beside its word
LONGEST_MESSAGE = 4096  # bytes, which one write sends whole

libc = ctypes.CDLL(None, use_errno=True)


# -- confinement -------------------------------------------------------------

# From linux/prctl.h, linux/capability.h and linux/landlock.h.
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER = 2
CAPABILITY_VERSION_3 = 0x20080522
SYS_CAPSET, SYS_CREATE_RULESET, SYS_ADD_RULE, SYS_RESTRICT_SELF = 126, 444, 445, 446
RULESET_VERSION, RULE_PATH_BENEATH = 1, 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
# Rights to files by the version of Landlock that knows them: 13 bits, then link or rename,
# truncate, (4: network), ioctl on devices.
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
CONNECT_AND_BIND = 3  # Landlock 4: TCP
SOCKETS_AND_SIGNALS = 3  # Landlock 6: to processes outside

# System calls of x86-64 (asm/unistd_64.h), by what becomes of them.
ALLOWED = {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "newfstatat": 262, "stat": 4, "lstat": 6,
    "statx": 332, "lseek": 8, "pread64": 17, "readv": 19, "writev": 20, "poll": 7, "ppoll": 271,
    "select": 23, "pselect6": 270, "mmap": 9, "mprotect": 10, "munmap": 11, "mremap": 25,
    "brk": 12, "madvise": 28, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sigaltstack": 131,
    "access": 21, "faccessat": 269, "faccessat2": 439, "getcwd": 79, "readlink": 89,
    "readlinkat": 267, "getdents64": 217, "dup": 32, "pipe": 22, "pipe2": 293, "uname": 63,
    "times": 100, "getrusage": 98, "sysinfo": 99, "gettimeofday": 96, "time": 201,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "nanosleep": 35,
    "sched_yield": 24, "sched_getaffinity": 204, "futex": 202, "getrandom": 318, "getpid": 39,
    "getppid": 110, "gettid": 186, "getuid": 102, "geteuid": 107, "getgid": 104, "getegid": 108,
    "getpgrp": 111, "restart_syscall": 219, "exit": 60, "exit_group": 231,
}  # fmt: skip
# These end the process, so that no `except` hides that they were tried. What is in neither
# table, and whatever a later kernel adds, fails with PermissionError.
FATAL = {
    "fork": 57, "vfork": 58, "clone": 56, "clone3": 435, "execve": 59, "execveat": 322,
    "socket": 41, "socketpair": 53, "tkill": 200, "rt_sigqueueinfo": 129,
    "rt_tgsigqueueinfo": 297, "pidfd_open": 434, "pidfd_getfd": 438, "pidfd_send_signal": 424,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "prlimit64": 302,
    "setrlimit": 160, "prctl": 157, "seccomp": 317, "unshare": 272, "setns": 308, "mount": 165,
    "chroot": 161, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250,
    "io_uring_setup": 425, "memfd_create": 319, "shmget": 29, "kexec_load": 246,
    "init_module": 175, "finit_module": 313,
}  # fmt: skip
OPEN, OPENAT, KILL, TGKILL = 2, 257, 62, 234
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)

# From linux/filter.h, linux/seccomp.h and linux/audit.h.
LOAD, EQUAL, HAS_BITS, RETURN = 0x20, 0x15, 0x45, 0x06
PASS, DIE, DENY = 0x7FFF0000, 0x80000000, 0x00050000 | 1  # 1: EPERM
NUMBER, MACHINE, ARGUMENTS, X86_64 = 0, 4, 16, 0xC000003E


def call(function, *arguments):
    """A function of libc whose negative result is an error."""
    result = function(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{function.__name__}: "
                      f"{os.strerror(ctypes.get_errno())}")
    return result


def confine(readable):
    """Take away from this process, for good, all it does not need; None: files stay."""
    if platform.machine() != "x86_64":
        raise OSError(f"system calls are known for x86_64 only, not {platform.machine()}")
    call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("Ii", CAPABILITY_VERSION_3, 0))
    call(libc.syscall, SYS_CAPSET, header, ctypes.create_string_buffer(24))
    call(libc.prctl, PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if readable is not None:
        landlock(readable)


def landlock(readable):
    """Let files and folders be read if they are among these or below, and nothing else."""
    try:
        version = call(libc.syscall, SYS_CREATE_RULESET, None, 0, RULESET_VERSION)
    except OSError as error:
        raise OSError(f"Landlock is not available ({error.strerror})") from None
    rights = FILE_RIGHTS[max(known for known in FILE_RIGHTS if known <= version)]
    fields = [rights] + [CONNECT_AND_BIND] * (version >= 4) + [SOCKETS_AND_SIGNALS] * (version >= 6)
    ruleset = struct.pack(f"{len(fields)}Q", *fields)
    rules = call(libc.syscall, SYS_CREATE_RULESET, ruleset, len(ruleset), 0)
    for path in readable:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
        granted = READ_FILE | (READ_DIR if os.path.isdir(path) else 0)
        rule = struct.pack("=Qi", granted, beneath)
        call(libc.syscall, SYS_ADD_RULE, rules, RULE_PATH_BENEATH, rule, 0)
        os.close(beneath)
    call(libc.syscall, SYS_RESTRICT_SELF, rules, 0)
    os.close(rules)


def limit(kind, most):
    """Set a limit to `most`, or leave it where it is lower."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def seccomp(process):
    """Filter the system calls of this process, whose id is given: see ALLOWED and FATAL."""
    rules = b"".join(step(*parts) for parts in [
        (LOAD, MACHINE), (EQUAL, X86_64, 1, 0), (RETURN, DIE), (LOAD, NUMBER),
        *one_of(ALLOWED.values(), PASS),
        *one_of(FATAL.values(), DIE),
        *where(OPEN, 1, HAS_BITS, WRITING, DENY, PASS),
        *where(OPENAT, 2, HAS_BITS, WRITING, DENY, PASS),
        *where(KILL, 0, EQUAL, process, PASS, DIE),
        *where(TGKILL, 0, EQUAL, process, PASS, DIE),
        (RETURN, DENY),
    ])  # fmt: skip
    steps = ctypes.create_string_buffer(rules)
    program = struct.pack("HxxxxxxQ", len(rules) // 8, ctypes.addressof(steps))
    call(libc.prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(program))


def step(code, value, if_true=0, if_false=0):
    """One instruction of a filter; jumps are counted from the next one."""
    return struct.pack("HBBI", code, if_true, if_false, value)


def one_of(numbers, action):
    for number in numbers:
        yield from [(EQUAL, number, 0, 1), (RETURN, action)]


def where(number, argument, test, value, action, otherwise):
    """For one system call: look at an argument, then one action or the other."""
    return [
        (EQUAL, number, 0, 4), (LOAD, ARGUMENTS + 8 * argument), (test, value, 0, 1),
        (RETURN, action), (RETURN, otherwise),
    ]  # fmt: skip


# -- concealment -------------------------------------------------------------

# What leads from Python code to the frames and objects of others, or to bare memory.
HIDDEN = {
    "sys._getframe", "sys._current_frames", "sys._current_exceptions", "sys.settrace",
    "sys.setprofile", "gc.get_objects", "gc.get_referrers", "gc.get_referents",
    "sys.monitoring.register_callback",
}  # fmt: skip
FRAMES = {"tb_frame", "gi_frame", "cr_frame", "ag_frame"}
LOW_LEVEL = {"_ctypes", "_xxsubinterpreters", "_interpreters", "_testcapi", "_testinternalcapi"}


class Refused(PermissionError, ValueError):
    """A ValueError too: namedtuple, typing and logging then do without a caller's frame."""


def conceal():
    """Keep this module and its frames from the programs that run from now on."""
    for name in ("__main__", "ctypes", "ctypes._endian", *LOW_LEVEL):
        sys.modules.pop(name, None)
    sys.addaudithook(watch)


def watch(event, arguments):
    if (event in HIDDEN or (event == "import" and arguments[0] in LOW_LEVEL)
            or (event == "object.__getattr__" and arguments[1] in FRAMES)):
        raise Refused(f"not in the sandbox: {event} {arguments[0] if event == 'import' else ''}")


# -- one case ----------------------------------------------------------------


def judge(case, limits):
    """The verdict on one case, as word and detail: runs it in a process of its own."""
    token, supervisor = os.urandom(16).hex().encode(), os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(writer, CHANNEL)
            os.closerange(CHANNEL + 1, OPEN_FILES)
            run(case, limits, supervisor, token)
        finally:
            os._exit(1)
    os.close(writer)
    said = read(reader)
    os.close(reader)
    if len(said) > LONGEST_MESSAGE:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    if said.startswith(token):
        _, word, detail = said.decode(errors="replace").split(" ", 2)
        return word, detail
    if said:
        return "forged", "something was written where only the verdict belongs"
    return ending(status, usage.ru_utime + usage.ru_stime >= limits["seconds"])


def read(pipe):
    """What comes until the other end is closed; a little more than a message at most."""
    said = b""
    while len(said) <= LONGEST_MESSAGE and (part := os.read(pipe, LONGEST_MESSAGE)):
        said += part
    return said


def ending(status, spent):
    """The verdict on a process that ended without one; spent: it used up its time."""
    if os.WIFEXITED(status):
        code = os.WEXITSTATUS(status)
        return "exited", f"ended with code {code} before its tests did"
    number = os.WTERMSIG(status)
    if number == signal.SIGSYS:
        return "refused", "a system call such as those for processes, threads and sockets"
    if number == signal.SIGXCPU or (number == signal.SIGKILL and spent):
        return "timeout", "used up its computing time"
    return "crashed", f"killed by signal {number}, {signal.strsignal(number)}"


def run(case, limits, supervisor, token):
    """Confine this process, run the case and say what came of it. Does not return."""
    send, leave = os.write, os._exit  # the program may replace what is in the modules
    call(libc.prctl, PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != supervisor:
        return
    random.seed(0)
    seconds = limits["seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    limit(resource.RLIMIT_AS, limits["memory"])
    limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_STACK, STACK)
    seccomp(os.getpid())
    word, detail = attempt(*case)
    send(CHANNEL, b" ".join([token, word.encode(), detail.encode(errors="replace")]))
    leave(0)


def attempt(program, tests, names):
    """Run a program, then its tests on what it defined: word and detail.

    The tests see the names the program defined. Names of built-in functions are Python's own
    for them, unless among `names`: those that the program was asked to define.
    """
    execute, everything, own = exec, BaseException, dict(vars(builtins))
    module = sys.modules["program"] = types.ModuleType("program")
    defined = vars(module)
    testing = False
    try:
        checks = compile(tests, "tests", "exec", dont_inherit=True)
        execute(compile(program, "program", "exec", dont_inherit=True), defined)
        testing = True
        seen = {name: value for name, value in defined.items() if name not in own or name in names}
        execute(checks, {**seen, "__builtins__": own, "__name__": "tests"})
    except everything as error:
        builtins.__dict__.update(own)  # for us: the program may have put there what it likes
        return told(error, tests if testing else None)
    return "passed", ""


def told(error, tests):
    """Word and detail for an exception, while tests ran or (None) before."""
    if isinstance(error, MemoryError):
        return "memory", "needed more memory than it has"
    try:
        detail = f"{type(error).__name__}: {error}"[:LONGEST_DETAIL]
    except BaseException:
        detail = "an exception that cannot be shown"
    if isinstance(error, SystemExit):
        return "exited", detail
    if isinstance(error, PermissionError):
        return "refused", detail
    if tests is None or not isinstance(error, AssertionError):
        return "error", detail
    return "failed", failed_line(error, tests) or detail


def failed_line(error, tests):
    """The assertion that failed, where it is one of the tests."""
    place = error.__traceback__
    while place.tb_next is not None:
        place = place.tb_next
    lines = tests.splitlines()
    line = lines[place.tb_lineno - 1].strip() if place.tb_lineno <= len(lines) else ""
    return line[:LONGEST_DETAIL] if line.startswith("assert") else ""


def main():
    commands, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    os.dup2(2, 0)  # standard error is /dev/null: so are the other streams of programs
    os.dup2(2, 1)
    os.chdir("/")

    def answer(**message):
        os.write(answers, json.dumps(message).encode() + b"\n")

    setup = json.loads(commands.readline())
    for name in LOADED:
        importlib.import_module(name)
    try:
        confine(setup["readable"])
    except OSError as error:
        return answer(error=error.strerror or str(error))
    conceal()
    answer(value=None)
    for line in commands:
        answer(value=judge(json.loads(line), setup))


if __name__ == "__main__":
    main()
