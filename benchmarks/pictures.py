"""Pictures of the screens, for docs/screens/: real commands in a real terminal (tmux) against SSH
servers on this computer. The GPUs and the training's figures are made up; what is drawn is not.

    make pictures        # python -m benchmarks.pictures [FOLDER]; needs tmux, takes two minutes
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from remote.loopback import LoopbackServer, Serving
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.project import REPOSITORY, make_project, make_tree
from tests.support.sshd import USUAL, sparse_path

QUICK = {"REMOTE_QUEUE_POLL_S": "0.2", "REMOTE_QUEUE_APART_S": "0.1"}
SIZES = ((80, 24), (120, 40))
TRAINS = """
import csv, json, math, os, time
place, rows = os.environ["REMOTE_RUN_DIR"], []
print("150 epochs, batch 512, 45000 images to train on, 5000 to validate")
for epoch in range(1, 151):
    loss = 0.15 + 2.2 * math.exp(-epoch / 18)
    accuracy = 0.95 - 0.85 * math.exp(-epoch / 14)
    rows.append([epoch, loss, accuracy])
    with open(place + "/metrics.csv", "w", newline="") as file:
        csv.writer(file).writerows([["epoch", "train_loss", "val_accuracy"], *rows])
    print(f"epoch {epoch}/150  loss {loss:.4f}  val {100 * accuracy:.2f}%  3.1 s  14600 images/s")
    told = {"phase": "fitting", "epoch": epoch, "max_epochs": 150, "step": epoch * 88}
    told |= {"total_steps": 13200, "images_per_s": 14600, "seconds_left": (150 - epoch) * 3.1}
    told["metrics"] = {"train_loss": loss, "val_accuracy": accuracy, "best_val_accuracy": accuracy}
    with open(place + "/progress.tmp", "w") as file:
        json.dump(told, file)
    os.replace(place + "/progress.tmp", place + "/progress.json")
    time.sleep(0.02 if epoch < 58 else 3.1)
"""
SETTINGS = {"requirements": "none", "command": "python train.py", "project": "cifar"}
POINT = """
import json, os, sys
rate, seed = float(sys.argv[2]), int(sys.argv[4])
told = {"test_accuracy": 0.94 - rate / 50 + seed / 1000, "epochs": 150, "seconds": 460}
with open(os.environ["REMOTE_RUN_DIR"] + "/summary.json", "w") as file:
    json.dump(told, file)
"""
GRID = ["--grid", "lr=0.1,0.2,0.4", "--grid", "seed=1,2,3", "--name", "rates"]
SHOTS = {
    "list": ("", "fab TASK"),
    "doctor": (" -H gpu-a doctor", "warning|all is well"),
    "deploy": (" -H gpu-a deploy", "next:"),
    "check-gpu": (" -H gpu-a check-gpu", "driver 580"),
    "follow": (" -H gpu-a follow", "602 W"),
    "status": (" -H gpu-a status", "running"),
    "watch": (" -H gpu-a,gpu-b,gpu-c watch", "(?s)running.*unreachable"),
    "error": (" -H gpu-c deploy", "error:"),
}
"""While it trains, which the first size's check-gpu has not seen yet."""
AFTER = {
    "fetch-results": (" -H gpu-a fetch-results", "results  "),
    "clean": (" -H gpu-a clean", "clean --yes|nothing"),
    "sweep": (" -H gpu-b status --sweep rates", "best:"),
}
INIT = "python -m remote init"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pictures-") as place, servers(Path(place)) as config:
        project = make_project(
            Path(place) / "cifar",
            {"train.py": TRAINS, "point.py": POINT},
            settings=SETTINGS,
            parts=("fabfile.py", "remote"),
        )
        fab = [sys.executable, "-m", "fabric", "-S", str(config)]

        def shoot(name: str, words: str, mark: str, size: tuple[int, int]) -> None:
            shot = clean(take(project, shlex.join(fab) + words, size, mark), place)
            draw(folder / f"{name}-{size[0]}x{size[1]}.svg", f"fab{words}", shot, size[0])

        def do(*words: str, **variables: str) -> None:
            environment = {**os.environ, **variables}
            subprocess.run([*fab, *words], cwd=project, check=True, env=environment)

        for size in SIZES:
            for name, (words, mark) in SHOTS.items():
                shoot(name, words, mark, size)
                if name == "check-gpu" and size == SIZES[0]:
                    train = ("train", "--devices", "1", "--name", "standard", "--no-follow")
                    do("-H", "gpu-a", *train)
                    show_gpus(Path(place), memory_used="31744")
        do("-H", "gpu-a", "stop")
        points = ["sweep", *GRID, "--", "--lr", "{lr}", "--seed", "{seed}"]
        do("-H", "gpu-b", *points, FABRIC_REMOTE_COMMAND="python point.py")
        do("-H", "gpu-b", "wait", "--sweep", "rates")
        for size in SIZES:
            for fetched in (project / "results").glob("*standard*"):
                shutil.rmtree(fetched)
            for name, (words, mark) in AFTER.items():
                shoot(name, words, mark, size)
            fresh = make_tree(
                Path(place) / f"mine-{size[0]}", {"train.py": "", "requirements.txt": "torch\n"}
            )
            shot = take(fresh, shlex.join([sys.executable, "-m", "remote", "init"]), size, "fetch")
            draw(folder / f"init-{size[0]}x{size[1]}.svg", INIT, clean(shot, place), size[0])


@contextlib.contextmanager
def servers(place: Path) -> Iterator[Path]:
    """Two with GPUs, one that is down; the ssh_config that knows them."""
    config, told = place / "config", "Host gpu-c\n  HostName 127.0.0.1\n  Port 1\n"
    with contextlib.ExitStack() as stack:
        for host in ("gpu-a", "gpu-b"):
            path = sparse_path(place / host / "bin", USUAL)
            server = stack.enter_context(
                LoopbackServer(place / host, Serving(path=path, env=QUICK))
            )
            told += server.ssh_config.read_text().replace("Host loopback", f"Host {host}") + "\n"
        show_gpus(place)
        config.write_text(told)
        yield config


def show_gpus(place: Path, memory_used: str = "0") -> None:
    """`memory_used`: by the training, whose GPU is the second one."""
    name = "NVIDIA H100 80GB HBM3"
    numbers = [f"GPU-{number:08}-0000-0000-0000-000000000000" for number in range(4)]
    gpus = [
        FakeGpu(name, memory_used="70211", utilization="97", power="640.50", uuid=numbers[0]),
        FakeGpu(name, memory_used=memory_used, uuid=numbers[1]),
        FakeGpu(name, uuid=numbers[2]),
    ]
    if memory_used != "0":
        gpus[1] = dataclasses.replace(gpus[1], utilization="93", power="602.10")
    users = [(numbers[0], os.getpid(), "/usr/bin/python3", 70100)]
    write_nvidia_smi(place / "gpu-a/bin/nvidia-smi", gpus, processes=users)
    small = FakeGpu("NVIDIA RTX 4090", memory_total="24564", power="21.00", uuid=numbers[3])
    write_nvidia_smi(place / "gpu-b/bin/nvidia-smi", [small])


def take(project: Path, command: str, size: tuple[int, int], mark: str) -> str:
    """What the terminal shows, with its colours, once it shows `mark`."""
    columns, rows = map(str, size)
    tmux = ["tmux", "-L", f"pictures-{os.getpid()}-{time.monotonic_ns()}", "-f", os.devnull]
    shell = f"stty -echo; {command}; sleep 60"
    argv = [*tmux, "new-session", "-d", "-x", columns, "-y", rows, "-c", str(project), shell]
    subprocess.run(
        argv,
        check=True,
        env={
            **os.environ,
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(REPOSITORY),
        },
    )
    try:
        for _ in range(120):
            time.sleep(0.5)
            shown = subprocess.run([*tmux, "capture-pane", "-ep"], capture_output=True, check=True)
            if re.search(mark, Text.from_ansi(shown.stdout.decode()).plain):
                time.sleep(1.5)  # the rest of the screen
                again = subprocess.run([*tmux, "capture-pane", "-ep"], capture_output=True)
                return again.stdout.decode()
        raise TimeoutError(f"{command}: never shows {mark}")
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)


def clean(shot: str, place: str) -> str:
    """Without the names of the computer that it was taken on."""
    shot = re.sub(rf"{re.escape(place)}/(gpu-\w/home|cifar)", "~", shot)
    shot = re.sub(rf"{re.escape(place)}/gpu-\w/bin", "/usr/bin", shot)
    shot = re.sub(r"root@127\.0\.0\.1:\d+", "wang@gpu-a:22", shot)
    shot = re.sub(rf" -S {re.escape(place)}/config", "", shot)
    return shot.replace(platform.node(), "gpu-a").replace("user root", "user wang")


def draw(file: Path, title: str, shot: str, columns: int) -> None:
    console = Console(file=io.StringIO(), record=True, width=columns, force_terminal=True)
    console.print(Text.from_ansi(shot.rstrip("\n")), no_wrap=True, overflow="crop")
    svg = console.export_svg(title=title, unique_id=file.stem)
    # Fonts from elsewhere are not asked for: the reader's own will do.
    file.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))
    print(file)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else REPOSITORY / "docs" / "screens"))
