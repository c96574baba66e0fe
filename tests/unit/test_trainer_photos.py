"""Images of one's own at their own size: what is read as it is needed, and that it is learnt."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from tests.support.training import pixels_of, signals_kept, tiny_config, tiny_data
from trainer.data import store, workers
from trainer.data.data_module import ImageDataModule, WorkerLoader
from trainer.data.decode import Form, decode, reason, usual_size
from trainer.data.images import Arrays, Files, ImageData
from trainer.data.sources import load_images
from trainer.data.workers import LoaderOptions, as_tensors, evaluation_batches, make_loader
from trainer.evaluate import evaluate_checkpoint
from trainer.training import train


def write_textures(folder: Path, count: int) -> Path:
    """256 pixels a side; the class is whether fine stripes, 5 pixels wide each, lie or stand. Only
    they tell it: colour, brightness and coarse noise are the same in both."""
    random = np.random.default_rng(3)
    rows = np.arange(256)
    for part, number in (("train", count), ("test", count // 2)):
        for name in ("lying", "standing"):
            (folder / part / name).mkdir(parents=True)
            for image in range(number):
                wave = 50 * np.sin(2 * np.pi * (rows / random.uniform(5, 6) + random.random()))
                stripes = np.broadcast_to(wave[:, None], (256, 256))
                coarse = random.normal(0, 25, (8, 8)).repeat(32, 0).repeat(32, 1)
                pixels = 128 + coarse + (stripes if name == "lying" else stripes.T)
                colour = random.uniform(0.8, 1.2, 3)
                rgb = (pixels[..., None] * colour).clip(0, 255).astype(np.uint8)
                Image.fromarray(rgb).save(folder / part / name / f"{image}.png")
    return folder


@pytest.fixture(scope="module")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_textures(tmp_path_factory.mktemp("textures"), 80)


def quiet(text: str) -> None:
    pass


def load(folder: Path, size: int = 0, **options: Any) -> ImageData:
    return load_images(str(folder), quiet, image_size=size, **options)


def photo_config(**changes: object) -> Any:
    return tiny_config(**{"batch_size": 20, "pin_memory": False, "num_workers": 0, **changes})


@pytest.mark.parametrize(("size", "learnt"), [(128, True), (32, False)])
def test_what_only_the_fine_texture_tells_is_learnt_where_it_is_seen(
    textures: Path, tmp_path: Path, size: int, learnt: bool
) -> None:
    config = photo_config(
        image_size=size,
        max_epochs=4,
        restart_epochs=4,
        learning_rate=0.003,
        learning_rate_batch=0,
        mixup_prob=0,
        widths="8,16",
        crop_scale=0.5,
    )
    with signals_kept():
        summary = train(config, load(textures, size), tmp_path)
    if learnt:
        assert summary["test_accuracy"] > 0.9
    else:
        # 80 test images: three standard errors of guessing.
        assert abs(summary["test_accuracy"] - 0.5) < 0.17


def test_the_size_is_told_from_the_files(textures: Path, tmp_path: Path) -> None:
    data = load(textures)
    assert isinstance(data.train, Files) and data.image_size == 224
    assert pixels_of(data.test)[:2].shape == (2, 3, 224, 224)
    for side, size in ((20, 32), (32, 32), (75, 64), (100, 96), (230, 224), (3000, 224)):
        Image.new("1", (side, side + 9)).save(tmp_path / "one.png")
        assert usual_size([str(tmp_path / "one.png")]) == size


def test_small_images_are_used_at_a_larger_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pretrained network wants CIFAR-10: kept small, enlarged when they are used."""
    monkeypatch.setattr("trainer.data.sources.make_synthetic", lambda: tiny_data(80, 20))
    own, data = (load_images("synthetic", quiet, image_size=size) for size in (0, 96))
    assert isinstance(data.train, Arrays) and data.train.images.shape[-1] == 32
    assert data.image_size == 96 and own.sha256 == data.sha256
    whole = v2.functional.resize(pixels_of(own.test), [96, 96], antialias=True)
    assert torch.equal(pixels_of(data.test), whole), "nothing is cut off"
    with signals_kept():
        summary = train(photo_config(image_size=96, max_epochs=1), data, tmp_path)
    evaluation, _, _ = evaluate_checkpoint(tmp_path / "weights.pt", "synthetic", "cpu")
    assert summary["data"]["image_size"] == 96
    assert evaluation.accuracy == summary["test_accuracy"] and evaluation.count == 20


def test_a_folder_of_small_images_lies_in_memory_at_their_own_size(tmp_path: Path) -> None:
    for number in range(8):
        place = tmp_path / ("train", "test")[number % 2] / f"c{number // 4}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (30 * number, 0, 0)).save(place)
    small, large = load(tmp_path), load(tmp_path, 96)
    assert isinstance(large.train, Arrays) and large.train.images.shape[-1] == 32
    assert large.image_size == 96 and large.sha256 == small.sha256
    Image.new("RGB", (300, 300)).save(tmp_path / "train" / "c0" / "0.png")
    assert isinstance(load(tmp_path, 96).train, Files), "a large one keeps its details"


def test_a_crop_follows_from_seed_epoch_and_index_alone(textures: Path) -> None:
    files, config = load(textures).train, photo_config(flip="none")
    assert isinstance(files, Files)
    some = torch.tensor([3, 70, 11])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    crops = files.crops(some, 2, config)
    assert torch.equal(torch.get_rng_state(), state), "other draws are not disturbed"
    assert torch.equal(files.crops(some[1:2], 2, config), crops[1:2])
    assert not torch.equal(files.crops(some, 3, config), crops)
    assert not torch.equal(files.crops(some, 2, dataclasses.replace(config, seed=2)), crops)
    twice = files.take(torch.tensor([3, 3])).crops(torch.tensor([0, 1]), 2, config)
    assert not torch.equal(twice[0], twice[1]), "another index, another part of the same image"
    alternate = dataclasses.replace(config, flip="alternate")
    mirrored = [files.crops(some, 2, alternate) != crops, files.crops(some, 2, config) != crops]
    assert mirrored[0].any() and not mirrored[1].any()


def test_workers_that_begin_within_an_epoch_make_the_same_batches_as_the_process_itself(
    textures: Path,
) -> None:
    data = load(textures, 96)
    epochs = []
    for number, start in ((0, 0), (2, 2)):
        module = ImageDataModule(data, photo_config(num_workers=number, flip="alternate"))
        assert module.loader_kind == "workers"
        epochs.append(list(WorkerLoader(module).batches(1, start))[2 - start :])
    assert len(epochs[0]) == module.steps_per_epoch - 2 > 0
    for one, other in zip(*epochs, strict=True):
        assert one[0].shape == (20, 3, 96, 96) and one[0].dtype == torch.uint8
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_evaluation_sees_every_image_once_whoever_reads_it(
    textures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "EVALUATED", 200)
    test = load(textures, 96).test
    whole = [labels for _, labels in evaluation_batches(test, 2)]
    assert torch.equal(torch.cat(whole), test.labels)
    shares = [list(evaluation_batches(test, 0, rank, 2)) for rank in (0, 1)]
    assert sum(len(labels) for share in shares for _, labels in share) == len(test)
    assert torch.equal(shares[1][0][0], pixels_of(test)[1:64:2])


def test_the_store_gives_what_the_files_give_and_is_made_once(
    textures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = load(textures, 112)
    monkeypatch.setattr(store, "ROOM_SHARE", 0.0)
    monkeypatch.setattr(store, "read_index", lambda path: None)
    said: list[str] = []
    read = load_images(str(textures), said.append, image_size=112)
    assert any("no disk has room to keep" in text for text in said)
    assert isinstance(kept.train, Files) and isinstance(read.train, Files)
    assert kept.train.source.pixels is not None and read.train.source.pixels is None
    assert torch.equal(pixels_of(kept.train), pixels_of(read.train))
    assert kept.sha256 == read.sha256
    monkeypatch.undo()
    monkeypatch.setattr(store, "decode", None)
    assert torch.equal(pixels_of(load(textures, 112).test), pixels_of(kept.test))


def test_a_store_that_is_cut_off_is_made_anew_and_what_a_killed_one_left_is_removed(
    textures: Path,
) -> None:
    before = pixels_of(load(textures, 80).test)
    [file] = (textures / ".decoded").glob("*-80-whole.bin")
    file.write_bytes(file.read_bytes()[:-1])
    left, alive = (file.with_name(f"{file.stem}.{number}.tmp") for number in (1, 2))
    for part in (left, alive):
        part.write_bytes(b"x")
    os.utime(left, (0, 0))
    assert torch.equal(pixels_of(load(textures, 80).test), before)
    assert alive.exists() and not left.exists()


def test_a_set_is_sent_to_a_worker_without_its_pixels(textures: Path) -> None:
    assert len(pickle.dumps(load(textures, 96).train)) < 60_000


def test_a_large_photograph_is_kept_small_and_upright(tmp_path: Path) -> None:
    pixels = np.zeros((1500, 2000, 3), np.uint8)
    pixels[:750, :, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    kept, mode = decode(str(tmp_path / "photo.jpg"), Form(224))
    assert mode == "RGB" and kept.shape[0] > kept.shape[1]
    assert 256 <= kept.shape[1] < 512
    assert kept[:, -1, 0].min() > 200 and kept[:, 0, 0].max() < 50, "red is on the right now"


def test_float_images_are_scaled_by_their_own_range(tmp_path: Path) -> None:
    for name, value in (("unit", 0.5), ("bytes", 128.0)):
        Image.fromarray(np.full((40, 40), value, np.float32)).save(tmp_path / f"{name}.tif")
        pixels, _ = decode(str(tmp_path / f"{name}.tif"), Form(32))
        assert set(pixels.flatten().tolist()) <= {127, 128}


# -- shared memory


OPTIONS = LoaderOptions(workers=8, batch_bytes=19_267_584, prefetch_factor=2)


def test_shared_memory_that_is_too_small_is_noticed_before_a_worker_dies() -> None:
    assert workers.shared_memory_note(OPTIONS, None) == ""
    assert workers.shared_memory_note(OPTIONS, 2 << 30) == ""
    assert workers.shared_memory_note(OPTIONS, 64 << 20) == (
        "/dev/shm has 67 MB free, and loading would fill 328 MB: batches go through pipes instead,"
        " which takes longer. More of it: docker run --shm-size=1g"
    )


def test_batches_that_go_through_pipes_are_the_same(
    textures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = load(textures, 96).test
    assert isinstance(files, Files)
    parts = [torch.arange(first, first + 20) for first in (0, 20, 40)]
    batches: Any = workers._Evaluated(files)

    def read() -> list[torch.Tensor]:
        options = LoaderOptions(workers=1, batch_bytes=20 * 3 * 96 * 96)
        return [images for images, _ in as_tensors(make_loader(batches, parts, options))]

    usual = read()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(workers, "shared_memory_free", lambda: 1 << 20)
    through_pipes = read()
    assert "go through pipes" in capsys.readouterr().out
    assert all(torch.equal(one, other) for one, other in zip(usual, through_pipes, strict=True))


def test_trainings_that_decode_the_same_at_once_write_the_same(
    textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a sweep does at its first start: the pixels of one come under the index of another."""

    def unevenly(path: str, form: Form) -> Any:
        time.sleep(random.random() / 200)
        return decode(path, form)

    paths = sorted(map(str, textures.glob("train/*/*.png")))[::4]
    images = store.Set(textures, paths, "key", Form(112))
    monkeypatch.setattr(store, "decode", unevenly)
    one, other = (store.write_pixels(tmp_path / name, images, quiet)[0] for name in ("1", "2"))
    assert one.file.read_bytes() == other.file.read_bytes()
    assert (one.starts == other.starts).all() and len(set(one.starts)) == len(paths)


def test_16_bits_are_scaled_by_the_bits_that_are_used(tmp_path: Path) -> None:
    """A camera's 12 bits would be almost black as 16."""
    for bits in (12, 16):
        values = np.linspace(0, 2**bits - 1, 32 * 32).astype(np.uint16).reshape(32, 32)
        for suffix in ("png", "tif"):
            Image.fromarray(values).save(tmp_path / f"{bits}.{suffix}")
            pixels, kind = decode(str(tmp_path / f"{bits}.{suffix}"), Form(32))
            assert kind == f"{bits}-bit" and (pixels.min(), pixels.max()) == (0, 255)
            assert 126 < pixels.mean() < 129


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_told(
    suffix: str, tmp_path: Path
) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    for name, more in (("one", []), ("two", frames[1:])):
        path = tmp_path / f"{name}.{suffix}"
        frames[0].save(path, save_all=True, append_images=more)
        pixels, kind = decode(str(path), Form(32))
        assert (kind == "animated") is (name == "two")
        assert pixels[..., 0].min() > 240 and pixels[..., 2].max() < 20


def test_a_reason_does_not_name_the_file_again(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for name, text in (("empty", "cannot identify image file"), ("no", "No such file or")):
        path = str(tmp_path / f"{name}.png")
        with pytest.raises(OSError) as caught:
            decode(path, Form(32))
        told = reason(caught.value, path)
        assert told.startswith(text) and path not in told and not told.endswith(" it")
