"""Programs that misbehave, each with the verdicts that may come of it: run only in the sandbox.

PLACE in a program stands for a folder that the test watches, HOME for the user's, PARENT for
the process id of the test; SECRET is what a file there and a variable of the environment hold.
"""

SECRET = "d41d8cd98f00b204"
RIGHT = "def f(x): return x\n"  # stands before each: alone it would pass
TESTS = "def check(f):\n assert abs(f(3) - 3) < 1\ncheck(f)"
GONE = ("refused", "error")  # no permission to see it, or nothing there to be seen

HOSTILE = {
    # -- resources
    "fork bomb": ("import os\nwhile True: os.fork()", "refused"),
    "fork bomb that catches errors": (
        "import os\nwhile True:\n try: os.fork()\n except BaseException: pass", "refused"),
    "processes by multiprocessing": (
        "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()",
        GONE),
    "threads": (
        "import threading, time\nwhile True:\n"
        " threading.Thread(target=time.sleep, args=(99,)).start()", "refused"),
    "daemon that outlives": (
        "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0: time.sleep(999)",
        "refused"),
    "memory at once": ("x = bytearray(1 << 40)", "memory"),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "memory"),
    "memory by a string": ("x = 'a'\nwhile True: x += x", "memory"),
    "memory in a file that is none": ("import os\nos.memfd_create('x')", "refused"),
    "zip bomb": (
        "import zlib\nx = zlib.compress(bytes(1 << 24), 1)\n"
        "y = [zlib.decompress(x) for _ in range(1000)]", "memory"),
    "recursion": ("def g(): return g()\ng()", "error"),
    "recursion without a limit": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef g(): return [g() for _ in '1']\ng()",
        ("crashed", "memory", "timeout", "error")),
    "nested source": ("x = " + "(" * 100_000 + ")" * 100_000, ("error", "memory", "crashed")),
    "nested literals": ("import ast\nast.literal_eval('-' * 10**6 + '1')",
                        ("error", "memory", "crashed")),
    "endless loop": ("while True: pass", "timeout"),
    "endless loop that ignores signals": (
        "import signal\nfor s in range(1, 65):\n try: signal.signal(s, signal.SIG_IGN)\n"
        " except BaseException: pass\nwhile True: pass", "timeout"),
    "endless loop in C": ("x = 10 ** 10 ** 10", ("timeout", "memory")),
    "endless wait": ("import time\ntime.sleep(10**6)", "timeout"),
    "endless wait that catches errors": (
        "import time\nwhile True:\n try: time.sleep(10**6)\n except BaseException: pass",
        "timeout"),
    "endless output": ("while True: print('x' * 10**6)", "timeout"),
    "stops itself": ("import os\nos.kill(os.getpid(), 19)", "timeout"),
    "huge text of an exception": ("raise Exception('x' * 10**8)", "error"),
    "huge text of an exception, made when shown": (
        "class E(Exception):\n def __str__(self): return 'x' * 10**12\nraise E", "error"),
    "exception that never gets shown": (
        "class E(Exception):\n def __str__(self):\n  while True: pass\nraise E", "timeout"),
    "many open files": ("x = [open(__import__('os').__file__) for _ in range(10**6)]", "error"),
    # -- files
    "fills the disk": (
        "for i in range(10**6):\n with open(f'PLACE/{i}', 'wb') as f: f.write(bytes(10**8))",
        GONE),
    "fills the folder for temporary files": (
        "import tempfile\nwith tempfile.TemporaryFile() as f:\n while True: f.write(bytes(10**8))",
        GONE),
    "writes to shared memory": ("open('/dev/shm/bonaware', 'wb').write(bytes(10**8))", GONE),
    "reads a secret file": ("x = open('PLACE/secret').read()", GONE),
    "reads the home": (
        "import os, pwd\np = os.path.expanduser('~')\nassert not os.listdir(p), os.listdir(p)",
        GONE),
    "reads the home by its path": (
        "import os\nx = [open(os.path.join('HOME', name)).read() for name in ('.bashrc', '.ssh')]",
        GONE),
    "reads the password file": ("x = open('/etc/passwd').read()", GONE),
    "writes over a file": ("open('PLACE/secret', 'w').write('gone')", GONE),
    "empties a file it opened for reading": (
        "import os\nos.open('PLACE/secret', os.O_RDONLY | os.O_TRUNC)", GONE),
    "truncates a file": ("import os\nos.truncate('PLACE/secret', 0)", GONE),
    "removes a file": ("import os\nos.remove('PLACE/secret')", GONE),
    "removes a tree": ("import os\nos.system('rm -rf PLACE')", GONE),
    "removes a tree by Python": ("import shutil\nshutil.rmtree('PLACE')", GONE),
    "renames a file": ("import os\nos.rename('PLACE/secret', 'PLACE/other')", GONE),
    "makes a symbolic link": ("import os\nos.symlink('/etc/shadow', 'PLACE/link')", GONE),
    "makes a hard link": ("import os\nos.link('PLACE/secret', 'PLACE/link')", GONE),
    "follows a symbolic link": ("x = open('PLACE/way').read()", GONE),
    "changes permissions": ("import os\nos.chmod('PLACE/secret', 0o777)", GONE),
    "changes Python itself": ("import os\nopen(os.__file__, 'a').write('#')", "refused"),
    "removes the root": (
        "import shutil\nshutil.rmtree('/', ignore_errors=True)\nassert 0", "error"),
    "reads a device": ("open('/dev/vda', 'rb').read(1)", GONE),
    # -- other processes, the network, the machine
    "kills its parent": ("import os\nos.kill(os.getppid(), 9)", "refused"),
    "kills the test": ("import os\nos.kill(PARENT, 9)", "refused"),
    "kills everything": ("import os\nos.kill(-1, 9)", "refused"),
    "kills its group": ("import os\nos.killpg(0, 9)", "refused"),
    "reads the environment of others": ("x = open('/proc/PARENT/environ', 'rb').read()", GONE),
    "reads the memory of others": ("x = open('/proc/PARENT/mem', 'rb').read(1)", GONE),
    "looks through processes": ("import os\nassert os.listdir('/proc') == []", GONE),
    "traces a process": (
        "import ctypes\nctypes.CDLL(None).ptrace(16, PARENT, 0, 0)", "refused"),
    "reads a secret variable": (
        "import os\nassert 'SECRET' in os.environ.values(), 'not there'", "error"),
    "opens a connection": (
        "import socket\nsocket.create_connection(('127.0.0.1', 22), timeout=1)", "refused"),
    "fetches a page": (
        "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=1)",
        "refused"),
    "opens a socket of the system": (
        "import socket\nsocket.socket(socket.AF_UNIX).connect('/run/dbus/socket')", "refused"),
    "starts a shell": ("import os\nos.system('echo')", "refused"),
    "starts a program": ("import subprocess\nsubprocess.run(['/bin/ls'])", "refused"),
    "becomes a program": ("import os\nos.execv('/bin/ls', ['ls'])", "refused"),
    "raises its limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "refused"),
    "leaves the namespace": ("import os\nos.chroot('/')", "refused"),
    "becomes root": ("import os\nos.setuid(0)", "refused"),
    "crashes the interpreter": ("import os\nos.kill(os.getpid(), 11)", "crashed"),
    "aborts": ("import os\nos.abort()", "crashed"),
    # -- verdicts
    "ends well before its tests": ("import sys\nsys.exit(0)", "exited"),
    "ends at once before its tests": ("import os\nos._exit(0)", "exited"),
    "ends in its tests": ("def f(x):\n raise SystemExit", "exited"),
    "ends at once in its tests": ("import os\ndef f(x): os._exit(0)", "exited"),
    "says that it passed": (
        "import os\nfor i in range(64):\n try: os.write(i, b'passed')\n except OSError: pass\n"
        "os._exit(0)", "forged"),
    "says it in the format": ("import os\nos.write(3, b'0' * 32 + b' passed ')\nos._exit(0)",
                              "forged"),
    "says it again and again": ("import os\nwhile True: os.write(3, b'passed' * 1000)", "forged"),
    "closes what it finds": ("import os\nos.closerange(0, 64)", "exited"),
    "puts the verdict in the end": (
        "import atexit, os\natexit.register(lambda: os.write(3, b'passed'))\nraise SystemExit",
        "exited"),
    "replaces exec": (
        "import builtins\nbuiltins.exec = lambda *a, **k: None\ndef f(x): return 9", "failed"),
    "replaces what assertions raise": (
        "import builtins\nbuiltins.AssertionError = KeyError\ndef f(x): return 9", "failed"),
    "replaces a built-in function": (
        "import builtins\nbuiltins.abs = lambda x: 0\ndef f(x): return 9", "failed"),
    "replaces a built-in function in its tests": (
        "def f(x):\n import builtins\n builtins.abs = lambda x: 0\n return 9", "failed"),
    "shadows a built-in function": ("def abs(x): return 0\ndef f(x): return 9", "failed"),
    "replaces how the verdict is sent": (
        "import os, sys\nos.write = lambda *a: None\nos._exit = sys.exit\n"
        "def f(x): return 9", "failed"),
    "replaces what catches exceptions": (
        "import builtins\nbuiltins.BaseException = KeyError\ndef f(x): return 9", "failed"),
    "replaces how exceptions are told": (
        "import builtins\nbuiltins.isinstance = lambda *a: True\ndef f(x): return 9",
        ("failed", "memory")),
    "redefines the tests": ("def check(f): pass\ndef f(x): return 9", "failed"),
    "looks for the token in frames": (
        "import sys\nframe = sys._getframe()\nwhile frame: frame = frame.f_back", "refused"),
    "looks for the token behind an exception": (
        "try: 1 / 0\nexcept Exception as e: frame = e.__traceback__.tb_frame.f_back", "refused"),
    "looks for the token behind a generator": (
        "def g(): yield h.gi_frame.f_back\nh = g()\nnext(h)", "refused"),
    "looks for the token among objects": ("import gc\nx = gc.get_objects()", "refused"),
    "looks for the token in memory": ("import ctypes\nctypes.string_at(0)", "refused"),
    "looks for the token in an interpreter of its own": (
        "try: import _xxsubinterpreters as i\nexcept ImportError: import _interpreters as i\n"
        "i.run_string(i.create(), 'import ctypes')", "refused"),
    "looks for the token in a signal's frame": (
        "import signal\nsignal.signal(14, lambda n, frame: frame.f_back)", "refused"),
    "looks for the module that judges": ("import __main__\n__main__.judge", "error"),
    "jumps over the tests": (
        "import sys\ndef trace(frame, *_): frame.f_lineno = 99\nsys.settrace(trace)", "refused"),
}  # fmt: skip
