"""A model of characters that can chat: its tokenizer, and templates as they are published."""

import json
import string
from pathlib import Path

import tiny

import bonaware as bon

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"]
WORDS = ["No", "Yes", " No", " Yes"]
PIECES = [*SPECIAL, *string.printable[:-2], "Ye", *WORDS]
MERGES = [("N", "o"), (" ", "No"), ("Y", "e"), ("Ye", "s"), (" ", "Yes")]
END = SPECIAL.index("<|im_end|>")

CHATML = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# In the manner of Llama 2: blanks around what the assistant says, and no name for its turn.
INST = ("{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}")
# In the manner of Qwen 3: the assistant thinks first, or is told that it has.
THINKING = """\
{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""


def chat_model(folder, template=CHATML, ends=(END, 1), **options):
    """A new model over characters; special tokens and some words are tokens of their own."""
    import tokenizers

    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({piece: i for i, piece in enumerate(PIECES)}, MERGES))
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(SPECIAL)
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    if template:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = tiny.MODELS["llama2"] | {
        "vocab_size": len(PIECES), "eos_token_id": list(ends), "initializer_range": 0.3}
    return bon.LM.from_config(config, **{"tokenizer": folder, "threads": 1, "rng": 0, **options})
