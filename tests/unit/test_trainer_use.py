"""What a trained network is used for afterwards: predictions, ONNX, code of one's own."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import trainer
from tests.support.photos import write_photos
from tests.support.training import signals_kept, tiny_config
from trainer import export, predict
from trainer.checkpoints import save_whole
from trainer.config import to_dict
from trainer.data.archive import DataError
from trainer.data.sources import load_images
from trainer.evaluate import evaluate_checkpoint
from trainer.model import Classifier
from trainer.training import train

ONNX = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in export.PACKAGES),
    reason=f"{', '.join(export.PACKAGES)} are not all installed",
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module", params=[32, 80])
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Path:
    """A training on red, green and blue images, in memory and read as needed."""
    place = tmp_path_factory.mktemp("run")
    config = tiny_config(
        data=str(photos),
        image_size=request.param,
        num_workers=0,
        pin_memory=False,
        batch_size=20,
        max_epochs=2,
        mixup_prob=0,
        learning_rate=0.01,
        learning_rate_batch=0,
        tta="flip",
    )
    with signals_kept():
        data = load_images(str(photos), lambda text: None, image_size=request.param)
        train(config, data, place)
    return place


def test_three_lines_of_one_s_own_code(run: Path, photos: Path) -> None:
    model = trainer.load(run)
    [found] = model.predict(photos / "test" / "green" / "0.png")
    assert found.label == "green" and 1 / 3 < found.probability <= 1
    assert found.top[0].label == "green" and len(found.top) == 3
    with pytest.raises(DataError, match="no image that can be read"):
        model.predict(run / "summary.json")


def test_predictions_are_those_of_the_evaluation(run: Path, photos: Path) -> None:
    evaluation, _, _ = evaluate_checkpoint(run / "weights.pt", str(photos), "cpu")
    model = trainer.load(run / "weights.pt", "cpu")
    paths = predict.find_images([str(photos / "test")], [])
    failed: list[str] = []
    right = [
        Path(found.path).parent.name == found.label for found in model.predict_each(paths, failed)
    ]
    assert len(right) == evaluation.count and not failed
    assert sum(right) / len(right) == pytest.approx(evaluation.accuracy)


def test_files_folders_and_patterns_as_csv_and_json(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG broken")
    places = [
        str(photos / "test" / "red" / "0.png"),
        str(photos / "test" / "blue"),
        str(photos / "*" / "green" / "1?.png"),
        str(tmp_path / "nowhere"),
        str(tmp_path / "bad.png"),
    ]
    command = ["--checkpoint", str(run / "weights.pt"), "--accelerator", "cpu", *places]
    assert predict.main(command) == 3
    shown = capsys.readouterr()
    assert [line.partition(" (")[0] for line in shown.err.splitlines()] == [
        f"error: there is no image at {tmp_path / 'nowhere'}: name a file, a folder or a pattern",
        f"error: {tmp_path / 'bad.png'} is no image that can be read",
    ]
    rows = list(csv.DictReader(io.StringIO(shown.out)))
    assert len(rows) == 1 + 20 + 20 and rows[0]["path"] == places[0]
    assert rows[0]["class"] == "red" and rows[1]["class"] == "blue"
    shares = [float(rows[0][f"probability{end}"]) for end in ("", "_2", "_3")]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    out = tmp_path / "found.json"
    assert predict.main([*command[:-2], "--json", "--output", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [one["path"] for one in found] == [row["path"] for row in rows]
    assert found[0]["class"] == found[0]["top"][0]["class"] == "red"


@pytest.mark.parametrize(
    ("path", "checkpoint", "text"),
    [
        ("nowhere/*.png", "weights.pt", "there is no image at nowhere/*.png: name a file, a"),
        ("{run}/curves.png", "summary.json", "can't be loaded as a checkpoint of this trainer"),
        ("{run}/curves.png", "logs", "no trained network in the folder {run}/logs"),
    ],
)
def test_nothing_to_predict_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str], path: str, checkpoint: str, text: str
) -> None:
    given = path.format(run=run)
    assert predict.main(["--checkpoint", str(run / checkpoint), given]) == 3
    shown = capsys.readouterr().err
    assert text.format(run=run) in shown and shown.count("\n") == 1


def test_reading_the_configuration_takes_no_torch() -> None:
    code = "import trainer, sys; assert 'torch' not in sys.modules; trainer.load"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- ONNX


def test_a_missing_package_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "PACKAGES", ("torch", "onnx_that_nobody_has"))
    command = ["--checkpoint", str(run / "weights.pt"), "--to", str(tmp_path / "m.onnx")]
    assert export.main(command) == 4
    assert capsys.readouterr().err == (
        "error: the export needs onnx_that_nobody_has: pip install onnx_that_nobody_has\n"
    )


@ONNX
def test_an_export_agrees_with_torch_and_says_how_to_use_it(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnxruntime

    target = tmp_path / "model.onnx"
    command = ["--checkpoint", str(run / "weights.pt"), "--to", str(target)]
    assert export.main(command) == 3
    assert "name some real images to check the export on: --images PATH" in capsys.readouterr().err
    assert not target.exists()
    assert export.main([*command, "--images", str(photos / "test")]) == 0
    assert "onnxruntime and torch agree to" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    model = trainer.load(run / "weights.pt", "cpu")
    assert json.loads(about["classes"]) == ["blue", "green", "red"]
    size = int(about["image_size"])
    assert model.form.size == size and "preprocessing" in about
    with Image.open(photos / "test" / "red" / "0.png") as image:
        assert image.size != (size, size)
    for count in (1, 3):
        images = torch.stack([model.read(photos / "test" / "red" / "0.png")] * count)
        [logits] = session.run(None, {"images": images.numpy()})
        assert json.loads(about["classes"])[logits[0].argmax()] == "red" and len(logits) == count


@ONNX
def test_an_export_that_differs_is_not_written(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "compare", lambda network, file, images: 0.01)
    target = tmp_path / "model.onnx"
    command = ["--checkpoint", str(run / "weights.pt"), "--to", str(target)]
    assert export.main([*command, "--images", str(photos / "test" / "red")]) == 5
    assert list(tmp_path.iterdir()) == []


@ONNX
def test_the_speed_network_exports_too(photos: Path, tmp_path: Path) -> None:
    config = tiny_config(network="speed", widths="8,8,8", image_size=32)
    made = Classifier(to_dict(config), ("blue", "green", "red"))
    content = {"state_dict": made.state_dict(), "hyper_parameters": dict(made.hparams)}
    save_whole(content, tmp_path / "weights.pt")
    command = ["--checkpoint", str(tmp_path / "weights.pt"), "--to", str(tmp_path / "m.onnx")]
    assert export.main([*command, "--images", str(photos / "test")]) == 0
