"""The networks and their optimizers."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.training import pixels_of, speed_config, tiny_config, tiny_data
from trainer.config import TrainConfig, load_config, peak_learning_rate
from trainer.networks import SpeedCNN, make_network
from trainer.optimizers import MuonWithSGD, make_optimizer, make_scheduler, orthogonalised

DATA = tiny_data()


def speed_network(config: TrainConfig) -> SpeedCNN:
    torch.manual_seed(1)
    return cast(SpeedCNN, make_network(config, 4))


def test_whitened_patches_have_the_identity_for_their_covariance() -> None:
    network = speed_network(speed_config())
    images = pixels_of(DATA.train)
    network.init_whitening(images)
    out = F.conv2d(network.normalise(images), network.whiten.weight)
    values = out[:, :12].permute(1, 0, 2, 3).flatten(1).double()
    assert torch.allclose(out[:, 12:], -out[:, :12])
    covariance = values @ values.T / values.shape[1]
    assert (covariance - torch.eye(12)).abs().max() < 0.15, (
        "but for the 5e-4 that keeps faint directions faint"
    )
    assert (covariance - torch.diag(covariance.diag())).abs().max() < 1e-4


def train_steps(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int
) -> list[float]:
    losses = []
    for step in range(steps):
        some = slice(40 * (step % 10), 40 * (step % 10) + 40)
        loss = F.cross_entropy(network(pixels_of(DATA.train)[some]), DATA.train.labels[some])
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_frozen_parameters_stay_and_all_others_are_trained() -> None:
    config = speed_config()
    network = speed_network(config)
    network.init_whitening(pixels_of(DATA.train))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = make_optimizer(network, config, 0.1)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters() if p.requires_grad}
    train_steps(network, optimizer, 2)
    frozen = {name for name, p in network.named_parameters() if torch.equal(p, before[name])}
    assert frozen == {
        "whiten.weight",
        *(f"groups.{group}.norms.{norm}.weight" for group in range(3) for norm in range(2)),
    }


@pytest.mark.parametrize("shape", [(16, 72), (72, 16), (32, 32)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours = torch.linalg.svdvals(orthogonalised(matrix, 6))
    assert ours.min() > 0.6 and ours.max() < 1.25
    three = torch.linalg.svdvals(orthogonalised(matrix))
    assert three.max() < 1.25 and three.mean() > 0.6, (
        "three steps, as the recipe takes, come near enough"
    )
    exact_u, _, exact_v = torch.linalg.svd(matrix, full_matrices=False)
    cosine = F.cosine_similarity(
        orthogonalised(matrix).flatten(), (exact_u @ exact_v).flatten(), dim=0
    )
    assert cosine > 0.9


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_each_optimizer_learns(optimizer: str) -> None:
    config = (
        speed_config()
        if optimizer == "muon"
        else tiny_config(optimizer=optimizer, learning_rate=0.01)
    )
    torch.manual_seed(1)
    network = make_network(config, 4)
    if isinstance(network, SpeedCNN):
        network.init_whitening(pixels_of(DATA.train))
    losses = train_steps(network, make_optimizer(network, config, config.learning_rate), 60)
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_an_optimizer_that_is_saved_and_loaded_goes_on_to_the_bit(optimizer: str) -> None:
    config = speed_config() if optimizer == "muon" else tiny_config()
    torch.manual_seed(1)
    network = make_network(config, 4)
    own = make_optimizer(network, config, 0.01)
    train_steps(network, own, 3)
    other_network = copy.deepcopy(network)
    other = make_optimizer(other_network, config, 0.01)
    other.load_state_dict(copy.deepcopy(own.state_dict()))
    for pair in ((network, own), (other_network, other)):
        train_steps(*pair, steps=3)
    for one, two in zip(network.parameters(), other_network.parameters(), strict=True):
        assert torch.equal(one, two)


def test_filters_keep_their_norm_and_the_whitening_bias_stops() -> None:
    config = speed_config(whiten_bias_epochs=3, learning_rate=0.0001)
    network = speed_network(config)
    optimizer = cast(MuonWithSGD, make_optimizer(network, config, config.learning_rate))
    filters = cast(list[Tensor], optimizer.param_groups[0]["params"])
    for p in filters:
        p.data.mul_(1.7)
    scheduler = make_scheduler(optimizer, config, lambda: (3, 4.0))
    for _ in range(6):  # of 12
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
        [0.00005, 0.0025, 0.025, 0.0025]
    )
    for _ in range(6):
        scheduler.step()
    assert optimizer.param_groups[3]["lr"] == 0.0
    train_steps(network, optimizer, 3)
    assert len(filters) == 6 and all(
        abs(float(p.detach().norm()) - len(p) ** 0.5) < 0.01 * len(p) ** 0.5 for p in filters
    )


def test_the_document_s_network_has_its_widths_and_takes_any_batch() -> None:
    config = load_config("standard")
    network = make_network(config, 10)
    shapes = [
        tuple(p.shape) for name, p in network.named_parameters() if name.endswith("second.weight")
    ]
    assert shapes == [(width, width, 3, 3) for width in (128, 256, 512, 768)]
    small = make_network(tiny_config(widths="8,8,8,8,8,8,8"), 3).eval()
    assert small(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 3)


def test_the_peak_learning_rate_is_the_optimizer_s() -> None:
    config = load_config("standard")
    optimizer = make_optimizer(
        make_network(tiny_config(), 4), config, peak_learning_rate(config, 1)
    )
    [group] = optimizer.param_groups
    assert group["lr"] == pytest.approx(0.002) and group["amsgrad"]
    scheduler = make_scheduler(optimizer, config, lambda: (150, 3.0))
    for _ in range(60):  # half of a cycle of 40 epochs
        scheduler.step()
    assert group["lr"] == pytest.approx(0.001)


@pytest.mark.parametrize("depth", [2, 3])
def test_the_speed_network_begins_as_an_identity_on_its_first_channels(depth: int) -> None:
    network = speed_network(speed_config(depth=depth, widths="24,32,32"))
    for group in network.groups:
        for conv in group.convs:  # type: ignore[union-attr]  # a ModuleList
            weight = conv.weight
            identity = torch.zeros_like(weight[: weight.size(1)])
            torch.nn.init.dirac_(identity)
            assert torch.equal(weight[: weight.size(1)], identity)
    assert network(pixels_of(DATA.train)[:5]).shape == (5, 4)
