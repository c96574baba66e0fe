"""A loop of one's own that accelerate places on what is there."""

import torch
from accelerate import Accelerator

accelerator = Accelerator(cpu=True)
net = torch.nn.Linear(4, 2)
model, optimizer = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1))
for epoch in range(2):
    loss = model(torch.randn(16, 4)).square().mean()
    optimizer.zero_grad()
    accelerator.backward(loss)
    optimizer.step()
    accelerator.print(f"epoch {epoch} on {accelerator.num_processes}")
accelerator.save_state("state")
