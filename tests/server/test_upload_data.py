"""`upload-data`: images go to the server once, whole or not at all, over as many connections as it
takes."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from remote.link import session
from remote.link.session import Session
from remote.loopback import LoopbackServer
from remote.transfer import upload
from tests.support.faults import LOST, Done, Lab, short_pauses, wait_until
from tests.support.project import Link, make_tree, shut_folders, snapshot
from tests.support.proxy import Relay

SEES = (
    'ls "$REMOTE_DATA_DIR"; cat "$REMOTE_DATA_DIR/photos/train/cat/1.png"; while [ -e ../wait ]; do'
    " sleep 0.1; done\n"
)


@pytest.fixture
def lab(server: LoopbackServer, tmp_path: Path) -> Lab:
    return Lab(server, tmp_path, files={"train.sh": SEES})


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    names = {
        f"train/{kind}/{number}.png": f"{kind} {number}\n"
        for kind in ("cat", "dog")
        for number in range(20)
    }
    odd: dict[str, str | bytes] = {
        "test/cat/日本 'q\"\n.png": "odd",
        "test/cat/same.png": "cat 1\n",
        ".hidden": "h",
        "Thumbs.db": "t",
        "big": os.urandom(900_000),
    }
    made = make_tree(tmp_path / "photos", {**names, **odd})
    make_tree(tmp_path, {"elsewhere/far.png": "far"})
    return make_tree(
        made,
        {
            "train/cat/linked.png": Link("../../../elsewhere/far.png"),
            "train/loop": Link("../train"),
        },
    )


def visible(folder: Path) -> dict[str, str]:
    """What is to arrive: hidden files too, and links as what they lead to."""
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith("train/loop") and path.name != "Thumbs.db":
            found[name] = path.read_bytes().hex()
    return found


def test_a_folder_goes_there_once_and_every_run_sees_it(lab: Lab, photos: Path) -> None:
    first = lab.task("upload_data", path=str(photos))
    assert (
        first.code == 0 and "verified by sha256" in first.out and "train --data photos" in first.out
    ), first
    there = lab.root / "data" / "photos"
    assert visible(there) == visible(photos) and (there / ".hidden").exists()
    assert there.resolve().parent.name == ".sets" and not (lab.root / "data" / ".incoming").exists()
    assert lab.root.stat().st_mode & 0o777 == 0o700
    assert "nothing to send, it is there already" in lab.task("upload_data", path=str(photos)).out
    assert lab.task("train", follow=True).out.count("cat 1\n") == 1


def test_a_change_sends_only_what_is_new_and_leaves_a_running_training_its_images(
    lab: Lab, photos: Path
) -> None:
    lab.task("upload_data", path=str(photos))
    before = (lab.root / "data" / "photos").resolve()
    kept = visible(before)
    (photos / "train" / "dog" / "new.png").write_text("new dog\n")
    lab.json = True
    (told,) = json.loads(lab.task("upload_data", path=str(photos)).out)
    assert told["sent"] == len("new dog\n")
    after = (lab.root / "data" / "photos").resolve()
    assert after != before and visible(after) == visible(photos) and visible(before) == kept
    assert (after / "big").stat().st_ino == (before / "big").stat().st_ino, (
        "what is the same takes no room twice"
    )
    lab.json = False
    assert "no name in data/ leads to them" in lab.task("clean").out
    assert lab.task("clean", yes=True).code == 0
    assert not before.exists() and visible(after) == visible(photos)


def test_clean_leaves_a_live_run_what_its_command_reads(
    server: LoopbackServer, tmp_path: Path, photos: Path
) -> None:
    """The name leads elsewhere by now; $REMOTE_DATA of the run does not."""
    script = 'echo up; while [ ! -e ../go ]; do sleep 0.1; done; cat "$REMOTE_DATA/big" | wc -c\n'
    lab = Lab(server, tmp_path, files={"train.sh": script})
    lab.task("upload_data", path=str(photos))
    before = (lab.root / "data" / "photos").resolve()
    assert lab.task("train", data="photos").code == 0
    (photos / "train" / "dog" / "new.png").write_text("new dog\n")
    assert lab.task("upload_data", path=str(photos)).code == 0
    assert lab.task("clean", yes=True).code == 0 and before.exists()
    run = lab.rows()[0]["run"]
    (lab.root / "runs" / run / "go").touch()
    wait_until(lambda: lab.rows()[0]["state"] == "finished")
    assert (lab.root / "runs" / run / "train.log").read_text() == "up\n900000\n"
    assert lab.task("clean", yes=True).code == 0 and not before.exists()


def test_what_is_gone_or_was_altered_there_is_sent_again(lab: Lab, photos: Path) -> None:
    """Also where nobody's eyes would see it, and where another set has the same contents."""

    def sent(folder: Path, name: str | None = None) -> int | None:
        (told,) = json.loads(lab.task("upload_data", path=str(folder), name=name).out)
        found = visible(lab.root / "data" / (name or folder.name))
        assert {each: found[each] for each in visible(folder)} == visible(folder)
        return told["sent"]  # type: ignore[no-any-return]

    def alter(name: str, content: str) -> None:
        file = lab.root / "data" / "photos" / name
        before = file.stat()
        file.chmod(0o600)
        file.write_text(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))

    lab.json = True
    sent(photos)
    there = lab.root / "data" / "photos"
    assert {path.stat().st_mode & 0o777 for path in there.rglob("*.png")} == {0o444}
    (there / "train/cat/2.png").unlink()
    alter("train/dog/7.png", "dog X\n")
    alter("train/dog/8.png", "dog 8\nand more")
    (there / "made by a training").touch()
    assert sent(photos) == len("cat 2\ndog 7\ndog 8\n") and sent(photos) is None
    assert (there / "made by a training").exists()
    alter("train/dog/9.png", "dog X\n")
    other = make_tree(photos.parent / "other", {"9.png": "dog 9\n", "1.png": "dog 1\n"})
    assert sent(other) == len("dog 9\n"), "an altered file is nobody's source"
    assert sent(photos, "again") == 0 and sent(photos) is None


@pytest.mark.parametrize("content", [None, "short", "x" * 900_000, "y" * 900_001])
def test_a_file_that_changes_while_it_is_sent_is_named(
    lab: Lab, photos: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    def late(session: Session, data: upload.DataSet) -> object:
        monkeypatch.undo()
        kept = (photos / "big").read_bytes()
        (photos / "big").unlink()
        if content is not None:
            (photos / "big").write_text(content)
        try:
            return upload.send(session, data)
        finally:
            (photos / "big").write_bytes(kept)

    monkeypatch.setattr(upload, "send", late)
    done = lab.task("upload_data", path=str(photos))
    assert done.code == 12 and len(done.error_lines) == 1 and "big" in done.error_lines[0], done
    assert "while it was being sent" in done.err
    assert lab.task("upload_data", path=str(photos)).code == 0
    assert visible(lab.root / "data" / "photos") == visible(photos)


def test_a_name_that_led_to_another_set_is_told(lab: Lab, photos: Path) -> None:
    one = make_tree(photos.parent / "one", {"a.png": "abc"})
    lab.task("upload_data", path=str(one), name="photos")
    done = lab.task("upload_data", path=str(photos))
    assert "photos was another set until now (1 file, 3 B)" in done.err, done
    assert "another set" not in lab.task("upload_data", path=str(photos)).err


def test_it_goes_on_where_a_cut_stopped_it(
    lab: Lab, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "big").write_bytes(os.urandom(8_000_000))
    monkeypatch.setattr(upload, "TRIES", 1)
    with Relay(lab.server.host, lab.server.port) as relay, short_pauses():
        lab.relay = relay
        assert lab.task("deploy").code == 0
        relay.cut_after(6_000_000, "up")
        cut = lab.task("upload_data", path=str(photos))
        assert cut.code == LOST and len(cut.error_lines) == 1, cut
        assert not (lab.root / "data" / "photos").exists()
        wait_until(lambda: list((lab.root / "data" / ".incoming").glob("*.part")))
        have = sum(file.stat().st_size for file in (lab.root / "data" / ".incoming").iterdir())
        relay.mend()
        lab.json = True
        (told,) = json.loads(lab.task("upload_data", path=str(photos)).out)
    assert have > 2_000_000 and told["sent"] <= told["bytes"] - have
    assert visible(lab.root / "data" / "photos") == visible(photos)


def test_it_comes_back_by_itself(lab: Lab, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PAUSES_S", (0.3,) * 6)
    with Relay(lab.server.host, lab.server.port) as relay:
        lab.relay = relay
        lab.task("deploy")
        relay.cut_after(400_000, "up")
        done: list[Done] = []
        thread = threading.Thread(
            target=lambda: done.append(lab.task("upload_data", path=str(photos)))
        )
        thread.start()
        wait_until(lambda: relay.cuts)
        relay.mend()
        thread.join(60)
    assert done[0].code == 0 and "what has arrived stays" in done[0].err, done
    assert visible(lab.root / "data" / "photos") == visible(photos)


def test_a_server_that_is_not_there_is_told_at_once(
    server: LoopbackServer, tmp_path: Path, photos: Path
) -> None:
    with Relay(server.host, server.port) as relay:
        relay.refuse = True
        lab = Lab(server, tmp_path, relay)
        done = lab.task("upload_data", path=str(photos))
    assert done.code == 3 and "Trying again" not in done.err, done


def test_a_part_that_was_changed_on_the_server_is_not_trusted(lab: Lab, photos: Path) -> None:
    (photos / "big").write_bytes(os.urandom(3_000_000))
    lab.task("deploy")
    incoming = lab.root / "data" / ".incoming"
    sha256 = hashlib.sha256((photos / "big").read_bytes()).hexdigest()
    make_tree(incoming, {f"{sha256}.part": b"x" * 1_000_000})
    wrong = lab.task("upload_data", path=str(photos))
    assert (
        wrong.code == 12
        and "run the same command again" in wrong.err
        and not (lab.root / "data" / "photos").exists()
    )
    assert lab.task("upload_data", path=str(photos)).code == 0
    assert visible(lab.root / "data" / "photos") == visible(photos)


def test_a_single_file_keeps_its_name(lab: Lab, tmp_path: Path) -> None:
    file = make_tree(tmp_path / "here", {"words.txt": "w" * 1000}) / "words.txt"
    assert lab.task("upload_data", path=str(file), name="corpus.txt").code == 0
    assert (lab.root / "data" / "corpus.txt").read_text() == "w" * 1000
    done = lab.task("upload_data", path=str(file), name="my words ü")
    assert "train --data 'my words ü'" in done.out, "as it can be typed"
    assert snapshot((lab.root / "data" / "corpus.txt").resolve().parent).keys() == {"words.txt"}


def test_what_can_not_be_read_or_leads_nowhere_is_never_left_out_unsaid(
    lab: Lab, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git-annex's and DVC's data sets are made of links; a named pipe holds nothing to send."""

    def refused(told: str) -> None:
        done = lab.task("upload_data", path=str(photos))
        assert done.code == 2 and len(done.error_lines) == 1 and told in done.err, done
        assert not (lab.root / "data").exists()

    shut_folders(monkeypatch)
    (photos / "test" / "shut").mkdir()
    refused(f"{photos}/test/shut can't be read: Permission denied")
    (photos / "test" / "shut").rmdir()
    (photos / "unread").symlink_to("/proc/self/mem")
    refused(f"{photos}/unread can't be read: Input/output error")
    (photos / "unread").unlink()
    make_tree(photos, {"a.png": Link("../.git/annex/objects/a"), "b.png": Link("b.png")})
    refused(f"2 links lead nowhere, the first is {photos}/a.png")
    (photos / "b.png").unlink()
    refused(f"a link leads nowhere: {photos}/a.png")
    (photos / "a.png").unlink()
    os.mkfifo(photos / "pipe")
    done = lab.task("upload_data", path=str(photos))
    assert done.code == 0 and "not sent: pipe (not a regular file)" in done.err, done


@pytest.mark.parametrize(
    ("path", "name", "told"),
    [
        ("nowhere", None, "no such file or folder here"),
        ("photos", "../x", "can't be a name"),
        ("photos", ".sets", "can't be a name"),
        ("photos", "mine", "was not made by upload-data"),
        ("empty", None, "holds no files"),
    ],
)
def test_what_can_not_be_is_said_and_nothing_is_sent(
    lab: Lab, photos: Path, path: str, name: str | None, told: str
) -> None:
    lab.task("deploy")
    make_tree(lab.root / "data" / "mine", {"a": "1"})
    (photos.parent / "empty").mkdir()
    done = lab.task("upload_data", path=str(photos.parent / path), name=name)
    assert done.code == 2 and told in done.err and len(done.error_lines) == 1, done
    assert sorted(entry.name for entry in (lab.root / "data").iterdir()) == ["mine"]
