"""What tests of the evaluation harnesses share: a checkpoint with a tokenizer, local tasks."""

import json
import string
from pathlib import Path

from tiny import MODELS, write_checkpoint

# One token per character: texts and ids correspond whatever is asked.
PIECES = ["<s>", "</s>", *string.printable[:95], "\n"]
CHAT = ("{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}")


def write_model(folder, **fields):
    """A model with random weights over PIECES that transformers opens too; puts <s> in front.

    fields: of its config, in place of those of tiny.py.
    """
    from tokenizers import Tokenizer, decoders, models, processors

    config = MODELS["llama2"] | {"vocab_size": len(PIECES), "bos_token_id": 0, "eos_token_id": 1}
    config |= fields
    write_checkpoint(folder, config, eos=1)
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(PIECES)}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(PIECES[:2])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "chat_template": CHAT, "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }))
    return folder


def write_rows(path, rows):
    Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)
