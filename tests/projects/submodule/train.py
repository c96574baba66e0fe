"""A training whose network lies in a repository of its own, a submodule."""

import sys

sys.path.insert(0, "library")
import torch
from blocks import block

model = torch.nn.Sequential(block(), block())
print(f"loss {model(torch.ones(2, 4)).square().mean().item():.3f}")
torch.save(model.state_dict(), "model.pt")
