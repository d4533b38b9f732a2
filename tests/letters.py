"""A task that a model of eleven tokens learns in seconds, and a source of runs to be killed."""

import itertools
import os
import signal
from pathlib import Path

import tiny

import bonaware as bon
from bonaware import losses
from bonaware.tasks import Problem, Task
from bonaware.training import Rollouts


class Letters(Task):
    """A text must begin with the letter that its prompt ends with."""

    name = "letters"
    max_new_tokens = 3

    def load(self, split="test", limit=None):
        self.check_split(split, "train", "test")
        words = ["".join(word) for word in itertools.product("abc", repeat=3)]
        words = words[::2] if split == "train" else words[1::2]
        return [Problem(word, word, word[-1], {"solution": word[-1]}) for word in words][:limit]

    def reward(self, problem, text):
        return float(text.startswith(problem.answer))


def letters_model(folder, **options):
    """A new model over letters, with a tokenizer that is written into the folder."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").exists():
        folder.mkdir(exist_ok=True)
        tiny.write_tokenizer(folder)
    config = tiny.MODELS["counting"] | {"eos_token_id": 1, "hidden_size": 32, "head_dim": 16,
                                        "intermediate_size": 48}
    return bon.LM.from_config(config, **{"tokenizer": folder, "threads": 1, "rng": 0, **options})


STEPS = 6


def trainer_of(folder, dtype):
    lm = letters_model(folder, dtype=dtype)
    optimizer = bon.AdamW(lr=0.01, warmup=2, schedule="cosine", weight_decay=0.01)
    return bon.Trainer(lm, losses.get("bon")(k=1), optimizer, kl=0.01)


def fit(trainer, out, **options):
    """The run that tests interrupt in several ways."""
    source = Rollouts(Letters(), n=8, prompts=5, temperature=0.9)
    return trainer.fit(source, STEPS, k=(1, 4), out=out, save_every=2, progress=False, **options)


def killed(folder, out, dtype, when):
    """Begin the run and die by SIGKILL behind step 5, or half-way through a checkpoint."""
    trainer = trainer_of(folder, dtype)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if when == "save":
        saved = trainer._learner.save

        def save(path):
            saved(path)
            if trainer.steps == 4:
                die()

        trainer._learner.save = save

    def look(record):
        if when == "step" and record["step"] == 5:
            die()

    source = Rollouts(Letters(), n=8, prompts=5, temperature=0.9)
    trainer.fit(source, STEPS, k=(1, 4), out=out, save_every=2, progress=look)
