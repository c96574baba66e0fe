"""A run that goes on on another server finds all that it wrote, and the checkpoint that it wrote
last."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

from remote.agent.shared.run_records import Asked
from remote.agent.training.surroundings import newest_checkpoint
from tests.support.faults import Lab, wait_until
from tests.support.project import Content, Link, make_tree
from tests.support.sshd import MakeServer

MOVES = """
echo "attempt $REMOTE_ATTEMPT from ${REMOTE_CHECKPOINT##*/}"
[ -e checkpoint/ckpt.pth ] && cat last.ckpt config.yaml .hidden/state && exit 0
mkdir checkpoint .hidden; echo weights > checkpoint/ckpt.pth; ln -s checkpoint/ckpt.pth last.ckpt
echo b >> config.yaml
echo hidden > .hidden/state; rm linked; echo real > linked; exit 3
"""


def test_on_another_server_a_run_finds_all_that_it_wrote(
    make_server: MakeServer, tmp_path: Path
) -> None:
    """As its next attempt does on its own: changed code, hidden files and links among it."""
    files: dict[str, Content] = {
        "train.sh": MOVES,
        "config.yaml": "a\n",
        "linked": Link("config.yaml"),
    }
    first = make_server()
    lab = Lab(first, tmp_path, files=files, settings={"results": ""})
    assert lab.task("train").code in (0, 10)
    wait_until(lambda: lab.rows()[0]["state"] == "failed")
    assert lab.task("fetch_results").code == 0
    lab.server = make_server()
    done = lab.task("train", resume="latest", follow=True)
    assert done.code == 0, done
    place = next((lab.root / "runs").glob("2*"))
    assert (
        (place / "train.log")
        .read_text()
        .endswith("attempt 2 from last.ckpt\nweights\na\nb\nhidden\n")
    )
    assert (place / "work/linked").read_text() == "real\n" and os.readlink(
        place / "work/last.ckpt"
    ) == "checkpoint/ckpt.pth"
    # The first server has it, too, as it was: that comes to another place only.
    assert lab.task("fetch_results").code == 0
    log = lab.results / place.name / "train.log"
    whole = log.read_bytes()
    lab.server = first
    done = lab.task("fetch_results")
    assert done.code == 12 and "holds an attempt of it from another host" in done.err
    assert log.read_bytes() == whole
    assert lab.task("fetch_results", dest=str(tmp_path / "elsewhere")).code == 0
    # Nor does it go on from what was before that, unless what is here was put aside.
    done = lab.task("train", resume="latest")
    assert done.code == 2 and "would go on from before that" in done.err, done
    aside = log.parent.rename(tmp_path / "aside")
    assert lab.task("train", resume="latest", follow=True).code == 0
    aside.rename(log.parent)
    assert "holds an attempt of it from another" in lab.task("fetch_results").err
    assert log.read_bytes() == whole, "of as many attempts, and not the same"


def test_on_another_server_a_run_goes_on_from_what_it_wrote_last(
    make_server: MakeServer, tmp_path: Path
) -> None:
    """Not from what came last, by its name."""
    script = (
        'echo "from ${REMOTE_CHECKPOINT##*/}"; [ -e epoch_9.pt ] && exit 0\n'
        "echo 9 > epoch_9.pt; ln -s epoch_9.pt last.pt; sleep 0.1; echo 10 > epoch_10.pt; exit 3\n"
    )
    lab = Lab(make_server(), tmp_path, files={"train.sh": script}, settings={"results": ""})
    assert lab.task("train").code in (0, 10)
    wait_until(lambda: lab.rows()[0]["state"] == "failed")
    assert lab.task("fetch_results").code == 0
    lab.server = make_server()
    assert lab.task("train", resume="latest", follow=True).code == 0
    place = next((lab.root / "runs").glob("2*"))
    assert (place / "train.log").read_text().splitlines() == ["from ", "from epoch_10.pt"]


def test_the_newest_checkpoint_of_any_program(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "r"
    assert newest_checkpoint(str(run), Asked()) is None
    folder = "work/output/checkpoint-8/"
    make_tree(
        run,
        {f"{folder}model.safetensors": "a", f"{folder}trainer_state.json": "{}", "train.log": "x"},
    )
    assert newest_checkpoint(str(run), Asked()) == str(run / "work/output/checkpoint-8")
    make_tree(run, {"checkpoints/epoch=3.ckpt": "b"})
    os.utime(run / "checkpoints/epoch=3.ckpt", (2e9, 2e9))
    assert newest_checkpoint(str(run), Asked()) == str(run / "checkpoints/epoch=3.ckpt")


def test_what_a_kill_has_cut_off_is_no_checkpoint(tmp_path: Path) -> None:
    """Every attempt after it would fail to load that."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    tensors = len(header).to_bytes(8, "little") + header + bytes(16)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 1000)
    run = tmp_path / "runs" / "r"
    files: dict[str, Content] = {
        "work/1.pt": packed.getvalue(),
        "work/2.safetensors": tensors,
        "work/3.safetensors": tensors[:-1],
        "work/4.pt": packed.getvalue()[:-10],
        "work/5.pth": b"",
    }
    make_tree(run, files)
    for number, name in enumerate(files):
        os.utime(run / name, (1e9 + number,) * 2)
    assert newest_checkpoint(str(run), Asked()) == str(run / "work/2.safetensors")
    (run / "work/2.safetensors").unlink()
    assert newest_checkpoint(str(run), Asked()) == str(run / "work/1.pt")
    # A folder of Hugging Face's is whole once the trainer's state is there, which comes last.
    make_tree(run, {"work/out/checkpoint-8/model.safetensors": tensors})
    assert newest_checkpoint(str(run), Asked()) == str(
        run / "work/out/checkpoint-8/model.safetensors"
    )
    make_tree(run, {"work/out/checkpoint-8/trainer_state.json": "{}"})
    make_tree(run, {"work/out/checkpoint-9/model.safetensors": tensors})
    assert newest_checkpoint(str(run), Asked()) == str(run / "work/out/checkpoint-8")
