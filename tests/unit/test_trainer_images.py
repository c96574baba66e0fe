"""What an image becomes, which images steer, and that both loaders give the same."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tests.support.training import tiny_config, tiny_data
from trainer.data.archive import DataError
from trainer.data.augment import augment, cut_out, epoch_order, mixup_draw, random_integers, shift
from trainer.data.data_module import DeviceLoader, ImageDataModule, WorkerLoader
from trainer.data.splits import deal_out, split_indices

ALL = {"flip": "random", "crop_padding": 4, "cutout": 8}
IMAGES = torch.randint(
    0, 256, (50, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
INDICES = torch.arange(50)


# -- augmentation


@pytest.mark.parametrize("flip", ["random", "alternate"])
def test_an_image_s_fate_follows_from_seed_epoch_and_index_alone(flip: str) -> None:
    config = tiny_config(**{**ALL, "flip": flip})
    whole = augment(IMAGES, INDICES, 3, config)
    chosen = torch.tensor([49, 7, 0, 23])
    assert torch.equal(augment(IMAGES[chosen], chosen, 3, config), whole[chosen])
    assert torch.equal(augment(IMAGES[7:8], chosen[1:2], 3, config), whole[7:8])
    assert not torch.equal(augment(IMAGES, INDICES, 4, config), whole)
    assert not torch.equal(
        augment(IMAGES, INDICES, 3, tiny_config(**{**ALL, "flip": flip, "seed": 2})), whole
    )


def test_a_shift_is_a_crop_of_the_image_padded_by_reflection() -> None:
    config = tiny_config(crop_padding=4)
    shifted = shift(IMAGES, INDICES, 2, config)
    padded = F.pad(IMAGES.float(), (4, 4, 4, 4), mode="reflect").byte()
    places = set()
    for image, around in zip(shifted, padded, strict=True):
        found = [
            (y, x)
            for y in range(9)
            for x in range(9)
            if torch.equal(image, around[:, y : y + 32, x : x + 32])
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 25, "50 images, 81 places"


def test_alternate_flip_mirrors_every_other_epoch() -> None:
    config = tiny_config(flip="alternate", crop_padding=0)
    even, odd, again = (augment(IMAGES, INDICES, epoch, config) for epoch in (0, 1, 2))
    assert torch.equal(odd, even.flip(-1)) and torch.equal(again, even)
    mirrored = sum(
        torch.equal(image, before.flip(-1)) for image, before in zip(even, IMAGES, strict=True)
    )
    assert 10 < mirrored < 40, "about half of them from the start"


def test_random_flip_is_drawn_anew_in_each_epoch() -> None:
    config = tiny_config(flip="random", crop_padding=0)
    fates = torch.stack(
        [
            (augment(IMAGES, INDICES, epoch, config) != IMAGES).flatten(1).any(1)
            for epoch in range(40)
        ]
    )
    assert 0.44 < fates.float().mean() < 0.56
    assert fates.float().mean(0).min() > 0.1 and fates.float().mean(0).max() < 0.9


@pytest.mark.parametrize("below", [2, 9, 32])
def test_random_integers_are_uniform_over_indices_epochs_and_streams(below: int) -> None:
    indices = torch.arange(20_000)
    draws = [
        random_integers(indices, below, 1, epoch, stream)
        for epoch, stream in ((0, 0), (1, 0), (0, 1))
    ]
    for draw in draws:
        expected = len(indices) / below
        deviation = sum(
            (count - expected) ** 2 / expected
            for count in torch.bincount(draw, minlength=below).tolist()
        )
        assert deviation < 3 * below + 12, "chi squared"
    for one, other in ((0, 1), (0, 2)):
        assert abs(float((draws[one] == draws[other]).float().mean()) - 1 / below) < 0.02


def test_random_integers_are_the_same_as_ever() -> None:
    """A resumed training on a newer version must see the same images."""
    assert random_integers(torch.tensor([0, 1, 2, 49_999]), 1000, 1, 0, 0).tolist() == [
        915,
        396,
        583,
        116,
    ]


def test_cut_out_greys_a_square_that_may_reach_over_the_border() -> None:
    black = torch.zeros_like(IMAGES)
    cut = cut_out(black, INDICES, 0, tiny_config(cutout=8)) == 122
    areas = cut[:, 0].flatten(1).sum(1)
    assert int(areas.max()) == 64 and int(areas.min()) >= 16
    assert torch.equal(cut[:, 0], cut[:, 2])
    for image in cut[:, 0]:
        rows, columns = image.any(1).sum(), image.any(0).sum()
        assert int(image.sum()) == int(rows * columns), "a rectangle"


def test_mixup_s_draw_follows_from_seed_epoch_and_batch() -> None:
    config = tiny_config(mixup_prob=0.5, mixup_alpha=0.2)
    draws = [mixup_draw(40, config, 1, batch) for batch in range(400)]
    assert 160 < sum(draw is not None for draw in draws) < 240
    for batch, draw in enumerate(draws[:50]):
        again = mixup_draw(40, config, 1, batch)
        if draw is None or again is None:
            assert draw is again
            continue
        assert draw[0] == again[0] and torch.equal(draw[1], again[1])
        assert 0 <= draw[0] <= 1 and sorted(draw[1].tolist()) == list(range(40))
    assert mixup_draw(40, tiny_config(mixup_prob=0), 1, 0) is None
    assert all(mixup_draw(40, tiny_config(mixup_prob=1), 1, batch) for batch in range(20))


# -- loaders


def module_for(**changes: Any) -> ImageDataModule:
    return ImageDataModule(
        tiny_data(), tiny_config(**{**ALL, "batch_size": 32, "pin_memory": False, **changes})
    )


def batches(
    loader: DeviceLoader | WorkerLoader, epoch: int, start: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(images.clone(), labels.clone()) for images, labels in loader.batches(epoch, start)]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_and_the_device_s_loader_give_the_same_batches(workers: int) -> None:
    module = module_for(num_workers=workers)
    of_workers, of_device = WorkerLoader(module), DeviceLoader(module)
    for epoch, start in ((0, 0), (1, 4), (2, 0)):
        expected = batches(of_device, epoch, start)
        assert len(expected) == module.steps_per_epoch - start > 0
        for one, other in zip(batches(of_workers, epoch, start), expected, strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_an_epoch_begun_in_its_middle_goes_on_as_it_would_have() -> None:
    loader = DeviceLoader(module_for())
    whole, rest = batches(loader, 5), batches(loader, 5, 3)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(whole[3:], rest, strict=True))


def test_processes_share_out_what_one_would_take_alone() -> None:
    alone = module_for(batch_size=64)
    shares = [module_for(batch_size=32) for _ in range(2)]
    for rank, module in enumerate(shares):
        module.rank, module.world = rank, 2
    assert shares[0].steps_per_epoch == alone.steps_per_epoch
    for batch in range(alone.steps_per_epoch):
        together = torch.stack([module.epoch_indices(1, batch) for module in shares], 1).flatten()
        assert torch.equal(together, alone.epoch_indices(1, batch))


def test_every_image_is_seen_at_most_once_in_an_epoch() -> None:
    module = module_for()
    seen = torch.cat([module.epoch_indices(0, batch) for batch in range(module.steps_per_epoch)])
    assert len(seen) == len(torch.unique(seen)) == module.steps_per_epoch * 32
    assert not torch.equal(epoch_order(100, 1, 0), epoch_order(100, 1, 1))


def test_blocks_of_batches_are_augmented_as_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_for()
    single = batches(DeviceLoader(module), 0, 1)
    monkeypatch.setattr("trainer.data.data_module.block_size", lambda device: 4)
    for one, other in zip(batches(DeviceLoader(module), 0, 1), single, strict=True):
        assert torch.equal(one[0], other[0])


# -- the validation split


def test_the_split_is_stratified_disjoint_and_the_same_for_every_seed() -> None:
    labels = torch.arange(50_000) % 10
    train, validation = split_indices(labels, tiny_config(validation_max=5000))
    assert len(train) == 45_000 and len(validation) == 5000
    assert set(Counter(labels[validation].tolist()).values()) == {500}
    assert not set(train.tolist()) & set(validation.tolist())
    assert torch.equal(
        split_indices(labels, tiny_config(validation_max=5000, seed=9))[1], validation
    )


def test_the_split_takes_at_most_5000() -> None:
    labels = torch.arange(120_000) % 7
    assert len(split_indices(labels, tiny_config(validation_max=5000))[1]) == 5000


@given(
    st.lists(st.integers(1, 400), min_size=2, max_size=12),
    st.floats(0.01, 0.9),
    st.integers(1, 300),
)
def test_every_class_is_in_both_parts_and_the_limit_holds(
    counts: list[int], fraction: float, limit: int
) -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    config = tiny_config(validation_fraction=fraction, validation_max=limit)
    larger = sum(count > 1 for count in counts)
    try:
        train, validation = split_indices(labels, config)
    except DataError:
        assert not larger
        return
    assert len(validation) <= max(min(limit, round(fraction * len(labels))), larger)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        assert (labels[train] == label).any()
        assert bool((labels[validation] == label).any()) == (count > 1)


@given(st.lists(st.integers(20, 400), min_size=2, max_size=12), st.integers(50, 500))
def test_shares_are_within_an_image_of_the_proportion(counts: list[int], wanted: int) -> None:
    wanted = min(wanted, sum(counts) // 2)
    held = deal_out(wanted, counts)
    assert sum(held) == max(wanted, len(counts))
    if wanted >= sum(counts) * len(counts) / min(counts):
        assert all(
            abs(part - wanted * count / sum(counts)) <= 1
            for part, count in zip(held, counts, strict=True)
        )


def test_small_classes_take_their_one_image_from_the_large_one_s_share() -> None:
    assert deal_out(5, [2, 2, 2, 100]) == [1, 1, 1, 2]
    assert deal_out(3, [1, 2, 2, 100]) == [0, 1, 1, 1]


def test_a_split_of_nothing_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=(
            "no image is left for validation: add images, or set validation_fraction 0 and"
            " patience 0"
        ),
    ):
        split_indices(torch.arange(3), tiny_config())


def test_without_a_split_all_images_are_trained_on() -> None:
    train, validation = split_indices(
        torch.arange(30) % 3, tiny_config(validation_fraction=0, patience=0)
    )
    assert len(train) == 30 and not len(validation)


def test_fewer_images_are_taken_evenly_and_never_from_the_validation_s() -> None:
    labels = torch.arange(1000) % 4
    _, validation = split_indices(labels, tiny_config())
    train, same = split_indices(labels, tiny_config(train_images=200))
    assert torch.equal(same, validation) and not set(train.tolist()) & set(same.tolist())
    assert set(Counter(labels[train].tolist()).values()) == {50}
