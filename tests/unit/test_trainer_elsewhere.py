"""Networks of torchvision and of the user's own project."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training import same_bits, tiny_config, tiny_data, what_counts
from trainer import evaluate as evaluation
from trainer.callbacks import Stopped, StopWhenAsked
from trainer.checkpoints import load_checkpoint
from trainer.config import ConfigError
from trainer.networks import load_pretrained, make_network
from trainer.options import TrainError
from trainer.training import train

pytestmark = pytest.mark.usefixtures("quiet_trainer")
DATA = tiny_data()
THEIRS = """
from torch import nn

def small(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3),
        nn.Linear(8 * 8 * 8, num_classes),
    )

def nothing(num_classes):
    return None
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's project."""
    (tmp_path / "their_networks.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "their_networks"
    sys.modules.pop("their_networks", None)


def test_a_network_of_one_s_own_trains_stops_and_goes_on_to_the_bit(
    theirs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout, whose random numbers are part of it."""
    config = tiny_config(network=f"{theirs}:small", learning_rate=0.005)
    train(config, DATA, tmp_path / "whole")
    with monkeypatch.context() as patched:
        original = StopWhenAsked.on_train_batch_end

        def stop(self: StopWhenAsked, trainer: Any, *rest: Any) -> None:
            self.asked = trainer.global_step == 13
            original(self, trainer, *rest)

        patched.setattr(StopWhenAsked, "on_train_batch_end", stop)
        with pytest.raises(Stopped):
            train(config, DATA, tmp_path / "cut")
    summary = train(config, DATA, tmp_path / "cut", tmp_path / "cut" / "checkpoints" / "last.ckpt")
    whole, cut = (
        what_counts(load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt"))
        for name in ("whole", "cut")
    )
    assert same_bits(whole, cut)
    loaded = evaluation.load_network(tmp_path / "cut" / "weights.pt")
    accuracy = evaluation.evaluate(loaded.network, DATA.test).accuracy
    assert accuracy == summary["test_accuracy"]


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("their_networks:missing", "AttributeError"),
        ("no_such_module:small", "No module named"),
        ("their_networks:nothing", "gives no torch.nn.Module"),
        ("torchvision:no_such_network", "no_such_network"),
    ],
)
def test_a_network_that_is_not_there_is_one_line(theirs: str, network: str, said: str) -> None:
    with pytest.raises(TrainError, match=said) as caught:
        make_network(tiny_config(network=network), 4)
    assert caught.value.code == 2 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"network": "resnet18"}, "network must be one of residual, speed"),
        ({"pretrained": "true"}, "no pretrained weights for residual"),
        ({"network": "mine:net", "pretrained": "true"}, "name their file"),
    ],
)
def test_what_can_t_be_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tiny_config(**values)


def test_pretrained_weights_are_taken_but_for_the_last_layer(tmp_path: Path) -> None:
    config = tiny_config(network="torchvision:resnet18")
    many, few = make_network(config, 7), make_network(config, 4)
    inner: Any = many
    torch.save(inner.network.state_dict(), tmp_path / "weights.pt")
    load_pretrained(few, config.network, str(tmp_path / "weights.pt"))
    one, other = many.state_dict(), few.state_dict()
    differing = {name for name in one if not same_bits(one[name], other[name])}
    assert differing == {"network.fc.weight", "network.fc.bias"}
    assert few(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 4)
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(TrainError, match="only 0 of"):
        load_pretrained(few, config.network, str(tmp_path / "other.pt"))


def test_weights_of_other_names_fit_one_by_one_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As those of a port to another library, whose last layer knows other classes."""
    config = tiny_config(network="tests.support.networks:small")
    many, few = make_network(config, 7), make_network(config, 4)
    inner: Any = many
    state = {f"other.{n}": value for n, value in enumerate(inner.network.state_dict().values())}
    torch.save(state, tmp_path / "weights.pt")
    load_pretrained(few, config.network, str(tmp_path / "weights.pt"))
    assert "have other names, and fit one by one in order" in capsys.readouterr().out
    one, other = many.state_dict(), few.state_dict()
    differing = {name for name in one if not same_bits(one[name], other[name])}
    assert differing == {"network.9.weight", "network.9.bias"}
    # In another order they are somebody else's.
    torch.save(dict(reversed(state.items())), tmp_path / "weights.pt")
    with pytest.raises(TrainError, match="only 0 of"):
        load_pretrained(few, config.network, str(tmp_path / "weights.pt"))
