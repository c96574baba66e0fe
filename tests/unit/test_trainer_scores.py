"""What a report says beyond the accuracy: class by class, mistakes, calibration, names in any
script."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from remote.link.decoding import decode
from remote.records import Summary
from tests.support.training import pixels_of, tiny_config, tiny_data
from trainer.config import to_dict
from trainer.data.images import balanced_weights
from trainer.model import Classifier
from trainer.report import fonts, pictures
from trainer.report.mistakes import find_mistakes, heat_maps
from trainer.scores import Answers, Evaluation, Score, table


def test_scores_are_those_of_the_definitions() -> None:
    evaluation = Evaluation(0.5, torch.tensor([[8, 2, 0], [1, 3, 0], [0, 0, 0]]))
    first, second, third = evaluation.scores()
    assert first == Score(8 / 9, 8 / 10, 2 * 8 / 19)
    assert second == Score(3 / 5, 3 / 4, 2 * 3 / 9)
    assert third == Score(None, None, None), "neither there nor taken for it"
    assert evaluation.macro().recall == pytest.approx((8 / 10 + 3 / 4) / 2)
    assert table(evaluation, ("a", "b", "c")).splitlines()[3].split() == ["c", "–", "–", "–"]


def test_the_accuracy_of_an_uneven_set_never_stands_alone() -> None:
    """All were taken for the large class."""
    uneven = Evaluation(0.5, torch.tensor([[90, 0], [10, 0]]))
    assert uneven.shown() == (
        "0.9000 (uneven classes: recall 0.5000 and F1 0.4737 in the mean over them)"
    )
    assert Evaluation(0.5, torch.tensor([[50, 0], [40, 0]])).shown() == "0.5556"


def test_balanced_weights_make_rare_classes_count_as_much() -> None:
    labels = torch.tensor([0] * 90 + [1] * 10)
    weights = balanced_weights(labels, 2)
    assert weights[0] * 90 == pytest.approx(float(weights[1] * 10))
    assert float(weights[labels].mean()) == pytest.approx(1.0)


def test_the_loss_weighs_the_classes() -> None:
    model = Classifier(to_dict(tiny_config()), tiny_data().classes)
    logits, labels = torch.zeros(4, 4), torch.tensor([0, 0, 0, 1])
    alike = model.loss(logits, labels)
    model.class_weights = balanced_weights(labels, 4)
    assert model.loss(logits, labels) != alike
    frequent, rare = (model.loss(logits[:1], labels[some]) for some in ([0], [3]))
    assert float(rare) == pytest.approx(3 * float(frequent))


def answers() -> Answers:
    truth = torch.tensor([0, 1, 0, 1])
    return Answers(
        truth,
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([0.9, 0.6, 0.8, 0.7]),
        torch.tensor([0.1, 0.5, 1.6, 0.3]),
    )


def test_calibration_is_the_gap_between_probability_and_share_of_right_answers() -> None:
    assert answers().calibration_error() == pytest.approx((0.1 + 0.6 + 0.8 + 0.3) / 4)
    sure = torch.ones(10)
    right = torch.zeros(10, dtype=torch.int64)
    assert Answers(right, right, sure, sure).calibration_error() == pytest.approx(0.0)


def test_the_worst_mistakes_come_first() -> None:
    assert answers().worst(5).tolist() == [2, 1] and answers().worst(1).tolist() == [2]


class LooksAtOneCorner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 3, stride=2, padding=1)
        self.head = nn.Linear(2, 2)
        nn.init.ones_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.features(images.float() / 255).relu()
        logits: Tensor = self.head(found.mean((2, 3)))
        return logits


def test_heat_is_where_the_answer_came_from() -> None:
    network = LooksAtOneCorner()
    with torch.no_grad():
        network.features.weight.fill_(1.0)
        assert network.features.bias is not None
        network.features.bias.zero_()
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    images[:, :, :8, 24:] = 255
    heat = heat_maps(network, images, torch.tensor([0, 1]))
    assert heat is not None and heat.shape == (2, 32, 32) and float(heat.max()) <= 1
    assert float(heat[0, :6, 26:].min()) > 0.5 and float(heat[0, 16:].max()) < 0.1


@pytest.mark.parametrize("network", ["residual", "speed"])
def test_our_networks_have_heat_and_mistakes_are_drawn(network: str) -> None:
    data = tiny_data()
    config = tiny_config(network=network, widths="8,8,8")
    found = Classifier(to_dict(config), data.classes).network
    wrong = Answers(
        data.test.labels, (data.test.labels + 1) % 4, torch.full((120,), 0.5), torch.rand(120)
    )
    mistakes = find_mistakes(found, data.test, wrong)
    assert len(mistakes) == 12 and mistakes.heat is not None
    place = int(wrong.worst(1)[0])
    assert torch.equal(mistakes.images[0], pixels_of(data.test)[place])
    drawn = pictures.to_png(pictures.draw_mistakes(mistakes, data.classes))
    assert drawn.startswith(b"\x89PNG")


def test_a_set_without_mistakes_needs_no_picture() -> None:
    data = tiny_data()
    network = Classifier(to_dict(tiny_config()), data.classes).network
    labels, sure = data.test.labels, torch.ones(120)
    assert len(find_mistakes(network, data.test, Answers(labels, labels, sure, sure))) == 0


def test_names_that_no_font_can_show_become_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pictures.names_for_pictures(["cat", "Käfer"])[0] == ["cat", "Käfer"]
    known = fonts.signs_of
    monkeypatch.setattr(fonts, "signs_of", lambda path: known(path) - {ord("猫")})
    assert pictures.names_for_pictures(["cat", "猫"]) == (["1", "2"], None)


def test_a_font_that_has_the_signs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    known = fonts.signs_of

    def signs(path: str) -> frozenset[int]:
        return known(path) | {ord("猫")} if Path(path).name == "DejaVuSerif.ttf" else known(path)

    monkeypatch.setattr(fonts, "signs_of", signs)
    names, font = pictures.names_for_pictures(["猫"])
    assert names == ["猫"] and font is not None
    assert ord("猫") in fonts.signs_of(str(font.get_file()))


def test_the_curves_say_what_was_done_to_the_training_s_loss() -> None:
    config = {"mixup_prob": 0.5, "label_smoothing": 0.1, "class_weights": "none"}
    assert pictures.training_label(config) == "training (mixed images, smoothed labels)"
    assert pictures.training_label({"mixup_prob": 0.0}) == "training"


@pytest.mark.parametrize(
    ("uneven", "shown"), [(True, " (mean recall 50.00%)"), (False, ""), (None, "")]
)
def test_nor_does_it_on_the_laptop(uneven: bool | None, shown: str) -> None:
    told = {"test_accuracy": 0.9, "uneven": uneven, "macro": {"recall": 0.5, "f1": 0.47}}
    assert decode(Summary, told).beside_accuracy == shown
