"""A bundle to hand in: what of a fetched run goes in, its README, its checksums, and whether it is
what it claims."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.errors import TransferFailed, UsageError
from remote.project.results import load
from remote.records import Asked
from remote.screen.text import duration, percent
from remote.submission.secret_scan import Finding, search, without_home

SUMS, README, RECIPE, EVALUATION = "SHA256SUMS", "README.md", "recipe.yaml", "evaluation.json"
README_TEMPLATE = Path(__file__).with_name("bundle_readme.md")
TEXTS = ("train.log", "metrics.csv", "summary.json", "report.md", "gpu.csv")
PICTURES = ("curves.png", "confusion.png", "mistakes.png")
MOST_BYTES = 100 * 1000 * 1000
"""GitHub refuses larger files."""
ELSEWHERE = ("run_dir", "data", "devices")
"""Fields of a configuration that belong to the machine, not to the recipe."""
TOLERANCE = 0.002
"""Of the accuracy, between a GPU's bf16 and a CPU's fp32; on the same device there is no
difference."""


@dataclass(frozen=True)
class Claim:
    """What a run's summary says, as far as a bundle needs it."""

    accuracy: float
    images: int
    data_sha256: str
    summary: Mapping[str, Any]


def read_claim(folder: Path) -> Claim:
    """From summary.json. Raises UsageError where there is nothing to hand in."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        accuracy, images = float(summary["test_accuracy"]), int(summary.get("test_images") or 0)
        sha256 = str((summary.get("data") or {}).get("sha256") or "")
    except FileNotFoundError:
        if load(Asked, folder).finish == "exit":
            text = f"{folder} is of a command of your own, which tells no accuracy to submit"
            raise UsageError(text, remedy="hand in that folder as it is") from None
        text = f"{folder} has no summary.json: the training has not finished, or is not here"
        raise UsageError(text, remedy="fab -H … fetch-results") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{folder}/summary.json tells no test_accuracy", remedy="fetch the run again"
        ) from None
    return Claim(accuracy, images, sha256, summary)


def collect(run: Path, bundle: Path) -> list[str]:
    """Copy what belongs into a bundle; returns what was left out, with the reason."""
    left = []
    for name in ("source", "weights.pt"):
        if not (run / name).exists():
            raise UsageError(
                f"{run} has no {name}", remedy="fetch the whole run: fab -H … fetch-results"
            )
    for name in ("source", "logs"):
        if (run / name).is_dir():
            shutil.copytree(run / name, bundle / name, symlinks=True)
    for name in ("weights.pt", *PICTURES):
        if (run / name).exists():
            shutil.copyfile(run / name, bundle / name)
    for name in TEXTS:
        if (run / name).exists():
            text = (run / name).read_text(encoding="utf-8", errors="replace")
            (bundle / name).write_text(without_home(text), encoding="utf-8", newline="")
    for path in files_of(bundle):
        size = (bundle / path).lstat().st_size
        if size >= MOST_BYTES:
            (bundle / path).unlink()
            left.append(f"{path} ({size / 1e6:.0f} MB; GitHub takes less than 100)")
    if not (bundle / "weights.pt").exists():
        raise UsageError(
            f"weights.pt is too large to hand in: {left[0]}", remedy="train a narrower network"
        )
    return left


def files_of(folder: Path) -> list[str]:
    """Every file and link below, with `/`, sorted; without a repository's own."""
    found = []
    for place, folders, names in os.walk(folder):
        here = Path(place).relative_to(folder)
        if here == Path():
            folders[:] = [name for name in folders if name != ".git"]
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        found += [(here / name).as_posix() for name in [*names, *links]]
    return sorted(found)


def summed_files(folder: Path) -> list[str]:
    return [path for path in files_of(folder) if path != SUMS and not (folder / path).is_symlink()]


def sums_of(folder: Path) -> str:
    """A line per file as `sha256sum` writes and reads it: a name with a newline or backslash is
    escaped, and its line begins with one."""
    lines = []
    for path in summed_files(folder):
        escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        mark = "" if escaped == path else "\\"
        lines.append(f"{mark}{digest(folder / path)}  {escaped}\n")
    return "".join(lines)


def parse_sums(text: str) -> dict[str, str]:
    """Path → hash."""
    found = {}
    for line in text.split("\n"):
        sha256, separator, path = line.removeprefix("\\").partition("  ")
        if separator:
            if line.startswith("\\"):
                path = re.sub(
                    r"\\(.)", lambda match: {"n": "\n", "r": "\r"}.get(match[1], match[1]), path
                )
            found[path] = sha256
    return found


def digest(file: Path) -> str:
    found = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def problems_of(folder: Path) -> list[str]:
    """Why a bundle is not what it claims; empty where it is."""
    try:
        listed = parse_sums((folder / SUMS).read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(
            f"{folder} is no bundle: it has no {SUMS}",
            remedy="name a folder that fab submit has made",
        ) from None
    problems = [*file_problems(folder, listed)]
    claimed = read_claim(folder).accuracy
    shown = re.search(r"^# .*?([0-9.]+%)", _text(folder / README), re.MULTILINE)
    if not shown or shown.group(1) != percent(claimed):
        problems.append(f"{README}: its accuracy is not the summary's {percent(claimed)}")
    checked: dict[str, Any] = {}
    try:
        checked = json.loads(_text(folder / EVALUATION) or "{}")
        if checked.get("weights_sha256") != listed.get("weights.pt"):
            problems.append(f"{EVALUATION}: it is about other weights")
        elif not agrees(measured := float(checked["test_accuracy"]), claimed):
            problems.append(f"{EVALUATION}: {percent(measured)} instead of {percent(claimed)}")
    except (ValueError, KeyError, TypeError, AttributeError):
        problems.append(f"{EVALUATION}: it tells no accuracy")
    return [*problems, *map(str, findings_in(folder, tuple(checked.get("accepted") or ())))]


def file_problems(folder: Path, listed: Mapping[str, str]) -> Iterator[str]:
    present = set(summed_files(folder))
    for path in sorted(listed.keys() - present):
        yield f"{path}: listed, but not here"
    for path in sorted(present - listed.keys()):
        yield f"{path}: here, but not in {SUMS}"
    for path in sorted(present & listed.keys()):
        if digest(folder / path) != listed[path]:
            yield f"{path}: changed"
    for path in sorted(present):
        if (folder / path).stat().st_size >= MOST_BYTES:
            yield f"{path}: too large for GitHub"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def agrees(found: float, claimed: float) -> bool:
    return abs(found - claimed) <= TOLERANCE


def check_evaluation(claim: Claim, evaluation: Mapping[str, Any]) -> None:
    """Raises TransferFailed where the weights don't give what was claimed, on the same images."""
    sha256 = str(evaluation.get("data_sha256") or "")
    if claim.data_sha256 and sha256 and sha256 != claim.data_sha256:
        raise TransferFailed(
            "these are not the images that the run was tested on: their hash is another",
            step="submit",
            remedy="name the same data with --data",
        )
    if not agrees(float(evaluation["test_accuracy"]), claim.accuracy):
        text = (
            f"the weights give {percent(evaluation['test_accuracy'])}, and the run claims"
            f" {percent(claim.accuracy)}"
        )
        raise TransferFailed(
            text, step="submit", remedy="fetch the run again; if it stays so, don't hand it in"
        )


def findings_in(folder: Path, accepted: Sequence[str] = ()) -> list[Finding]:
    return [finding for finding in search(folder, files_of(folder)) if finding.path not in accepted]


def recipe_text(summary: Mapping[str, Any]) -> str:
    """Every field of the run but the machine's, as a recipe file that the trainer takes."""
    config = dict(summary.get("config") or {})
    return "".join(
        f"{name}: {json.dumps(value)}\n" for name, value in config.items() if name not in ELSEWHERE
    )


def readme(claim: Claim, evaluation: Mapping[str, Any], left_out: list[str]) -> str:
    """What a reader of the repository sees first. The accuracy stands in its title. What the
    summary does not tell stands there as None."""
    parts = ("data", "config", "versions", "per_class")
    data, config, versions, classes = (dict(claim.summary.get(part) or {}) for part in parts)
    summary = defaultdict(lambda: None, claim.summary)
    about, warning = "Image classification", ""
    needed = "a CIFAR-10 archive or directory, or a folder of images as in training"
    if data.get("kind") == "synthetic":
        about, needed = "Synthetic images", "`synthetic`"
        warning = "The images are synthetic: the accuracy says nothing about real ones.\n\n"
    return README_TEMPLATE.read_text(encoding="utf-8").format(
        about=about,
        warning=warning,
        needed=needed,
        accuracy=percent(claim.accuracy),
        measured=percent(evaluation["test_accuracy"]),
        where=", on the server that had trained it" if evaluation.get("where") else "",
        images=claim.images,
        summary=summary,
        data=defaultdict(lambda: None, data),
        recipe=config.get("recipe", "?"),
        took=duration(summary["seconds"]),
        best=summary["best_epoch"] or "the last",
        devices="".join(f"- {line.strip()}\n" for line in summary["devices"] or ()),
        versions=", ".join(f"{name} {value}" for name, value in versions.items()),
        classes="".join(f"| {name} | {percent(value)} |\n" for name, value in classes.items()),
        left_out="".join(f"Left out: {item}.\n" for item in left_out),
    )
