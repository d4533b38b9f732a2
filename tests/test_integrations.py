"""What the adapters of evaluation harnesses share; no harness is needed here."""

import importlib.util
import tomllib
from pathlib import Path

import numpy as np
import pytest
from tiny import write_tokenizer

import bonaware as bon
from bonaware import cli
from bonaware.integrations import _harness
from bonaware.tokenizer import Tokenizer

DEFAULTS = {"temperature": 0.0, "max_new_tokens": 256}


def settings(**given):
    return _harness.sampling(given, **DEFAULTS)


# -- the harnesses' words for sampling -------------------------------------------


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens",
                                  "max_completion_tokens"])
def test_the_number_of_new_tokens_has_four_names(name):
    assert settings(**{name: 7})["max_new_tokens"] == 7


@pytest.mark.parametrize("name", ["until", "stop", "stop_strings", "stop_seqs"])
@pytest.mark.parametrize("value", ["Q:", ["Q:", ""]], ids=["text", "list"])
def test_stop_strings_are_a_text_or_a_list_in_which_empty_ones_mean_none(name, value):
    assert settings(**{name: value})["stop_strings"] == ("Q:",)


def test_of_several_names_for_one_setting_the_first_counts():
    assert settings(max_tokens=5, max_gen_toks=9)["max_new_tokens"] == 9


@pytest.mark.parametrize(("given", "temperature"), [
    ({}, 0.0),
    ({"temperature": 0.7}, 0.7),
    ({"do_sample": False, "temperature": 0.7}, 0.0),
    ({"do_sample": True, "temperature": 0.7}, 0.7),
    ({"do_sample": True}, 1.0),
    ({"temperature": None}, 0.0),
], ids=str)  # fmt: skip
def test_do_sample_says_whether_and_temperature_how_hot(given, temperature):
    assert settings(**given)["temperature"] == temperature


@pytest.mark.parametrize("top_k", [0, -1, None])
def test_top_k_of_the_whole_vocabulary_is_none(top_k):
    assert "top_k" not in settings(top_k=top_k)


def test_what_is_given_reaches_generate_under_its_own_name():
    assert settings(top_k=5, top_p=0.9, min_p=0.1, seed=3) == DEFAULTS | {
        "stop_strings": (), "top_k": 5, "top_p": 0.9, "min_p": 0.1, "rng": 3}
    assert settings(num_beams=1, num_return_sequences=1) == settings()


def test_an_unknown_setting_is_named():
    with pytest.raises(ValueError, match="no generation setting 'typical_p' in bonaware; there"):
        settings(typical_p=0.5)


def test_a_setting_that_would_be_ignored_is_refused():
    with pytest.raises(ValueError, match=r"need num_return_sequences=1, .* got 4"):
        settings(num_return_sequences=4)


def test_sampling_at_temperature_zero_is_refused():
    with pytest.raises(ValueError, match="do_sample=True needs a temperature above 0"):
        settings(do_sample=True, temperature=0)


# -- repeats ---------------------------------------------------------------------


def test_repeats_are_the_same_object_in_a_row():
    one, equal = ["same"], ["same"]
    assert _harness.runs([one, one, equal, one]) == [
        (["same"], [0, 1]), (["same"], [2]), (["same"], [3])]
    assert _harness.runs([]) == []


# -- texts -----------------------------------------------------------------------


def sample(text, tokens):
    none = np.empty(0, np.float32)
    return bon.Sample(0, 0, np.array(tokens, np.int32), none, none, none, text, "eos", 1.0)


def test_the_blank_that_a_decoder_drops_at_the_start_is_dropped(data):
    tokenizer = Tokenizer.load(data / "ckpt" / "aidreams260K")
    tokens = tokenizer.encode("Once", add_special_tokens=False)
    assert _harness.text_of(sample(" Once", tokens), tokenizer) == "Once"


def test_the_blank_that_a_decoder_keeps_is_kept(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    tokens = tokenizer.encode(" ab")
    assert _harness.text_of(sample(" ab", tokens), tokenizer) == " ab"
    assert _harness.text_of(sample("", [1]), tokenizer) == ""


# -- packaging -------------------------------------------------------------------


def test_every_entry_point_names_something():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for group, peer in (("lm_eval.models", "lm_eval"), ("lm_eval.filters", "lm_eval"),
                        ("inspect_ai", "inspect_ai")):
        for target in project["entry-points"][group].values():
            module, _, name = target.partition(":")
            path = Path(bon.__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
            assert path.is_file()
            if importlib.util.find_spec(peer):
                assert not name or hasattr(importlib.import_module(module), name)


@pytest.mark.parametrize("peer", ["lm_eval", "inspect_ai", "lighteval", "ray"])
def test_a_missing_harness_is_named_with_its_extra(peer):
    if importlib.util.find_spec(peer):
        pytest.skip(f"{peer} is installed")
    extra = {"lm_eval": "lm-eval", "inspect_ai": "inspect"}.get(peer, peer)
    with pytest.raises(ImportError, match=rf"not installed: pip install 'bonaware\[{extra}\]'"):
        importlib.import_module(f"bonaware.integrations.{peer}")


def test_the_launcher_says_which_extra_is_missing(capsys):
    if importlib.util.find_spec("lm_eval"):
        pytest.skip("lm_eval is installed")
    assert cli.main(["lm-eval", "run", "--model", "bonaware"]) == 1
    assert "pip install 'bonaware[lm-eval]'" in capsys.readouterr().err
