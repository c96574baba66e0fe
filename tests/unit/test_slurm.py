"""What is asked of Slurm, and what its answers mean for a run."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from remote.agent.launchers import slurm, slurm_queue
from remote.agent.launchers.seam import Job, claim, mark_path
from remote.agent.launchers.slurm import notice, render_script
from remote.agent.launchers.slurm_queue import JobRow, Queue, Said, base_state, parse_squeue
from remote.agent.launchers.slurm_words import Seen, tell, tell_end, tell_signal
from remote.agent.root.paths import write_json
from remote.agent.root.run_json import save
from remote.agent.run_files.records import checked_state
from remote.agent.shared.run_records import Asked, RunDetail, SlurmJob
from remote.errors import UsageError
from remote.project.settings import defaults, parse_settings
from remote.project.slurm import job_request, parse_time
from remote.records import SlurmSettings

NOW = 1_795_840_000.0
QUEUED, RUNNING = RunDetail("queued"), RunDetail("running", heartbeat=NOW - 20)


def told(state: RunDetail, row: JobRow | None, **queue: Any) -> RunDetail:
    found = told_if_going(state, row, **queue)
    assert found
    return found


def told_if_going(state: RunDetail, row: JobRow | None, **queue: Any) -> RunDetail | None:
    known = Queue({}, **{"answered": NOW - 1, **queue})
    return tell(state, Seen(NOW, known, row, "17", NOW - 60))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("8h", 28800), ("90m", 5400), ("1h30m", 5400), ("2d", 172800), ("1-02:00:00", 93600)],
)
def test_times(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["28800", "8", "8:00", "soon", "5s", "-8h", ""])
def test_times_that_mean_something_else_to_somebody(text: str) -> None:
    with pytest.raises(ValueError, match=r"8h|a minute"):
        parse_time(text)


def test_settings_are_checked_together(tmp_path: Path) -> None:
    given = {
        "launcher": "pbs",
        "slurm": {"partitoin": "x", "time": 28800, "account": "a b", "extra": ["--array=1-3"]},
    }
    with pytest.raises(UsageError) as caught:
        parse_settings(given, tmp_path)
    for part in (
        "remote.launcher must be auto, tmux, setsid, slurm",
        "remote.slurm.partitoin (did you mean partition?)",
        "remote.slurm.time",
        "remote.slurm.account",
        "'--array=1-3' is not yours to set",
    ):
        assert part in str(caught.value)
    assert parse_settings(defaults(), tmp_path).slurm == SlurmSettings()


def test_what_is_asked_for() -> None:
    slurm = SlurmSettings(
        partition="gpu", gres="gpu:a100:1", cpus="8", time="8h", extra="#SBATCH --exclusive\n-n1"
    )
    asked = job_request(slurm, "30m", 2, True)
    assert list(asked.options) == [
        "--partition=gpu",
        "--cpus-per-task=8",
        "--gres=gpu:a100:2",
        "--time=0-00:30:00",
        "--exclusive",
        "-n1",
    ]
    assert asked.limit_s == 1800
    assert not any("gres" in option for option in job_request(slurm, None, None, False).options)


def test_a_job_s_script_holds_a_line_for_each_thing_and_no_other() -> None:
    slurm = SlurmJob(("--time=0-08:00:00\nrm -rf x",), ("module load a",))
    job = Job("/home/a b/100%/r", ["python", "x y"], Asked(slurm=slurm), "abcdef0123456789")
    lines = render_script(job).splitlines()
    assert lines[0] == "#!/bin/bash -l" and lines[-2:] == ["module load a", "exec python 'x y'"]
    assert "#SBATCH --output='/home/a b/100%%/r/slurm.log'" in lines
    assert "#SBATCH --job-name=fab-r-abcdef01" in lines and "#SBATCH --no-requeue" in lines
    assert not any(line.startswith("rm") for line in lines)


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(Asked(), 120), (Asked(stop_s=300), 360), (Asked(slurm=SlurmJob(limit_s=60)), 30)],
)
def test_a_training_is_told_in_time_to_save(asked: Asked, seconds: int) -> None:
    assert notice(asked) == seconds


def test_of_two_jobs_with_one_name_the_first_is_ours() -> None:
    rows = "12|PENDING|Resources|1795840600|N/A||fab-r-1\n9|RUNNING|None|1|N/A|n1|fab-r-1\nx|y\n"
    assert parse_squeue(rows + "7|RUNNING|None|1|N/A|n1|mine\n")["fab-r-1"].id == "9"
    assert len(parse_squeue(rows)) == 1


def test_why_it_waits() -> None:
    text = told(QUEUED, JobRow("17", "PENDING", "Resources", NOW + 1500)).waiting
    assert text == (
        "waits in Slurm's queue as job 17: its resources are in use (Resources); expected to start"
        " in about 25 min"
    )
    assert "never start" in told(QUEUED, JobRow("17", "PENDING", "PartitionTimeLimit")).waiting
    assert "NewReason" in told(QUEUED, JobRow("17", "PENDING", "NewReason")).waiting


@pytest.mark.parametrize("state", [QUEUED, RUNNING])
def test_a_controller_that_is_away_says_nothing_of_a_run(state: RunDetail) -> None:
    seen = told(state, None, problem="Unable to contact slurm controller")
    assert seen.state == state.state
    assert "does not answer" in str(seen.waiting or seen.reason)


def test_what_is_running() -> None:
    row = JobRow("17", "RUNNING", "None", NOW - 100, NOW + 100, "n1")
    assert told(RUNNING, row) == RUNNING
    assert "its node n1 may be down" in str(told(RUNNING._replace(heartbeat=NOW - 600), row).reason)
    assert told_if_going(RUNNING, JobRow("17", "NODE_FAIL")) is None
    assert told_if_going(RUNNING, None) is None
    told(RUNNING, None, answered=NOW - 90)  # the list is older than the job


@pytest.mark.parametrize(
    ("row", "stopped", "state", "cause"),
    [
        (JobRow("17", "TIMEOUT"), None, "failed", "time limit"),
        (JobRow("17", "NODE_FAIL"), None, "failed", "node failed"),
        (JobRow("17", "PREEMPTED"), None, "failed", "preempted"),
        (JobRow("17", "OUT_OF_MEMORY"), None, "failed", "host memory"),
        (JobRow("17", "CANCELLED by 0"), None, "stopped", "cancelled"),
        (JobRow("17", "FAILED", exit_code="0:53"), None, "failed", "not started"),
        (JobRow("17", "FAILED", exit_code="0:9"), None, "failed", "killed"),
        (JobRow("17", "CANCELLED"), "stopped by ann", "stopped", "stopped"),
        (None, None, "failed", "scheduler"),
    ],
)
def test_ends_that_no_supervisor_told(
    row: JobRow | None, stopped: str | None, state: str, cause: str
) -> None:
    end = tell_end(row, "17", stopped)
    assert (end.state, end.cause) == (state, cause)


def test_who_sent_a_signal() -> None:
    running = JobRow("17", "RUNNING", end=NOW + 100)
    assert tell_signal(running, None, NOW, 210) == (
        "failed",
        "its time limit is over; it was told to save",
        "time limit",
    )
    assert tell_signal(running._replace(end=NOW + 9000), None, NOW, 210) is None
    assert tell_signal(None, NOW + 60, NOW, 210) is not None
    completing = {"JobState": "COMPLETING", "StartTime": "1795840000", "EndTime": "1795840600"}
    assert base_state({**completing, "TimeLimit": "00:10:00"}) == "TIMEOUT"
    assert base_state({**completing, "TimeLimit": "02:00:00"}) == "CANCELLED"
    assert base_state({**completing, "PreemptTime": "1795840600"}) == "PREEMPTED"


def test_slurm_s_own_words_in_one_line() -> None:
    said = Said(
        1,
        "",
        "sbatch: error: invalid partition specified: nope\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
    )
    assert said.words == "invalid partition specified: nope; Invalid partition name specified"


def test_an_attempt_is_claimed_once(tmp_path: Path) -> None:
    assert [claim(mark_path(str(tmp_path), "a")) for _ in range(3)] == [True, False, False]
    assert claim(mark_path(str(tmp_path), "b"))


def test_slurm_is_asked_once_whoever_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For 15 s; also while it does not answer, for then every question costs it more."""
    count, squeue = tmp_path / "asked", tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\necho >> {count}\n[ -e "$0.away" ] && exit 1\necho "$ROW"\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("ROW", "17|RUNNING|None|N/A|N/A|n1|fab-r-1")
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        seen = [slurm_queue.queue(str(tmp_path / place)) for _ in range(5)]
        known = place == "one"
        assert [bool(queue.jobs) for queue in seen] == [known] * 5
        assert [queue.problem is None for queue in seen] == [known] * 5
        squeue.with_name("squeue.away").touch()
    assert count.read_text() == "\n\n"


def test_on_a_disk_that_takes_nothing_runs_are_told_as_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody could fetch what fills it."""

    def full(*_: Any) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(slurm_queue, "write_json", full)
    recorded = RunDetail("running", token="0123456789")
    shown = checked_state(str(tmp_path / "r"), recorded, Asked(launcher="slurm"))
    reason = "as recorded; looking failed: Disk quota exceeded"
    assert shown == recorded._replace(reason=reason)


@pytest.mark.parametrize(
    ("job_state", "verdict"),
    [("RUNNING", None), ("PENDING", None), ("TIMEOUT", "failed"), ("CANCELLED", "stopped")],
)
def test_a_job_that_squeue_leaves_out_is_over_only_where_slurm_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_state: str, verdict: str | None
) -> None:
    """A verdict takes the run from its supervisor, which would kill a training that goes well."""
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    state = RunDetail("running", token="0123456789")
    save(state, str(run))
    write_json(str(run / "job.json"), {"id": "17", "token": "0123456789", "submitted": 1.0})
    monkeypatch.setattr(slurm, "queue", lambda runs, fresh: Queue({}, NOW))
    monkeypatch.setattr(slurm, "SETTLE_S", 0.0)
    monkeypatch.setattr(slurm, "ask_about", lambda job: JobRow(job, job_state))
    for _ in range(2):
        told, seen = slurm.look(str(run), state, Asked())
        assert told.token == state.token and (seen and seen.state) == verdict
