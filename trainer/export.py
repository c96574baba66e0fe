"""A trained network as ONNX, checked on real images before it is called good: `python -m
trainer.export --checkpoint weights.pt --to model.onnx --images PATH…`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import secrets
import sys
from pathlib import Path

import torch
from torch import Tensor

from trainer.data.archive import DataError
from trainer.data.sources import load_images
from trainer.evaluate import EXIT_DATA
from trainer.predict import Model, find_images, load

EXIT_MISSING, EXIT_DIFFERS = 4, 5
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Of a probability; and of a logit, in parts of the largest one."""
MOST_IMAGES = 500
BATCH = 50


class ExportError(Exception):
    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def need_packages() -> None:
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ExportError(
            f"the export needs {' and '.join(missing)}: pip install {' '.join(missing)}",
            EXIT_MISSING,
        )


def real_images(model: Model, places: list[str]) -> Tensor:
    """Some of the images, uint8 [N, 3, size, size]; without places those it was trained on are
    looked for. Raises DataError."""
    if places:
        failed: list[str] = []
        paths = find_images(places, failed)
        chosen = paths[:: max(1, len(paths) // MOST_IMAGES)][:MOST_IMAGES]
        found = model.read_all(chosen, failed)
        if not found:
            raise DataError(failed[0])
        return torch.stack([image for _, image in found])
    if not model.config.data:
        raise DataError("name some real images to check the export on: --images PATH…")
    data = load_images(
        model.config.data,
        lambda text: print(text, file=sys.stderr),
        download=False,
        image_size=model.config.image_size,
        skip_damaged=True,
    )
    spread = torch.linspace(0, len(data.test) - 1, min(MOST_IMAGES, len(data.test))).long()
    return data.test.batch(spread)


def export(model: Model, target: Path, images: Tensor) -> float:
    """Write `target`, which appears when onnxruntime agrees with torch on the images; returns the
    largest difference of a probability. Raises ExportError."""
    import onnx

    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")
    network = model.network.float().to(memory_format=torch.contiguous_format)
    try:
        program = torch.onnx.export(
            network,
            (images[:2].to(model.device),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
        onnx.helper.set_model_props(proto, metadata(model))
        part.write_bytes(proto.SerializeToString())
        difference = compare(network, part, images.to(model.device))
        if difference > TOLERANCE:
            raise ExportError(
                f"onnxruntime and torch differ by {difference:.2g} on {len(images)} images:"
                f" {target} was not written",
                EXIT_DIFFERS,
            )
        os.replace(part, target)
        return difference
    finally:
        part.unlink(missing_ok=True)


def metadata(model: Model) -> dict[str, str]:
    """What it takes to use the file without us."""
    form = model.form
    steps = (
        f"crop the middle square, resize to {form.size}×{form.size}"
        if form.fit
        else f"resize the shorter side to {form.shorter}, crop the middle {form.size}×{form.size}"
    )
    return {
        "classes": json.dumps(model.classes, ensure_ascii=False),
        "image_size": str(form.size),
        "input": "images: uint8 [batch, 3, height, width], RGB, 0 to 255; normalised inside",
        "preprocessing": f"upright as EXIF says, RGB on white, {steps}",
        "resize_shorter_side": str(form.shorter),
        "output": "logits: float [batch, classes]; softmax gives probabilities",
        "test_time_average": model.config.tta,
    }


@torch.no_grad()
def compare(network: torch.nn.Module, file: Path, images: Tensor) -> float:
    """The largest difference of a probability, or of a logit in parts of the largest one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for some in images.split(BATCH):  # type: ignore[no-untyped-call]
        expected = network(some).float().cpu()
        [given] = session.run(None, {"images": some.cpu().numpy()})
        got = torch.from_numpy(given)
        scale = expected.abs().max().clamp(min=1.0)
        apart = (got - expected).abs().max() / scale
        unsure = (got.softmax(1) - expected.softmax(1)).abs().max()
        worst = max(worst, float(apart), float(unsure))
    return worst


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.export",
        description="A trained network as ONNX, checked against torch on real images.",
        epilog=(
            "exit codes: 0 written and checked, 2 wrong options, 3 no checkpoint or no images, 4 a"
            " package is missing, 5 onnxruntime and torch differ"
        ),
    )
    parser.add_argument("--checkpoint", required=True, help="weights.pt or a checkpoint")
    parser.add_argument("--to", required=True, type=Path, metavar="FILE.onnx")
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="PATH",
        help=f"up to {MOST_IMAGES} of them are checked; default: the checkpoint's own test images",
    )
    options = parser.parse_args(arguments)
    try:
        need_packages()
        model = load(options.checkpoint, "cpu")
        images = real_images(model, options.images)
        difference = export(model, options.to, images)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_DATA
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    print(
        f"{options.to}: {options.to.stat().st_size / 1e6:.1f} MB; onnxruntime and torch agree to"
        f" {difference:.1g} on {len(images)} images"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
