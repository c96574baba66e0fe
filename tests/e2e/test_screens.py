"""The screens of a whole `fab` on a terminal and in a pipe, against a real sshd."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import termios
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

from remote.loopback import LoopbackServer
from remote.screen import display
from tests.e2e.test_three_commands import OWN, fab, wait_for
from tests.e2e.test_what_is_typed import alone
from tests.support.faults import Lab, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.project import make_project
from tests.support.sshd import MakeServer
from tests.support.terminal import fab_on_terminal, read_frame, read_until

PROGRESS = {
    "phase": "fitting",
    "epoch": 3,
    "max_epochs": 10,
    "step": 300,
    "total_steps": 1000,
    "seconds_left": 900.0,
    "images_per_s": 1234.0,
    "metrics": {"train_loss": 1.25, "val_accuracy": 0.5, "best_val_accuracy": 0.6},
}
TRAINS = f"""
echo first line
printf 'epoch,train_loss,val_accuracy\\n1,2.5,0.1\\n2,1.25,0.5\\n' > "$REMOTE_RUN_DIR/metrics.csv"
echo '{json.dumps(PROGRESS)}' > "$REMOTE_RUN_DIR/progress.json"
while [ ! -e ../more ]; do sleep 0.1; done
echo second line
exec sleep 300
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    files = {"train.sh": TRAINS}
    return make_project(tmp_path / "project", files, settings=OWN, parts=("fabfile.py", "remote"))


def run_of(server: LoopbackServer) -> Path:
    (run,) = (server.home / "projects" / "p" / "runs").glob("2*")
    return run


def told(project: Path, server: LoopbackServer) -> dict[str, object]:
    rows: list[dict[str, object]] = json.loads(fab(project, server, "status", "--json").stdout)
    return rows[0]


def test_people_read_chinese_and_scripts_what_they_always_did(
    project: Path, server: LoopbackServer
) -> None:
    chinese = {"LANGUAGE": "", "LC_ALL": "zh_CN.UTF-8", "PYTHONUTF8": "1"}
    started = fab(project, server, "train", "--no-follow", env=chinese)
    assert "在 tmux 里启动" in started.stdout and "训练正在进行。回来时用：" in started.stdout
    assert "剩余 15 分 0 秒" in fab(project, server, "status", env=chinese).stdout
    logs = fab(project, server, "logs", env=chinese)
    assert logs.stdout == "first line\n"
    stopped = fab(project, server, "stop", env=chinese)
    assert re.search("已停止：被 .*停止", stopped.stdout) and "若要继续：" in stopped.stdout
    rows = [
        json.loads(fab(project, server, "status", "--json", env=one).stdout)
        for one in ({}, chinese)
    ]
    assert rows[0] == rows[1] and rows[0][0]["state"] == "stopped"
    assert rows[0][0]["reason"].startswith("stopped by ")
    assert re.search("[\u4e00-\u9fff]", (run_of(server) / "state.json").read_text()) is None
    missing = fab(project, server, "logs", "--run", "none", env=chinese, code=11)
    assert missing.stderr.startswith("错误：loopback：服务器上没有运行 'none'")


def test_follow_shows_the_training_and_its_log_and_q_leaves_it(
    project: Path, server: LoopbackServer
) -> None:
    gpu = FakeGpu(utilization="82", memory_used="0", power="301.50")
    write_nvidia_smi(Path(server.path) / "nvidia-smi", [gpu])
    fab(project, server, "train", "--devices", "0", "--no-follow")
    leader, process = fab_on_terminal(project, server, "follow", size=(24, 80))
    shown = read_frame(leader, "gpu0")
    assert re.fullmatch(r"20\S+ on loopback +running", shown[0]), shown
    assert shown[1].endswith(" 30%  epoch 3/10  15 min 0 s left")
    assert shown[2] == "loss 1.250  validation 50.00%  best 60.00%  1234 images/s"
    assert shown[3] == "loss      █▁  2.500 → 1.250" and shown[4].endswith("10.0% → 50.0%")
    assert re.fullmatch(r"gpu0 \S+  82%  0.0 of 79.6 GiB  301 W", shown[5]), shown
    assert shown[7] == "first line" and shown[23].startswith("q leaves")
    (run_of(server) / "more").touch()
    assert read_frame(leader, "second line")[8] == "second line"
    os.write(leader, b"q")
    left = read_until(leader, b"shows it again")
    assert process.wait(20) == 0
    assert left.rpartition(b"\x1b[?1049l")[2].split(b"\r\n")[:2] == [b"first line", b"second line"]
    assert told(project, server)["state"] == "running"
    fab(project, server, "stop")


def test_s_stops_the_training_after_a_yes_alone(project: Path, server: LoopbackServer) -> None:
    leader, process = fab_on_terminal(project, server, "train", size=(24, 80))
    read_frame(leader, "first line")
    os.write(leader, b"s")
    read_frame(leader, "stop the training?")
    os.write(leader, b"n")
    read_frame(leader, "q leaves")
    assert told(project, server)["state"] == "running"
    os.write(leader, b"sy")
    seen = read_until(leader, b"--resume 2")
    assert process.wait(30) == 0 and b"stopped" in seen
    assert told(project, server)["state"] == "stopped"


def test_ctrl_z_and_kill_give_the_terminal_back(project: Path, server: LoopbackServer) -> None:
    leader, process = fab_on_terminal(project, server, "train", size=(24, 80))
    read_frame(leader, "first line")
    typed = termios.tcgetattr(leader)[3]
    os.kill(process.pid, signal.SIGTSTP)
    assert b"\x1b[?25h" in read_until(leader, b"\x1b[?1049l\x1b[?25h")
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    assert termios.tcgetattr(leader)[3] & termios.ICANON and not typed & termios.ICANON
    os.kill(process.pid, signal.SIGCONT)
    read_until(leader, b"\x1b[?1049h")
    read_frame(leader, "first line")
    assert termios.tcgetattr(leader)[3] == typed
    os.kill(process.pid, signal.SIGTERM)
    left = read_until(leader, b"\x1b[?1049l")
    assert process.wait(20) == 128 + signal.SIGTERM
    left += read_until(leader, b"\x1b[?25h")
    assert b"Traceback" not in left and termios.tcgetattr(leader)[3] & termios.ICANON
    assert told(project, server)["state"] == "running"
    fab(project, server, "stop")


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_status_fits_the_terminal_with_a_long_name(
    project: Path, server: LoopbackServer, columns: int
) -> None:
    fab(project, server, "train", "--name", "a-rather-long-name-of-a-run-to-tell-it", "--no-follow")
    wait_for(lambda: told(project, server)["epoch"] == 3)
    leader, process = fab_on_terminal(project, server, "status", size=(24, columns))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read_until(leader, b"left").decode())
    assert process.wait(20) == 0
    head, row = text.splitlines()[:2]
    assert cell_len(head.rstrip()) <= columns and cell_len(row.rstrip()) <= columns
    wanted = {"run", "command", "state", "started", "took", "epoch", "accuracy"}
    assert not (wanted if columns >= 80 else {"run", "state", "epoch"}) - set(head.split()), text
    assert "3/10" in row and "running" in row and "15 min 0 s left" in text
    fab(project, server, "stop")


def test_a_finished_run_never_stands_at_the_beginning(
    project: Path, server: LoopbackServer
) -> None:
    starting = {"phase": "starting", "epoch": 0, "max_epochs": 2}
    (project / "train.sh").write_text(
        f"echo '{json.dumps(starting)}' > \"$REMOTE_RUN_DIR/progress.json\"\n"
        'echo \'{"epochs": 2, "max_epochs": 2}\' > "$REMOTE_RUN_DIR/summary.json"\n'
    )
    fab(project, server, "train", "--follow")
    shown = fab(project, server, "status").stdout
    assert " 2/2" in shown and "0/2" not in shown and "starting" not in shown


def test_watch_shows_gpus_and_runs_of_all_hosts(
    project: Path, server: LoopbackServer, make_server: MakeServer
) -> None:
    busy = FakeGpu(utilization="97", memory_used="70211")
    used = FakeGpu(memory_used="10")
    write_nvidia_smi(
        Path(server.path) / "nvidia-smi",
        [used, busy],
        processes=[(busy.uuid, os.getpid(), "/usr/bin/python3", 70100)],
    )
    other = make_server()
    config = other.ssh_config.read_text().replace("Host loopback", "Host other")
    server.ssh_config.write_text(
        f"{server.ssh_config.read_text()}\n{config}\nHost down\n  HostName 127.0.0.1\n  Port 1\n"
    )
    run = json.loads(fab(project, server, "train", "--devices", "0", "--json").stdout)["run"]
    hosts = ["-S", str(server.ssh_config), "-H", "loopback,other,down", "watch"]
    once = alone(project, *hosts, code=3)
    assert re.search(rf"loopback +0 .* running +{run} +3/10 +val 60.00% +15m00s", once), once
    assert re.search(r"\n +1 .*97%.*busy +user \S+, python3, 68.5 GiB", once), once
    assert re.search(r"other .* idle", once) and re.search(r"down .* unreachable", once)
    rows = json.loads(alone(project, *hosts, "--json", code=3))
    assert [row["host"] for row in rows] == ["loopback", "other", "down"]
    assert rows[0]["runs"][0]["run"] == run and [g["free"] for g in rows[0]["gpus"]] == [False] * 2
    leader, process = fab_on_terminal(project, server, "watch", size=(24, 80))
    shown = read_frame(leader, "running")
    assert "q leaves" in "\n".join(shown) and all(cell_len(line) <= 80 for line in shown)
    os.write(leader, b"q")
    assert process.wait(20) == 0
    fab(project, server, "stop")


def test_check_gpu_tells_what_is_free_and_how_much_each_process_has(
    project: Path, server: LoopbackServer
) -> None:
    tool = Path(server.path) / "nvidia-smi"
    busy, free = FakeGpu(memory_used="20000", name="NVIDIA A100"), FakeGpu()
    process = (busy.uuid, os.getpid(), "/usr/bin/python3", 19000)
    write_nvidia_smi(tool, [busy, free], processes=[process])
    shown = fab(project, server, "check-gpu").stdout
    assert re.search(r"0 +NVIDIA A100 +busy +19.5 of 79.6 GiB .* python3, 18.6 GiB, since", shown)
    assert re.search(r"1 +NVIDIA H100 80GB HBM3 +free +0.0 of 79.6 GiB", shown)
    assert "free: 1; driver 580" in shown and "MiB" not in shown
    write_nvidia_smi(tool, [], exit_code=18)
    assert "ask the server's administrator to reboot it" in fab(project, server, "check-gpu").stdout


def test_train_and_stop_as_json(project: Path, server: LoopbackServer) -> None:
    started = fab(project, server, "train", "--name", "mine", "--json")
    run = json.loads(started.stdout)
    assert (run["name"], run["state"]) == ("mine", "running") and "it trains" in started.stderr
    assert json.loads(fab(project, server, "stop", "--json").stdout)[0]["state"] == "stopped"


def test_hints_are_commands_on_lines_of_their_own(project: Path, server: LoopbackServer) -> None:
    shown = fab(project, server, "train", "--no-follow").stdout.splitlines()
    commands = [line for line in shown if "fab " in line]
    typed = f"fab -H loopback -S {server.ssh_config}"
    assert commands == [f"  {typed} {task}" for task in ("follow", "status", "fetch-results")]
    missing = fab(project, server, "logs", "--run", "nothing", code=11).stderr
    assert f"{typed} status lists all" in missing and "…" not in missing
    fab(project, server, "stop")
    assert f"\n  {typed} train --resume 2" in fab(project, server, "status").stderr


def test_a_reader_that_goes_away_leaves_no_trace(project: Path, server: LoopbackServer) -> None:
    """`logs --follow | head` on a terminal."""
    fab(project, server, "train", "--no-follow")
    wait_for(lambda: told(project, server)["epoch"] == 3)
    command = f"{sys.executable} -m fabric -S {server.ssh_config} -H loopback logs --follow"
    (project / "pipe.sh").write_text(f"{command} | head -1; echo over\n")
    leader, process = fab_on_terminal(project, server, program=["sh", "pipe.sh"])
    read_until(leader, b"first line")
    (run_of(server) / "more").touch()  # the next line finds nobody
    assert read_until(leader, b"over").replace(b"\r\n", b"").endswith(b"over")
    process.wait(20)
    fab(project, server, "stop")


def test_a_transfer_tells_how_far_it_is(
    tmp_path: Path, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "EVERY_S", 0.0)
    script = "head -c 9000000 /dev/zero > big"
    lab = Lab(server, tmp_path, files={"train.sh": script, "large": os.urandom(5_000_000)})
    sent = lab.task("train", follow=True).err
    assert re.search(r"sending  [1-4]\.\d MiB of 4\.8 MiB\n", sent), sent
    fetched = lab.task("fetch_results").err
    assert re.search(r"fetching  [1-9]\.\d MiB of 13\.\d MiB\n", fetched), fetched


def test_tensorboard_of_a_run_that_has_ended_does_not_say_that_it_goes_on(
    project: Path, server: LoopbackServer
) -> None:
    (project / "train.sh").write_text("echo over\n")
    fab(project, server, "train", "--follow")
    leader, process = fab_on_terminal(project, server, "tensorboard", "--no-browser")
    read_until(leader, b"ends TensorBoard", 90)
    os.write(leader, b"\x03")
    assert b"goes on" not in read_until(leader, b"stays") and process.wait(20) == 0


def test_ctrl_c_says_what_goes_on(project: Path, server: LoopbackServer) -> None:
    fab(project, server, "train", "--no-follow")
    leader, process = fab_on_terminal(project, server, "logs", "--follow")
    read_until(leader, b"first line")
    time.sleep(0.3)
    os.write(leader, b"\x03")
    assert b"the training goes on; the same command shows it again" in read_until(leader, b"again")
    assert process.wait(20) == 130
    leader, process = fab_on_terminal(project, server, "wait")
    time.sleep(2)
    os.write(leader, b"\x03")
    told = read_until(leader, b"again")
    assert b"the training goes on" in told and process.wait(20) == 130
    assert b"\r\x1b[2Kinterrupted" in told, "it begins where the terminal has written ^C"
    fab(project, server, "stop")


def test_ctrl_c_in_stop_says_that_it_was_told(project: Path, server: LoopbackServer) -> None:
    (project / "train.sh").write_text("trap 'sleep 3; exit' TERM; echo up; sleep 60 & wait\n")
    fab(project, server, "train", "--no-follow")
    leader, process = fab_on_terminal(project, server, "stop")
    read_until(leader, b"stopping")
    time.sleep(1)
    os.write(leader, b"\x03")
    assert b"was told to stop" in read_until(leader, b"status") and process.wait(20) == 130
    wait_until(lambda: '"stopped"' in fab(project, server, "status", "--json").stdout, 30)


def test_ctrl_c_before_a_run_of_ones_own_terminal_shows_life(
    project: Path, server: LoopbackServer
) -> None:
    (project / "train.sh").write_text("sleep 60\n")
    leader, process = fab_on_terminal(project, server, "train", "--interactive")
    read_until(leader, b"started in tmux")
    time.sleep(1)
    os.write(leader, b"\x03")
    told = read_until(leader, b"attach --run")
    assert b"error" not in told and b"follow --run" in told and process.wait(20) == 130
    fab(project, server, "stop")
