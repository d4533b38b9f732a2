"""LoRA folders: against PEFT where it is installed, and against its format where it is not."""

import json

import numpy as np
import pytest
from tiny import write_safetensors

pytest.importorskip("bonaware._engine", reason="the engine is not built")
import bonaware as bon
from bonaware import lora

TOKENS = np.arange(1, 90)
# What PEFT 0.21 writes for r=4, two targets, two of three layers.
CONFIG = {
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None,
    "auto_mapping": None, "base_model_name_or_path": "m", "bias": "none", "corda_config": None,
    "ensure_weight_tying": False, "eva_config": None, "exclude_modules": None,
    "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "kasa_config": None, "layer_replication": None, "layers_pattern": None,
    "layers_to_transform": [0, 2], "loftq_config": {}, "lora_alpha": 8, "lora_bias": False,
    "lora_dropout": 0.0, "lora_ga_config": None, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "monteclora_config": None,
    "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4,
    "rank_pattern": {}, "revision": None, "target_modules": ["down_proj", "q_proj"],
    "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None,
    "use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
    "velora_config": None,
}  # fmt: skip
AT = "base_model.model.model.layers"
SHAPES = {
    f"{AT}.0.mlp.down_proj.lora_A.weight": (4, 44),
    f"{AT}.0.mlp.down_proj.lora_B.weight": (64, 4),
    f"{AT}.0.self_attn.q_proj.lora_A.weight": (4, 64),
    f"{AT}.0.self_attn.q_proj.lora_B.weight": (64, 4),
    f"{AT}.2.mlp.down_proj.lora_A.weight": (4, 44),
    f"{AT}.2.mlp.down_proj.lora_B.weight": (64, 4),
    f"{AT}.2.self_attn.q_proj.lora_A.weight": (4, 64),
    f"{AT}.2.self_attn.q_proj.lora_B.weight": (64, 4),
}


def values(name, shape):
    """Small numbers that bfloat16 and float16 hold exactly."""
    rng = np.random.default_rng(len(name) + sum(name.encode()))
    return (rng.integers(-32, 33, shape) / 128).astype(np.float32)


@pytest.fixture
def lm(tiny):
    return bon.LM.load(tiny("llama3"), threads=1)


@pytest.fixture
def folder(tmp_path):
    """A function: changes of the configuration and of the tensors -> an adapter's folder."""

    def build(change=None, *, dtype="float32", **fields):
        path = tmp_path / "adapter"
        path.mkdir()
        (path / "adapter_config.json").write_text(json.dumps(CONFIG | fields))
        table = dict(SHAPES)
        if change is not None:
            change(table)
        write_safetensors(path / "adapter_model.safetensors", table, values, dtype)
        return path

    return build


# -- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_adapter_is_read_as_it_was_written(lm, folder, dtype):
    adapter = lora.read(folder(dtype=dtype), lm)
    assert (adapter.rank, adapter.alpha, adapter.scaling, adapter.full) == (4, 8, 2, {})
    assert set(adapter.pairs) == {("q", 0), ("q", 2), ("down", 0), ("down", 2)}
    for (slot, layer), pair in adapter.pairs.items():
        module = {"q": "self_attn.q_proj", "down": "mlp.down_proj"}[slot]
        for half, got in zip("AB", pair, strict=True):
            name = f"{AT}.{layer}.{module}.lora_{half}.weight"
            np.testing.assert_array_equal(got, values(name, SHAPES[name]))
            assert got.dtype == np.float32


@pytest.mark.parametrize(("rslora", "scaling"), [(False, 2.0), (True, 4.0)])
def test_merging_adds_the_scaled_product_and_nothing_else(lm, folder, rslora, scaling):
    before = {(slot, layer or 0): lm._model.get(slot, layer or 0)
              for slot, layer, _ in lm.arch.slots()}
    fingerprint, logits = lm.fingerprint, lm.logits(TOKENS)
    lora.merge(lm, lora.read(folder(use_rslora=rslora), lm))
    modules = {"q": "self_attn.q_proj", "down": "mlp.down_proj"}
    for (slot, layer), old in before.items():
        want = old.astype(np.float64)
        if slot in modules and layer != 1:
            a, b = (values(name, SHAPES[name]).astype(np.float64) for name in (
                f"{AT}.{layer}.{modules[slot]}.lora_{half}.weight" for half in "AB"))
            for i in range(4):
                want += scaling * np.outer(b[:, i], a[i])
        np.testing.assert_allclose(lm._model.get(slot, layer), want, rtol=0, atol=1e-6)
    assert lm.fingerprint != fingerprint
    assert np.abs(lm.logits(TOKENS) - logits).max() > 0.1


@pytest.mark.parametrize(("fields", "targets"), [
    ({"target_modules": ["q_proj", "mlp.down_proj"]}, None),
    ({"target_modules": ["model.layers.0.self_attn.q_proj", "layers.2.self_attn.q_proj",
                         "down_proj"]}, None),
    ({"target_modules": r".*\.(q_proj|down_proj)"}, None),
    ({"target_modules": r"model\.layers\.[02]\..*(q_proj|down_proj)",
      "layers_to_transform": None}, None),
    ({"target_modules": "all-linear", "exclude_modules": r".*(k|v|o|gate|up)_proj"}, None),
    ({"target_modules": ["q_proj", "k_proj", "down_proj"], "exclude_modules": ["k_proj"]}, None),
    ({"layers_pattern": "layers", "init_lora_weights": "gaussian", "lora_dropout": 0.1}, None),
    ({"target_modules": ["q_proj"], "layers_to_transform": 0}, [("q", 0)]),
], ids=str)
def test_targets_are_named_in_the_ways_of_peft(lm, folder, fields, targets):
    def change(table):
        for name in list(table):
            if targets is not None and "0.self_attn" not in name:
                del table[name]

    pairs = lora.read(folder(change, **fields), lm).pairs
    assert sorted(pairs) == (targets or [("down", 0), ("down", 2), ("q", 0), ("q", 2)])


def test_what_is_written_is_what_peft_reads(lm, tmp_path):
    pairs = {("q", layer): (np.ones((3, 64), np.float32), np.ones((64, 3), np.float32))
             for layer in range(3)}
    pairs["up", 1] = np.ones((3, 64), np.float32), np.ones((44, 3), np.float32)
    lora.write(tmp_path / "a", lora.Adapter(3, 6.0, pairs), lm)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.mlp.up_proj", "q_proj"]
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (3, 6, "LORA")
    assert set(config) <= set(CONFIG)
    names = bon.lm.engine().Weights(str(tmp_path / "a" / "adapter_model.safetensors")).names()
    assert names[0] == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert len(names) == 8


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("labels", [0, 2])
def test_writing_and_reading_give_the_same_adapter(tiny, tmp_path, rslora, labels):
    lm = bon.LM.load(tiny("qwen3", labels=labels), threads=1)
    rng = np.random.default_rng(0)
    pairs = {}
    for slot, layer in (("q", 0), ("q", 1), ("q", 2), ("o", 1), ("gate", 2)):
        outputs, inputs = lm._model.get(slot, layer).shape
        pairs[slot, layer] = (rng.standard_normal((5, inputs), np.float32),
                              rng.standard_normal((outputs, 5), np.float32))
    full = {("score", 0): rng.standard_normal((2, 40), np.float32)} if labels else {}
    given = lora.Adapter(5, 2.5, pairs, full, rslora)
    lora.write(tmp_path / "adapter", given, lm)
    got = lora.read(tmp_path / "adapter", lm)
    assert (got.rank, got.alpha, got.rslora, got.scaling) == (5, 2.5, rslora, given.scaling)
    assert (got.pairs.keys(), got.full.keys()) == (pairs.keys(), full.keys())
    for key in pairs:
        np.testing.assert_array_equal(got.pairs[key][0], pairs[key][0])
        np.testing.assert_array_equal(got.pairs[key][1], pairs[key][1])
    lora.merge(lm, got)
    for key in full:
        np.testing.assert_array_equal(lm._model.get(*key), full[key])


# -- PEFT ------------------------------------------------------------------------------------


@pytest.fixture
def peft():
    torch = pytest.importorskip("torch", reason="the oracle needs torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    peft = pytest.importorskip("peft", reason="the oracle is PEFT")
    transformers.utils.logging.disable_progress_bar()
    return torch, transformers, peft


def oracle(peft, path, labels):
    torch, transformers, _ = peft
    kind = "AutoModelForSequenceClassification" if labels else "AutoModelForCausalLM"
    return getattr(transformers, kind).from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager")


def results(lm, labels):
    return lm.scores([TOKENS[:9]], [[TOKENS]])[0] if labels else lm.logits(TOKENS)


def oracle_results(torch, model, labels):
    tokens = np.concatenate([TOKENS[:9], TOKENS]) if labels else TOKENS
    with torch.no_grad():
        found = model(torch.tensor(tokens[None])).logits
    return found.numpy() if labels else found[0].numpy()


OPTIONS = [
    {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    {"r": 3, "target_modules": "all-linear", "use_rslora": True},
    {"r": 2, "target_modules": ["down_proj"], "layers_to_transform": [1]},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("name", "labels"), [("llama3", 0), ("gemma2", 0), ("qwen2", 2)])
def test_an_adapter_of_peft_merges_to_the_same_outputs(peft, tiny, tmp_path, name, labels, options):
    torch, _, library = peft
    path = tiny(name, labels=labels)
    task = "SEQ_CLS" if labels else "CAUSAL_LM"
    model = library.get_peft_model(oracle(peft, path, labels), library.LoraConfig(
        task_type=task, init_lora_weights=False, **options))
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "modules_to_save" in part:
                parameter.add_(0.5)
            elif "lora_B" in part:  # of the size of a trained one: a huge one magnifies rounding
                parameter.mul_(0.3)
    model.eval()
    model.save_pretrained(tmp_path / "theirs")
    lm = bon.LM.load(path, threads=1)
    before = results(lm, labels)
    lora.merge(lm, lora.read(tmp_path / "theirs", lm))
    want = oracle_results(torch, model, labels)
    got = results(lm, labels)
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()
    assert np.abs(want - before).max() > 1e-2 * np.abs(want).max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("labels", [0, 1])
def test_peft_opens_what_write_wrote(peft, tiny, tmp_path, labels):
    torch, _, library = peft
    path = tiny("mistral", labels=labels)
    lm = bon.LM.load(path, threads=1)
    rng = np.random.default_rng(0)
    pairs = {}
    for slot, layer in (("k", 0), ("k", 1), ("k", 2), ("down", 1)):
        outputs, inputs = lm._model.get(slot, layer).shape
        pairs[slot, layer] = (rng.standard_normal((4, inputs), np.float32) / 4,
                              rng.standard_normal((outputs, 4), np.float32) / 4)
    full = {("score", 0): rng.standard_normal((1, 40), np.float32)} if labels else {}
    adapter = lora.Adapter(4, 6, pairs, full)
    lora.write(tmp_path / "ours", adapter, lm)
    lora.merge(lm, adapter)
    model = library.PeftModel.from_pretrained(oracle(peft, path, labels), tmp_path / "ours").eval()
    want = oracle_results(torch, model, labels)
    got = results(lm, labels).reshape(want.shape)
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "message"), [
    ({"peft_type": "IA3"}, "peft_type must be LORA, found 'IA3'"),
    ({"use_dora": True}, "use_dora must be absent or off, as it might change the mathematics"),
    ({"lora_bias": True}, "lora_bias must be absent or off"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out must be absent or off"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern must be absent or off"),
    ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern must be absent or off"),
    ({"layer_replication": [[0, 2]]}, "layer_replication must be absent or off"),
    ({"ensure_weight_tying": True}, "ensure_weight_tying must be absent or off"),
    ({"new_field": 0.5}, "new_field must be absent or off, .* found 0.5"),
    ({"bias": "all"}, "bias must be none, found 'all'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights must be one of .*found 'pissa'"),
    ({"layers_pattern": "blocks"}, "layers_pattern must be null or layers"),
    ({"r": 0}, "r must be an integer from 1"),
    ({"lora_alpha": "8"}, "lora_alpha must be a positive number"),
    ({"target_modules": None}, "target_modules must be a list of names of modules, found None"),
    ({"layers_to_transform": [3]}, r"layers_to_transform must be layers in \[0, 3\), found \[3\]"),
    ({"layers_to_transform": [True]}, "layers_to_transform must be layers"),
    ({"modules_to_save": "score"}, "modules_to_save must be a list of names"),
    ({"target_modules": ["q_proj"]}, "but for down of layer 0 found one"),
    ({"layers_to_transform": None}, "but for down of layer 1 found none"),
    ({"r": 5}, r"lora_A.weight must have shape \[5, 44\] .* found \[4, 44\] of F32"),
])
def test_a_configuration_that_is_not_known_is_refused(lm, folder, fields, message):
    with pytest.raises(ValueError, match=message):
        lora.read(folder(**fields), lm)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.pop(f"{AT}.2.self_attn.q_proj.lora_B.weight"),
     "must have lora_A and lora_B together, found one of them for q of layer 2"),
    (lambda t: t.update({f"{AT}.3.self_attn.q_proj.lora_A.weight": (4, 64)}),
     "every tensor must belong to a matrix of .* found"),
    (lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": (4, 97)}),
     "every tensor must belong"),
    (lambda t: t.update({f"{AT}.0.self_attn.q_proj.lora_magnitude_vector.weight": (64,)}),
     "every tensor must belong"),
    (lambda t: t.update({f"{AT}.0.self_attn.v_proj.weight": (32, 64)}), "every tensor must belong"),
    (lambda t: t.update({f"{AT}.0.self_attn.q_proj.lora_A.weight": (64, 4)}),
     r"must have shape \[4, 64\] .* found \[64, 4\]"),
])
def test_tensors_that_do_not_fit_are_refused(lm, folder, change, message):
    with pytest.raises(ValueError, match=message):
        lora.read(folder(change), lm)


def test_a_tied_embedding_is_not_replaced_alone(tiny, folder):
    def change(table):
        table.clear()
        table["base_model.model.model.embed_tokens.weight"] = (97, 48)

    path = folder(change, modules_to_save=["embed_tokens"], target_modules=[])
    with pytest.raises(ValueError, match="must not replace the embedding alone"):
        lora.read(path, bon.LM.load(tiny("llama2_tied"), threads=1))


@pytest.mark.parametrize("name", ["target_modules", "exclude_modules"])
def test_a_regular_expression_is_not_run(lm, folder, name):
    read = lora.read(folder(**{name: "(?:[a-z_.0-9]+)+!"}), lm)
    assert sorted(read.pairs) == [("down", 0), ("down", 2), ("q", 0), ("q", 2)]


@pytest.mark.parametrize(("rank", "alpha", "kind", "sentence"), [
    (0, 1.0, ValueError, "need rank >= 1, got 0"),
    (2.0, 1.0, TypeError, "rank must be an integer, got float"),
    (65537, 1.0, ValueError, "need rank <= 65536"),
    (2, float("inf"), ValueError, "need alpha > 0 in the range of float32, got inf"),
    (2, 1e39, ValueError, "need alpha > 0 in the range of float32"),
    (2, "x", TypeError, "alpha must be a number, got str"),
])
def test_rank_and_alpha_are_numbers_in_their_range(lm, rank, alpha, kind, sentence):
    with pytest.raises(kind, match=sentence):
        lora.fresh(lm, rank, alpha)
    with pytest.raises(kind, match=sentence):
        lora.Adapter(rank, alpha, {})


@pytest.mark.parametrize(("pairs", "sentence"), [
    ({("v", 0): ((2, 64), (3, 2))}, r"v_proj.lora_B.weight must have shape \[32, 2\], found"),
    ({("v", 0): ((2, 64), (1, 2))}, r"must have shape \[32, 2\], found \[1, 2\]"),
    ({("q", 7): ((2, 64), (64, 2))}, "has no matrix q in layer 7 to adapt"),
], ids=["shape", "broadcast", "layer"])
def test_an_adapter_that_does_not_fit_is_not_merged(lm, pairs, sentence):
    pairs = {("q", 0): ((2, 64), (64, 2))} | pairs
    adapter = lora.Adapter(2, 2.0, {
        key: tuple(np.ones(shape, np.float32) for shape in shapes)
        for key, shapes in pairs.items()})
    before = lm.logits(TOKENS)
    with pytest.raises(ValueError, match=sentence):
        lora.merge(lm, adapter)
    np.testing.assert_array_equal(lm.logits(TOKENS), before)


def test_missing_files_are_named(lm, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"need adapter_config\.json in the folder"):
        lora.read(tmp_path, lm)
    path = folder()
    (path / "adapter_model.safetensors").rename(path / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"need adapter_model\.safetensors in the folder"):
        lora.read(path, lm)


def test_an_adapter_that_does_not_fit_the_model_is_not_written(lm, tmp_path):
    a, b = np.ones((2, 64), np.float32), np.ones((64, 2), np.float32)
    for pairs, message in (
        ({("q", 3): (a, b)}, "has no matrix q in layer 3"),
        ({("attn_norm", 0): (a, b)}, "has no matrix attn_norm in layer 0"),
        ({("q", 0): (b, a)}, r"q_proj.lora_A.weight must have shape \[2, 64\], found \[64, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            lora.write(tmp_path / "adapter", lora.Adapter(2, 1, pairs), lm)
    assert not (tmp_path / "adapter").exists()
