"""A model and a task without weights or data, for tests of what stands around them."""

import numpy as np

from bonaware.samples import Sample, Stats
from bonaware.tasks import Problem, Task


class FakeLM:
    """Draws a digit as text and 1 to 9 tokens, by (seed, prompt, repeat, index) alone."""

    name, fingerprint, eos_token_ids = "fake", "f0", (2,)

    def __init__(self, stop_after=None, error=KeyboardInterrupt):
        self.stop_after, self.error = stop_after, error
        self.drawn = []  # (prompt, index) in order
        self.asked = []

    def settings(self):
        return {"model": self.name, "threads": 1}

    def encode(self, prompt):
        return np.frombuffer(prompt.encode(), np.uint8).astype(np.int32)

    def stream(self, requests, **sampling):
        self.asked.append((list(requests), sampling))
        return FakeDrawing(self, requests, sampling)

    def sample(self, request, index, temperature, seed):
        key = [seed, *request.tokens.tolist(), request.repeat, index]
        rng = np.random.default_rng(key)
        length = int(rng.integers(1, 10))
        logp = -rng.random(length, np.float32)
        tokens = rng.integers(0, 9, length, np.int32)
        temperature = temperature[index] if isinstance(temperature, list) else temperature
        return Sample(request.prompt, index, tokens, logp, logp, -logp, str(rng.integers(4)),
                      "eos", temperature)  # fmt: skip


class FakeDrawing:
    stats = Stats(1, 2, 0.1, 0.2, 0.3)

    def __init__(self, lm, requests, sampling):
        self.samples = self.run(lm, requests, sampling["temperature"], sampling["rng"])

    def __iter__(self):
        return self.samples

    def run(self, lm, requests, temperature, seed):
        for request in requests:
            for index in request.indices:
                sample = lm.sample(request, index, temperature, seed)
                if len(lm.drawn) == lm.stop_after:
                    if lm.error is KeyboardInterrupt:
                        sample.finish_reason = "aborted"
                        yield sample
                    raise lm.error
                lm.drawn.append((request.prompt, index))
                yield sample


class Digits(Task):
    """Problem p wants the digit p % 4; problems 0 and 1 look the same."""

    name = "digits"
    stop_strings = ("!",)
    max_new_tokens = 9

    def load(self, split="test", limit=None):
        prompts = ["same", "same", *(f"prompt {p}" for p in range(2, 6))]
        problems = [Problem(f"{split}/{p}", text, p % 4) for p, text in enumerate(prompts)]
        return problems[:limit]

    def reward(self, problem, text):
        return float(text == str(problem.answer))

    def answer(self, problem, text):
        return text
