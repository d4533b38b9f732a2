"""Two processes that train with TRL on the groups that they share.

As torchrun would start them, but they import the same packages once: the second is a fork.
"""

import os
import socket
import sys
from pathlib import Path

import test_integrations_trl as shared
import torch

import bonaware as bon

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
other = os.fork()
rank = str(int(other == 0))
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
               "LOCAL_WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
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
torch.distributed.destroy_process_group()
if other:
    sys.exit(os.waitpid(other, 0)[1] != 0)
