"""Mutated model folders: each loads, or is refused in one sentence. No crash, no hang.

Runs in a process of its own, so that a crash is a failed test, with a time limit for every
case. BON_FUZZ is the number of cases (default 300; `make fuzz`: 10000). Case N is repeated by
`python tests/test_fuzz.py FOLDER 1 N`. The safetensors reader alone has tests/c/fuzz_weights.c.
"""

import copy
import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CASES = int(os.environ.get("BON_FUZZ", "300"))
SECONDS_PER_CASE = 20

# Which file is mutated, in turn; tensors and text are then used as far as they go.
TARGETS = (
    "config.json", "model.safetensors.index.json", "generation_config.json", "tokenizer.json",
    "config.json", "tokenizer_config.json", "model-00001-of-00002.safetensors",
)
MODELS = ("counting", "llama3", "qwen2_windows", "gemma3")  # the first has a tokenizer

HOSTILE = (
    None, True, False, 0, -1, 1, 2, 3, 7, 97, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0,
    1e-320, 1e38, 1e308, float("nan"), float("inf"), "", "x", "\0", "\ud800", "../../etc/passwd",
    "/etc/passwd", "model.safetensors", "float16", "sliding_attention", "a" * 1000, [], [[]],
    [1, 2], {}, {"a": {"b": []}}, [0] * 1000, {"rope_type": "yarn"}, "{{ 1 }}", "(a+)+$",
)
PIECES = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"\xff", b"\xc0\x80",
    b"\xef\xbb\xbf", b"\x00", b"NaN", b"1e999", b"-", b"null", b"[" * 5000, b'{"a":' * 2000,
    b"9" * 5000, b'"dtype":"F32",', b'"type":',
)


# -- mutations -------------------------------------------------------------------------------


def places(value, found):
    """Every (container, key) inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, (dict, list)):
            places(inner, found)
    return found


def mutate_value(value, rng):
    """Changes one place of a JSON object."""
    everywhere = places(value, [])
    if not everywhere:
        return
    container, key = rng.choice(everywhere)
    action = rng.randrange(5)
    if action == 0:
        del container[key]
    elif action == 1:
        other, other_key = rng.choice(everywhere)
        container[key] = copy.deepcopy(other[other_key])
    elif action == 2 and isinstance(container, dict):
        container[rng.choice(("x", "", "rope_scaling", "sliding_window", "eos_token_id"))] = (
            container.pop(key))
    else:
        container[key] = copy.deepcopy(rng.choice(HOSTILE))


def mutate_bytes(data, rng):
    at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    action = rng.randrange(5)
    if action == 0:
        return data[:at]
    if action == 1:
        return data[:at] + rng.choice(PIECES) + data[at:]
    if action == 2:
        return data[:at] + data[min(end, at + rng.randrange(40)):]
    if action == 3:
        return data[:at] + data[at:end][:200] + data[at:]
    flipped = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        if flipped:
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def mutate(data, is_json, rng):
    if not is_json or rng.randrange(3) == 0:
        return mutate_bytes(data, rng)
    value = json.loads(data)
    for _ in range(rng.randrange(1, 4)):
        mutate_value(value, rng)
    return json.dumps(value).encode()


# -- one case --------------------------------------------------------------------------------


def use(lm):
    """Tensors and text, as far as they go."""
    lm.logits([1])
    if lm.tokenizer is not None:
        lm.generate(["ab ba."], n=2, max_new_tokens=2, rng=0)


def complain(error, where=""):
    """What is wrong with the way a case was refused, or None."""
    text = str(error)
    if not isinstance(error, (ValueError, OSError)):
        return f"{type(error).__name__} instead of ValueError or OSError"
    if not 20 <= len(text) <= 2000 or "\n" in text:
        return "the message is no sentence"
    if where not in text:
        return "the message does not say where"
    return None


def try_folder(path):
    """Whether it loads, and a complaint or None."""
    import bonaware as bon

    try:
        lm = bon.LM.load(path, threads=1, memory=1 << 24)
    except BaseException as error:
        complaint = complain(error, str(path))
        return False, complaint and f"{complaint}: {str(error)[:300]!r}"
    try:
        use(lm)
    except BaseException as error:
        complaint = complain(error)
        return True, complaint and f"{complaint}: {str(error)[:300]!r}"
    return True, None


def write(path, data):
    """A file anew: some file systems wait for the disk where one is emptied and written again."""
    path.unlink()
    path.write_bytes(data)


def run(folder, count, first):
    """Cases first .. first + count - 1; prints what they came to."""
    import tiny

    bases = [tiny.cached_checkpoint(folder, name, files=2, eos=1, tokenizer=name == "counting")
             for name in MODELS]
    (bases[0] / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True,
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}))
    loaded, complaints = 0, []
    for case in range(first, first + count):
        rng = random.Random(case)
        target = TARGETS[case % len(TARGETS)]
        path = bases[0] if target.startswith("tokenizer") else rng.choice(bases)
        whole = (path / target).read_bytes()
        write(path / target, mutate(whole, target.endswith(".json"), rng))
        signal.alarm(SECONDS_PER_CASE)
        fine, complaint = try_folder(path)
        signal.alarm(0)
        write(path / target, whole)
        loaded += fine
        if complaint:
            complaints.append(f"case {case} ({target}): {complaint}")
    print(f"{count} mutated folders: {loaded} loaded, {count - loaded} refused")
    print("\n".join(complaints))
    return 1 if complaints else 0


def test_mutated_folders_load_or_are_refused_in_a_sentence(tmp_path):
    pytest.importorskip("bonaware._engine", reason="the engine is not built")
    pytest.importorskip("tokenizers")
    paths = [path for path in sys.path if path] + [str(Path.cwd())]
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, str(tmp_path), str(CASES), "0"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, timeout=60 + CASES, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


if __name__ == "__main__":
    faulthandler.enable()
    faulthandler.register(signal.SIGALRM, chain=True)  # says where it hangs, then the process ends
    sys.exit(run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
