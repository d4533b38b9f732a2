"""What may go wrong around the engine: odd arguments, Ctrl-C anywhere, threads, routes on disk."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from sampling import PROMPT, drawn
from tiny import MODELS, write_checkpoint

import bonaware as bon
from bonaware import config as bon_config
from bonaware import lm as lm_module
from bonaware import routes
from bonaware.samples import Request, Samples


@pytest.fixture(scope="module")
def counting(tiny):
    return bon.LM.load(tiny("counting", tokenizer=True, eos=[1]), dtype="float32", threads=1)


# -- arguments ---------------------------------------------------------------


@pytest.mark.parametrize(("name", "beyond", "all_there_is"), [
    ("top_k", 2**40, 11), ("max_new_tokens", 2**70, 64),
])
def test_numbers_beyond_what_the_model_has_change_nothing(counting, name, beyond, all_there_is):
    want = counting.generate([PROMPT], n=3, **{name: all_there_is})
    assert drawn(counting.generate([PROMPT], n=3, **{name: beyond})) == drawn(want)


@pytest.mark.parametrize("start", [2**62 + 1, 2**63, 2**64])
def test_a_start_that_no_index_can_have_is_refused(counting, start):
    with pytest.raises(ValueError, match=rf"need start <= {2**62}, got {start}"):
        counting.generate([PROMPT], n=1, start=start)


def test_the_highest_start_is_drawn(counting):
    assert counting.generate([PROMPT], n=2, start=2**62).start == 2**62


@pytest.mark.parametrize("threads", [1025, 10**6, 2**31, 10**12])
def test_more_threads_than_a_machine_has_are_refused(tiny, threads):
    with pytest.raises(ValueError, match=rf"need threads <= 1024, got {threads}"):
        bon.LM.load(tiny("counting"), threads=threads)


@pytest.mark.parametrize(("indices", "temperature", "message"), [
    ([-1], 1.0, "sample indices must be >= 0, but -1 of prompt 0 is requested"),
    ([0], np.ones((2, 2)), r"temperature must be a number or one per sample, got shape \(2, 2\)"),
    ([0, 3], [1.0, 1.0], "temperature has 2 entries, but sample 3 of prompt 0 is requested"),
], ids=["negative index", "shape", "short"])
def test_a_request_that_cannot_be_drawn_is_refused(counting, indices, temperature, message):
    request = Request(0, np.array(PROMPT, np.int32), indices)
    with pytest.raises(ValueError, match=message):
        counting.stream([request], temperature=temperature)


def test_nothing_requested_is_nothing_drawn(counting):
    assert list(counting.stream([])) == []
    assert list(counting.stream([Request(0, np.array(PROMPT, np.int32), [])])) == []


@pytest.mark.parametrize("temperature", [0, -1, np.inf, np.nan, 1e39, 1e-50, [1.0, 2.0]], ids=str)
def test_logp_needs_a_temperature_that_divides(counting, temperature):
    with pytest.raises(ValueError, match="need one finite temperature > 0, got "):
        counting.logp([PROMPT], [[[3]]], temperature=temperature)


def test_logp_of_empty_completions_is_empty(counting):
    scored = counting.logp([PROMPT, [2]], [[[], [3, 4], []], []])
    assert [[len(x) for x in row] for row in scored] == [[0, 2, 0], []]
    assert [x.size for x in counting.logp([PROMPT], [[[], []]])[0]] == [0, 0]


def test_a_completion_in_place_of_a_list_of_them_is_refused(counting):
    with pytest.raises(TypeError, match="completions must hold a list of completions per prompt"):
        counting.logp(["ab"], ["ba"])


def test_logp_of_a_prompt_longer_than_a_chunk_is_the_logits_behind_it(tiny):
    lm = bon.LM.load(tiny("llama3"), dtype="float32")
    prompt = np.random.default_rng(0).integers(0, 97, 200)
    rows = lm.logits(prompt)[-1].astype(np.float64)
    want = rows[7] - np.log(np.exp(rows - rows.max()).sum()) - rows.max()
    np.testing.assert_allclose(lm.logp([prompt], [[[7]]])[0][0], [want], atol=1e-5)


# -- loading -----------------------------------------------------------------


def test_tensors_are_looked_at_before_memory_is_taken_for_them(tmp_path, monkeypatch):
    path = write_checkpoint(tmp_path / "model", MODELS["counting"])
    config = json.loads((path / "config.json").read_text())
    wide = config | {"num_hidden_layers": 4096, "intermediate_size": 2**24}
    (path / "config.json").write_text(json.dumps(wide))

    class NoModel:
        def __init__(self, *_):
            raise AssertionError("a model was made for tensors that are not there")

    monkeypatch.setattr(lm_module.engine(), "Model", NoModel)
    with pytest.raises(ValueError, match=r"tensor .* must have shape"):
        bon.LM.load(path)


# -- Ctrl-C ------------------------------------------------------------------


class CtrlC:
    """Raises KeyboardInterrupt at the n-th call of what it stands for, as a signal could."""

    def __init__(self, function, at):
        self.function, self.left, self.raised = function, at, False

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            self.raised = True
            raise KeyboardInterrupt
        return self.function(*args, **kwargs)


def assert_nothing_is_lost(drawing, samples):
    """All tokens that the engine drew are in the samples, once."""
    samples = list(samples)
    assert sum(len(s.tokens) for s in samples) == drawing.stats.new_tokens
    assert len({(s.prompt, s.index) for s in samples}) == len(samples)


@pytest.fixture
def drawings(monkeypatch):
    """The Drawings that are made from now on."""
    made = []

    class Recorded(lm_module.Drawing):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(bon.LM, "_drawing", Recorded)
    return made


@pytest.mark.parametrize("method", ["_finish", "_text", "_rests"])
@pytest.mark.parametrize("at", [1, 2, 40, 150])
def test_ctrl_c_between_two_calls_of_the_engine_loses_no_sample(
    counting, drawings, monkeypatch, method, at
):
    interrupt = CtrlC(getattr(lm_module.Drawing, method), at)
    monkeypatch.setattr(lm_module.Drawing, method, lambda *args: interrupt(*args))
    with pytest.warns(UserWarning, match="interrupted"):
        samples = counting.generate([PROMPT, [2, 3]], n=400, max_new_tokens=12,
                                    stop_strings=["ab", "c"])
    assert interrupt.raised
    assert_nothing_is_lost(drawings[0], samples)
    assert (samples.finish_reason == "aborted").any()


@pytest.mark.parametrize("at", [1, 2, 40, 150])
def test_ctrl_c_in_the_progress_callback_loses_no_sample(counting, drawings, at):
    interrupt = CtrlC(lambda _: None, at)
    with pytest.warns(UserWarning, match="interrupted"):
        samples = counting.generate([PROMPT], n=400, max_new_tokens=12, progress=interrupt)
    assert_nothing_is_lost(drawings[0], samples)
    whole = counting.generate([PROMPT], n=400, max_new_tokens=12)
    ended = {(s.prompt, s.index): s.tokens.tolist() for s in whole}
    for s in samples:
        tokens = ended[s.prompt, s.index]
        assert s.tokens.tolist() == tokens[: len(s.tokens)]
        assert s.finish_reason == "aborted" or len(s.tokens) == len(tokens)


def test_a_stream_goes_on_being_readable_after_ctrl_c(counting):
    request = Request(0, np.array(PROMPT, np.int32), range(50))
    drawing = counting.stream([request], max_new_tokens=12)
    taken = [next(drawing) for _ in range(3)]
    rest = drawing.abort()
    assert_nothing_is_lost(drawing, taken + rest)
    assert {s.finish_reason for s in rest} >= {"aborted"}
    assert drawing.abort() == []
    assert isinstance(Samples.from_list([PROMPT], taken + rest, 50), Samples)


# -- several threads ---------------------------------------------------------


def test_one_model_serves_several_python_threads(tiny):
    lm = bon.LM.load(tiny("wide"), dtype="float32", threads=2)

    def work():
        samples = lm.generate([PROMPT, [9]], n=6, max_new_tokens=20, rng=4)
        return drawn(samples), lm.logits(PROMPT).tobytes(), lm.logp([PROMPT], [[[5, 6]]])[0][0][1]

    want, got = work(), []
    threads = [threading.Thread(target=lambda: got.append(work())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert got == [want] * 4


def test_a_session_in_use_refuses_a_second_thread(tiny):
    lm = bon.LM.load(tiny("wide"), dtype="float32", threads=1)
    drawing = lm.stream([Request(0, np.array(PROMPT, np.int32), range(200))], max_new_tokens=3000)
    session, errors = drawing._session, []
    runner = threading.Thread(target=lambda: session.run(40))
    runner.start()
    while runner.is_alive():
        try:
            session.stats()
        except RuntimeError as error:
            errors.append(str(error))
    assert set(errors) == {"session is in use by another thread"}
    assert session.stats()["steps"] > 0


# -- routes on disk ----------------------------------------------------------


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The cache file in an empty folder; every product counts as large."""
    monkeypatch.setenv("BONAWARE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(routes, "SMALL", 0)
    return tmp_path / "cache" / "routes.json"


def choices(cache):
    return next(iter(json.loads(cache.read_text()).values()))


@pytest.mark.parametrize("content", [
    "", "[" * 100_000, "null", "[]", '{"a": 1}', "\xff\xfe",
], ids=["empty", "deep", "null", "list", "number", "bytes"])
def test_a_damaged_file_of_routes_is_measured_again(tiny, cache, content):
    cache.parent.mkdir()
    cache.write_text(content, encoding="latin-1")
    lm = bon.LM.load(tiny("counting"), dtype="float32")
    assert set(choices(cache).values()) == set(lm.routes.values()) == {"tile"}


@pytest.mark.parametrize("wrong", ["nonsense", None, ["tile"], 3], ids=str)
def test_a_route_that_does_not_exist_is_measured_again(tiny, cache, wrong):
    path = tiny("counting")
    bon.LM.load(path, dtype="float32")
    found = json.loads(cache.read_text())
    damaged = {machine: dict.fromkeys(known, wrong) for machine, known in found.items()}
    cache.write_text(json.dumps(damaged))
    bon.LM.load(path, dtype="float32")
    assert json.loads(cache.read_text()) == found


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_route_that_cannot_serve_a_matrix_is_not_chosen(tiny, cache, dtype):
    lm = bon.LM.load(tiny("llama2", dtype="bfloat16"), dtype=dtype)
    refused = 0
    for index, (name, outputs, inputs) in enumerate(lm._model.matrices()):
        for phase, rows in routes.ROWS.items():
            for route in bon_config.engine().config()["routes"][dtype]:
                if not np.isfinite(lm._model.measure(index, route, rows, 1)):
                    refused += 1
                    assert lm.routes[f"{name} {outputs}x{inputs} {phase}"] != route
    assert dtype == "bfloat16" or not refused
    assert np.isfinite(lm.logits([1, 2, 3])).all()


def test_what_another_process_chose_meanwhile_counts(tiny, cache, monkeypatch):
    lm = bon.LM.load(tiny("counting"), dtype="float32")
    machine, known = next(iter(json.loads(cache.read_text()).items()))
    machine = machine.rsplit(" | ", 1)[0] + " | tile or other"  # the routes that were compared
    first = next(iter(known))
    cache.unlink()

    def measure(model, products, _):
        others = {machine: {first: "tile"}, "another machine": {"a": "b"}}
        cache.write_text(json.dumps(others))
        return dict.fromkeys(products, "other")

    class Model:
        matrices = staticmethod(lm._model.matrices)

        def set_route(self, *_):
            pass

    monkeypatch.setattr(routes, "_fastest", measure)
    built = lm_module.engine().config() | {"routes": {"float32": ["tile", "other"]}}
    chosen = routes.choose(Model(), built, "float32")
    assert {name.split(" ", 1)[1]: route for name, route in chosen.items()} == {
        key.removeprefix("float32 "): "tile" if key == first else "other" for key in known
    }
    found = json.loads(cache.read_text())
    assert found["another machine"] == {"a": "b"}
    assert set(found[machine]) == set(known)


def test_another_program_at_work_does_not_decide_which_route_is_taken(monkeypatch):
    class Model:
        calls = 0

        def measure(self, index, route, rows, repeats):
            self.calls += 1
            disturbed = index == 0 and route == "fast" and self.calls < 30
            return (1e-3 if route == "fast" else 2e-3) * (1 + 3 * disturbed)

    products = {"a": (0, 128), "b": (1, 32)}
    monkeypatch.setattr(routes, "SECONDS", 3600)
    assert routes._fastest(Model(), products, ["tile", "fast"]) == {"a": "fast", "b": "fast"}
    assert routes._fastest(Model(), products, ["tile"]) == {"a": "tile", "b": "tile"}
    monkeypatch.setattr(routes, "SECONDS", -1)  # every product has taken too long: two rounds
    model = Model()
    routes._fastest(model, products, ["tile", "fast"])
    assert model.calls == 2 * 2 * 2


LOAD = """
import sys
import bonaware
from bonaware import routes
routes.SMALL = 0
print(bonaware.LM.load(sys.argv[1], dtype="float32").generate([[1]], n=1).lengths.size)
"""


def test_where_routes_cannot_be_kept_they_are_measured_and_it_is_said(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BONAWARE_CACHE", str(tmp_path / "file" / "cache"))
    result = subprocess.run([sys.executable, "-c", LOAD, str(tiny("counting"))],
                            capture_output=True, text=True, timeout=300)
    assert result.stdout == "1\n"
    assert "bonaware: routes are measured at every load: " in result.stderr


def test_a_user_without_home_can_load_a_model(tiny, tmp_path, monkeypatch, capsys):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("BONAWARE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(routes.Path, "home", no_home)
    monkeypatch.setattr(routes, "SMALL", 0)
    assert bon.LM.load(tiny("counting"), dtype="float32").generate([[1]], n=1).valid.all()
    assert "Set HOME or BONAWARE_CACHE" in capsys.readouterr().err
