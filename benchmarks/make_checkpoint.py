"""Writes a checkpoint with random weights in the true shape of a known model.

    python benchmarks/make_checkpoint.py llama-1b /path/to/folder

The numbers are normal with standard deviation 0.02 (norms are 1): no zeros, no denormals, nothing
that a kernel could skip. There is no tokenizer. Speed does not depend on the values.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import MODELS, shapes, write_checkpoint

STORY = MODELS["llama2"] | {  # 15M parameters, 60 MB in float32
    "vocab_size": 32000, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 6, "num_key_value_heads": 6, "head_dim": 48,
    "max_position_embeddings": 1024, "tie_word_embeddings": True,
}
LLAMA_1B = MODELS["llama3"] | {  # Llama-3.2-1B: 1.24B parameters
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "max_position_embeddings": 131072, "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
}
QWEN_05B = MODELS["qwen2"] | {  # Qwen2.5-0.5B: 0.49B parameters
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    "max_window_layers": 24, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
GEMMA_2B = MODELS["gemma"] | {  # Gemma-2B: 2.51B parameters
    "vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
    "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
}
SHAPES = {"llama-1b": LLAMA_1B, "qwen-0.5b": QWEN_05B, "gemma-2b": GEMMA_2B, "story-15m": STORY}


def parameters(config):
    return sum(int(np.prod(shape)) for shape in shapes(config).values())


def make(shape, folder, dtype="bfloat16", seed=0):
    """Writes the folder; it must not exist yet."""
    config = SHAPES[shape]
    norm = 0.0 if config["model_type"].startswith("gemma") else 1.0
    rng = np.random.default_rng(seed)

    def values(name, shape):
        if name.endswith("norm.weight"):
            return np.full(shape, norm, np.float32)
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    return write_checkpoint(folder, config, dtype=dtype, values=values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path, help="is made; must not exist")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32", "float16"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    make(options.shape, options.folder, options.dtype, options.seed)
    print(f"{parameters(SHAPES[options.shape]) / 1e9:.3f}B parameters in {options.dtype} written "
          f"to {options.folder} in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
