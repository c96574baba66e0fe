import torch

from mine.net import Net

model = Net()
print(f"loss {model(torch.ones(2, 4)).square().mean().item():.3f} from {__file__}")
torch.save(model.state_dict(), "model.pt")
