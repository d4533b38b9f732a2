"""Folders with a model: what is found in them, and a sentence for each thing that is wrong."""

import json
import shutil

import numpy as np
import pytest
import tiny

pytest.importorskip("bonaware._engine", reason="the engine is not built")
from bonaware.checkpoint import Checkpoint, read_json

LLAMA = tiny.MODELS["llama2"]


@pytest.fixture
def folder(tmp_path):
    """A function that writes a checkpoint: config, and changes of the table of its tensors."""

    def build(config=LLAMA, change=None, **options):
        path = tmp_path / "model"
        tiny.write_checkpoint(path, config, **options)
        if change is not None:
            table = tiny.shapes(config)
            change(table)
            tiny.write_safetensors(path / "model.safetensors", table,
                                   lambda name, shape: np.ones(shape, np.float32))
        return path

    return build


# -- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(tiny.MODELS))
@pytest.mark.parametrize("files", [1, 3])
def test_every_tensor_is_found_in_its_slot(tmp_path, name, files):
    config = tiny.MODELS[name]
    tiny.write_checkpoint(tmp_path / "model", config, files=files)
    checkpoint = Checkpoint(tmp_path / "model")
    tensors = checkpoint.tensors()
    assert sorted(name for _, name in tensors.values()) == checkpoint.names
    assert checkpoint.names == sorted(tiny.shapes(config))
    assert list(checkpoint.slot_names()) == list(tensors)
    weights, stored = tensors["layers.0.k"]
    assert stored == "model.layers.0.self_attn.k_proj.weight"
    np.testing.assert_array_equal(weights.array(stored), checkpoint.tensor(stored))
    assert checkpoint.info(stored) == ("F32", tiny.shapes(config)[stored])


def test_recorded_checkpoints_open(data):
    for name, layers in (("stories260K", 5), ("aidreams260K", 4)):
        checkpoint = Checkpoint(data / "ckpt" / name)
        assert checkpoint.arch.layers == layers
        assert checkpoint.eos_token_ids == (1, 2)
        assert checkpoint.dtype == "float32"
        assert "head" not in checkpoint.tensors()


@pytest.mark.parametrize(("generation", "config", "expected"), [
    ({"eos_token_id": 5}, {"eos_token_id": 7}, (5,)),
    ({"eos_token_id": [5, 6, 5]}, {}, (5, 6)),
    ({}, {"eos_token_id": [7]}, (7,)),
    (None, {"eos_token_id": 0}, (0,)),
    (None, {"eos_token_id": None}, ()),
    ({"temperature": 0.3}, {}, ()),
])
def test_end_tokens_come_from_generation_config_else_config(folder, generation, config, expected):
    path = folder(LLAMA | config)
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    assert Checkpoint(path).eos_token_ids == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_that_of_config_else_of_the_weights(folder, dtype):
    path = folder(dtype=dtype)
    assert Checkpoint(path).dtype == dtype
    config = json.loads((path / "config.json").read_text())
    del config["dtype"]
    (path / "config.json").write_text(json.dumps(config))
    assert Checkpoint(path).dtype == dtype
    (path / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    assert Checkpoint(path).dtype == "float16"


def test_multimodal_checkpoint_yields_its_text_part(tmp_path):
    text = {k: v for k, v in tiny.MODELS["gemma3"].items() if k not in ("architectures", "dtype")}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
              "dtype": "float32", "text_config": text, "vision_config": {}}
    for prefix in ("language_model.model.", "model.language_model."):
        path = tmp_path / prefix
        tiny.write_checkpoint(path, tiny.MODELS["gemma3"])
        table = {prefix + name.removeprefix("model."): shape
                 for name, shape in tiny.shapes(tiny.MODELS["gemma3"]).items()}
        table["vision_tower.encoder.weight"] = (3, 4)
        tiny.write_safetensors(path / "model.safetensors", table,
                               lambda name, shape: np.ones(shape))
        (path / "config.json").write_text(json.dumps(config))
        tensors = Checkpoint(path).tensors()
        assert tensors["layers.1.q"][1] == prefix + "layers.1.self_attn.q_proj.weight"
        assert len(tensors) == len(table) - 1


def test_fingerprint_depends_on_content_and_not_on_place_or_time(folder, tmp_path):
    path = folder()
    first = Checkpoint(path).fingerprint
    shutil.copytree(path, tmp_path / "copy", copy_function=shutil.copyfile)
    assert Checkpoint(tmp_path / "copy").fingerprint == first
    shutil.rmtree(path)
    assert Checkpoint(folder(files=2)).fingerprint == first
    shutil.rmtree(path)
    assert Checkpoint(folder(seed=1)).fingerprint != first
    shutil.rmtree(path)
    assert Checkpoint(folder(LLAMA | {"rms_norm_eps": 1e-4})).fingerprint != first


def test_side_files_are_those_of_the_tokenizer_and_of_generation(folder):
    path = folder(eos=3)
    (path / "tokenizer.json").write_text("{}")
    (path / "additional_chat_templates").mkdir()
    (path / "unrelated.txt").write_text("")
    names = [file.name for file in Checkpoint(path).side_files]
    assert names == ["generation_config.json", "tokenizer.json", "additional_chat_templates"]


def test_weights_are_every_tensor_with_its_slot_and_layer(folder):
    checkpoint = Checkpoint(folder(files=2))
    found = {(slot, layer): values for slot, layer, values in checkpoint.weights()}
    assert len(found) == len(checkpoint.names)
    np.testing.assert_array_equal(found["down", 2],
                                  checkpoint.tensor("model.layers.2.mlp.down_proj.weight"))
    np.testing.assert_array_equal(found["embed", 0],
                                  checkpoint.tensor("model.embed_tokens.weight"))


# -- files that are missing or broken --------------------------------------------------------


def test_missing_folder_and_files_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no folder .*nowhere"):
        Checkpoint(tmp_path / "nowhere")
    path = folder()
    with pytest.raises(NotADirectoryError, match="found no folder"):
        Checkpoint(path / "config.json")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"need model.safetensors or .* pytorch_model"):
        Checkpoint(path)
    (path / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="found no weights"):
        Checkpoint(path)
    (path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"need config.json in the folder"):
        Checkpoint(path)


def test_truncated_weights_are_an_error(folder):
    path = folder()
    blob = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(blob[:-4])
    with pytest.raises(ValueError, match=r"model.safetensors: .*\(truncated\?\)"):
        Checkpoint(path)


@pytest.mark.parametrize(("text", "message"), [
    (b'{"a": 1,\n "b": }', r"must be JSON, but line 2, column 7: Expecting value"),
    (b'{"a": "\xff"}', "must be UTF-8, but byte 7 is not"),
    (b"[1]", r"must hold a JSON object, found \[1\]"),
    (b'{"a": 1, "a": 2}', "must have no key twice in an object, found 'a'"),
    (b'{"a": NaN}', "must have finite numbers, found NaN"),
    (b'{"a": -Infinity}', "must have finite numbers"),
    (b'{"a": 1e999}', "must have finite numbers, found '1e999'"),
    (b'{"a": ' + b"[" * 100_000, "less deeply nested"),
    (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
    (b"", "must be JSON, but line 1, column 1"),
])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_broken_json_is_an_error_with_its_place(folder, name, text, message):
    path = folder()
    (path / name).write_bytes(text)
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        Checkpoint(path)


def test_enormous_json_is_not_read(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(ValueError, match="must have at most 100000000 bytes, found 17179869184"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("eos", [97, -1, "2", [1, 97], [[1]], True, 1.0])
def test_end_token_must_be_in_the_vocabulary(folder, eos):
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id must be .* 97\)"):
        Checkpoint(folder(eos=eos))


def test_unknown_dtype_is_an_error(folder):
    path = folder()
    (path / "config.json").write_text(json.dumps(LLAMA | {"dtype": "float8_e4m3fn"}))
    with pytest.raises(ValueError, match="dtype must be one of float32, float16, bfloat16, found"):
        Checkpoint(path)


# -- the index of several files --------------------------------------------------------------


def change_index(path, change):
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    change(index)
    file.write_text(json.dumps(index))
    return path


def test_missing_shard_is_named(folder):
    path = folder(files=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"need model-00002-of-00002.safetensors in"):
        Checkpoint(path)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "x/y.safetensors", "a",
                                   "..", "", None, 3, ["m"], "a\\b.safetensors", "a\0.safetensors",
                                   "a" * 300 + ".safetensors"])
def test_shard_must_be_a_file_of_the_folder(folder, shard):
    def change(index):
        index["weight_map"]["lm_head.weight"] = shard

    path = change_index(folder(files=2), change)
    with pytest.raises(ValueError, match=r"'lm_head.weight' must be the name of a .safetensors"):
        Checkpoint(path)


@pytest.mark.parametrize("table", [None, [], {}, "x", 3])
def test_index_must_have_a_table(folder, table):
    path = change_index(folder(files=2), lambda index: index.update(weight_map=table))
    with pytest.raises(ValueError, match=r"index.json: weight_map must be an object"):
        Checkpoint(path)


def test_listed_tensor_must_be_in_its_shard(folder):
    def change(index):
        table = index["weight_map"]
        table["lm_head.weight"] = table["model.embed_tokens.weight"]

    path = change_index(folder(files=2), change)
    with pytest.raises(ValueError, match=r"says that .* holds tensor 'lm_head.weight', but"):
        Checkpoint(path)


# -- tensors ---------------------------------------------------------------------------------


def test_wrong_shape_is_an_error_with_its_meaning(folder):
    def change(table):
        table["model.layers.1.self_attn.q_proj.weight"] = (32, 40)

    with pytest.raises(ValueError, match=(
        r"tensor model.layers.1.self_attn.q_proj.weight must have shape \[40, 40\] "
        r"\(heads\*head_dim, hidden\), found \[32, 40\] in .*model.safetensors"
    )):
        Checkpoint(folder(change=change)).tensors()


def test_transposed_vector_is_not_accepted(folder):
    def change(table):
        table["model.norm.weight"] = (40, 1)

    with pytest.raises(ValueError, match=r"must have shape \[40\] \(hidden\), found \[40, 1\]"):
        Checkpoint(folder(change=change)).tensors()


@pytest.mark.parametrize("name", ["model.norm.weight", "lm_head.weight",
                                  "model.layers.2.mlp.down_proj.weight"])
def test_missing_tensor_is_an_error(folder, name):
    path = folder(change=lambda table: table.pop(name))
    with pytest.raises(ValueError, match=rf"tensor {name} must have shape .* no such tensor in"):
        Checkpoint(path).tensors()


def test_tensor_must_be_float(folder):
    path = folder()
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"lm_head.weight": {"dtype": "F32"',
                                               b'"lm_head.weight": {"dtype": "I32"'))
    with pytest.raises(ValueError, match=r"tensor lm_head.weight must be one of F32, F16, BF16"):
        Checkpoint(path).tensors()


def test_left_over_tensors_are_an_error(folder):
    def change(table):
        table |= {f"model.layers.{i}.self_attn.q_proj.bias": (40,) for i in range(7)}

    with pytest.raises(ValueError, match=(
        r"every tensor must be known to LlamaForCausalLM, but .*model.safetensors has "
        r"'model.layers.0.self_attn.q_proj.bias', .* and 2 more"
    )):
        Checkpoint(folder(change=change)).tensors()


def test_old_rotary_buffers_are_no_tensors_of_the_model(folder):
    def change(table):
        table["model.layers.0.self_attn.rotary_emb.inv_freq"] = (5,)

    Checkpoint(folder(change=change)).tensors()


def test_tied_head_may_be_repeated_but_must_be_equal(folder):
    tied = tiny.MODELS["llama2_tied"]

    def change(table):
        table["lm_head.weight"] = table["model.embed_tokens.weight"]

    path = folder(tied, change)
    assert "head" not in Checkpoint(path).tensors()
    table = tiny.shapes(tied)
    change(table)
    tiny.write_safetensors(path / "model.safetensors", table,
                           lambda name, shape: np.full(shape, name == "lm_head.weight"))
    with pytest.raises(ValueError, match=r"tensor lm_head.weight must equal model.embed_tokens"):
        Checkpoint(path).tensors()


def test_unknown_name_is_a_key_error(folder):
    with pytest.raises(KeyError, match="no tensor 'x' in"):
        Checkpoint(folder()).tensor("x")
