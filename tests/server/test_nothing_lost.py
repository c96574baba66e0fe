"""All that a run wrote comes back, and `clean` never removes a byte that is not here: other
people's projects as they are."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remote.agent.runs import outputs
from remote.agent.runs.outputs import CACHE_TAG, find_outputs, is_aside, mark_copied, matches
from remote.agent.shared.trees import SYMLINK
from remote.agent.supervisor.surroundings import newest_checkpoint
from remote.loopback import LoopbackServer
from remote.project.results import lock_file
from remote.screen.display import Display
from tests.support.faults import Lab, short_pauses, wait_until
from tests.support.project import Content, Link, make_tree
from tests.support.proxy import Relay
from tests.support.sshd import MakeServer

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
    assert f"What these lead to is not here: {run}/work/link/out." in asked[-1], asked


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


NAMES = st.sampled_from(
    ["a", "b.pt", ".hidden", "x.part", "y.tmp", "Ä ö", "out", "data", "run.json.12345678.tmp"]
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TREES = st.dictionaries(PATHS, st.integers(0, 200_000), max_size=8)


def plausible(tree: dict[str, int]) -> dict[str, int]:
    """Without files where a folder is wanted."""
    return {
        path: size
        for path, size in tree.items()
        if not any(other.startswith(path + "/") for other in tree)
    }


@pytest.fixture
def played(server: LoopbackServer) -> Iterator[Lab]:
    directory = Path(tempfile.mkdtemp())
    with Relay(server.host, server.port) as relay:
        lab = Lab(
            server,
            directory,
            relay=relay,
            name="nothing-lost",
            files={"train.sh": "echo up\n", "kept.txt": "kept"},
        )
        assert lab.task("train", name="first").code == 0
        wait_until(lambda: lab.rows()[0]["state"] == "finished")
        yield lab
    shutil.rmtree(directory, ignore_errors=True)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    tree=TREES.map(plausible),
    top=TREES.map(plausible),
    patterns=st.lists(st.sampled_from(["out", "*.pt", "a", ".hidden/*"]), max_size=2),
    cuts=st.lists(st.integers(0, 400_000), max_size=2),
    late=st.booleans(),
)
def test_clean_never_removes_a_byte_that_is_not_here(
    played: Lab,
    tree: dict[str, int],
    top: dict[str, int],
    patterns: list[str],
    cuts: list[int],
    late: bool,
) -> None:
    """Random trees, patterns, sizes and cuts; after each step every byte of the run is on the
    server or here."""
    lab = played
    first = next(path for path in sorted((lab.root / "runs").iterdir()) if "-first-" in path.name)
    run = first.with_name("20260101-000000-played-0000")
    for place in (run, lab.results / run.name):
        shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(first, run, symlinks=True)
    (run / ".fetched.json").unlink(missing_ok=True)
    for base, files in (("work/made", tree), ("more", top)):
        make_tree(run / base, {path: os.urandom(size) for path, size in files.items()})
    lab.settings = {"results": ",".join(patterns)}
    there = contents(run)
    with short_pauses():
        for cut in cuts:
            assert lab.relay is not None
            lab.relay.cut_after(cut, "down")
            assert lab.task("fetch_results", run=run.name).code in (0, 3, 4)
            lab.relay.mend()
            lab.task("clean", yes=True, route=lab.server)
            nothing_lost(there, run, lab.results / run.name)
            if not run.exists():
                return  # that cut came too late to cut anything
        assert lab.task("fetch_results", run=run.name, route=lab.server).code == 0
    if late:
        make_tree(run, {"work/late": "late"})
        there = contents(run)
    assert lab.task("clean", yes=True, route=lab.server).code == 0
    nothing_lost(there, run, lab.results / run.name)
    assert run.exists() or not late
    outside = [
        path
        for path in tree
        if patterns and not any(matches("made/" + path, pattern) for pattern in patterns)
    ]
    assert run.exists() or not outside
    if not patterns and not late:
        assert not run.exists()


def contents(run: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for base in ("work/made", "more", "work/late"):
        for path in [run / base, *(run / base).rglob("*")]:
            with contextlib.suppress(IsADirectoryError, FileNotFoundError):
                found[path.relative_to(run).as_posix()] = path.read_bytes()
    return found


def nothing_lost(there: dict[str, bytes], run: Path, copy: Path) -> None:
    for path, data in there.items():
        places: list[Any] = [place / path for place in (run, copy) if (place / path).is_file()]
        assert any(place.read_bytes() == data for place in places), path


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
    assert done.code == 12 and "holds a later attempt of it" in done.err
    assert log.read_bytes() == whole
    assert lab.task("fetch_results", dest=str(tmp_path / "elsewhere")).code == 0


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
    assert newest_checkpoint(str(run), {}) is None
    folder = "work/output/checkpoint-8/"
    make_tree(
        run,
        {f"{folder}model.safetensors": "a", f"{folder}trainer_state.json": "{}", "train.log": "x"},
    )
    assert newest_checkpoint(str(run), {}) == str(run / "work/output/checkpoint-8")
    make_tree(run, {"checkpoints/epoch=3.ckpt": "b"})
    os.utime(run / "checkpoints/epoch=3.ckpt", (2e9, 2e9))
    assert newest_checkpoint(str(run), {}) == str(run / "checkpoints/epoch=3.ckpt")


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
    assert newest_checkpoint(str(run), {}) == str(run / "work/2.safetensors")
    (run / "work/2.safetensors").unlink()
    assert newest_checkpoint(str(run), {}) == str(run / "work/1.pt")
    # A folder of Hugging Face's is whole once the trainer's state is there, which comes last.
    make_tree(run, {"work/out/checkpoint-8/model.safetensors": tensors})
    assert newest_checkpoint(str(run), {}) == str(run / "work/out/checkpoint-8/model.safetensors")
    make_tree(run, {"work/out/checkpoint-8/trainer_state.json": "{}"})
    make_tree(run, {"work/out/checkpoint-9/model.safetensors": tensors})
    assert newest_checkpoint(str(run), {}) == str(run / "work/out/checkpoint-8")
