"""What the supervisor does by itself: goes on after a crash, and tells somebody when it is over."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from remote.agent.supervisor import notify
from remote.loopback import LoopbackServer
from tests.support.faults import Lab, wait_until
from tests.support.sshd import MakeServer

CRASHES = """
n=$(($(cat ../count 2>/dev/null || echo 0) + 1)); echo $n > ../count
echo "try $n"
[ $n -gt TIMES ] || { echo "RuntimeError: CUDA error: an illegal memory access"; exit 3; }
"""


@pytest.fixture
def server(make_server: MakeServer) -> LoopbackServer:
    return make_server(env={"REMOTE_RESTART_S": "0.1"})


def ended(lab: Lab) -> dict[str, Any]:
    wait_until(lambda: lab.rows()[0]["state"] not in ("queued", "running"))
    (row,) = lab.rows()
    return row


def log_of(lab: Lab) -> str:
    (log,) = (lab.root / "runs").glob("2*/train.log")
    return log.read_text()


@pytest.mark.parametrize(
    ("times", "state", "attempts"), [(0, "finished", 0), (2, "finished", 2), (3, "failed", 2)]
)
def test_a_crash_is_followed_by_another_try_so_often(
    server: LoopbackServer, tmp_path: Path, times: int, state: str, attempts: int
) -> None:
    lab = Lab(server, tmp_path, files={"train.sh": CRASHES.replace("TIMES", str(times))})
    lab.task("train", max_restarts=2)
    row = ended(lab)
    assert (row["state"], len(row["attempts"])) == (state, attempts)
    assert [line for line in log_of(lab).splitlines() if line.startswith("try")] == [
        f"try {n + 1}" for n in range(attempts + 1)
    ]
    assert log_of(lab).count("restarting (") == attempts
    for attempt in row["attempts"]:
        assert (attempt["exit_code"], attempt["cause"]) == (
            3,
            "exit code",
        ) and "illegal memory access" in attempt["reason"]


def test_one_that_is_stopped_stays_stopped(server: LoopbackServer, tmp_path: Path) -> None:
    lab = Lab(server, tmp_path, files={"train.sh": "echo up; exec sleep 60"})
    lab.task("train", max_restarts=5)
    lab.task("stop")
    assert ended(lab)["state"] == "stopped" and "restarting" not in log_of(lab)


def test_one_that_pauses_before_another_try_can_be_stopped(
    make_server: MakeServer, tmp_path: Path
) -> None:
    lab = Lab(
        make_server(env={"REMOTE_RESTART_S": "30"}), tmp_path, files={"train.sh": "echo up; exit 3"}
    )
    lab.task("train", max_restarts=5)
    wait_until(lambda: "restarting (1 of 5)" in log_of(lab))
    assert lab.rows()[0]["state"] == "running"
    assert "stopped by" in lab.task("stop").out and log_of(lab).splitlines().count("up") == 1


def test_one_that_is_killed_goes_on_and_its_reason_is_its_own(
    server: LoopbackServer, tmp_path: Path
) -> None:
    """The first try's log speaks of memory on the GPU; that is not why the second one ended."""
    script = (
        "[ -e ../again ] && exit 7; touch ../again; echo 'torch.OutOfMemoryError: CUDA out of"
        " memory'; exec sleep 60"
    )
    lab = Lab(server, tmp_path, files={"train.sh": script})
    lab.task("train", max_restarts=1)
    os.kill(
        json.loads(next((lab.root / "runs").glob("2*/state.json")).read_text())["pid"],
        signal.SIGKILL,
    )
    row = ended(lab)
    assert [attempt["cause"] for attempt in row["attempts"]] == ["gpu memory"]
    assert (row["state"], row["cause"], row["exit_code"]) == ("failed", "exit code", 7)


class Hook(BaseHTTPRequestHandler):
    posted: list[dict[str, Any]]
    answer = 200

    def do_POST(self) -> None:
        self.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.answer)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its secret address, and what was posted there."""
    posted: list[dict[str, Any]] = []
    http = HTTPServer(("127.0.0.1", 0), type("Own", (Hook,), {"posted": posted}))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/s3cret-hook", posted
    http.shutdown()
    thread.join()
    http.server_close()


@pytest.mark.parametrize(
    ("script", "state"), [("echo up", "finished"), ("echo up; exit 3", "failed")]
)
def test_a_webhook_is_told_once_and_its_address_shown_nowhere(
    server: LoopbackServer,
    tmp_path: Path,
    hook: tuple[str, list[dict[str, Any]]],
    script: str,
    state: str,
) -> None:
    address, posted = hook
    secret = tmp_path / "hook"
    secret.write_text(address + "\n")
    lab = Lab(server, tmp_path, files={"train.sh": script})
    told = lab.task("train", notify=f"@{secret}", name="mine")
    wait_until(lambda: bool(posted))
    row = ended(lab)
    wait_until(lambda: lab.rows()[0]["notified"] == "sent")
    (facts,) = posted
    assert (facts["run"], facts["name"], facts["state"]) == (
        row["run"],
        "mine",
        state,
    ) and state in facts["text"]
    lab.task("fetch_results")
    holders = [
        path
        for root in (lab.root, lab.results)
        for path in root.rglob("*")
        if path.is_file() and b"s3cret" in path.read_bytes()
    ]
    assert [path.name for path in holders] == [".notify"] and holders[0].stat().st_mode & 0o077 == 0
    assert "s3cret" not in told.out + told.err


def test_a_webhook_that_fails_harms_nothing(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(server, tmp_path, files={"train.sh": "echo up"})
    lab.task("train", notify="http://127.0.0.1:9/s3cret")
    assert ended(lab)["state"] == "finished"
    wait_until(lambda: lab.rows()[0]["notified"] is not None)
    assert lab.rows()[0]["notified"].startswith("failed: ConnectionRefused")
    wrong = lab.task("train", notify="ftp://s3cret.example/x")
    assert (
        wrong.code == 2
        and "--notify needs an http or https address" in wrong.err
        and "s3cret" not in wrong.err
    )


# In two pieces: `submit` takes this file for what it is, and not for one that holds webhooks.
@pytest.mark.parametrize(
    ("address", "body"),
    [
        ("https://hooks.slack" + ".com/services/T/B/x", {"text": "r1 done"}),
        (
            "https://open.feishu" + ".cn/open-apis/bot/v2/hook/x",
            {"msg_type": "text", "content": {"text": "r1 done"}},
        ),
        (
            "https://qyapi.weixin" + ".qq.com/cgi-bin/webhook/send?key=x",
            {"msgtype": "text", "text": {"content": "r1 done"}},
        ),
        ("https://discord.com/api/webhooks/1/x", {"content": "r1 done"}),
        ("https://example.com/mine", {"text": "r1 done", "run": "r1"}),
    ],
)
def test_each_service_gets_what_it_reads(address: str, body: dict[str, Any]) -> None:
    sent, headers = notify.message_for(address, {"text": "r1 done", "run": "r1"})
    assert json.loads(sent) == body and headers["Content-Type"] == "application/json"
    plain, _ = notify.message_for("https://ntfy.sh/topic", {"text": "r1 done"})
    assert plain == b"r1 done"
