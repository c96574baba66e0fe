"""Two processes by torchrun, each with its own share of the data."""

import os

import torch
import torch.distributed as dist

# Before the group is made: what an optimizer imports of it has the group of that moment as default
# and would keep gloo's threads until Python ends, which aborts them now and then.
import torch.distributed.nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank = dist.get_rank()
model = DistributedDataParallel(torch.nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for epoch in range(2):
    loss = model(torch.randn(16, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"rank {rank} of {dist.get_world_size()} epoch {epoch}")
if rank == 0:
    os.makedirs("checkpoints", exist_ok=True)
    torch.save(model.module.state_dict(), "checkpoints/model.pt")
# Together: a process that goes while another one still talks to it may be aborted by gloo.
del model
dist.barrier()
dist.destroy_process_group()
