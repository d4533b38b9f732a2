"""bonaware.samples: the table of what was drawn."""

import html.parser
import itertools
import subprocess
import sys

import numpy as np
import pytest

from bonaware.samples import FINISH_REASONS, Sample, Samples, Stats, seed_of

HOSTILE = "<script>alert(1)</script><img src=x onerror='y'> & \"</td>"


def sample(prompt=0, index=0, length=3, text="text", reason="eos", temperature=1.0):
    logp = -np.arange(1, length + 1, dtype=np.float32) / 4
    return Sample(prompt, index, np.arange(length, dtype=np.int32), logp, 2 * logp,
                  np.arange(length, dtype=np.float32), text, reason, temperature)


@pytest.fixture
def ragged():
    """Two prompts, n=3, the last sample of the second missing, given out of order."""
    drawn = [sample(1, 6, length=2, text="f", reason="length", temperature=0.5)]
    drawn += [sample(p, i, length=i, text=f"{p}{i}") for p, i in [(1, 5), (0, 7), (0, 5), (0, 6)]]
    stats = Stats(prompt_tokens=10, new_tokens=25, prefill_seconds=0.1, decode_seconds=0.5,
                  seconds=0.7)
    return Samples.from_list(["a", [3, 4]], drawn, n=3, start=5, stats=stats,
                             settings={"top_k": 3})


# -- values ------------------------------------------------------------------


def test_samples_find_their_places_in_any_order():
    drawn = [sample(p, i, text=f"{p}{i}") for p in range(2) for i in range(2)]
    for order in itertools.permutations(drawn):
        assert Samples.from_list("ab", order, n=2).text == [["00", "01"], ["10", "11"]]


def test_missing_samples_are_none_empty_and_nan(ragged):
    assert ragged.valid.tolist() == [[True] * 3, [True, True, False]]
    assert ragged.text == [["05", "06", "07"], ["15", "f", None]]
    assert ragged.lengths.tolist() == [[5, 6, 7], [5, 2, 0]]
    assert ragged.tokens[1][2].dtype == np.int32
    assert len(ragged.tokens[1][2]) == len(ragged.logp[1][2]) == 0
    for array in (ragged.sum_logp, ragged.sum_sampled_logp, ragged.certainty, ragged.temperature):
        assert array.dtype == np.float64
        assert np.isnan(array).tolist() == (~ragged.valid).tolist()
    assert ragged.finish_reason[1].tolist() == ["eos", "length", ""]


def test_arrays_sum_and_average_over_tokens(ragged):
    assert ragged.sum_logp[1, 1] == -0.75
    assert ragged.sum_sampled_logp[1, 1] == -1.5
    assert ragged.certainty[1, 1] == 0.5
    assert ragged.temperature[1, 1] == 0.5


def test_sums_are_taken_in_double_precision():
    one = sample(length=1)
    one.tokens = np.zeros(100_000, np.int32)
    one.logp = one.sampled_logp = one.certainty = np.full(100_000, np.float32(0.1))
    samples = Samples.from_list(["p"], [one], n=1)
    assert samples.sum_logp[0, 0] == pytest.approx(100_000 * float(np.float32(0.1)), rel=1e-12)


def test_a_sample_without_tokens_has_no_certainty():
    samples = Samples.from_list(["p"], [sample(length=0, reason="aborted")], n=1)
    assert np.isnan(samples.certainty[0, 0])
    assert samples.sum_logp[0, 0] == 0
    assert samples.valid.all()


@pytest.mark.parametrize(("prompts", "n"), [([], 3), (["a"], 0), ([], 0)])
def test_empty_tables_have_the_shape_they_should(prompts, n):
    samples = Samples.from_list(prompts, [], n=n)
    width = n if prompts else 0
    assert samples.valid.shape == samples.sum_logp.shape == (len(prompts), width)
    assert list(samples) == []
    assert "0 drawn" in repr(samples)
    assert samples.to_pandas().shape == (0, 10)


def test_iteration_gives_every_sample_prompt_by_prompt(ragged):
    assert [s.text for s in ragged] == ["05", "06", "07", "15", "f"]


# -- slices ------------------------------------------------------------------


@pytest.mark.parametrize("key", [1, -1, np.int64(1), slice(1, 2), slice(None, 0, -1)])
def test_one_prompt_is_counted_from_zero_again(ragged, key):
    part = ragged[key]
    assert (len(part), part.n, part.start, part.prompts) == (1, 3, 5, [[3, 4]])
    assert part.text == [["15", "f", None]]
    assert [s.prompt for s in part] == [0, 0]
    assert part.settings == ragged.settings
    assert [s.prompt for s in ragged] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("key", [2, -3])
def test_a_prompt_out_of_range_is_an_index_error(ragged, key):
    with pytest.raises(IndexError, match=rf"prompt {key} of 2"):
        ragged[key]


def test_a_key_of_another_kind_is_a_type_error(ragged):
    with pytest.raises(TypeError):
        ragged["a"]


# -- tables ------------------------------------------------------------------

COLUMNS = ["prompt", "sample", "text", "tokens", "length", "sum_logp", "sum_sampled_logp",
           "certainty", "finish_reason", "temperature"]


def test_to_pandas_has_one_row_per_sample(ragged):
    pytest.importorskip("pandas")
    table = ragged.to_pandas()
    assert list(table.columns) == COLUMNS
    assert table["prompt"].tolist() == [0, 0, 0, 1, 1]
    assert table["sample"].tolist() == [5, 6, 7, 5, 6]
    assert table["text"].tolist() == ["05", "06", "07", "15", "f"]
    assert table["sum_logp"].tolist() == ragged.sum_logp[ragged.valid].tolist()


def test_arrow_readers_get_the_same_rows(ragged):
    pa = pytest.importorskip("pyarrow")
    table = pa.table(ragged)  # through __arrow_c_stream__
    assert table.equals(ragged.to_arrow())
    assert table.column_names == COLUMNS
    assert table.schema.field("tokens").type == pa.list_(pa.int32())
    assert table["tokens"].to_pylist()[4] == [0, 1]
    assert table["finish_reason"].to_pylist() == ["eos"] * 4 + ["length"]


def test_arrow_keeps_its_types_when_no_sample_has_text_or_there_is_none():
    pytest.importorskip("pyarrow")
    mute = Samples.from_list(["p"], [sample(text=None)], n=1).to_arrow()
    none = Samples.from_list(["p"], [], n=1).to_arrow()
    assert mute.schema == none.schema
    assert mute["text"].to_pylist() == [None]


@pytest.mark.parametrize(("method", "module"), [("to_pandas", "pandas"), ("to_arrow", "pyarrow"),
                                                ("__arrow_c_stream__", "pyarrow")])
def test_a_missing_library_is_named_with_its_extra(ragged, monkeypatch, method, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'bonaware\["):
        getattr(ragged, method)()


def test_samples_imports_nothing_heavy():
    code = ("import sys, bonaware.samples; "
            "print({'pandas', 'pyarrow', 'torch', 'scipy', 'matplotlib'} & set(sys.modules))")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# -- for people --------------------------------------------------------------


def test_repr_counts_samples_tokens_and_reasons(ragged):
    assert repr(ragged).splitlines() == [
        "Samples: 2 prompts x n=3, 5 drawn, 25 tokens",
        "  ended by: eos 4, length 1",
        "  25 new tokens in 0.7 s: prefill 10 tokens in 0.1 s, decode 50 tokens/s",
    ]


def test_stats_without_decoding_have_no_speed():
    stats = Stats(prompt_tokens=1, new_tokens=0, prefill_seconds=0.0, decode_seconds=0.0, seconds=0)
    assert np.isnan(stats.tokens_per_second)
    assert "nan tokens/s" in repr(stats)


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.open = set(), []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("prompt", [
    HOSTILE, [{"role": "user", "content": HOSTILE}], [{"role": "user"}], [1, 2], [],
])
def test_html_escapes_all_text(prompt):
    samples = Samples.from_list([prompt], [sample(text=HOSTILE), sample(index=1, text=None)], n=2)
    shown = samples._repr_html_()
    tags = Tags()
    tags.feed(shown)
    assert tags.open == []
    assert tags.seen == {"div", "pre", "table", "thead", "tbody", "tr", "th", "td", "bdi"}
    assert "&lt;script&gt;" in shown
    assert "(no text)" in shown


def test_html_shows_a_few_prompts_and_says_how_many_more():
    drawn = [sample(p, i, text="x" * 10_000) for p in range(8) for i in range(30)]
    shown = Samples.from_list(list("abcdefgh"), drawn, n=30)._repr_html_()
    assert "and 3 more prompts" in shown
    assert shown.count("<bdi>xxx") == 5 * 4
    assert len(shown) < 20_000


# -- errors ------------------------------------------------------------------


@pytest.mark.parametrize("bad", [sample(prompt=2), sample(prompt=-1), sample(index=4),
                                 sample(index=8)])
def test_a_sample_outside_the_table_is_an_error(bad):
    with pytest.raises(ValueError, match=r"need 0 <= prompt < 2 and 5 <= index < 8, but a sample "
                                         rf"has prompt={bad.prompt}, index={bad.index}"):
        Samples.from_list("ab", [bad], n=3, start=5)


def test_a_place_taken_twice_is_an_error():
    with pytest.raises(ValueError, match="sample 1 of prompt 0 is given twice"):
        Samples.from_list("a", [sample(index=1), sample(index=1)], n=2)


def test_arrays_of_different_length_are_an_error():
    bad = sample()
    bad.logp = bad.logp[:2]
    with pytest.raises(ValueError, match=r"equally long, but sample 0 of prompt 0 has .*'logp': 2"):
        Samples.from_list("a", [bad], n=1)


def test_an_unknown_finish_reason_is_an_error():
    with pytest.raises(ValueError, match=r"eos, stop, length, pruned, aborted, .* has 'done'"):
        Samples.from_list("a", [sample(reason="done")], n=1)


@pytest.mark.parametrize("reason", FINISH_REASONS)
def test_finish_reasons_fit_their_array(reason):
    samples = Samples.from_list("a", [sample(reason=reason)], n=1)
    assert samples.finish_reason[0, 0] == reason


def test_rows_must_fit_the_prompts():
    with pytest.raises(ValueError, match="one row per prompt, got 1 rows for 2 prompts"):
        Samples("ab", [[None]])
    with pytest.raises(ValueError, match=r"equally long, got lengths \[1, 2\]"):
        Samples("ab", [[None], [None, None]])


# -- seeds -------------------------------------------------------------------


def test_seed_of_is_a_function_of_an_int_and_a_seed_sequence():
    assert seed_of(7) == seed_of(np.int64(7)) == seed_of(np.random.SeedSequence(7))
    assert seed_of(7) == int(np.random.SeedSequence(7).generate_state(1, np.uint64)[0])
    assert len({seed_of(i) for i in range(1000)}) == 1000
    assert all(0 <= seed_of(i) < 2**64 for i in (0, 1, 2**64, 2**200))


def test_seed_of_draws_from_a_generator_and_from_entropy():
    generator = np.random.default_rng(0)
    assert seed_of(generator) != seed_of(generator)
    assert seed_of(np.random.default_rng(0)) == seed_of(np.random.default_rng(0))
    assert seed_of(None) != seed_of(None)


@pytest.mark.parametrize("rng", [True, 1.0, "1", np.random.RandomState(0)])
def test_seed_of_refuses_other_kinds(rng):
    with pytest.raises(TypeError, match="rng must be None, an int, a numpy SeedSequence"):
        seed_of(rng)


def test_seed_of_refuses_negative_ints():
    with pytest.raises(ValueError, match="rng must be >= 0, got -1"):
        seed_of(-1)
