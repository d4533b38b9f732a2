"""A process of several that train with TRL on the groups that they share: torchrun runs it."""

import sys
from pathlib import Path

import test_integrations_trl as shared
import torch

import bonaware as bon

torch.set_num_threads(1)
folder, loss = Path(sys.argv[1]), bon.losses.get("bon")(k=2, kl=0.3)
trainer = shared.trainer_of(folder, loss, reward_funcs=shared.varied, beta=0.3, max_steps=2,
                            gradient_accumulation_steps=1)
assert trainer.accelerator.num_processes == 2
compare = shared.Compare(trainer, folder, loss)
trainer.add_callback(compare)
trainer.train()
assert len(trainer.drawn["advantages"]) == 6
assert compare.steps == 2
