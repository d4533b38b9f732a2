"""A cluster of Ray: the samples and steps of one process, whoever is lost on the way.

One local Ray for all tests, with CPUs that it only believes in; 4 workers draw.
"""

import gc
import os
import signal
import sqlite3
import sys
import weakref

import numpy as np
import pytest
from docs_examples import run_examples
from letters import Letters, letters_model

import bonaware as bon
from bonaware import cli, policies, selfeval
from bonaware._learner import Learner
from bonaware.training import Rollouts

ray = pytest.importorskip("ray", reason="the integration is with Ray: pip install '.[ray]'")

from bonaware.integrations import ray as cluster_module  # noqa: E402
from bonaware.integrations.ray import Cluster, _Queue, _Turn  # noqa: E402

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it

N = 48
COUNTDOWN = bon.tasks.get("countdown")
PROBLEMS = COUNTDOWN.load("test", limit=30)
PROMPTS = [problem.prompt for problem in PROBLEMS]
SETTINGS = {"max_new_tokens": 32, "progress": False}


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (else they wait for other tests)
    ray.init(address="local", num_cpus=16, include_dashboard=False, log_to_driver=False,
             object_store_memory=2**28)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def lm():
    return bon.LM.load("countdown", threads=1)


@pytest.fixture(scope="module")
def cluster(lm):
    with Cluster(lm, workers=4) as made:
        yield made


@pytest.fixture(scope="module")
def alone(lm):
    """What one process draws."""
    return lm.generate(PROMPTS, n=N, **SETTINGS)


def assert_same_samples(got, want):
    assert got.valid.tolist() == want.valid.tolist()
    assert got.text == want.text
    assert got.finish_reason.tolist() == want.finish_reason.tolist()
    for a, b in zip(got, want, strict=True):
        assert (a.prompt, a.index, a.temperature) == (b.prompt, b.index, b.temperature)
        for name in ("tokens", "logp", "sampled_logp", "certainty"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


def pid_of(hand):
    return ray.get(hand.actor.facts.remote())[2]["pid"]


def killed_at(monkeypatch, hand, step, kind=None):
    """Have a worker killed when it has just been asked for something; the list of the killed."""
    pid, killed, asked = pid_of(hand), [], getattr(hand, step)

    def ask(*work):
        asked(*work)
        if not killed and kind in (None, *work[2:3]):
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    monkeypatch.setattr(hand, step, ask)
    return killed


def short_slices(_):
    """Runs in a worker: however fast it is, a turn takes several slices."""
    cluster_module.SLICE = 0.01


# -- drawing ---------------------------------------------------------------------


def test_four_workers_draw_the_samples_of_one_process(cluster, alone):
    assert_same_samples(cluster.generate(PROMPTS, n=N, **SETTINGS), alone)


@pytest.mark.parametrize("settings", [
    {"n": 7, "start": 3, "rng": 5, "temperature": np.linspace(0.5, 1.5, 7)},
    {"n": 5, "top_k": 5, "top_p": 0.9, "min_p": 0.01},
    {"n": 40, "rng": np.random.SeedSequence([1, 2])},
], ids=["annealed from sample 3 on", "truncated", "of a sequence"])
def test_all_settings_reach_the_workers(lm, cluster, settings):
    prompts = [PROMPTS[0], PROMPTS[0], PROMPTS[1]]  # equal prompts have samples of their own
    assert_same_samples(cluster.generate(prompts, **SETTINGS, **settings),
                        lm.generate(prompts, **SETTINGS, **settings))


def test_a_generator_is_advanced_once(lm, cluster):
    first, second = np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(2):
        assert_same_samples(cluster.generate(PROMPTS[0], n=6, rng=first, **SETTINGS),
                            lm.generate(PROMPTS[0], n=6, rng=second, **SETTINGS))


def test_samples_do_not_stay_in_the_object_store(cluster):
    samples = cluster.generate(PROMPTS[0], n=4, **SETTINGS)
    assert samples.tokens[0][0].flags.owndata
    assert samples.tokens[0][0].flags.writeable


def test_what_was_drawn_is_counted(cluster, alone):
    stats = cluster.generate(PROMPTS, n=N, **SETTINGS).stats
    assert stats.new_tokens == alone.lengths.sum()
    assert 0 < stats.decode_seconds < stats.seconds


@pytest.mark.parametrize("step", ["begin", "go_on"])
def test_a_killed_worker_loses_and_repeats_nothing(monkeypatch, cluster, lm, step):
    prompts = PROMPTS * 8
    hand, came = cluster._hands[1], []
    ray.get(hand.actor.__ray_call__.remote(short_slices))
    actor, killed = hand.actor, killed_at(monkeypatch, hand, step)
    samples = cluster.generate(prompts, n=N, max_new_tokens=32, progress=came.append)
    assert len(killed) == 1
    assert hand.actor is not actor
    places = [(sample.prompt, sample.index) for sample in came]
    assert len(places) == len(set(places)) == len(prompts) * N
    assert_same_samples(samples, lm.generate(prompts, n=N, **SETTINGS))


class Deadly:
    """A verifier that ends its process when it reads a sample of one prompt."""

    probabilities = True

    def __init__(self, prompt):
        self.prompt = prompt

    def score(self, problems, samples):
        raise AssertionError("it reads")

    def read(self, live):
        if any(sample.prompt == self.prompt for sample in live.samples):
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full(len(live), 0.5)


def test_work_that_loses_one_worker_after_the_other_is_an_error_that_names_it(cluster):
    with pytest.raises(RuntimeError, match=r"lost 3 times in a row at work on prompt 2, with noth"):
        cluster.generate(PROMPTS[:4], policy=policies.get("best_of_n", n=2), verifier=Deadly(2),
                         **SETTINGS)
    assert cluster.generate(PROMPTS[:4], n=1, **SETTINGS).valid.all()  # others take their places


def test_workers_that_do_not_start_are_an_error(lm):
    class Stillborn:
        def facts(self):
            os.kill(os.getpid(), signal.SIGKILL)

    with Cluster(lm, workers=1) as cluster:
        (hand,) = cluster._hands
        hand._make = ray.remote(Stillborn).remote
        os.kill(pid_of(hand), signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="lost 3 times in a row while it started"):
                cluster.generate(PROMPTS[0], n=1, **SETTINGS)


def test_errors_are_the_sentences_of_one_process(lm, cluster):
    for prompt in ([1] * 10_000, [10**6]):  # seen here, and by a worker
        said = []
        for one in (lm, cluster):
            with pytest.raises(ValueError, match="prompt 1") as raised:
                one.generate([PROMPTS[0], prompt], n=2, **SETTINGS)
            said.append(str(raised.value))
        assert said[0] == said[1]
    assert cluster.generate(PROMPTS[0], n=1, **SETTINGS).valid.all()


def test_one_call_at_a_time(lm, cluster):
    request = bon.samples.Request(0, lm.encode(PROMPTS[0]), range(400))
    first = cluster.stream([request], max_new_tokens=32)
    next(first)
    assert cluster.generate(PROMPTS[0], n=4, **SETTINGS).valid.all()
    with pytest.raises(RuntimeError, match="another call has taken the workers"):
        list(first)


def test_lost_work_is_named():
    assert _Turn([(3, 0), (3, 1)], "prompt").words == "at work on prompt 3"
    assert _Turn([(3, 0), (5, 0)], "prompt").words == "at work on prompts 3 to 5"


def test_nothing_is_drawn_where_no_sample_is_wanted(lm, cluster):
    nothing = [bon.samples.Request(0, lm.encode(PROMPTS[0]), [])]
    assert list(cluster.stream(nothing)) == list(lm.stream(nothing)) == []


def test_keys_are_given_out_once_in_turns_that_become_smaller():
    groups = [[(p, i) for i in range(4)] for p in range(64)]
    queue, turns = _Queue(groups, 4, "prompt"), []
    while (turn := queue.next()) is not None:
        turns.append(list(turn.left))
    assert [key for keys in turns for key in keys] == [key for keys in groups for key in keys]
    sizes = list(map(len, turns))
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (32, 4)
    assert queue.empty


# -- evaluation ------------------------------------------------------------------


def rows(store):
    with sqlite3.connect(store) as db:
        return db.execute('SELECT prompt, "index", tokens, logp, sampled_logp, certainty, text, '
                          'finish_reason FROM samples ORDER BY prompt, "index"').fetchall()


def test_a_store_goes_on_in_a_cluster_and_in_one_process(lm, cluster, tmp_path):
    for number, ones in enumerate([(lm, cluster), (cluster, lm), (lm, lm)]):
        for one, n in zip(ones, (4, 8), strict=True):
            run = bon.evaluate(one, COUNTDOWN, n, limit=10, store=tmp_path / f"{number}.sqlite",
                               progress=False)
        assert run.complete
    stored = [rows(tmp_path / f"{number}.sqlite") for number in range(3)]
    assert stored[0] == stored[1] == stored[2]
    assert len(stored[0]) == 80


def test_ctrl_c_keeps_what_has_arrived_and_the_same_call_goes_on(lm, cluster, tmp_path):
    seen = []

    def look(sample):
        seen.append(sample)
        if len(seen) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    settings = {"limit": 200, "split": "test", "store": tmp_path / "run.sqlite"}
    with pytest.warns(UserWarning, match=r"interrupted: \d+ of 9600 samples are finished and kept"):
        run = bon.evaluate(cluster, COUNTDOWN, N, progress=look, **settings)
    assert not run.complete
    assert 19 <= len(rows(tmp_path / "run.sqlite")) < 9600
    run = bon.evaluate(cluster, COUNTDOWN, N, progress=False, **settings)
    assert run.complete
    want = bon.evaluate(lm, COUNTDOWN, N, limit=200, progress=False)
    assert_same_samples(run.samples, want.samples)
    assert np.array_equal(run.rewards, want.rewards)


# -- policies --------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged():
    """A model that judges itself, and a cluster of it."""
    lm = bon.LM.load("countdown-selfeval", threads=1)
    with Cluster(lm, workers=3) as cluster:
        yield lm, cluster


ADAPTIVE = policies.get("adaptive", threshold=0.9, n=8)
PRUNE = policies.get("prune", n=8, checkpoints=18, fractions=0.25)


@pytest.mark.parametrize("policy", [ADAPTIVE, PRUNE], ids=["adaptive", "prune"])
def test_a_policy_decides_as_in_one_process(monkeypatch, judged, tmp_path, policy):
    runs = []
    for name, one in zip(("alone", "spread"), judged, strict=True):
        if name == "spread":
            killed = killed_at(monkeypatch, one._hands[0], "begin")
        settings = {"policy": policy, "verifiers": ["self_evaluation"],
                    "store": tmp_path / f"{name}.sqlite", "progress": False}
        bon.evaluate(one, COUNTDOWN, limit=8, **settings)
        runs.append(bon.evaluate(one, COUNTDOWN, limit=24, **settings))  # and more later
    want, got = runs
    assert killed
    assert got.done == want.done
    assert got.accuracy() == want.accuracy()
    assert_same_samples(got.samples, want.samples)
    assert np.array_equal(got.scores["self_evaluation"], want.scores["self_evaluation"],
                          equal_nan=True)
    assert rows(tmp_path / "alone.sqlite") == rows(tmp_path / "spread.sqlite")


def test_votes_are_read_by_the_workers(lm, cluster):
    policy = policies.get("adaptive_consistency", n=6)
    want, got = (bon.evaluate(one, COUNTDOWN, policy=policy, limit=6, progress=False)
                 for one in (lm, cluster))
    assert got.done == want.done
    assert_same_samples(got.samples, want.samples)


def test_a_verifier_with_a_model_of_its_own_is_refused(cluster):
    judge = bon.verifiers.get("reward_model", model="countdown-verifier", threads=1,
                              probabilities=True)
    with pytest.raises(TypeError, match="a policy on a cluster needs a verifier that can be sent"):
        cluster.generate(PROMPTS[0], policy=ADAPTIVE, verifier=judge, **SETTINGS)


def test_a_verifier_with_another_cluster_is_refused(cluster, judged):
    judge = bon.verifiers.get("self_evaluation", model=judged[1])
    with pytest.raises(TypeError, match="can be sent to its own workers only"):
        cluster.generate(PROMPTS[0], policy=ADAPTIVE, verifier=judge, **SETTINGS)


def test_workers_ask_what_the_model_is_trained_to_be_asked_now(monkeypatch, judged):
    scores = []
    for one in judged:
        asked = one.self_evaluation
        monkeypatch.setattr(one, "self_evaluation",
                            asked | {"target": asked["other"], "other": asked["target"]})
        run = bon.evaluate(one, COUNTDOWN, policy=policies.get("adaptive", threshold=1, n=2),
                           verifiers=["self_evaluation"], limit=4, progress=False)
        scores.append(run.scores["self_evaluation"])
    assert np.array_equal(*scores, equal_nan=True)


# -- reading ---------------------------------------------------------------------


def test_workers_read_as_one_process_does(lm, cluster, alone):
    want, got = (one.logp(PROMPTS, alone.tokens, temperature=0.7) for one in (lm, cluster))
    for some, others in zip(got, want, strict=True):
        assert [logp.tobytes() for logp in some] == [logp.tobytes() for logp in others]


def test_a_reward_model_can_be_a_cluster(alone):
    lm = bon.LM.load("countdown-verifier", threads=1)
    with Cluster(lm, workers=2) as cluster:
        want, got = (bon.verifiers.get("reward_model", model=one).score(PROBLEMS, alone)
                     for one in (lm, cluster))
    assert np.array_equal(got, want)


# -- learning --------------------------------------------------------------------

SHARES = 4


class Summed(Learner):
    """A learner in one process that sums shares as a cluster does."""

    def _backward(self, batch, temperature, probabilities=None, kl_weights=None):
        places = [(slot, layer) for slot, layer, *_ in self._trained()]
        total = [self._engine.get("gradient", *place) for place in places]
        found = []
        for arrays, at in batch.shares(SHARES):
            self._engine.zero()
            more = [None if one is None else one[at] for one in (probabilities, kl_weights)]
            found.append(self._engine.accumulate(*arrays, temperature, *more))
            parts = [self._engine.get("gradient", *place) for place in places]
            total = [whole + part for whole, part in zip(total, parts, strict=True)]
        for place, whole in zip(places, total, strict=True):
            self._engine.set("gradient", *place, whole)
        values, kl = zip(*found, strict=True)
        return np.concatenate(values), None if kl_weights is None else np.concatenate(kl)


def summed(lm):
    """The model, whose trainers learn as those of a cluster."""
    lm.learner = lambda memory=None, start=None: Summed(lm, memory, start)
    return lm


def fit(lm, steps=3, **options):
    trainer = bon.Trainer(lm, bon.losses.get("bon")(k=2),
                          bon.AdamW(lr=0.01, weight_decay=0.01), **options)
    source = Rollouts(Letters(), n=8, prompts=5, temperature=0.9)
    records = trainer.fit(source, steps, progress=False)
    return trainer, [{name: value for name, value in record.items() if "second" not in name}
                     for record in records]


def assert_same_trainer(one, other):
    for slot, layer, *_ in one._learner._trained():
        for kind in ("weight", "moment_1", "moment_2"):
            values = [trainer._learner._engine.get(kind, slot, layer) for trainer in (one, other)]
            assert np.array_equal(*values), (kind, slot, layer)


@pytest.mark.parametrize(("dtype", "options"), [
    ("float32", {}), ("bfloat16", {"kl": 0.1}), ("float32", {"lora": bon.LoRA(rank=2)}),
], ids=["float32", "bfloat16 with a reference", "lora"])
def test_steps_are_those_of_one_process_with_the_same_shares(tmp_path, dtype, options):
    lm = letters_model(tmp_path / "t", dtype=dtype)
    with Cluster(lm, workers=2, shares=SHARES) as cluster:
        got, records = fit(cluster, **options)
        base = cluster._base
        spread = cluster.generate(["ab", "c"], n=9, stop_strings=["bb"], progress=False)
        assert ("lora" in options) == (cluster._base is base is not None)
    want, alone = fit(summed(lm), **options)
    assert records == alone
    assert_same_trainer(got, want)
    assert_same_samples(spread, lm.generate(["ab", "c"], n=9, stop_strings=["bb"], progress=False))


def test_a_reference_keeps_its_own_precision(tmp_path):
    reference = letters_model(tmp_path / "r", rng=1)
    records = []
    with Cluster(letters_model(tmp_path / "t", dtype="bfloat16"), workers=2,
                 shares=SHARES) as cluster:
        for one in (cluster, summed(letters_model(tmp_path / "again", dtype="bfloat16"))):
            records.append(fit(one, kl=0.1, reference=reference)[1])
    assert records[0] == records[1]
    assert records[0][0]["kl"] > 0


def test_a_worker_killed_in_the_middle_of_a_step_changes_nothing(monkeypatch, tmp_path):
    lm = letters_model(tmp_path / "t")
    with Cluster(lm, workers=4, shares=SHARES) as cluster:
        killed = [killed_at(monkeypatch, hand, "begin", "learn") for hand in cluster._hands[:2]]
        got, records = fit(cluster)
        assert all(killed)
    want, alone = fit(summed(lm))
    assert records == alone
    assert_same_trainer(got, want)


def test_a_step_in_shares_is_near_one_that_is_not_divided(tmp_path):
    lm = letters_model(tmp_path / "t")
    with Cluster(lm, workers=2, shares=SHARES) as cluster:
        divided = cluster.gradients(["ab", "c", "ba"], [["ab", "c"], ["."], ["a"]],
                                    [[1, -1], [0.5], [2]])
    whole = lm.gradients(["ab", "c", "ba"], [["ab", "c"], ["."], ["a"]], [[1, -1], [0.5], [2]])
    for name, values in whole.items():
        assert np.abs(divided[name] - values).max() <= 1e-6 * np.abs(values).max()


def test_answers_are_learned_in_shares_too(tmp_path):
    lm = letters_model(tmp_path / "t")
    question = selfeval.Question.of(lm, [6], target=2, other=3)
    batch = (["ab", "c", "ba"], [["ab", "c"], ["a"], ["b"]], [[1, 0], [0.5], [1]], question)
    trainers = []
    with Cluster(lm, workers=2, shares=SHARES) as cluster:
        for one in (cluster, summed(lm)):
            trainers.append(bon.Trainer(one, None, bon.AdamW(lr=0.01), kl=0.5))
            trainers[-1].step_answers(*batch)
            metrics = trainers[-1].step_answers(*batch)
            assert metrics["kl"] > 0
        assert_same_trainer(*trainers)


# -- a cluster -------------------------------------------------------------------


def test_other_kernels_are_said(monkeypatch, lm):
    here = cluster_module._kernels()
    monkeypatch.setattr(cluster_module, "_kernels", lambda: here | {"isa": "another"})
    with pytest.warns(UserWarning, match="computes with isa .*, this process with another: "):
        Cluster(lm, workers=1).close()


def test_a_cluster_of_too_few_cpus_is_refused(lm):
    with pytest.raises(ValueError, match="the workers need 40 CPUs together, but Ray has 16"):
        Cluster(lm, workers=20, threads=2)


def test_a_cluster_that_others_leave_no_cpus_is_refused(lm, cluster):
    with pytest.raises(ValueError, match=r"need 13 CPUs .* Ray has 16, and \d+ of them are other"):
        Cluster(lm, workers=13)


def test_workers_on_this_machine_share_its_threads(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_module._threads(8, 3) == 8  # Ray is there, so every node may have as many
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert cluster_module._threads(8, 3) == 2
    assert cluster_module._threads(2, 4) == 1
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert cluster_module._threads(8, 3) == 8


def test_workers_that_no_node_has_room_for_are_refused(monkeypatch, lm):
    node = {"Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node] * 12)
    with pytest.raises(ValueError, match=r"2 workers need 3 CPUs each, but .* such room for 0"):
        Cluster(lm, workers=2, threads=3)


def test_ray_ends_with_the_last_of_the_clusters_that_brought_it(monkeypatch, lm):
    ended = []
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    monkeypatch.setattr(cluster_module, "_open", weakref.WeakKeyDictionary())
    monkeypatch.setattr(cluster_module, "_joined", True)
    first, second = (Cluster(lm, workers=1) for _ in range(2))
    first.close()
    first.close()
    assert not ended
    assert second.generate(PROMPTS[0], n=1, **SETTINGS).valid.all()
    second.close()
    assert ended


def test_a_cluster_does_not_hold_the_model_it_is_made_of(tmp_path):
    lm = letters_model(tmp_path / "t")
    held = weakref.ref(lm)
    with Cluster(lm, workers=1):
        del lm
        gc.collect()
        assert held() is None


def test_models_that_cannot_be_copied_are_refused(tmp_path):
    with pytest.raises(ValueError, match="held in int8, in which its weights are rounded"):
        Cluster(bon.LM.load("countdown", "int8", threads=1), workers=1)
    lm = letters_model(tmp_path / "t")
    bon.Trainer(lm, bon.losses.get("bon")(k=2), lora=bon.LoRA(rank=1))
    with pytest.raises(ValueError, match="has low-rank adapters that a trainer taught"):
        Cluster(lm, workers=1)
    with (Cluster(letters_model(tmp_path / "other"), workers=1) as cluster,
          pytest.raises(ValueError, match="has low-rank adapters that a trainer taught")):
        bon.Trainer(cluster, bon.losses.get("bon")(k=2), kl=0.1, reference=lm)


def test_a_closed_cluster_has_no_workers(lm):
    with Cluster(lm, workers=1) as cluster:
        assert "1 workers" in repr(cluster)
        assert cluster.settings()["workers"] == 1
    cluster.close()
    with pytest.raises(RuntimeError, match="the cluster is closed"):
        cluster.generate(PROMPTS[0], n=1, **SETTINGS)
    assert ray.is_initialized()  # it was there before


def test_workers_of_the_command_line(capsys):
    command = ["generate", "--model", "countdown", "--n", "3", "--threads", "1", "--json"]
    printed = []
    for more in ([], ["--workers", "2"]):
        assert cli.main([*command, *more, PROMPTS[0]]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""


def test_the_example_of_the_page_runs():
    names = run_examples("cluster.md", "Use")
    assert names["samples"].valid.all()
    assert len(names["records"]) == 2
