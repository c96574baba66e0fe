"""--env and remote.env: variables for a run whose values show nowhere else; remote.data is there
before a run starts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from remote.project.run_env import read_env
from tests.server.test_secrets import Listing, holds
from tests.support.faults import Lab, wait_until
from tests.support.hostile import recording

SECRET = "swordfish-Zq9"
"""Nobody else's: all processes of the machine are looked at, other tests' too."""
PRINTS = (
    'echo "key $API_KEY, file $FROM_FILE, quoted $QUOTED"; echo "$API_KEY" | tail -c 5;'
    ' printf "no end yet $API_KEY"; while [ -e ../wait ]; do sleep 0.1; done; echo;'
    ' [ "$REMOTE_ATTEMPT" != 1 ]\n'
)
DOTENV = f"# mine\nexport FROM_FILE={SECRET}-file # a note\n\nQUOTED='a \"b' \n"


@pytest.fixture
def lab(server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("API_KEY", SECRET)
    files = {"train.sh": PRINTS, ".env": DOTENV}
    return Lab(server, tmp_path, files=files, settings={"env": ["@.env"]})


def test_a_run_gets_them_and_nothing_else_does(lab: Lab) -> None:
    """The log of both attempts, every record, the processes' command lines, what is fetched and
    what goes over the line a second time."""
    heard: dict[str, object] = {}
    with Listing() as listing, recording(heard):  # type: ignore[arg-type]
        first = lab.task("train", env=["API_KEY"])
        wait_until(lambda: lab.rows()[0]["state"] == "failed")
        again = lab.task("train", resume="latest", env=["API_KEY"])
        wait_until(lambda: lab.rows()[0]["state"] == "finished")
        fetched = lab.task("fetch_results")
    assert (first.code, again.code, fetched.code) == (10, 0, 0), (first, again, fetched)
    (run,) = (lab.root / "runs").glob("2*")
    line = 'key ***, file ***, quoted a "b\n-Zq9\nno end yet ***\n'
    assert (run / "train.log").read_text() == line * 2
    assert holds(lab.server.home, SECRET) == [str(run / ".env.json")]
    assert (run / ".env.json").stat().st_mode & 0o077 == 0
    assert holds(lab.results, SECRET) == [] and not any(
        SECRET.encode() in row for row in listing.seen
    )
    asked = json.loads((run / "run.json").read_text())
    assert asked["env"] == ["API_KEY", "FROM_FILE", "QUOTED"]
    said = "".join(done.out + done.err for done in (first, again, fetched))
    assert SECRET not in said and SECRET not in repr(heard)


def test_the_line_that_status_shows_is_blacked_out_too(lab: Lab) -> None:
    wait = lab.project / "train.sh"
    wait.write_text('printf "token $API_KEY "; read answer\n')
    lab.task("train", env=["API_KEY"])
    wait_until(lambda: lab.rows()[0]["asking"])
    assert "waits for input: token ***" in lab.task("status").out
    lab.task("stop")


def test_a_run_that_is_brought_elsewhere_asks_for_them_again(lab: Lab) -> None:
    lab.task("train", env=["API_KEY"])
    lab.task("fetch_results")
    (run,) = (lab.root / "runs").glob("2*")
    elsewhere = Lab(lab.server, lab.directory, settings={"root": "~/projects/q"})
    done = elsewhere.task("train", resume="latest")
    assert done.code == 2 and "give them again: --env API_KEY --env FROM_FILE" in done.err, done
    assert not (lab.server.home / "projects" / "q" / "runs").exists()
    assert run.exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["MISSING"], "--env MISSING: there is no such variable here"),
        ([f"KEY={SECRET}"], "a value on the command line is seen by others"),
        (["two words"], "needs a variable's name or @FILE"),
        (["@nowhere"], "--env @nowhere: the file can't be read"),
        (["@bad"], "--env @bad: line 2 is not of the form NAME=value"),
        (["@ours"], "--env REMOTE_RUN_DIR: every run is given that by this program"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_sent(
    lab: Lab, given: list[str], told: str
) -> None:
    (lab.project / "bad").write_text(f"A=1\n{SECRET}\n")
    (lab.project / "ours").write_text("REMOTE_RUN_DIR=/\n")
    done = lab.task("train", env=given)
    assert done.code == 2 and told in done.err and len(done.err.splitlines()) == 1, done
    assert SECRET not in done.err and not lab.root.exists()


def test_the_forms_of_a_file(tmp_path: Path) -> None:
    lines = ["A=1", "B = two words ", 'C="x # y" # z', "D='$A'", "E=", "F=a#b", "G=a=b"]
    (tmp_path / "f").write_text("\ufeff" + "\r\n".join(lines))
    assert read_env(["@f"], "--env", tmp_path) == {
        "A": "1",
        "B": "two words",
        "C": "x # y",
        "D": "$A",
        "E": "",
        "F": "a#b",
        "G": "a=b",
    }


def test_the_datas_that_it_needs_are_there_before_it_starts(
    server: LoopbackServer, tmp_path: Path
) -> None:
    """Any file or folder, hidden ones too; `--data` tells where one lies, `remote.data` is checked
    first."""
    script = 'cat "$REMOTE_DATA_DIR/words.txt" "$REMOTE_DATA/.zarray"\n'
    lab = Lab(server, tmp_path, files={"train.sh": script}, settings={"data": ["words.txt", "z"]})
    (tmp_path / "words.txt").write_text("words\n")
    os.mkdir(tmp_path / "z")
    (tmp_path / "z" / ".zarray").write_text("hidden\n")
    assert lab.task("upload_data", path=str(tmp_path / "words.txt")).code == 0
    done = lab.task("train")
    assert done.code == 11 and "remote.data names z, which is not in" in done.err, done
    assert "upload-data PATH --name z" in done.err and not list(lab.root.glob("runs/2*"))
    told = lab.task("upload_data", path=str(tmp_path / "z"))
    assert "$REMOTE_DATA_DIR/z" in told.out
    assert lab.task("train", data="nothing").code == 11
    trained = lab.task("train", data="z", follow=True)
    assert trained.code == 0 and "words\nhidden\n" in trained.out, trained
