"""A training configured by Hydra, which makes a folder for each run."""

from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), config.lr)
    for epoch in range(config.epochs):
        loss = model(torch.ones(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"epoch {epoch} lr {config.lr} loss {loss.item():.3f}")
    torch.save(model.state_dict(), Path(HydraConfig.get().runtime.output_dir) / "model.pt")


if __name__ == "__main__":
    main()
