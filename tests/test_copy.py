"""Copies of a model, made here and sent elsewhere."""

import pickle

import numpy as np
import pytest

import bonaware as bon
from bonaware import routes
from bonaware._copy import Copy
from bonaware.lm import LM

TOKENS = [3, 1, 4, 1, 5]


def sent(lm, folder):
    """The model that comes out of a pickled copy."""
    copy = pickle.loads(pickle.dumps(Copy(lm, lm._side_files)))
    copy.unpack(folder)
    return LM(copy, dtype=lm.dtype, threads=1, memory=None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["qwen3_biases", "gemma3"])
def test_a_copy_that_was_sent_computes_the_same_bits(tiny, tmp_path, name, dtype):
    lm = bon.LM.load(tiny(name), dtype=dtype, threads=1)
    again = sent(lm, tmp_path)
    assert np.array_equal(again.logits(TOKENS), lm.logits(TOKENS))
    assert again.fingerprint == lm.fingerprint


def test_a_copy_of_a_trained_model_has_the_fingerprint_of_its_weights(tiny, tmp_path):
    lm = bon.LM.load(tiny("qwen2"), threads=1)
    before = lm.fingerprint
    bon.Trainer(lm, bon.losses.get("sft")(), bon.AdamW(lr=0.1)).step([TOKENS], [[[2, 3]]], [[1.0]])
    again = sent(lm, tmp_path)
    assert again.fingerprint == lm.fingerprint != before
    assert np.array_equal(again.logits(TOKENS), lm.logits(TOKENS))


def test_a_copy_has_the_tokenizer(tiny, tmp_path):
    lm = bon.LM.load(tiny("counting", tokenizer=True), threads=1)
    again = sent(lm, tmp_path)
    assert again.tokenizer.encode("abba").tolist() == lm.tokenizer.encode("abba").tolist()


def test_weights_that_bfloat16_holds_are_sent_in_half_the_bytes(tiny):
    long, short = (len(pickle.dumps(Copy(bon.LM.load(tiny("wide", dtype=dtype), threads=1))))
                   for dtype in ("float32", "bfloat16"))
    assert short < 0.51 * long


def test_a_copy_measures_no_kernels(tiny, monkeypatch):
    lm = bon.LM.load(tiny("wide"), threads=1)
    monkeypatch.setattr(routes, "choose", lambda *_: pytest.fail("measured"))
    assert LM(Copy(lm), dtype=lm.dtype, threads=1, memory=None).routes == lm.routes


def test_copies_are_equal_where_all_weights_are(tiny):
    one, other = (bon.LM.load(tiny("counting"), threads=1) for _ in range(2))
    assert Copy(one).equals(Copy(other))
    assert Copy(one).equals(pickle.loads(pickle.dumps(Copy(other))))
    last = other.arch.layers - 1
    norm = other._model.get("mlp_norm", last)
    norm[-1] += 1
    other._model.set("mlp_norm", last, norm)
    assert not Copy(one).equals(Copy(other))
