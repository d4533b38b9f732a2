"""Models made from a configuration, and folders that LM.save writes."""

import json
import shutil

import numpy as np
import pytest
import tiny
from tiny import ARCHITECTURES, MODELS

pytest.importorskip("bonaware._engine", reason="the engine is not built")
import bonaware as bon
from bonaware import _export, data
from bonaware.checkpoint import Checkpoint
from bonaware.models import family_of

LLAMA = MODELS["llama_biases"]
TOKENS = np.arange(1, 90)


def slots(lm):
    return [(slot, layer or 0) for slot, layer, _ in lm.arch.slots()]


def stored(path):
    """Name -> type of every tensor of a folder."""
    checkpoint = Checkpoint(path)
    return {name: checkpoint.info(name)[0] for name in checkpoint.names}


# -- from_config -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_begin_as_in_transformers(name):
    """The law of every tensor, as a model of transformers from the same configuration has it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = MODELS[name] | {"initializer_range": 0.05, "pad_token_id": 3}
    lm = bon.LM.from_config(config, rng=1, threads=1)
    torch.manual_seed(0)
    values = {key: value for key, value in json.loads(json.dumps(config)).items()
              if key not in ("architectures", "model_type")}
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.CONFIG_MAPPING[config["model_type"]](**values)).state_dict()
    names = family_of(config).NAMES
    for slot, layer in slots(lm):
        want = theirs[names[slot].format(i=layer)].float().numpy()
        got = lm._model.get(slot, layer)
        assert got.shape == want.shape
        if want.std() == 0:  # norms and biases
            np.testing.assert_array_equal(got, want)
            continue
        error = 5 / np.sqrt(2 * want.size)
        assert got.std() == pytest.approx(want.std(), rel=2 * error)
        assert abs(got.mean()) < 5 * 0.05 / np.sqrt(got.size)
        np.testing.assert_array_equal(got.any(axis=1), want.any(axis=1))  # the padding row


def test_the_random_weights_depend_on_rng_alone():
    first, again, other = (bon.LM.from_config(LLAMA, rng=rng, threads=1) for rng in (5, 5, 6))
    sequence = bon.LM.from_config(LLAMA, rng=np.random.SeedSequence(5), threads=2)
    for slot, layer in slots(first):
        values = first._model.get(slot, layer)
        np.testing.assert_array_equal(again._model.get(slot, layer), values)
        np.testing.assert_array_equal(sequence._model.get(slot, layer), values)
        if not slot.endswith(("norm", "bias")):
            assert (other._model.get(slot, layer) != values).mean() > 0.99
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_tensors_are_independent_of_each_other():
    lm = bon.LM.from_config(MODELS["llama2"], threads=1)
    values = [lm._model.get(slot, layer).ravel()[:1000] for slot, layer in slots(lm)
              if not slot.endswith("norm")]
    correlation = np.corrcoef(values) - np.eye(len(values))
    assert np.abs(correlation).max() < 0.2


def test_a_config_may_be_a_file_and_is_not_changed(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    config = json.loads(json.dumps(LLAMA))
    lm = bon.LM.from_config(path, dtype="bfloat16", threads=1)
    assert lm.config == config | {"dtype": "bfloat16"}
    assert bon.LM.from_config(config, threads=1).name == "LlamaForCausalLM"
    assert config == LLAMA
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        bon.LM.from_config(tmp_path / "none.json")


def test_end_tokens_and_tokenizer_are_those_given(tmp_path):
    tiny.write_tokenizer(tmp_path)
    config = MODELS["counting"] | {"eos_token_id": [1, 0]}
    for given in (tmp_path, tmp_path / "tokenizer.json"):
        lm = bon.LM.from_config(config, tokenizer=given, threads=1)
        assert lm.eos_token_ids == (1, 0)
        assert lm.tokenizer.decode(lm.encode("abba")) == "abba"
    assert bon.LM.from_config(config, threads=1).tokenizer is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_from_config_is_saved_without_a_source(tmp_path, dtype):
    (tmp_path / "source").mkdir()
    tiny.write_tokenizer(tmp_path / "source")
    lm = bon.LM.from_config(MODELS["counting"] | {"eos_token_id": 1}, rng=3, dtype=dtype,
                            tokenizer=tmp_path / "source", threads=1)
    lm.save(tmp_path / "saved")
    names = sorted(file.name for file in (tmp_path / "saved").iterdir())
    assert names == ["config.json", "generation_config.json", "model.safetensors",
                     "tokenizer.json"]
    again = bon.LM.load(tmp_path / "saved", threads=1)
    assert (again.dtype, again.eos_token_ids) == (dtype, (1,))
    tokens = np.arange(11)
    np.testing.assert_array_equal(again.logits(tokens), lm.logits(tokens))
    assert again.fingerprint == lm.fingerprint


@pytest.mark.parametrize(("change", "message"), [
    ({"architectures": ["MambaForCausalLM"]}, "config: the architecture must be one of"),
    ({"hidden_size": -1}, "config: hidden_size must be"),
    ({"initializer_range": -0.1}, r"config: initializer_range must be a number in \(0, 1000\]"),
    ({"initializer_range": None}, "initializer_range must be .* found None"),
    ({"pad_token_id": 97}, r"config: pad_token_id must be an id in \[0, 97\)"),
    ({"pad_token_id": "0"}, "pad_token_id must be .* found '0'"),
    ({"eos_token_id": 97}, "config: eos_token_id must be"),
])
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        bon.LM.from_config(LLAMA | change)


def test_options_of_from_config_are_checked(tmp_path):
    with pytest.raises(TypeError, match="config must be a dict, got list"):
        bon.LM.from_config([])
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'bfloat16', got 'auto'"):
        bon.LM.from_config(LLAMA, dtype="auto")
    with pytest.raises(ValueError, match="rng"):
        bon.LM.from_config(LLAMA, rng=-1)
    with pytest.raises(ValueError, match="need threads >= 1, got 0"):
        bon.LM.from_config(LLAMA, threads=0)
    for path in (tmp_path, tmp_path / "vocab.json", tmp_path / "tokenizer.json"):
        with pytest.raises(FileNotFoundError, match=r"tokenizer must be the path of a tokenizer"):
            bon.LM.from_config(LLAMA, tokenizer=path)
    tiny.write_tokenizer(tmp_path)
    small = MODELS["counting"] | {"vocab_size": 10}
    with pytest.raises(ValueError, match=r"vocab_size must be at least the 11 .* found 10"):
        bon.LM.from_config(small, tokenizer=tmp_path)


# -- save ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_loads_with_the_same_bits(tiny, tmp_path, name, dtype):
    lm = bon.LM.load(tiny(name), dtype=dtype, threads=1)
    lm.save(tmp_path / "saved")
    again = bon.LM.load(tmp_path / "saved", threads=1)
    assert again.dtype == dtype
    for slot, layer in slots(lm):
        np.testing.assert_array_equal(again._model.get(slot, layer), lm._model.get(slot, layer))
    np.testing.assert_array_equal(again.logits(TOKENS), lm.logits(TOKENS))


def test_what_is_saved_is_what_the_engine_holds(tiny, tmp_path):
    lm = bon.LM.load(tiny("llama3"), threads=1)
    before = lm.fingerprint
    changed = lm._model.get("q", 1) * 2
    lm._model.set("q", 1, changed)
    lm.weights_changed()
    assert lm.fingerprint != before
    lm.save(tmp_path / "saved")
    again = bon.LM.load(tmp_path / "saved", threads=1)
    np.testing.assert_array_equal(again._model.get("q", 1), changed)
    np.testing.assert_array_equal(again.logits(TOKENS), lm.logits(TOKENS))
    assert again.fingerprint == lm.fingerprint


def test_bfloat16_models_keep_norms_that_bfloat16_cannot_hold(tiny, tmp_path):
    lm = bon.LM.load(tiny("llama2", dtype="bfloat16"), threads=1)
    lm.save(tmp_path / "exact")
    assert set(stored(tmp_path / "exact").values()) == {"BF16"}
    lm._model.set("attn_norm", 1, np.full(40, 1.001, np.float32))
    lm.save(tmp_path / "saved")
    types = stored(tmp_path / "saved")
    assert types.pop("model.layers.1.input_layernorm.weight") == "F32"
    assert set(types.values()) == {"BF16"}
    again = bon.LM.load(tmp_path / "saved", threads=1)
    np.testing.assert_array_equal(again.logits(TOKENS), lm.logits(TOKENS))
    lm.save(tmp_path / "rounded", dtype="bfloat16")
    assert set(stored(tmp_path / "rounded").values()) == {"BF16"}


@pytest.mark.parametrize(("held", "asked", "types"), [
    ("float32", "bfloat16", {"BF16"}), ("bfloat16", "float32", {"F32"}),
])
def test_dtype_says_how_the_weights_are_stored(tiny, tmp_path, held, asked, types):
    lm = bon.LM.load(tiny("qwen2"), dtype=held, threads=1)
    lm.save(tmp_path / "saved", dtype=asked)
    assert set(stored(tmp_path / "saved").values()) == types
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == asked
    want = bon.LM.load(tiny("qwen2"), dtype="bfloat16", threads=1)
    again = bon.LM.load(tmp_path / "saved", dtype="bfloat16", threads=1)
    for slot, layer in slots(lm):
        if slot in ("embed", "q", "down"):
            np.testing.assert_array_equal(again._model.get(slot, layer),
                                          want._model.get(slot, layer))


def test_weights_given_by_the_caller_are_saved_as_float32(tiny, tmp_path):
    lm = bon.LM.load(tiny("llama2", dtype="bfloat16"), threads=1)
    rng = np.random.default_rng(0)
    masters = {key: rng.standard_normal(lm._model.get(*key).shape, np.float32)
               for key in slots(lm)}
    lm.save(tmp_path / "masters", weights=lambda slot, layer: masters[slot, layer])
    again = bon.LM.load(tmp_path / "masters", threads=1)
    assert again.dtype == "float32"
    for key, values in masters.items():
        np.testing.assert_array_equal(again._model.get(*key), values)
    with pytest.raises(ValueError, match=r"tensor lm_head.weight must have shape \[97, 40\]"):
        lm.save(tmp_path / "wrong", weights=lambda slot, layer: np.zeros(3, np.float32))
    assert not (tmp_path / "wrong").exists()


def test_rounding_to_bfloat16_is_to_the_nearest_even():
    values = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9, np.inf, np.nan, 3.4e38],
                      np.float32)
    tensor = _export.Tensor("x", "BF16", (7,), lambda: values)
    bits = tensor.data().view(np.uint16).astype(np.uint32) << 16
    got = bits.view(np.float32)
    np.testing.assert_array_equal(got, np.array([1, 1, 1 + 2**-6, -1, np.inf, np.nan, np.inf],
                                                np.float32))


def test_large_models_are_saved_in_several_files(tiny, tmp_path, monkeypatch):
    lm = bon.LM.load(tiny("gemma3"), threads=1)
    monkeypatch.setattr(_export, "MAX_SHARD", 30_000)
    lm.save(tmp_path / "saved")
    files = sorted(file.name for file in (tmp_path / "saved").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 2
    sizes = [(tmp_path / "saved" / file).stat().st_size for file in files]
    assert max(sizes) < 30_000 + 4000  # and the header
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * lm.num_parameters
    again = bon.LM.load(tmp_path / "saved", threads=1)
    np.testing.assert_array_equal(again.logits(TOKENS), lm.logits(TOKENS))


def test_saved_files_are_those_that_the_safetensors_library_reads(tiny, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    lm = bon.LM.load(tiny("qwen3"), threads=1)
    lm.save(tmp_path / "saved")
    theirs = safetensors.load_file(tmp_path / "saved" / "model.safetensors")
    names = family_of(lm.config).NAMES
    assert len(theirs) == len(slots(lm))
    for slot, layer in slots(lm):
        np.testing.assert_array_equal(theirs[names[slot].format(i=layer)],
                                      lm._model.get(slot, layer))


def test_the_tokenizer_and_the_generation_settings_go_along(tiny, tmp_path):
    shutil.copytree(tiny("counting", tokenizer=True, eos=[0, 1]), tmp_path / "source")
    (tmp_path / "source" / "unrelated.txt").write_text("")
    lm = bon.LM.load(tmp_path / "source", threads=1)
    lm.save(tmp_path / "new" / "saved")
    saved = sorted(file.name for file in (tmp_path / "new" / "saved").iterdir())
    assert saved == ["config.json", "generation_config.json", "model.safetensors",
                     "tokenizer.json"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["saved"]
    again = bon.LM.load(tmp_path / "new" / "saved", threads=1)
    assert again.eos_token_ids == (0, 1)
    assert again.fingerprint == lm.fingerprint
    with pytest.raises(FileExistsError, match="need a folder that is new or empty"):
        lm.save(tmp_path / "new" / "saved")
    (tmp_path / "source" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        lm.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_spelling_of_the_dtype_is_kept(tiny, tmp_path):
    lm = bon.LM.load(tiny("mistral", old=True), threads=1)
    lm.save(tmp_path / "saved", dtype="bfloat16")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "dtype" not in config
    assert config == lm.config | {"torch_dtype": "bfloat16"}


def test_of_a_multimodal_model_the_text_part_is_saved(tmp_path):
    text = {k: v for k, v in MODELS["gemma3"].items()
            if k not in ("architectures", "dtype", "eos_token_id")}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
              "dtype": "float32", "eos_token_id": [5], "text_config": text, "vision_config": {}}
    tiny.write_checkpoint(tmp_path / "model", MODELS["gemma3"])
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    lm = bon.LM.load(tmp_path / "model", threads=1)
    lm.save(tmp_path / "saved")
    again = bon.LM.load(tmp_path / "saved", threads=1)
    assert again.config["architectures"] == ["Gemma3ForCausalLM"]
    assert again.eos_token_ids == lm.eos_token_ids == (5,)
    np.testing.assert_array_equal(again.logits(TOKENS), lm.logits(TOKENS))


def test_dtype_of_save_is_checked(tiny, tmp_path):
    with pytest.raises(ValueError, match="dtype must be None, 'float32' or 'bfloat16', got 'int8'"):
        bon.LM.load(tiny("counting"), threads=1).save(tmp_path / "saved", dtype="int8")
    assert not (tmp_path / "saved").exists()


# -- embedded models -------------------------------------------------------------------------


@pytest.fixture
def embedded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "HERE", tmp_path / "data")
    shutil.copytree(tiny("counting"), tmp_path / "data" / "little")


def test_an_embedded_model_is_loaded_by_its_name(embedded, tmp_path, monkeypatch):
    assert data.available() == ("little",)
    assert bon.LM.load("little", threads=1).name == "little"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "little").mkdir()  # which holds no model
    assert bon.LM.load("little", threads=1).name == "little"
    (tmp_path / "little" / "config.json").write_text("{}")  # now it is one, and comes first
    with pytest.raises(ValueError, match=r"little.*architectures"):
        bon.LM.load("little", threads=1)


def test_a_reward_model_is_no_policy(embedded, tiny, tmp_path):
    shutil.copytree(tiny("counting", labels=1), tmp_path / "data" / "judge")
    assert data.available() == ("judge", "little")
    assert data.policies() == ("little",)


def test_what_is_neither_folder_nor_embedded_model_is_named(embedded, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"embedded one \(little\).* model litle"):
        bon.LM.load("litle")
    for name in (tmp_path / "nowhere", "..", "little/config.json", ""):
        with pytest.raises(OSError, match=r"need a folder with|need config"):
            bon.LM.load(name)
