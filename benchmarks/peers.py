"""The peers of bench_decode.py: their copies of a checkpoint, and their sides of the measurement.

    VENV/bin/python benchmarks/peers.py CHECKPOINT openvino int8     # what bench_decode.py runs
    VENV/bin/python benchmarks/peers.py CHECKPOINT llama.cpp Q8_0

The first half writes an OpenVINO graph or a GGUF file with the numbers of a checkpoint without
tokenizer (Llama, Qwen2 and Gemma), beside its folder and only if it is not there yet. The second
half measures. Runs in environments without bonaware; benchmarks/README.md says how to make them.
"""

import itertools
import json
import logging
import math
import random
import sys
import time
from pathlib import Path

import numpy as np


def prompt_of(options):
    """The token ids of the prompt, the same for every side."""
    return random.Random(0).choices(range(3, 1000), k=options["prompt"])


# -- the checkpoint -----------------------------------------------------------


class Checkpoint:
    """Config and float32 tensors of a folder with one file of weights."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        heads = self.config["num_attention_heads"]
        self.head_dim = self.config.get("head_dim") or self.config["hidden_size"] // heads
        self.gemma = self.config["model_type"] == "gemma"
        path = folder / "model.safetensors"
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self.entries = json.loads(file.read(length))
        self.entries.pop("__metadata__", None)
        self.bytes = np.memmap(path, np.uint8, "r", offset=8 + length)

    def __contains__(self, name):
        return name in self.entries

    def __getitem__(self, name):
        entry = self.entries[name]
        raw = self.bytes[slice(*entry["data_offsets"])]
        if entry["dtype"] == "BF16":
            values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.view({"F16": np.float16, "F32": np.float32}[entry["dtype"]])
        values = values.astype(np.float32).reshape(entry["shape"])
        # Gemma's norms multiply by 1 + weight, which both peers want added up.
        return values + 1 if self.gemma and name.endswith("norm.weight") else values

    def rope_frequencies(self):
        """(frequencies without scaling, what each is divided by), both [head_dim / 2]."""
        rope = self.config["rope_parameters"]
        plain = rope["rope_theta"] ** -(np.arange(0, self.head_dim, 2) / self.head_dim)
        if rope["rope_type"] == "default":
            return plain, np.ones_like(plain)
        if rope["rope_type"] != "llama3":
            raise ValueError(f"need rope_type 'default' or 'llama3', got {rope['rope_type']!r}")
        turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return plain, 1 / (kept + (1 - kept) / rope["factor"])


# -- OpenVINO: the graph ------------------------------------------------------


def openvino_weight(values, kind):
    """A matrix [outputs, inputs] as float32, held as `kind`.

    int8 is the layout of OpenVINO's own compression: unsigned, one scale and zero per output.
    """
    from openvino import opset13 as op

    if kind != "int8":
        weight = op.constant(values.astype(kind))
        return weight if kind == "float32" else op.convert(weight, "f32")
    low = np.minimum(values.min(1, keepdims=True), 0)
    scale = (np.maximum(values.max(1, keepdims=True), 0) - low) / 255
    zero = np.rint(-low / scale)
    whole = np.clip(np.rint(values / scale) + zero, 0, 255).astype(np.uint8)
    centred = op.subtract(op.convert(op.constant(whole), "f16"),
                          op.convert(op.constant(zero.astype(np.uint8)), "f16"))
    return op.convert(op.multiply(centred, op.constant(scale.astype(np.float16))), "f32")


class OpenvinoGraph:
    """Builds what OpenVINO's converter makes of transformers' models: stateful, with attention
    as one node, so that its own passes find rotary embeddings, norms and the cache of keys."""

    def __init__(self, checkpoint, kind):
        self.checkpoint, self.kind, self.sinks = checkpoint, kind, []

    def linear(self, x, name):
        from openvino import opset13 as op

        weight = openvino_weight(self.checkpoint[f"{name}.weight"], self.kind)
        y = op.matmul(x, weight, False, True)
        bias = f"{name}.bias"
        return op.add(y, self.checkpoint[bias]) if bias in self.checkpoint else y

    def norm(self, x, name):
        from openvino import opset13 as op

        squares = op.reduce_mean(op.power(x, np.float32(2)), np.array([-1]), keep_dims=True)
        root = op.sqrt(op.add(squares, np.float32(self.checkpoint.config["rms_norm_eps"])))
        scaled = op.multiply(x, op.divide(np.float32(1), root))
        return op.multiply(scaled, op.constant(self.checkpoint[f"{name}.weight"]))

    def heads(self, x, count):
        """[batch, tokens, count * head_dim] -> [batch, count, tokens, head_dim]"""
        from openvino import opset13 as op

        shaped = op.reshape(x, np.array([0, 0, count, self.checkpoint.head_dim]), True)
        return op.transpose(shaped, np.array([0, 2, 1, 3]))

    def rotated(self, x):
        from openvino import opset13 as op

        half = self.checkpoint.head_dim // 2
        first, second = op.variadic_split(x, np.int64(3), np.array([half, half])).outputs()
        turned = op.concat([op.multiply(second, np.float32(-1)), first], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(turned, self.sin))

    def with_past(self, x, name, count):
        """Everything seen so far; [batch, count, tokens, head_dim] is appended to it."""
        from openvino import opset13 as op

        head_dim = self.checkpoint.head_dim
        empty = op.broadcast(np.float32(0), op.concat(
            [self.batch, np.array([count, 0, head_dim])], 0))
        past = op.read_value(empty, name, np.float32, [-1, count, -1, head_dim])
        seen = op.concat([op.gather(past, self.beam, np.int64(0)), x], 2)
        self.sinks.append(op.assign(seen, name))
        return seen

    def repeated(self, x, groups):
        from openvino import opset13 as op

        if groups == 1:
            return x
        wide = op.broadcast(op.unsqueeze(x, np.int64(2)), np.array([1, 1, groups, 1, 1]),
                            broadcast_spec="BIDIRECTIONAL")
        heads = self.checkpoint.config["num_attention_heads"]
        return op.reshape(wide, np.array([0, heads, -1, self.checkpoint.head_dim]), True)

    def attention(self, x, layer):
        from openvino import opset13 as op

        config, at = self.checkpoint.config, f"model.layers.{layer}.self_attn"
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        q = self.rotated(self.heads(self.linear(x, f"{at}.q_proj"), heads))
        k = self.rotated(self.heads(self.linear(x, f"{at}.k_proj"), kv_heads))
        v = self.heads(self.linear(x, f"{at}.v_proj"), kv_heads)
        k = self.repeated(self.with_past(k, f"past.{layer}.key", kv_heads), heads // kv_heads)
        v = self.repeated(self.with_past(v, f"past.{layer}.value", kv_heads), heads // kv_heads)
        y = op.transpose(op.scaled_dot_product_attention(q, k, v, self.mask),
                         np.array([0, 2, 1, 3]))
        y = op.reshape(y, np.array([0, 0, heads * self.checkpoint.head_dim]), True)
        return self.linear(y, f"{at}.o_proj")

    def mlp(self, x, layer):
        from openvino import opset13 as op

        name = f"model.layers.{layer}.mlp"
        gate = self.linear(x, f"{name}.gate_proj")
        gate = op.gelu(gate, "tanh") if self.checkpoint.gemma else op.swish(gate)
        return self.linear(op.multiply(gate, self.linear(x, f"{name}.up_proj")),
                           f"{name}.down_proj")

    def positions(self, position_ids, attention_mask):
        """Cosines, sines and the causal mask of this call, and its batch size."""
        from openvino import opset13 as op

        plain, divisors = self.checkpoint.rope_frequencies()
        frequencies = (plain / divisors).astype(np.float32).reshape(1, -1, 1)
        row = op.convert(op.unsqueeze(position_ids, np.int64(1)), "f32")
        angles = op.transpose(op.matmul(frequencies, row, False, False), np.array([0, 2, 1]))
        angles = op.concat([angles, angles], -1)
        self.cos = op.unsqueeze(op.cos(angles), np.int64(1))
        self.sin = op.unsqueeze(op.sin(angles), np.int64(1))
        length = op.gather(op.shape_of(attention_mask), np.int64(1), np.int64(0))
        places = op.range(np.int64(0), length, np.int64(1), "i64")
        causal = op.less_equal(places, op.unsqueeze(position_ids, np.int64(2)))
        there = op.unsqueeze(op.greater(attention_mask, np.int64(0)), np.int64(1))
        mask = op.select(op.logical_and(causal, there), np.float32(0), np.float32(-np.inf))
        self.mask = op.unsqueeze(mask, np.int64(1))

    def build(self):
        import openvino as ov
        from openvino import opset13 as op

        inputs = []
        for name, rank, kind in (("input_ids", 2, np.int64), ("attention_mask", 2, np.int64),
                                 ("position_ids", 2, np.int64), ("beam_idx", 1, np.int32)):
            inputs.append(op.parameter([-1] * rank, kind, name=name))
            inputs[-1].output(0).set_names({name})
        ids, attention_mask, position_ids, self.beam = inputs
        self.batch = op.gather(op.shape_of(ids), np.array([0]), np.int64(0))
        self.positions(position_ids, attention_mask)
        checkpoint, config = self.checkpoint, self.checkpoint.config
        table = openvino_weight(checkpoint["model.embed_tokens.weight"], self.kind)
        x = op.gather(table, ids, np.int64(0))
        if checkpoint.gemma:
            x = op.multiply(x, np.float32(config["hidden_size"] ** 0.5))
        for layer in range(config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            x = op.add(x, self.attention(self.norm(x, f"{name}.input_layernorm"), layer))
            x = op.add(x, self.mlp(self.norm(x, f"{name}.post_attention_layernorm"), layer))
        x = self.norm(x, "model.norm")
        tied = config["tie_word_embeddings"]
        logits = op.matmul(x, table, False, True) if tied else self.linear(x, "lm_head")
        logits.output(0).set_names({"logits"})
        return ov.Model([op.result(logits)], self.sinks, inputs, "decoder")


def write_openvino(source, target, kind):
    import openvino as ov

    checkpoint = Checkpoint(source)
    model = OpenvinoGraph(checkpoint, kind).build()
    target.mkdir(exist_ok=True)
    ov.save_model(model, target / "openvino_model.xml", compress_to_fp16=False)
    (target / "config.json").write_text(json.dumps(checkpoint.config))
    (target / "generation_config.json").write_text("{}")


# -- llama.cpp: the file ------------------------------------------------------

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "model.norm": "output_norm",
    "model.embed_tokens": "token_embd", "lm_head": "output",
}


def gguf_name(name):
    module, last = name.rsplit(".", 1)
    if not module.startswith("model.layers."):
        return f"{GGUF_NAMES[module]}.{last}"
    _, _, layer, module = module.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[module]}.{last}"


def interleaved(values, heads):
    """Rows of queries or keys in the order that GGUF's llama wants: pairs side by side."""
    halves = values.reshape(heads, 2, -1, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_gguf(source, target, kind):
    import gguf

    checkpoint, form = Checkpoint(source), gguf.GGMLQuantizationType[kind]
    config = checkpoint.config
    writer = gguf.GGUFWriter(target, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(checkpoint.head_dim)
    writer.add_value_length(checkpoint.head_dim)
    writer.add_rope_dimension_count(checkpoint.head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if config["rope_parameters"]["rope_type"] == "llama3":
        divisors = checkpoint.rope_frequencies()[1].astype(np.float32)
        writer.add_tensor("rope_freqs.weight", divisors)
    turned = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    for name in checkpoint.entries:
        values, module = checkpoint[name], name.split(".")[-2]
        if module in turned and config["model_type"] == "llama":
            values = interleaved(values, config[turned[module]])
        if values.ndim == 1:  # norms and biases
            writer.add_tensor(gguf_name(name), values)
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# -- both: where the copies are -----------------------------------------------

WRITERS = {"openvino": write_openvino, "llama.cpp": write_gguf}


def converted(path, peer, kind):
    """Where the peer's copy of a checkpoint is."""
    return path.with_name(f"{path.name}-{peer}-{kind}")


def main():
    path, peer, kind = Path(sys.argv[1]).resolve(), *sys.argv[2:]
    target = converted(path, peer, kind)
    if not target.exists():
        unfinished = target.with_name(f"{target.name}-unfinished")
        WRITERS[peer](path, unfinished, kind)
        unfinished.rename(target)


# -- the sides ----------------------------------------------------------------


def openvino_side(path, options, kind, precision="f32"):
    """Its pipeline for many requests: blocks of the cache that hold the prompt are shared."""
    import openvino as ov
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = max(options["prompt"], options["n"])
    scheduler.max_num_seqs = max(options["n"], 1)
    scheduler.enable_prefix_caching = False  # the prompt is computed anew in each measurement
    pipeline = genai.ContinuousBatchingPipeline(
        str(converted(path, "openvino", kind)), scheduler, "CPU",
        {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": options["threads"]})
    prompt = ov.Tensor(np.array([prompt_of(options)], np.int64))

    def draw(new, rng):
        config = genai.GenerationConfig(
            do_sample=True, temperature=1.0, num_return_sequences=options["n"],
            max_new_tokens=new, ignore_eos=True, eos_token_id=0, rng_seed=rng)
        start = time.perf_counter()
        samples = pipeline.generate([prompt], [config])[0].m_generation_ids
        seconds = time.perf_counter() - start
        return seconds, sum(map(len, samples))

    def measure(rng):
        one, first = draw(1, rng)
        all_of_them, tokens = draw(1 + options["new"], rng)
        return {"seconds": all_of_them - one, "prefill": one, "prompt": prompt.size,
                "tokens": tokens - first}

    return measure


def llama_cpp_side(path, options, kind):
    """As llama-batched-bench does it: one token of each sequence per call, and no sampling."""
    import llama_cpp as llama

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    llama.llama_backend_init()
    n, prompt, new = options["n"], prompt_of(options), options["new"]
    model_options = llama.llama_model_default_params()
    model_options.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(
        str(converted(path, "llama.cpp", kind)).encode(), model_options)
    context_options = llama.llama_context_default_params()
    context_options.n_ctx = n * (len(prompt) + new)
    context_options.n_batch = context_options.n_ubatch = max(len(prompt), n)
    context_options.n_seq_max = n
    context_options.n_threads = context_options.n_threads_batch = options["threads"]
    context_options.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context_options.kv_unified = False
    context = llama.llama_init_from_model(model, context_options)
    memory = llama.llama_get_memory(context)
    batch = llama.llama_batch_init(max(len(prompt), n), 0, 1)

    def decode(tokens, positions, sequences, wanted):
        batch.n_tokens = len(tokens)
        rows = zip(tokens, positions, sequences, wanted, strict=True)
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, logits
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        status = llama.llama_decode(context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        llama.llama_synchronize(context)
        return sum(bool(llama.llama_get_logits_ith(context, i)) for i in range(-sum(wanted), 0))

    def measure(rng):
        tokens = random.Random(rng)
        llama.llama_memory_clear(memory, True)
        start = time.perf_counter()
        last = [0] * (len(prompt) - 1) + [1]
        decode(prompt, range(len(prompt)), [0] * len(prompt), last)
        prefill = time.perf_counter() - start
        for sequence in range(1, n):
            llama.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        done, start = 0, time.perf_counter()
        for step in range(new):
            drawn = tokens.choices(range(3, 1000), k=n)
            done += decode(drawn, itertools.repeat(len(prompt) + step, n), range(n), [1] * n)
        return {"seconds": time.perf_counter() - start, "prefill": prefill,
                "prompt": len(prompt), "tokens": done}

    return measure


if __name__ == "__main__":
    main()
