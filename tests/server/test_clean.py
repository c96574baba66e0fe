"""`clean` removes what nothing needs, and never a run that was not fetched unless told so."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

import pytest

from remote.agent.results import clean
from remote.agent.root.locks import Lock
from remote.agent.root.paths import Layout, write_json
from remote.agent.run_files.outputs import find_outputs
from remote.agent.run_files.records import FETCHED, Found, read_fetched
from remote.agent.shared.run_records import Asked, RunDetail
from remote.errors import RunFailed
from remote.loopback import LoopbackServer
from remote.runs import clean as runs_clean
from tests.support.agent import agent
from tests.support.faults import Lab, wait_until
from tests.support.project import commit, make_tree, snapshot


@pytest.fixture
def lab(server: LoopbackServer, tmp_path: Path) -> Lab:
    return Lab(server, tmp_path)


def train(lab: Lab, text: str = "echo up\n", ended: bool = True) -> str:
    """Start a run of changed code; returns its id."""
    known = {path.name for path in (lab.root / "runs").glob("2*")}
    (lab.project / "train.sh").write_text(text)
    assert lab.task("train").code == 0
    (run,) = {path.name for path in (lab.root / "runs").glob("2*")} - known
    if ended:
        wait_until(
            lambda: (
                next(row for row in lab.rows() if row["run"] == run)["state"]
                not in ("queued", "running")
            )
        )
    return run


def test_the_agent_shuts_nothing_down_that_holds_what_nobody_fetched(
    lab: Lab, tmp_path: Path
) -> None:
    """Asked under the lock of launches, by whatever laptop: the last word is the server's own."""
    mark = tmp_path / "down"
    run = train(lab)
    wanted: dict[str, Any] = {"root": str(lab.root), "command": f"touch '{mark}'", "really": True}
    with agent(lab.server) as link:
        with pytest.raises(
            RunFailed,
            match=f"{run}: not fetched completely since it ended; the server was not shut down",
        ):
            link.call("shutdown", **wanted)
        assert not mark.exists() and lab.task("fetch_results").code == 0
        assert (
            link.call("shutdown", **{**wanted, "really": False})["command"] == wanted["command"]
            and not mark.exists()
        )
        live = train(lab, "echo up; sleep 300\n", ended=False)
        with pytest.raises(RunFailed, match=f"{live} is running: the server was not shut down"):
            link.call("shutdown", **wanted)
        lab.task("stop")
        lab.task("fetch_results")
        link.call("shutdown", **wanted)
    assert mark.exists()


def names(lab: Lab, folder: str) -> set[str]:
    return {path.name for path in (lab.root / folder).iterdir() if path.is_dir()}


def test_only_what_was_fetched_goes_and_only_when_told(lab: Lab) -> None:
    fetched, unfetched = train(lab, "echo one\n"), train(lab, "echo two\n")
    assert lab.task("fetch_results", run=fetched).code == 0
    assert [row["run"] for row in lab.rows() if row["fetched"]] == [fetched]
    before = snapshot(lab.root)
    listed = lab.task("clean")
    assert (
        "nothing was removed yet" in listed.out
        and fetched in listed.out
        and unfetched not in listed.out
    )
    assert listed.out.rstrip().endswith(" clean --yes"), "what was fetched needs no name"
    assert f"kept: {unfetched}" in listed.err and "not fetched" in listed.err
    assert "fetch-results --run all" in listed.err and f"clean --run {unfetched}" in listed.err
    assert {k: v for k, v in snapshot(lab.root).items() if k != ".deploy.lock"} == {
        k: v for k, v in before.items() if k != ".deploy.lock"
    }
    assert lab.task("clean", yes=True).code == 0
    assert names(lab, "runs") == {unfetched}
    assert lab.task("clean", yes=True, run=sorted(names(lab, "runs"))).code == 0
    assert names(lab, "runs") == set()
    # The code that the next run starts from stays, and so does what it runs in.
    assert len([name for name in names(lab, "releases") if not name.startswith(".")]) == 1
    assert (lab.root / "current").resolve().is_dir() and list(lab.root.glob("env/*/ready"))
    assert "code kept" in lab.task("deploy").out


def test_what_was_fetched_and_is_not_here_goes_only_where_it_is_named(
    lab: Lab, server: LoopbackServer, tmp_path: Path
) -> None:
    lab.settings = {"results": ""}
    run = train(lab, "echo results > made\n")
    assert lab.task("fetch_results", run=run).code == 0
    # On another laptop, then on this one where it lies elsewhere, in part, or was written over.
    second = Lab(server, tmp_path / "second", settings=lab.settings)
    aside = tmp_path / "aside"
    aside.mkdir()
    (lab.results / run).rename(aside / run)
    for one in (second, lab):
        kept = one.task("clean", yes=True)
        assert kept.code == 0 and f"kept: {run} (finished): fetched by " in kept.err, kept
        assert ", not here" in kept.err and names(lab, "runs") == {run}
        assert len(names(lab, "releases")) == 1, "its code stays, too"
    listed = second.task("clean", run=[run[:20]])
    assert "finished, named by --run (fetched by" in listed.out, listed
    assert f"clean --run {run} --yes" in listed.out
    there = lab.task("clean", dest=str(aside))
    assert "finished, fetched completely" in there.out
    assert there.out.rstrip().endswith(f"clean --dest {aside} --yes")
    made = aside / run / "work/made"
    content, status = made.read_bytes(), made.stat()
    for change in (b"", content[:-1], content[:-1] + b"y"):
        made.write_bytes(change)
        told = lab.task("clean", yes=True, dest=str(aside)).err
        assert "not here" in told and f"{run}: 1 of " in told
        assert names(lab, "runs") == {run}
    made.write_bytes(content)
    os.utime(made, (status.st_atime, status.st_mtime))
    (aside / run / "state.json").write_text("{}")  # changes after the end by itself
    assert lab.task("clean", yes=True, dest=str(aside)).code == 0 and not names(lab, "runs")


def test_a_run_that_changes_while_it_is_looked_at_stays(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched anew by somebody else meanwhile: what is removed is what was looked at."""
    lab.settings = {"results": ""}
    run = train(lab)
    assert lab.task("fetch_results", run=run).code == 0
    original = runs_clean.find_here

    def look(session: Any, dest: Path) -> dict[str, str]:
        found = original(session, dest)
        (lab.root / "runs" / run / "work/late").write_text("late")
        assert lab.task("fetch_results", run=run, dest=str(lab.directory / "x")).code == 0
        return found

    monkeypatch.setattr(runs_clean, "find_here", look)
    assert "not here" in lab.task("clean", yes=True).err and names(lab, "runs") == {run}


def test_a_fetch_before_the_end_does_not_count(lab: Lab) -> None:
    run = train(
        lab, "echo up; while [ ! -e ../go ]; do sleep 0.1; done; echo result\n", ended=False
    )
    assert lab.task("fetch_results").code == 0
    (lab.root / "runs" / run / "go").touch()
    wait_until(lambda: lab.rows()[0]["state"] == "finished")
    assert lab.task("clean", yes=True).code == 0
    assert names(lab, "runs") == {run} and lab.rows()[0]["fetched"] is None
    assert lab.task("fetch_results").code == 0
    assert lab.task("clean", yes=True).code == 0
    assert names(lab, "runs") == set()
    assert (lab.results / run / "train.log").read_text() == "up\nresult\n"


def test_the_server_itself_marks_no_run_that_goes_on_and_no_other_end(lab: Lab) -> None:
    """Whatever a laptop claims: the mark is for the end that was fetched, and for no later one."""
    run = train(lab, "echo up; sleep 60\n", ended=False)
    with agent(lab.server) as link:
        for ended in (None, 1.0):
            assert link.call(
                "fetch_done", root="~/projects/p", run=run, ended=ended, files=1, who="x", seen=""
            ) == {"marked": False}
    place = lab.root / "runs" / run
    write_json(str(place / FETCHED), {"ended": 1.0, "time": 2.0})
    assert read_fetched(str(place), RunDetail(ended=1.0)) == 2.0
    assert read_fetched(str(place), RunDetail(ended=3.0)) is None


def test_a_live_run_keeps_its_code_and_environment_whatever_is_told(lab: Lab) -> None:
    run = train(lab, "echo up; sleep 60\n", ended=False)
    (lab.project / "train.sh").write_text("echo other\n")
    assert lab.task("deploy").code == 0
    before = names(lab, "releases"), names(lab, "env")
    assert lab.task("clean", yes=True, run=sorted(names(lab, "runs"))).code == 0
    assert (names(lab, "releases"), names(lab, "env")) == before and names(lab, "runs") == {run}
    assert lab.rows()[0]["state"] == "running"
    # On another host of a shared home nobody here can tell whether it lives.
    state = lab.state_file(run)
    os.kill(json.loads(state.read_text())["supervisor_pid"], signal.SIGKILL)
    state.write_text(json.dumps(json.loads(state.read_text()) | {"host": "node7"}))
    assert lab.task("clean", yes=True, run=sorted(names(lab, "runs"))).code == 0
    assert names(lab, "runs") == {run}


@pytest.mark.parametrize("stopped", [True, False])
def test_a_run_that_can_go_on_keeps_the_environment_that_it_has_had(
    lab: Lab, stopped: bool
) -> None:
    run = train(lab, f"echo up; sleep {60 * stopped}\n", ended=not stopped)
    if stopped:
        lab.task("stop")
    place = lab.root / "runs" / run / "run.json"
    told = place.read_text()
    (key,) = names(lab, "env")
    assert f'"{key}"' in told
    place.write_text(told.replace(f'"{key}"', f'"{"0" * 16}"'))
    (lab.root / "env" / ("0" * 16)).mkdir()
    assert lab.task("clean", yes=True).code == 0
    assert names(lab, "env") == ({key, "0" * 16} if stopped else {key})
    assert names(lab, "runs") == {run}


def test_old_code_environments_and_leftovers_go(lab: Lab) -> None:
    assert lab.task("deploy").code == 0
    kept = names(lab, "releases"), names(lab, "env")
    (lab.project / "train.sh").write_text("echo changed\n")
    assert lab.task("deploy").code == 0
    for leftover in (
        "releases/.staging-1",
        "releases/.gone-2",
        "runs/.new-3",
        "env/00112233445566",
        ".resolve-5",
        "data/.sets/.gone-5",
    ):
        (lab.root / leftover).mkdir(parents=True)
    for aside in ("runs/.new-3", ".resolve-5"):
        os.utime(lab.root / aside, (0, 0))
    (lab.root / "runs/.new-4").mkdir()  # somebody's launch, just now
    for place, age_s in (("releases", 90_000), ("data", 80_000)):  # uploads that were cut off
        parts = make_tree(lab.root / place / ".incoming", {f"{'a' * 64}.part": "x"})
        os.utime(parts / f"{'a' * 64}.part", (time.time() - age_s,) * 2)
    lab.json = True
    told = json.loads(lab.task("clean", yes=True).out)[0]
    assert {item["kind"] for item in told["items"]} == {
        "release",
        "environment",
        "leftover",
    } and told["removed"] is True
    assert not names(lab, "releases") & kept[0] and names(lab, "env") == kept[1]
    assert names(lab, "runs") == {".new-4"} and not names(lab, "data/.sets")
    assert not (lab.root / ".resolve-5").exists()
    assert not (lab.root / "releases/.incoming").exists()
    assert list((lab.root / "data/.incoming").iterdir()), "somebody may go on with it"


def test_no_run_is_removed_while_one_is_launched(lab: Lab) -> None:
    """It could be this one, which goes on."""
    run = train(lab)
    launching = Lock(str(lab.root / "runs" / ".launch.lock"))
    launching.wait()
    with ThreadPoolExecutor(1) as pool:
        cleaning = pool.submit(lab.task, "clean", yes=True, run=[run])
        with pytest.raises(NotYet):
            cleaning.result(3)
        assert (lab.root / "runs" / run / "train.log").exists()
        launching.close()
        assert cleaning.result(60).code == 0
    assert names(lab, "runs") == set()


def test_nothing_to_remove_is_said_and_nothing_is_made(lab: Lab) -> None:
    assert "nothing to remove" in lab.task("clean", yes=True).out
    assert not lab.root.exists()


def test_a_link_in_a_run_does_not_lead_the_removal_away(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    run = train(lab)
    (lab.root / "runs" / run / "work" / "link").symlink_to(tmp_path / "precious")
    assert lab.task("clean", yes=True, run=sorted(names(lab, "runs"))).code == 0
    assert names(lab, "runs") == set() and (tmp_path / "precious" / "file").exists()


def test_another_projects_root_is_refused(lab: Lab) -> None:
    train(lab)
    lab.settings = {"project": "other"}
    done = lab.task("clean", yes=True, run=sorted(names(lab, "runs")))
    assert done.code == 7 and "belongs to the project 'p'" in done.err and names(lab, "runs")


def test_nobody_stops_or_fetches_the_runs_of_another_project(
    lab: Lab, server: LoopbackServer, tmp_path: Path
) -> None:
    """Of the same name: another repository, or another folder of the same one."""
    commit(lab.project, "first")
    run = train(lab, "echo up; sleep 60\n", ended=False)
    stranger = Lab(server, tmp_path / "elsewhere", files=lab.files)
    commit(stranger.project, "another one's first")
    for name in ("stop", "fetch_results", "clean", "deploy"):
        done = stranger.task(name)
        assert done.code == 7 and "another project named 'p': its first commit" in done.err, done
    assert lab.rows()[0]["state"] in ("queued", "running")
    assert lab.task("stop", run=run).code == 0


def test_what_keeps_a_run(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path))
    run = Found("r", str(tmp_path), Asked(), RunDetail())
    seen = find_outputs(str(tmp_path), []).seen()
    here = {"r": seen}
    for state in (RunDetail("running"), RunDetail()):
        assert clean.why_to_keep(layout, run._replace(detail=state), here)
    ended = run._replace(detail=RunDetail("failed", ended=1.0))
    assert clean.why_to_keep(layout, ended, here)
    mark = {"ended": 1.0, "time": 2.0, "seen": seen, "who": "me@laptop"}
    write_json(str(tmp_path / FETCHED), mark)
    assert clean.why_to_keep(layout, ended, here) is None
    for other in ({}, {"r": "compared with what was there before"}):
        assert clean.why_to_keep(layout, ended, other) == "fetched by me@laptop, not here"
    write_json(str(tmp_path / FETCHED), mark | {"narrowed": True})
    assert "remote.results" in str(clean.why_to_keep(layout, ended, here))
    (tmp_path / "late").touch()
    write_json(str(tmp_path / FETCHED), mark)
    assert "changed" in str(clean.why_to_keep(layout, ended, here))
