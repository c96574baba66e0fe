import torch


def train(epochs: int) -> None:
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters())
    for epoch in range(epochs):
        loss = model(torch.ones(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"epoch {epoch} of {epochs}")
    torch.save({"model": model.state_dict()}, "last.ckpt")
