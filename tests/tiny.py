"""Tiny checkpoints with random weights in Hugging Face's layout, one per architecture.

Needs NumPy only, so that tests of the engine run where torch is not installed. That the names,
shapes and fields are those of transformers is shown in test_parity.py, which opens these very
folders with it.

Weights are large (scores and logits of several nats), norms are not all ones and biases are not
zero: a step that is left out changes the result. Sizes are odd on purpose: vocabularies that are
no multiple of 16, widths that are no multiple of 8.
"""

import json
import math
import struct
import zlib
from pathlib import Path

import numpy as np

CONTEXT = 256

_BASE = {
    "vocab_size": 97, "hidden_size": 40, "intermediate_size": 44, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None, "dtype": "float32",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def _config(architecture, **fields):
    model_type = {"Gemma3": "gemma3_text"}.get(architecture, architecture.lower())
    return {"architectures": [f"{architecture}ForCausalLM"], "model_type": model_type,
            **_BASE, **fields}


# Wave lengths of the rope with 8 frequencies: 6.3, 20, 63 | 199 | 628, ... 19869 tokens, so with
# these factors three are kept, one is blended and four are stretched.
_LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256}
_GEMMA = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
          "tie_word_embeddings": True, "pad_token_id": 0}
_SLIDING, _FULL = "sliding_attention", "full_attention"

MODELS = {
    "llama2": _config("Llama", num_key_value_heads=4, head_dim=10),
    "llama2_tied": _config("Llama", num_key_value_heads=4, head_dim=12, hidden_size=48,
                           tie_word_embeddings=True),
    "llama_biases": _config("Llama", head_dim=8, attention_bias=True, mlp_bias=True),
    "llama3": _config("Llama", head_dim=16, hidden_size=64, max_position_embeddings=2048,
                      rope_parameters=_LLAMA3_ROPE),
    "llama_linear": _config("Llama", head_dim=16, vocab_size=101, rope_parameters={
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
    "mistral": _config("Mistral", head_dim=14, sliding_window=37),
    "mistral_full": _config("Mistral", head_dim=8, sliding_window=None, num_key_value_heads=1),
    "qwen2": _config("Qwen2", hidden_size=36, num_attention_heads=6, num_key_value_heads=2,
                     tie_word_embeddings=True, sliding_window=None, use_sliding_window=False,
                     max_window_layers=3),
    "qwen2_windows": _config("Qwen2", hidden_size=48, use_sliding_window=True, sliding_window=29,
                             max_window_layers=1, layer_types=[_FULL, _SLIDING, _SLIDING]),
    "qwen3": _config("Qwen3", head_dim=24, vocab_size=113, attention_bias=False,
                     use_sliding_window=False, sliding_window=None, max_window_layers=3),
    "qwen3_biases": _config("Qwen3", head_dim=8, attention_bias=True, tie_word_embeddings=True,
                            use_sliding_window=False, sliding_window=None, max_window_layers=3),
    "gemma": _config("Gemma", head_dim=16, num_key_value_heads=1, **_GEMMA),
    "gemma_biases": _config("Gemma", head_dim=12, attention_bias=True,
                            **_GEMMA | {"tie_word_embeddings": False}),
    "gemma2": _config("Gemma2", head_dim=16, num_hidden_layers=4, query_pre_attn_scalar=20,
                      sliding_window=24, attn_logit_softcapping=4.0, final_logit_softcapping=6.0,
                      layer_types=[_SLIDING, _FULL] * 2, **_GEMMA),
    "gemma3": _config("Gemma3", head_dim=16, num_hidden_layers=7, query_pre_attn_scalar=24,
                      sliding_window=19, attn_logit_softcapping=None, final_logit_softcapping=None,
                      use_bidirectional_attention=False,
                      layer_types=[_SLIDING] * 5 + [_FULL, _SLIDING],
                      **_GEMMA) | {"rope_parameters": {
                          _SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
                          _FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}}},
    # Not for parity: few tokens and flat logits, so that frequencies can be counted.
    "counting": _config("Llama", vocab_size=11, hidden_size=16, intermediate_size=16,
                        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                        head_dim=8, max_position_embeddings=64),
    # Large enough that two threads divide the work of every step.
    "wide": _config("Llama", vocab_size=1003, hidden_size=192, intermediate_size=320,
                    num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=32,
                    max_position_embeddings=4096),
}


def scorer(name, labels=1):
    """The config of a model of MODELS with a score head in place of the vocabulary projection."""
    architecture = MODELS[name]["architectures"][0].removesuffix("ForCausalLM")
    architecture = {"Gemma3": "Gemma3Text"}.get(architecture, architecture)
    return MODELS[name] | {
        "architectures": [f"{architecture}ForSequenceClassification"], "pad_token_id": None,
        "id2label": {str(i): f"LABEL_{i}" for i in range(labels)},
        "label2id": {f"LABEL_{i}": i for i in range(labels)},
    }


ARCHITECTURES = [name for name in MODELS if name not in ("counting", "wide")]
LOGIT_SCALE = {"counting": 1.0}  # standard deviation of the logits in nats; 3.5 elsewhere


def old_spelling(config):
    """The same config as transformers 4 wrote it."""
    old = {name: value for name, value in config.items() if name not in ("dtype", "layer_types")}
    rope = old.pop("rope_parameters")
    full = rope.get(_FULL, rope)
    old |= {"torch_dtype": config["dtype"], "rope_theta": full["rope_theta"]}
    scaling = {name: value for name, value in full.items() if name != "rope_theta"}
    old["rope_scaling"] = None if full["rope_type"] == "default" else scaling
    if config["model_type"] == "gemma":
        old["hidden_act"] = "gelu"  # the first releases: meant is the tanh approximation
    if _FULL in rope:
        old |= {"rope_local_base_freq": rope[_SLIDING]["rope_theta"], "sliding_window_pattern": 6}
    return old


def shapes(config):
    """Name -> shape of every tensor, in the order of the layers."""
    hidden, mlp, kind = config["hidden_size"], config["intermediate_size"], config["model_type"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    qkv_bias = kind == "qwen2" or config.get("attention_bias", False)
    post_norms = kind in ("gemma2", "gemma3_text")
    result = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}

    def linear(name, outputs, inputs, bias):
        result[f"{name}.weight"] = (outputs, inputs)
        if bias:
            result[f"{name}.bias"] = (outputs,)

    for layer in range(config["num_hidden_layers"]):
        at, ff = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        linear(f"{at}.q_proj", heads * head_dim, hidden, qkv_bias)
        linear(f"{at}.k_proj", kv_heads * head_dim, hidden, qkv_bias)
        linear(f"{at}.v_proj", kv_heads * head_dim, hidden, qkv_bias)
        linear(f"{at}.o_proj", hidden, heads * head_dim, qkv_bias and kind != "qwen2")
        linear(f"{ff}.gate_proj", mlp, hidden, config.get("mlp_bias", False))
        linear(f"{ff}.up_proj", mlp, hidden, config.get("mlp_bias", False))
        linear(f"{ff}.down_proj", hidden, mlp, config.get("mlp_bias", False))
        if kind in ("qwen3", "gemma3_text"):
            result[f"{at}.q_norm.weight"] = result[f"{at}.k_norm.weight"] = (head_dim,)
        norms = ["input_layernorm", "post_attention_layernorm"]
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] * post_norms
        result |= {f"model.layers.{layer}.{norm}.weight": (hidden,) for norm in norms}
    result["model.norm.weight"] = (hidden,)
    if config["architectures"][0].endswith("ForSequenceClassification"):
        result["score.weight"] = (len(config["id2label"]), hidden)
    elif not config["tie_word_embeddings"]:
        result["lm_head.weight"] = (config["vocab_size"], hidden)
    return result


def random_tensor(name, shape, config, rng, logit_scale=3.5):
    """float32 values of the tensor: see the module's docstring for their size."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    gemma = config["model_type"].startswith("gemma")
    if name.endswith("norm.weight"):
        return 0.25 * noise + (0 if gemma else 1)
    if name.endswith(".bias"):
        return 0.5 * noise
    if name.startswith(("model.embed", "lm_head")):
        return noise * np.float32(logit_scale / math.sqrt(shape[1]))
    return noise * np.float32(1 / math.sqrt(shape[1]))


def to_bfloat16(values):
    """uint16 bit patterns, rounded to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


_STORED = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}


def write_safetensors(path, table, values, dtype="float32"):
    """Writes one file: `table` is name -> shape, `values(name, shape)` its float32 numbers."""
    label, size = _STORED[dtype]
    header, end = {}, 0
    for name, shape in table.items():
        begin, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in table.items():
            data = np.asarray(values(name, shape))
            data = to_bfloat16(data) if dtype == "bfloat16" else data.astype(dtype)
            file.write(data.tobytes())


def write_checkpoint(folder, config, *, seed=0, files=1, dtype="float32", eos=None, logit_scale=3.5,
                     values=None):
    """A whole folder: config.json, one or several safetensors with their index.

    Parameters
    ----------
    seed : the weights are a function of it and of each tensor's name.
    files : number of safetensors files; more than one are listed in an index.
    dtype : of the stored weights.
    eos : goes into generation_config.json as `eos_token_id`, an id or a list.
    values : replaces the random numbers, values(name, shape) -> float32.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    named = "torch_dtype" if "torch_dtype" in config else "dtype"
    (folder / "config.json").write_text(json.dumps(config | {named: dtype}, indent=2))
    if eos is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))

    def random_values(name, shape):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return random_tensor(name, shape, config, rng, logit_scale)

    table = shapes(config)
    if files == 1:
        write_safetensors(folder / "model.safetensors", table, values or random_values, dtype)
        return folder
    index = {}
    for part in range(files):
        name = f"model-{part + 1:05d}-of-{files:05d}.safetensors"
        own = dict(list(table.items())[part::files])
        write_safetensors(folder / name, own, values or random_values, dtype)
        index |= dict.fromkeys(own, name)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


# Letters, and pieces of several letters: "abba" can be drawn in five ways.
PIECES = ["<s>", "</s>", "a", "b", "c", " ", ".", "ab", "ba", "bb", "abb"]
MERGES = [("a", "b"), ("b", "a"), ("b", "b"), ("ab", "b")]


def write_tokenizer(folder):
    """A byte-pair tokenizer over PIECES (11 tokens, as many as the model "counting" has)."""
    import tokenizers

    model = tokenizers.models.BPE({piece: i for i, piece in enumerate(PIECES)}, MERGES)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.add_special_tokens(PIECES[:2])
    tokenizer.save(str(Path(folder) / "tokenizer.json"))


def cached_checkpoint(base, name, *, labels=0, old=False, tokenizer=False, **options):
    """The folder, below base, of a model of MODELS; written when it is first asked for.

    labels: with a score head of so many. old: in the spelling of transformers 4. tokenizer: with
    one. The rest: write_checkpoint.
    """
    label = [name, f"labels={labels}" * bool(labels), "old" * old, "tokenizer" * tokenizer]
    label += [f"{key}={value}" for key, value in options.items()]
    path = base / "-".join(filter(None, label)).replace(" ", "")
    if not path.exists():
        config = scorer(name, labels) if labels else MODELS[name]
        config = old_spelling(config) if old else config
        scale = LOGIT_SCALE.get(name, 3.5)
        write_checkpoint(path, config, **{"logit_scale": scale, **options})
        if tokenizer:
            write_tokenizer(path)
    return path
