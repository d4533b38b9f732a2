"""The trainer: steps against NumPy and torch, runs that are killed, and that learning works."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import tiny as tiny_models

import bonaware as bon
from bonaware import losses
from bonaware.samples import Sample, Samples
from bonaware.tasks import Problem, Task
from bonaware.train import annealed, auroc
from bonaware.training import Evaluation, Labels, Rollouts, Texts
from bonaware.training.sources import shuffled

PROMPTS = [[3, 4, 5], [6, 7]]
REWARDS = np.array([[0.0, 1.0, 1.0, 0.0], [0.25, 0.0, 0.0, 1.0]])
REINFORCE = losses.get("reinforce")()
SCORE = {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}


def model(name="llama3", **options):
    config = {**tiny_models.MODELS[name], **options.pop("config", {})}
    return bon.LM.from_config(config, **{"rng": 0, "threads": 1, **options})


def scorer(**config):
    return model(config={**SCORE, **config})


def draw(lm, n=4, **options):
    return lm.generate(PROMPTS, n, **{"max_new_tokens": 6, "rng": 1, **options})


def weights_of(trainer):
    return {name: values.copy() for name, values in trainer._learner._named("weight")}


class NumpyAdamW:
    """The formula, in float64."""

    def __init__(self, weights, optimizer):
        self.weights = {name: w.astype(np.float64) for name, w in weights.items()}
        self.first = {name: 0.0 for name in weights}
        self.second = {name: 0.0 for name in weights}
        self.options, self.steps = optimizer, 0

    def step(self, gradients, lr):
        norm = math.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in gradients.values()))
        scale = min(1.0, self.options.max_norm / norm)
        (b1, b2), self.steps = self.options.betas, self.steps + 1
        for name, gradient in gradients.items():
            g = scale * gradient.astype(np.float64)
            self.first[name] = b1 * self.first[name] + (1 - b1) * g
            self.second[name] = b2 * self.second[name] + (1 - b2) * g * g
            decay = self.options.weight_decay if g.ndim > 1 else 0.0
            self.weights[name] *= 1 - lr * decay
            m = self.first[name] / (1 - b1**self.steps)
            v = self.second[name] / (1 - b2**self.steps)
            self.weights[name] -= lr * m / (np.sqrt(v) + self.options.eps)
        return norm


def assert_weights_close(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        error = np.abs(found[name] - values).max() / np.abs(values).max()
        assert error < tolerance, name


# -- one step ------------------------------------------------------------------


def test_steps_are_those_of_adamw_on_the_mean_gradient_over_prompts():
    lm = model()
    optimizer = bon.AdamW(lr=1e-3, weight_decay=0.1, max_norm=0.5, warmup=2)
    trainer = bon.Trainer(lm, REINFORCE, optimizer)
    oracle = NumpyAdamW(weights_of(trainer), optimizer)
    for step in range(3):
        samples = draw(lm, rng=step, temperature=0.8)
        _, weights = REINFORCE(REWARDS)
        gradients = lm.gradients(PROMPTS, samples.tokens, weights / len(PROMPTS), 0.8)
        metrics = trainer.step(PROMPTS, samples, REWARDS)
        norm = oracle.step(gradients, metrics["lr"])
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert metrics["lr"] == pytest.approx([0.5e-3, 1e-3, 1e-3][step])
        assert trainer.steps == step + 1
        assert_weights_close(weights_of(trainer), oracle.weights, 2e-6)


def test_a_step_tells_what_it_found():
    lm = model()
    samples = draw(lm, temperature=0.8)
    value, weights = REINFORCE(REWARDS)
    metrics = bon.Trainer(lm, REINFORCE).step(PROMPTS, samples, REWARDS)
    assert metrics["loss"] == pytest.approx(value.mean())
    assert metrics["reward"] == pytest.approx(REWARDS.mean())
    assert metrics["entropy"] == pytest.approx(
        -samples.sum_sampled_logp.sum() / samples.lengths.sum())
    assert metrics["trained_samples"] == (weights != 0).sum() == 8
    assert metrics["trained_tokens"] == samples.lengths.sum() + 5
    assert metrics["no_signal"] == 0.0
    assert metrics["step_seconds"] > 0
    assert "kl" not in metrics
