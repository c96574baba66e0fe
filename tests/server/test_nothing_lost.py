"""All that a run wrote comes back, and `clean` never removes a byte that is not here: other
people's projects as they are."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

import pytest

from remote.agent.run_files import outputs
from remote.agent.run_files.outputs import (
    CACHE_TAG,
    find_outputs,
    is_aside,
    mark_copied,
    matches,
    narrow,
)
from remote.agent.shared.trees import SYMLINK
from remote.loopback import LoopbackServer
from remote.project.results import lock_file
from remote.screen.display import Display
from remote.transfer import fetch
from tests.support.faults import Lab, wait_until
from tests.support.project import commit, make_tree

WRITER = """
mkdir -p checkpoint output/checkpoint-8 wandb/run-1 .hydra deep/er out __pycache__ .venv cached link
echo weights > checkpoint/ckpt.pth; echo tensors > output/checkpoint-8/model.safetensors
echo w > wandb/run-1/x.wandb
echo hydra > .hydra/config.yaml; echo m > model.pt; echo p > half.part; echo t > a.tmp
echo e > .env.out; : > empty
echo changed >> config.yaml; echo bytecode > __pycache__/a.pyc; touch .venv/pyvenv.cfg
echo big > .venv/lib
printf 'Signature: 8a477f597d28d172789f06886806bc55' > cached/CACHEDIR.TAG; echo c > cached/data
ln -s checkpoint/ckpt.pth last.ckpt; ln -s "$PWD/model.pt" absolute.pt; ln -s /etc/hosts link/out
ln -s nowhere link/broken
echo top > "$REMOTE_RUN_DIR/mine.txt"; mkdir "$REMOTE_RUN_DIR/.dot"
echo dot > "$REMOTE_RUN_DIR/.dot/file"
rm gone.txt; chmod +x tool.sh
"""
CODE = {
    "train.sh": WRITER,
    "config.yaml": "a: 1\n",
    "gone.txt": "x",
    "tool.sh": "echo\n",
    "same.txt": "same",
}
WROTE = {
    "work/checkpoint/ckpt.pth",
    "work/output/checkpoint-8/model.safetensors",
    "work/wandb/run-1/x.wandb",
    "work/.hydra/config.yaml",
    "work/model.pt",
    "work/half.part",
    "work/a.tmp",
    "work/.env.out",
    "work/empty",
    "work/config.yaml",
    "work/last.ckpt",
    "work/absolute.pt",
    "work/link/broken",
    "mine.txt",
    ".dot/file",
}


def finished(lab: Lab) -> str:
    assert lab.task("train").code == 0
    wait_until(lambda: lab.rows()[0]["state"] not in ("queued", "running"))
    row = lab.rows()[0]
    assert row["state"] == "finished", row
    return str(row["run"])


def here(folder: Path) -> set[str]:
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }
    return {path for path in found if not path.startswith("source/")}


def test_everything_that_a_run_wrote_comes_back(server: LoopbackServer, tmp_path: Path) -> None:
    lab = Lab(server, tmp_path, files=CODE, settings={"results": ""})
    run = finished(lab)
    done = lab.task("fetch_results")
    assert (
        done.code == 0
        and "not fetched: work/link/out: a link that leads out of the run, to /etc/hosts"
        in done.err
    )
    place = lab.results / run
    ours = {"run.json", "state.json", "train.log", "supervisor.log"}
    assert here(place) - ours == WROTE
    assert (place / "work/absolute.pt").read_text() == "m\n" and os.readlink(
        place / "work/absolute.pt"
    ) == "model.pt"
    assert (place / "work/config.yaml").read_text() == "a: 1\nchanged\n" and (
        place / "source/config.yaml"
    ).read_text() == "a: 1\n"
    assert lab.task("clean", yes=True).code == 0 and not (lab.root / "runs" / run).exists()


def test_any_number_of_files_comes_back(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "RANGES", 800)
    script = "mkdir m; cd m; i=0; while [ $i -lt 2001 ]; do : > $i; i=$((i+1)); done"
    lab = Lab(server, tmp_path, files={"train.sh": script}, settings={"results": ""})
    run = finished(lab)
    assert lab.task("fetch_results").code == 0
    assert len(list((lab.results / run / "work" / "m").iterdir())) == 2001
    assert "fetched completely" in lab.task("clean").out


def test_patterns_narrow_and_what_they_leave_is_named_and_kept(
    server: LoopbackServer, tmp_path: Path
) -> None:
    lab = Lab(server, tmp_path, files=CODE, settings={"results": ".hydra, *.pt"})
    run = finished(lab)
    done = lab.task("fetch_results")
    assert {path for path in here(lab.results / run) if path.startswith("work/")} == {
        "work/.hydra/config.yaml",
        "work/model.pt",
        "work/absolute.pt",
    }
    assert (
        "not fetched: work/checkpoint/ (8 B): 1 file, no pattern of remote.results matches"
        in done.err
    )
    assert (
        "not fetched: work/config.yaml (13 B)" in done.err
        and "`clean` keeps it on the server" in done.err
    )
    listed = lab.task("clean", yes=True)
    assert (
        "fetched but for what remote.results leaves out" in listed.err
        and (lab.root / "runs" / run / "work/model.pt").exists()
    )
    lab.settings = {"results": ""}
    assert (
        lab.task("fetch_results").code == 0
        and (lab.results / run / "work/checkpoint/ckpt.pth").exists()
    )
    assert lab.task("clean", yes=True).code == 0 and not (lab.root / "runs" / run).exists()
    again = finished(lab)
    assert (
        lab.task("clean", yes=True, run=[again]).code == 0
        and not (lab.root / "runs" / again).exists()
    )


def test_what_is_written_after_the_fetch_keeps_the_run(
    server: LoopbackServer, tmp_path: Path
) -> None:
    lab = Lab(
        server, tmp_path, files={"train.sh": "echo up; echo one > one\n"}, settings={"results": ""}
    )
    run = finished(lab)
    assert lab.task("fetch_results").code == 0
    late = lab.root / "runs" / run / "work" / "late"
    late.write_text("by a process that nobody knew of")
    done = lab.task("clean", yes=True)
    assert "changed since it was fetched" in done.err and late.exists()
    assert lab.task("fetch_results").code == 0 and (lab.results / run / "work/late").exists()
    assert lab.task("clean", yes=True).code == 0 and not late.exists()


def test_two_fetches_of_a_run_come_one_after_the_other(
    server: LoopbackServer, tmp_path: Path
) -> None:
    """A mirror that is kept, and somebody who is impatient: they would write into each other's
    parts."""
    lab = Lab(server, tmp_path, files=CODE, settings={"results": ""})
    run = finished(lab)
    other = lock_file(lab.results / ".pending" / f"{run}.fetch")
    assert other is not None
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(lab.task, "fetch_results")
        with pytest.raises(NotYet):
            fetching.result(3)
        assert not (lab.results / run).exists()
        other.close()
        done = fetching.result(60)
    assert done.code == 0 and f"another command fetches {lab.results / run} just now" in done.err
    assert here(lab.results / run) > WROTE


def test_all_is_on_this_disk_before_the_server_goes(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"results": "", "shutdown": "touch is-down"}
    lab = Lab(server, tmp_path, files={"train.sh": "echo up\n"}, settings=settings)
    finished(lab)
    seen, down = list[bool](), server.home / "is-down"
    monkeypatch.setattr(os, "sync", lambda: seen.append(down.exists()))
    monkeypatch.setattr("remote.runs.shutdown.GONE_S", 0.0)
    done = lab.task("fetch_results", then_shutdown=True, yes=True)
    assert done.code == 0 and seen == [False] and down.exists(), done


def test_links_that_lead_out_of_a_run_are_named_before_the_server_goes(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody's results may lie behind them."""
    lab = Lab(server, tmp_path, files=CODE, settings={"results": "", "shutdown": "false"})
    run, asked = finished(lab), list[str]()

    def confirm(self: Display, question: str) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr(Display, "confirm", confirm)
    assert lab.task("fetch_results", then_shutdown=True).code == 0
    there = Path(run, "work", "link", "out")
    assert f"What these lead to is not here: {there}." in asked[-1], asked


def test_what_can_not_be_read_keeps_the_run(unprivileged: LoopbackServer, tmp_path: Path) -> None:
    script = "echo up; mkdir shut; echo one > shut/one; echo two > two; chmod 0 shut two\n"
    if os.geteuid() == 0:
        python = Path(unprivileged.path, "python3")
        if not os.access("/usr/bin/python3", os.X_OK):
            pytest.skip("no python that everybody may execute")
        python.unlink(missing_ok=True)
        python.symlink_to("/usr/bin/python3")
    lab = Lab(unprivileged, tmp_path, files={"train.sh": script}, settings={"results": ""})
    run = finished(lab)
    done = lab.task("fetch_results")
    assert (
        done.code == 0
        and "not fetched: work/shut/: can't be read on the server: Permission denied" in done.err
    )
    assert "work/two can't be read on the server: Permission denied" in done.err
    assert (
        lab.task("clean", yes=True).code == 0
        and (lab.root / "runs" / run / "work" / "shut").exists()
    )


def test_the_same_code_lies_here_once(server: LoopbackServer, tmp_path: Path) -> None:
    files = {f"many/{number}.txt": str(number) for number in range(50)} | {"train.sh": "echo up\n"}
    lab = Lab(server, tmp_path, files=files, json=True)
    first, second = finished(lab), finished(lab)
    told = [json.loads(lab.task("fetch_results", run=run).out)[0] for run in (first, second)]
    one, other = (lab.results / run / "source/many/7.txt" for run in (first, second))
    assert one.read_text() == other.read_text() == "7" and one.samefile(other)
    assert told[1]["changed"] < 10 < told[0]["changed"]
    # What somebody changed here in one of them is not taken for the other's.
    third = finished(lab)
    one.write_text("!")
    assert lab.task("fetch_results", run=third).code == 0
    assert (lab.results / third / "source/many/7.txt").read_text() == "7"


@pytest.mark.parametrize(
    ("path", "pattern", "found"),
    [
        ("out/a.pt", "out", True),
        ("out/a.pt", "out/", True),
        ("out/a.pt", "*.pt", True),
        ("out/x/a", "o*/x", True),
        ("output", "out", False),
        (".hydra/a", ".hydra", True),
        ("a/out/b", "out", False),
        ("a/b", "", False),
        ("outputs/1/a", "outputs/*", True),
    ],
)
def test_patterns(path: str, pattern: str, found: bool) -> None:
    assert matches(path, pattern) is found


def test_environments_and_caches_stay_aside(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "venv/pyvenv.cfg": "",
            "conda/conda-meta/history": "",
            "c/CACHEDIR.TAG": CACHE_TAG,
            "d/CACHEDIR.TAG": "no",
        },
    )
    (tmp_path / "__pycache__").mkdir()
    assert [name for name in sorted(os.listdir(tmp_path)) if is_aside(str(tmp_path / name))] == [
        "__pycache__",
        "c",
        "conda",
        "venv",
    ]


def test_a_checkpoint_that_is_being_written_is_none(tmp_path: Path) -> None:
    """A mirror that is kept through the night would gather halves of them."""
    half = "last.ckpt.1234abcd.tmp"
    places = ["", "seed-1/", "work/", "work/seed-1/"]
    names = [f"{place}checkpoints/{name}" for place in places for name in ("last.ckpt", half)]
    make_tree(tmp_path, dict.fromkeys(names, "x"))
    found = {row[0] for row in find_outputs(str(tmp_path), []).files}
    assert found == {name for name in names if name.startswith("work/") or half not in name}


def test_code_is_compared_by_content_where_times_do_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may set a file's mtime back; it can't set its ctime."""
    monkeypatch.setattr(outputs, "CLOCK_NS", 0)
    (tmp_path / "work").mkdir()
    begin_ns = (tmp_path / "work").stat().st_ctime_ns
    make_tree(tmp_path / "work", {"a": "one", "b": "one"})
    before = (tmp_path / "work/a").stat()
    time.sleep(0.02)
    mark_copied(str(tmp_path), begin_ns)
    window = outputs.copied_window(str(tmp_path))
    assert window[0] <= before.st_ctime_ns < window[1]
    release = [("a", 0o644, 3, "0" * 64), ("b", 0o644, 3, "0" * 64)]
    assert find_outputs(str(tmp_path), release).files == []  # not even read
    time.sleep(0.02)
    (tmp_path / "work/a").write_text("two")
    os.utime(tmp_path / "work/a", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert [row[0] for row in find_outputs(str(tmp_path), release).files] == ["work/a"]
    (tmp_path / "work/b").unlink()
    (tmp_path / "work/b").symlink_to("a")
    assert ("work/b", 1, SYMLINK) in [row[:3] for row in find_outputs(str(tmp_path), release).files]


def test_what_was_changed_here_is_kept_beside_what_comes(
    server: LoopbackServer, tmp_path: Path
) -> None:
    """Also where the file has grown there since; one that only grew there is replaced."""
    script = (
        "echo one | tee a > b; echo up; while [ ! -e ../go ]; do sleep 0.1; done\n"
        "echo two | tee -a a >> b; : > c\n"
    )
    lab = Lab(server, tmp_path, files={"train.sh": script}, settings={"results": ""})
    assert lab.task("train").code == 0
    (there,) = (lab.root / "runs").glob("2*")
    wait_until(lambda: (there / "work/b").exists())
    assert lab.task("fetch_results").code == 0
    work = lab.results / there.name / "work"
    os.utime(work / "a")  # nothing but its time
    with (work / "b").open("a") as file:
        file.write("my notes\n")
    (there / "go").touch()
    wait_until(lambda: lab.rows()[0]["state"] == "finished")
    done = lab.task("fetch_results")
    assert "work/b was changed here, and is replaced; yours is b.mine beside it" in done.err, done
    assert (work / "b").read_text() == "one\ntwo\n"
    assert (work / "b.mine").read_text() == "one\nmy notes\n"
    with (work / "b").open("a") as file:
        file.write("more notes\n")
    assert lab.task("fetch_results").code == 0 and (work / "b").read_text() == "one\ntwo\n"
    assert (work / "b.mine.mine").read_text() == "one\ntwo\nmore notes\n"
    assert "nothing new to fetch" in lab.task("fetch_results").out
    assert sorted(path.name for path in work.iterdir()) == ["a", "b", "b.mine", "b.mine.mine", "c"]


@pytest.mark.parametrize("git", [True, False])
def test_what_was_fetched_is_no_code_wherever_it_lies(
    server: LoopbackServer, tmp_path: Path, git: bool
) -> None:
    lab = Lab(server, tmp_path, files={"train.sh": "echo made > made.py\n"})
    lab.settings = {"results": "", "dest": "results"}
    if git:
        commit(lab.project, "first")
    assert lab.task("train").code == 0
    wait_until(lambda: lab.rows()[0]["state"] == "finished")
    other = lab.project / "other"
    for dest in (None, str(other)):
        assert lab.task("fetch_results", dest=dest).code == 0
    assert list(other.rglob("made.py"))
    assert "code kept" in lab.task("deploy").out
    assert "fetched completely" in lab.task("clean", dest=str(other)).out


def test_a_pattern_may_be_typed_as_what_is_left_is_told(tmp_path: Path) -> None:
    make_tree(tmp_path / "work", {"ckpt/a": "1", "ckpt/b": "2", "log": "3"})
    found = find_outputs(str(tmp_path), [])
    narrow(found, ["log", "weights"])
    (told,) = found.left
    assert told[0] == "work/ckpt/" and told[2].endswith("matches (weights: no such file)")
    found = find_outputs(str(tmp_path), [])
    narrow(found, [told[0]])
    assert [row[0] for row in found.files] == ["work/ckpt/a", "work/ckpt/b"]
    assert [row[:1] + row[2:3] for row in found.left] == [
        ("work/log", "1 file, no pattern of remote.results matches")
    ]
