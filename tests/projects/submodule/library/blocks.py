import torch


def block() -> torch.nn.Module:
    return torch.nn.Linear(4, 4)
