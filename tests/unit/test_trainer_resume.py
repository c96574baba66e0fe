"""A training that is stopped anywhere and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.training import (
    finetune_config,
    same_bits,
    signals_kept,
    speed_config,
    tiny_config,
    tiny_data,
    what_counts,
)
from trainer import options
from trainer import train as cli
from trainer.callbacks import Stopped, StopWhenAsked
from trainer.checkpoints import WholeFiles, load_checkpoint, newest_that_loads
from trainer.data import workers
from trainer.training import train as train_once

pytestmark = pytest.mark.usefixtures("quiet_trainer")
DATA = tiny_data()
MIXED = tiny_config(mixup_prob=1.0, crop_padding=2)
SPEED = speed_config()
FINETUNE = finetune_config(head_fraction=0.2)
CONFIGS = {"mixed": MIXED, "speed": SPEED, "finetune": FINETUNE}
STEPS = 9
"""Per epoch: 400 images less 40 to validate, in batches of 40."""


def stop_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    ask_in(monkeypatch, "on_train_batch_end", lambda trainer, number: trainer.global_step == step)


def stop_in_validation(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    """In its second batch of four."""
    ask_in(
        monkeypatch,
        "on_validation_batch_end",
        lambda trainer, number: trainer.current_epoch + 1 == epoch and number == 1,
    )


def stop_after_epoch(monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    ask_in(
        monkeypatch,
        "on_train_epoch_end",
        lambda trainer, number: trainer.current_epoch + 1 == epoch,
    )


def ask_in(
    monkeypatch: pytest.MonkeyPatch, hook: str, when: Callable[[Any, int | None], bool]
) -> None:
    original = getattr(StopWhenAsked, hook)

    def asking(self: StopWhenAsked, trainer: Any, *rest: Any) -> None:
        number = next((part for part in rest if type(part) is int), None)
        self.asked = self.asked or when(trainer, number)
        original(self, trainer, *rest)

    monkeypatch.setattr(StopWhenAsked, hook, asking)


def last(run_dir: Path) -> dict[str, Any]:
    return load_checkpoint(last_path(run_dir))


def last_path(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True, scope="module")
def small_batches_to_validate() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(workers, "EVALUATED", 10)
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("undisturbed")
    with signals_kept():
        for name, config in CONFIGS.items():
            train_once(config, DATA, place / name)
    return {name: place / name for name in CONFIGS}


PLACES = {
    "in the first epoch": (stop_at_step, 3, (0, 3)),
    "in the middle of an epoch": (stop_at_step, STEPS + 4, (1, 4)),
    "at an epoch's last step": (stop_at_step, 2 * STEPS, (1, STEPS)),
    "after an epoch": (stop_after_epoch, 2, (2, 0)),
    "while it validates": (stop_in_validation, 2, (1, STEPS)),
    "in the last validation": (stop_in_validation, 3, (2, STEPS)),
    "after the last epoch": (stop_after_epoch, 3, (3, 0)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CONFIGS)
def test_stopped_and_resumed_is_as_not_stopped(
    name: str,
    place: str,
    undisturbed: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (stop, number, position), config = PLACES[place], CONFIGS[name]
    with monkeypatch.context() as patched:
        stop(patched, number)
        with pytest.raises(Stopped):
            train_once(config, DATA, tmp_path / "run")
    saved = last(tmp_path / "run")
    assert (saved["training"]["epoch"], saved["training"]["batch"]) == position
    assert not (tmp_path / "run" / "summary.json").exists()
    summary = train_once(config, DATA, tmp_path / "run", last_path(tmp_path / "run"))
    assert same_bits(what_counts(last(tmp_path / "run")), what_counts(last(undisturbed[name])))
    assert summary["epochs"] == 3 and summary["seconds"] > saved["training"]["seconds"]
    best = [
        [path.name for path in (run / "checkpoints").glob("best*")]
        for run in (tmp_path / "run", undisturbed[name])
    ]
    assert best[0] == best[1]


def test_two_trainings_with_one_seed_are_the_same_and_with_another_are_not(
    undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    train_once(MIXED, DATA, tmp_path / "same")
    same, other = last(tmp_path / "same"), last(undisturbed["mixed"])
    assert same_bits(what_counts(same), what_counts(other))
    train_once(dataclasses.replace(MIXED, seed=2), DATA, tmp_path / "other")
    assert not same_bits(
        last(tmp_path / "other")["state_dict"], last(undisturbed["mixed"])["state_dict"]
    )


# -- by the command


ARGUMENTS = [
    "--data",
    "synthetic",
    "--accelerator",
    "cpu",
    "--widths",
    "8",
    "--batch_size",
    "100",
    "--train_images",
    "300",
    "--validation_max",
    "100",
    "--deterministic",
    "true",
]


def command(*more: str) -> int:
    return cli.main([*ARGUMENTS, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finished") / "run"
    with signals_kept(), pytest.MonkeyPatch.context() as patched:
        patched.chdir(place.parent)
        assert command("--max_epochs", "2", "--run_dir", str(place)) == 0
    return place


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run without its outcome: as one that was killed after its last
    checkpoint."""
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    return tmp_path / "run"


def resume(run: Path, *more: str) -> int:
    return cli.main(["--resume", "auto", "--run_dir", str(run), *more])


def test_auto_passes_over_a_truncated_checkpoint_and_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:-1000])
    [best] = (run / "checkpoints").glob("best*.ckpt")
    assert resume(run) == 0
    out = capsys.readouterr().out
    assert f"passed over: {path} does not load" in out and f"resuming from {best}" in out
    assert (run / "summary.json").exists()


def test_nothing_that_loads_is_an_error_and_trains_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    before = sorted(run.rglob("*"))
    for place in (run, run / "elsewhere"):
        assert resume(place) == options.EXIT_USAGE == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "loads; without --resume a new training begins" in err
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_path_that_does_not_load_is_one_line(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some.ckpt"
    if content is not None:
        path.write_bytes(content)
    assert command("--resume", str(path)) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: --resume: {path} does not load") and err.count("\n") == 1


def test_weights_alone_are_no_state_to_go_on_from(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--resume", str(run / "weights.pt")) == 2
    assert "holds no state to go on from" in capsys.readouterr().err


def test_a_path_goes_on_where_it_lies_with_its_own_values(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another number of epochs is one option; the rest stays as it was."""
    assert cli.main(["--resume", str(run / "checkpoints" / "last.ckpt"), "--max_epochs", "3"]) == 0
    saved = last(run)
    assert saved["training"]["epoch"] == 3 and len(saved["training"]["history"]) == 3
    config = saved["hyper_parameters"]["config"]
    assert config["widths"] == [8] and config["recipe"] == "standard" and config["max_epochs"] == 3


def test_a_path_goes_on_elsewhere_with_the_best_so_far(finished: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    assert (
        cli.main(["--resume", str(finished / "checkpoints" / "last.ckpt"), "--run_dir", str(new)])
        == 0
    )
    assert {path.name for path in (new / "checkpoints").iterdir()} == {
        path.name for path in (finished / "checkpoints").iterdir()
    }
    assert (new / "weights.pt").exists() and len(list(finished.rglob("metrics.csv"))) == 1


def test_what_the_weights_depend_on_can_t_change(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(run, "--widths", "9", "--validation_fraction", "0.2", "--recipe", "fast") == 2
    err = capsys.readouterr().err
    assert (
        "widths can't change when a training goes on: it was (8,)" in err
        and "validation_fraction can't change" in err
    )
    assert "made with the recipe standard, not fast" in err


def test_another_batch_size_goes_on_from_the_same_share_of_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        stop_at_step(patched, STEPS + 4)
        with pytest.raises(Stopped):
            train_once(MIXED, DATA, tmp_path / "run")
    train_once(
        dataclasses.replace(MIXED, batch_size=20),
        DATA,
        tmp_path / "run",
        last_path(tmp_path / "run"),
    )
    state = last(tmp_path / "run")["training"]
    assert state["epoch"] == 3 and state["step"] == 3 * 2 * STEPS
    assert [row["step"] for row in state["history"]] == [STEPS, 4 * STEPS, 6 * STEPS]


def test_a_new_training_does_not_overwrite_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--run_dir", str(run)) == 2
    assert (
        "holds a training already; go on with it: --resume auto, or name another --run_dir"
        in capsys.readouterr().err
    )


def test_auto_needs_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--resume", "auto") == 2
    assert "--resume auto needs --run_dir" in capsys.readouterr().err


def test_a_training_that_had_stopped_early_trains_no_further(tmp_path: Path) -> None:
    config = dataclasses.replace(MIXED, max_epochs=9, patience=1, min_delta=1.0)
    assert train_once(config, DATA, tmp_path / "run")["epochs"] == 2
    assert train_once(config, DATA, tmp_path / "run", last_path(tmp_path / "run"))["epochs"] == 2


def test_checkpoints_appear_whole(run: Path) -> None:
    found = newest_that_loads(run / "checkpoints")
    assert found is not None and found[2] == []
    assert not [path for path in run.rglob("*") if path.suffix == ".tmp"]


class Killed(BaseException):
    pass


def test_killed_after_its_best_epoch_it_still_has_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two checkpoints that follow each other the second one waits in memory, and a kill takes
    that."""
    original = StopWhenAsked.on_train_batch_end

    def batch_end(self: StopWhenAsked, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == STEPS + 3:
            raise Killed
        original(self, trainer, *rest)

    def validation_end(self: Any) -> None:
        self.log("val_accuracy", 0.9 if self.current_epoch == 0 else 0.5)
        self.log("val_loss", 1.0)

    monkeypatch.setattr("trainer.model.Classifier.on_validation_epoch_end", validation_end)
    with monkeypatch.context() as patched:
        patched.setattr(StopWhenAsked, "on_train_batch_end", batch_end)
        # As if the epoch had taken minutes; and nothing is written any more once it is killed.
        patched.setattr(WholeFiles, "written", -math.inf, raising=False)
        patched.setattr(WholeFiles, "__init__", lambda self: setattr(self, "waiting", {}))
        patched.setattr(WholeFiles, "teardown", lambda self: None)
        with pytest.raises(Killed):
            train_once(MIXED, DATA, tmp_path / "run")
    found = newest_that_loads(tmp_path / "run" / "checkpoints")
    assert found is not None and found[1]["training"]["epoch"] == 1
    unfinished = tmp_path / "run" / "checkpoints" / "last.ckpt.1234abcd.tmp"
    unfinished.write_bytes(b"half")
    summary = train_once(MIXED, DATA, tmp_path / "run", found[0])
    assert summary["best_epoch"] == 1 and not unfinished.exists()
    best = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert best["training"]["epoch"] == 1
