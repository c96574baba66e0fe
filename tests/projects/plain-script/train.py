"""A plain script: a loop, a checkpoint, prints."""

import argparse

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.5)
options = parser.parse_args()
points = torch.randn(128, 4, generator=torch.Generator().manual_seed(1))
labels = (points[:, 0] > 0).long()
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), options.lr)
for epoch in range(3):
    loss = torch.nn.functional.cross_entropy(model(points), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"epoch {epoch} lr {options.lr} loss {loss.item():.3f}")
torch.save(model.state_dict(), "model.pt")
