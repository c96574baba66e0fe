"""Runs that wait for GPUs on the server: nobody's GPU is taken, none is used twice, and whoever
came first is first."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from remote.loopback import LoopbackServer
from remote.runs import placement
from tests.support.agent import agent, put, start
from tests.support.faults import Lab, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.project import make_tree
from tests.support.queues import NAMES, gaps, left_idle, make_queues
from tests.support.sshd import MakeServer

QUICK = {"REMOTE_QUEUE_POLL_S": "0.5", "REMOTE_QUEUE_APART_S": "0.1"}
TELLS = (
    'cd "$REMOTE_RUN_DIR"; date +%s.%N > began; echo "$CUDA_VISIBLE_DEVICES" > gpu; sleep 1; date'
    " +%s.%N > over"
)
FREE, BUSY = FakeGpu(), FakeGpu(memory_used="40960")


@pytest.fixture
def server(make_server: MakeServer) -> LoopbackServer:
    return make_server(env=QUICK)


def show(server: LoopbackServer, *gpus: FakeGpu) -> None:
    write_nvidia_smi(Path(server.path) / "nvidia-smi", gpus)


def rows(lab: Lab) -> dict[str, dict[str, Any]]:
    return {row["name"] or row["run"]: row for row in lab.rows()}


def test_twenty_runs_on_four_gpus(server: LoopbackServer, tmp_path: Path) -> None:
    gpus = [FakeGpu() for _ in range(4)]
    show(server, *gpus)
    lab = Lab(server, tmp_path)
    names = [f"r{number:02}" for number in range(20)]
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "code", {"a": "1"}))
        for name in names:
            start(
                link,
                name,
                release,
                "sh",
                "-c",
                TELLS,
                queue=True,
                wanted_gpus=1,
                gpus=[],
                devices="auto",
            )
    runs = lab.root / "runs"
    wait_until(lambda: all((runs / name / "over").exists() for name in names), 120)
    spans: dict[str, list[tuple[float, float]]] = {}
    for name in names:
        began, over = (float((runs / name / file).read_text()) for file in ("began", "over"))
        spans.setdefault((runs / name / "gpu").read_text().strip(), []).append((began, over))
        assert json.loads((runs / name / "run.json").read_text())["gpus"] == [
            (runs / name / "gpu").read_text().strip()
        ]
    assert set(spans) == {gpu.uuid for gpu in gpus}, "every GPU was used"
    for own in spans.values():
        own.sort()
        gaps = [second[0] - first[1] for first, second in itertools.pairwise(own)]
        assert min(gaps, default=0.0) >= 0, "no GPU was used twice"
        assert max(gaps, default=0.0) < 15, "none was idle for long while runs waited"
    begun = sorted(names, key=lambda name: float((runs / name / "began").read_text()))
    assert all(abs(begun.index(name) - names.index(name)) < 4 for name in names), (
        "first come, first served; four at a time"
    )


def test_a_sweep_over_the_queues_of_four_hosts(make_server: MakeServer, tmp_path: Path) -> None:
    """With the pauses that people get; benchmarks/queues.py does it with 100 runs."""
    queues = make_queues(make_server, tmp_path, hosts=4, env={})
    gpus = {name: [FakeGpu(), FakeGpu()] for name in NAMES[:4]}
    queues.show(gpus)
    done = queues.sweep(24)
    assert done.code == 0 and "24 of 24 points" in done.out, done
    queues.wait_for_all(24)
    hosts = queues.spans()
    assert [len(spans) for spans in hosts] == [6] * 4, "each point has one run"
    for spans, own in zip(hosts, gpus.values(), strict=True):
        assert {span.gpu for span in spans} == {gpu.uuid for gpu in own}, "every GPU was used"
        assert min(gaps(spans)) >= 0, "no GPU was used twice"
        assert max(*gaps(spans), *left_idle(spans)) < 15, "none was idle while a run waited"


def test_those_far_behind_do_not_ask_for_gpus(server: LoopbackServer, tmp_path: Path) -> None:
    """A start of nvidia-smi may initialise every GPU: twenty runs that wait must not do so each
    time that they look."""
    show(server, BUSY)
    real = Path(server.path) / "nvidia-smi"
    count = tmp_path / "count"
    real.rename(real.with_name("nvidia-smi.real"))
    real.write_text(f'#!/bin/sh\necho >> {count}\nexec "$0.real" "$@"\n')
    real.chmod(0o755)
    with agent(server) as link:
        release = put(link, make_tree(tmp_path / "code", {"a": "1"}))
        for number in range(8):
            options = {"queue": True, "wanted_gpus": 1, "gpus": [], "devices": "auto"}
            start(link, f"r{number}", release, "true", **options)
    lab = Lab(server, tmp_path)
    wait_until(lambda: [row["waiting"] is not None for row in lab.rows()] == [True] * 8)
    before, seconds = count.stat().st_size, 4
    time.sleep(seconds)
    looks = seconds / float(QUICK["REMOTE_QUEUE_POLL_S"])
    asked = count.stat().st_size - before
    assert 2 <= asked <= 2 * looks + 2, "the first one alone asks: for GPUs, and who uses them"


def test_a_run_on_another_host_of_the_same_disk_has_its_own_queue(
    server: LoopbackServer, tmp_path: Path
) -> None:
    show(server, BUSY)
    lab = Lab(server, tmp_path)
    lab.task("train", name="there")
    (run,) = (lab.root / "runs").glob("2*")
    state = json.loads(lab.state_file(run.name).read_text())
    os.kill(state["supervisor_pid"], signal.SIGKILL)
    lab.state_file(run.name).write_text(json.dumps({**state, "host": "another"}))
    lab.task("train", name="here", gpus=1)
    assert "gpu 0: 40.0 GiB" in lab.task("status").out, "no run is before it"
    show(server, FREE)
    wait_until(lambda: rows(lab)["here"]["state"] == "finished")


def test_a_run_waits_for_somebody_else_s_gpu_and_says_so(
    server: LoopbackServer, tmp_path: Path
) -> None:
    show(server, BUSY)
    lab = Lab(server, tmp_path)
    told = lab.task("train", name="mine")
    why = "waits for a GPU: gpu 0: 40.0 GiB in use by processes that can't be seen"
    assert told.code == 0 and f"queued: {why}" in told.out
    assert (rows(lab)["mine"]["state"], rows(lab)["mine"]["waiting"]) == (
        "queued",
        why,
    ) and why in lab.task("status").out
    # A GPU that was free would go to whoever was there before.
    second = lab.task("train", name="second")
    assert second.code == 0 and "is before it" in second.out
    refused = lab.task("train", name="third", now=True)
    assert refused.code == 9 and "no GPU is free" in refused.err and "third" not in rows(lab)
    show(server, FREE)
    wait_until(lambda: rows(lab)["second"]["state"] == "finished")
    both = rows(lab)
    assert (
        both["mine"]["gpus"] == both["second"]["gpus"] == [FREE.uuid]
        and both["mine"]["started"] < both["second"]["started"]
    )
    assert both["mine"]["waiting"] is None


def test_one_that_waits_can_be_stopped_and_resumed(server: LoopbackServer, tmp_path: Path) -> None:
    show(server, BUSY)
    lab = Lab(server, tmp_path)
    lab.task("train", name="mine")
    stopped = lab.task("stop")
    assert "stopped by" in stopped.out and "had not begun; to start it" in stopped.out, stopped
    assert "60 s to save" not in stopped.err and "has not begun" in stopped.err, stopped
    row = rows(lab)["mine"]
    assert (row["state"], row["cause"]) == ("stopped", "stopped") and row["reason"].endswith(
        "while it waited"
    )
    show(server, FREE)
    assert lab.task("train", resume="mine", follow=True).code == 0
    assert rows(lab)["mine"]["state"] == "finished" and rows(lab)["mine"]["gpus"] == [FREE.uuid]


def test_one_that_waits_on_another_host_hears_of_a_stop_by_the_disk(
    server: LoopbackServer, tmp_path: Path
) -> None:
    show(server, BUSY)
    lab = Lab(server, tmp_path)
    assert "in use by processes" in lab.task("train", name="mine").out
    (run,) = (lab.root / "runs").glob("2*")
    state = json.loads(lab.state_file(run.name).read_text())
    lab.state_file(run.name).write_text(json.dumps({**state, "host": "another"}))
    assert lab.task("stop").code == 0
    assert rows(lab)["mine"]["reason"].endswith("while it waited")


def test_so_many_gpus_are_asked_for(server: LoopbackServer, tmp_path: Path) -> None:
    two = [FakeGpu(), FakeGpu(), FakeGpu()]
    show(server, *two)
    lab = Lab(server, tmp_path)
    assert lab.task("train", name="pair", gpus=2).code == 0
    wait_until(lambda: rows(lab)["pair"]["state"] == "finished")
    assert rows(lab)["pair"]["gpus"] == [gpu.uuid for gpu in two[:2]]
    most = lab.task("train", gpus=4)
    assert most.code == 9 and "--gpus 4: the server has 3" in most.err
    assert lab.task("train", gpus=1, devices="0").code == 2
    show(server, two[0], BUSY, FakeGpu(memory_used="30000"))
    now = lab.task("train", gpus=2, now=True)
    assert now.code == 9 and "1 of 2 GPUs are free" in now.err
    waits = lab.task("train", name="later", gpus=2)
    assert waits.code == 0 and "queued: waits for 2 GPUs: gpu 1:" in waits.out
    lab.task("stop")


def test_a_gpu_that_somebody_took_between_two_looks_is_not_taken_from_them(
    server: LoopbackServer, tmp_path: Path
) -> None:
    """The laptop saw it free; when the run is to start, somebody else trains there."""
    other = FakeGpu()
    show(server, FREE, other)
    lab = Lab(server, tmp_path)
    lab.task("deploy")
    original = placement.place_run

    def plan(*arguments: Any) -> placement.Placement:
        planned = original(*arguments)
        show(server, FakeGpu(uuid=FREE.uuid, memory_used="40960"), other)
        return planned

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(placement, "place_run", plan)
        assert lab.task("train", name="mine", gpus=1).code == 0
    assert rows(lab)["mine"]["gpus"] == [other.uuid]
