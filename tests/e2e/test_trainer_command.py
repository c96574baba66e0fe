"""`python -m trainer.train` as people run it: stopped by a signal, and as two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.checkpoints import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--data",
    "synthetic",
    "--accelerator",
    "cpu",
    "--deterministic",
    "true",
    "--widths",
    "8",
    "--train_images",
    "900",
    "--validation_max",
    "100",
    "--mixup_prob",
    "0",
]
DEADLINE_S = 90.0


SCARCE = """
import os
from trainer import networks, train
original = networks.ResidualCNN.forward
def forward(self, images):
    if self.training and len(images) > 10 and os.environ.get("LOCAL_RANK") == "1":
        said = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"
        raise RuntimeError(said + " to allocate 1 bytes")
    return original(self, images)
networks.ResidualCNN.forward = forward
train.command()
"""
"""The second process alone has memory for ten images at a time."""


class Command:
    """A trainer in a session of its own, so that what it leaves behind is found and ended."""

    def __init__(
        self, folder: Path, *arguments: str, program: Sequence[str] = ("-m", "trainer.train")
    ) -> None:
        self.log = folder / "log"
        self.run_dir = folder / "run"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, *program, *arguments, "--run_dir", str(self.run_dir)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        return self.process.wait(timeout_s)

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not reached():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def until_epoch(self, number: int) -> None:
        self.until(lambda: f"epoch {number}/" in self.output())

    def output(self) -> str:
        return self.log.read_text()

    def last(self) -> dict[str, Any]:
        return load_checkpoint(self.run_dir / "checkpoints" / "last.ckpt")

    def summary(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run_dir / "summary.json").read_text())
        return content

    def members(self) -> list[int]:
        """Of its session, zombies left out."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return found

    def gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.members() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.members()

    def end(self) -> None:
        for pid in self.members():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    commands: list[Command] = []

    def begin(
        *arguments: str, folder: str = "a", program: Sequence[str] = ("-m", "trainer.train")
    ) -> Command:
        (tmp_path / folder).mkdir(exist_ok=True)
        commands.append(Command(tmp_path / folder, *arguments, program=program))
        return commands[-1]

    yield begin
    for command in commands:
        command.end()


def test_sigterm_saves_and_ends_with_143(start: Start) -> None:
    command = start(*TINY, "--max_epochs", "100000", "--patience", "0")
    command.until_epoch(2)
    asked = time.monotonic()
    command.process.terminate()
    assert command.wait() == 143 and time.monotonic() - asked < 10
    lines = command.output().splitlines()
    assert (
        lines[-1]
        == f"stopped; the state is saved. To go on: --resume auto --run_dir {command.run_dir}"
    )
    assert "Traceback" not in command.output()
    state = command.last()["training"]
    assert state["step"] == state["epoch"] * 7 + state["batch"] and state["epoch"] >= 2
    assert not (command.run_dir / "summary.json").exists() and command.gone_within(2)

    again = start("--resume", "auto", "--max_epochs", str(state["epoch"] + 1))
    assert again.wait() == 0, again.output()
    assert again.summary()["epochs"] == state["epoch"] + 1
    shown = subprocess.run(
        [
            sys.executable,
            "-m",
            "trainer.evaluate",
            "--checkpoint",
            str(again.run_dir / "weights.pt"),
            "--data",
            "synthetic",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert shown.stdout.splitlines()[0] == f"test_accuracy {again.summary()['test_accuracy']:.4f}"


def test_sigterm_with_loader_workers_leaves_none_behind(start: Start) -> None:
    command = start(
        *TINY,
        "--max_epochs",
        "100000",
        "--patience",
        "0",
        "--loader",
        "workers",
        "--num_workers",
        "2",
    )
    command.until_epoch(1)
    assert len(command.members()) == 3
    command.process.terminate()
    assert command.wait(15) == 143 and command.gone_within(5)
    assert command.last()["training"]["epoch"] >= 1


def test_a_missing_gpu_is_said_aloud(start: Start) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = start("--data", "synthetic")
    assert command.wait() == 4
    assert (
        command.output()
        == "error: torch sees no GPU (driver, or a build of torch for CPUs?); to train on the CPU"
        " all the same: --accelerator cpu\n"
    )
    assert not command.run_dir.exists()


def test_two_processes_train_as_one_with_the_doubled_batch(start: Start) -> None:
    """BatchNorm sees each process's half, so the weights differ a little; batch, rate, steps and
    images don't."""
    two = start(*TINY, "--max_epochs", "2", "--batch_size", "50", "--devices", "2", folder="two")
    assert two.wait() == 0, two.output()
    one = start(*TINY, "--max_epochs", "2", "--batch_size", "100", folder="one")
    assert one.wait() == 0, one.output()
    for name in ("effective_batch", "learning_rate", "epochs", "test_images", "parts"):
        assert two.summary()[name] == one.summary()[name], name
    assert two.summary()["effective_batch"] == 100 and two.summary()[
        "learning_rate"
    ] == pytest.approx(0.001 * 100 / 64)
    rows = [command.last()["training"]["history"] for command in (two, one)]
    for ours, theirs in zip(*rows, strict=True):
        assert ours["step"] == theirs["step"] and ours["learning_rate"] == theirs["learning_rate"]
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.05)
    first, second = (
        command.last()["state_dict"]["network.stem.0.weight"] for command in (two, one)
    )
    assert (first - second).norm() < 0.2 * second.norm()
    assert two.output().count("effective batch 100, peak learning rate 0.0015625") == 1, (
        "only the first process talks"
    )
    assert two.output().count("test_accuracy") == 1 and two.gone_within(5)


def test_two_processes_cut_their_batches_together_when_one_lacks_memory(
    start: Start, tmp_path: Path
) -> None:
    """With as many images in each part as the first try had, the result would be the same; batch
    norm sees smaller ones."""
    (tmp_path / "scarce.py").write_text(SCARCE)
    arguments = [*TINY, "--max_epochs", "2", "--batch_size", "40", "--devices", "2"]
    scarce = start(*arguments, folder="scarce", program=[str(tmp_path / "scarce.py")])
    assert scarce.wait() == 0, scarce.output()
    told = (
        "out of memory: batches of {} images are cut to {}, accumulated {} times; the effective"
        " batch stays 80"
    )
    assert [scarce.output().count(told.format(*sizes)) for sizes in ((40, 20, 2), (20, 10, 4))] == [
        1,
        1,
    ], scarce.output()
    assert (
        scarce.output().count("out of memory") == 2
        and scarce.summary()["parts"] == 4
        and scarce.gone_within(5)
    )
    parts = start(*arguments, "--part_images", "10", folder="parts")
    assert parts.wait() == 0, parts.output()
    rows = [command.last()["training"]["history"] for command in (scarce, parts)]
    for ours, theirs in zip(*rows, strict=True):
        assert (ours["step"], ours["learning_rate"]) == (theirs["step"], theirs["learning_rate"])
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.02)


def test_two_processes_stop_together_and_go_on(start: Start) -> None:
    command = start(
        *TINY, "--max_epochs", "100000", "--patience", "0", "--batch_size", "50", "--devices", "2"
    )
    command.until_epoch(2)
    assert len(command.members()) == 2
    asked = time.monotonic()
    command.process.terminate()
    assert command.wait() == 143 and time.monotonic() - asked < 10
    assert command.gone_within(3), "no process is left"
    assert (
        command.output().count("stopped; the state is saved") == 1
        and "Traceback" not in command.output()
    )
    state = command.last()["training"]
    again = start("--resume", "auto", "--max_epochs", str(state["epoch"] + 2))
    assert again.wait() == 0, again.output()
    assert (
        again.summary()["epochs"] == state["epoch"] + 2
        and again.summary()["effective_batch"] == 100
    )
    assert again.output().count("resuming from") == 1


def test_no_process_outlives_the_first_one(start: Start) -> None:
    command = start(
        *TINY, "--max_epochs", "100000", "--patience", "0", "--batch_size", "50", "--devices", "2"
    )
    command.until_epoch(1)
    command.process.kill()
    command.wait()
    assert command.gone_within(10)
