"""Our deploy, fetch and upload beside `rsync -a -e ssh`, each with a login of its own and over a
login that is open already.

    ours, rsync                  a first login, as after `fab logout`
    ours-kept, rsync-kept        over a ControlMaster that stands

    python benchmarks/transfer.py            # all of it, about half an hour
    python benchmarks/transfer.py --quick    # a minute
    python benchmarks/transfer.py --write    # also into benchmarks/results/transfer.{md,json}

Times are those of whole processes, from start to exit, login included; the tools take turns within
each repeat, so that a slow moment of the machine meets them all. rsync sends a copy of the same
files without `.git`. Our deploy does more than it does: it also checks the environment and the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pages import about, spread, write_page
from transfer_lab import MB, Lab, Plan, Sample, fab, login, open_lab, root, rsync, watched

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tests.support.project import commit, make_project  # noqa: E402

TOOLS = ("ours", "rsync", "ours-kept", "rsync-kept")
STUB = "print('done')\n"


def make_code(folder: Path, count: int) -> Path:
    """A committed project of `count` files (at least 5), 1 to 8 kB of text most of them.

    The product's own `remote/` lies in it and is ignored by git, so that the count does not grow
    with the product.
    """
    settings = {
        "python": sys.executable,
        "requirements": "none.txt",
        "command": "python stub.py",
        "project": "bench",
    }
    files = {"stub.py": STUB, "none.txt": "", ".gitignore": "/remote/\n/results/\n__pycache__/\n"}
    project = make_project(folder, files, settings=settings, parts=("fabfile.py", "remote"))
    for number in range(count - len(list_tracked(project))):
        path = project / "src" / f"part{number // 50}" / f"module_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {number}\n" + f"value_{number} = {number}\n" * (50 + number % 8 * 50))
    commit(project, "all")
    return project


def list_tracked(project: Path) -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=project, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def copy_tracked(project: Path) -> Path:
    """What rsync and scp send: the same files, and nothing else."""
    copy = project.with_name(f"{project.name}-plain")
    for name in list_tracked(project):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, copy / name)
    return copy


def change_one(folder: Path) -> None:
    """Another content of the same length in one file, with a time of change that rsync can see."""
    path = folder / "stub.py"
    path.write_text(f"print({time.time_ns() % 10**6:06d})\n")


def deploy_round(lab: Lab, plan: Plan, project: Path, plain: Path, count: int, turn: int) -> None:
    """First deploy into an empty place, then nothing changed, then one file changed: by each tool
    over each link."""
    for link, tool in in_turns(plan, turn):
        place = f"deploy/{tool}-{link}-{count}-{turn}"
        folder = project if tool.startswith("ours") else plain
        with login(lab, link, tool) as (master, extra):
            for case in ("first deploy", "nothing changed", "one file changed"):
                if case == "one file changed":
                    change_one(folder)
                name, route = f"{case}, {count} files", lab.routes[link]
                argv = (
                    fab(route, "deploy")
                    if tool.startswith("ours")
                    else rsync(route, f"{plain}/", f"loopback:{place}/", master)
                )
                lab.measure(name, link, tool, turn, argv, folder, **root(lab, place), **extra)
        shutil.rmtree(lab.server.home / place)


def in_turns(plan: Plan, turn: int) -> Iterator[tuple[str, str]]:
    """Links and tools, beginning with another tool in each turn."""
    shift = turn % len(plan.tools)
    for link in plan.links:
        for tool in [*plan.tools[shift:], *plan.tools[:shift]]:
            yield link, tool


def make_run(lab: Lab, project: Path, place: str, size_mb: int) -> Path:
    """A finished run on the server with a checkpoint of random bytes; returns its folder there."""
    lab.run(fab(lab.routes["loopback"], "train", "--no-follow"), project, **root(lab, place))
    runs = lab.server.home / place / "runs"
    deadline = time.monotonic() + 60
    while not (
        states := [json.loads(path.read_text()) for path in runs.glob("*/state.json")]
    ) or any(state["state"] in ("queued", "running") for state in states):
        if time.monotonic() > deadline:
            raise SystemExit("the stub run did not end")
        time.sleep(0.1)
    run = next(path for path in runs.iterdir() if path.is_dir() and not path.is_symlink())
    write_random(run / "checkpoints" / "best.ckpt", size_mb)
    return run


def write_random(path: Path, size_mb: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for _ in range(size_mb):
            out.write(os.urandom(MB))


def fetch_round(lab: Lab, plan: Plan, project: Path, name: str, size_mb: int, turn: int) -> None:
    """The run's folder into an empty place here."""
    for link, tool in in_turns(plan, turn):
        target = lab.folder / "fetched"
        route = lab.routes[link]
        with login(lab, link, tool) as (master, extra):
            if tool.startswith("ours"):
                argv = fab(route, "fetch-results", "--dest", str(target))
                # With a login of its own, but one: the channels beside the first need a login that
                # is shared.
                extra = {"FABRIC_REMOTE_STAY_S": "1"} if tool == "ours" else extra
                lab.run(fab(route, "logout"), project, **extra) if tool == "ours" else None
            else:
                argv = rsync(route, "loopback:plain-run/", f"{target}/", master)
            lab.measure(name, link, tool, turn, argv, project, **root(lab, "fetch"), **extra)
        found = [path.stat().st_size for path in target.rglob("best.ckpt")]
        if found != [size_mb * MB]:
            raise SystemExit(f"{tool} fetched {found} bytes of {size_mb} MB")
        shutil.rmtree(target)


def upload_round(lab: Lab, plan: Plan, project: Path, turn: int) -> None:
    """One large file to an empty place there."""
    big = lab.folder / "big.bin"
    if not big.exists():
        write_random(big, plan.fetch_mb)
    for link, tool in in_turns(plan, turn):
        place, route = f"upload/{tool}-{link}-{turn}", lab.routes[link]
        (lab.server.home / place).mkdir(parents=True)
        with login(lab, link, tool) as (master, extra):
            if tool.startswith("ours"):
                argv = fab(route, "upload-data", str(big))
                extra = {"FABRIC_REMOTE_STAY_S": "1"} if tool == "ours" else extra
                lab.run(fab(route, "logout"), project, **extra) if tool == "ours" else None
            else:
                argv = rsync(route, str(big), f"loopback:{place}/", master)
            name = f"upload of {plan.fetch_mb} MB"
            lab.measure(name, link, tool, turn, argv, project, **root(lab, place), **extra)
        shutil.rmtree(lab.server.home / place)


def prepare_fetch(lab: Lab, plan: Plan, project: Path) -> None:
    """The run that all fetch; rsync gets a folder of the same files, without the run's copy of the
    code."""
    checkpoint = lab.server.home / "plain-run" / "checkpoints" / "best.ckpt"
    if "ours" not in plan.tools:
        write_random(checkpoint, plan.fetch_mb)
        return
    run = make_run(lab, project, "fetch", plan.fetch_mb)
    shutil.copytree(
        run, checkpoint.parents[1], ignore=shutil.ignore_patterns("work"), copy_function=os.link
    )


def measure_memory(lab: Lab, plan: Plan) -> None:
    """Deploy and fetch one file of `memory_mb` with our tool, watching both ends' memory."""
    project = make_code(lab.folder / "big", 0)
    write_random(
        project / "big.bin", plan.memory_mb
    )  # not committed: git would compress it for minutes
    size = f"{plan.memory_mb / 1000:g} GB"
    limit = {"FABRIC_REMOTE_MAX_FILE_MIB": str(plan.memory_mb)}
    place, route = "memory", lab.routes["loopback"]
    with watched(lab, f"server's peak MB, deploy of {size}"):
        lab.measure(
            f"deploy of {size}",
            "loopback",
            "ours",
            0,
            fab(route, "deploy"),
            project,
            **limit,
            **root(lab, place),
        )
    (project / "big.bin").unlink()
    make_run(lab, project, place, plan.memory_mb)
    target = str(lab.folder / "fetched")
    with watched(lab, f"server's peak MB, fetch of {size}"):
        argv = fab(route, "fetch-results", "--dest", target)
        lab.measure(
            f"fetch of {size}", "loopback", "ours", 0, argv, project, **limit, **root(lab, place)
        )
    shutil.rmtree(target)
    shutil.rmtree(lab.server.home / place)
    shutil.rmtree(project)


def measure_all(lab: Lab, plan: Plan) -> None:
    project = make_code(lab.folder / "run", 0)
    for count in plan.files:
        code = make_code(lab.folder / f"code{count}", count)
        plain = copy_tracked(code)
        for turn in range(plan.repeats if count <= 1000 else min(plan.repeats, 2)):
            deploy_round(lab, plan, code, plain, count, turn)
    prepare_fetch(lab, plan, project)
    for turn in range(plan.repeats):
        fetch_round(lab, plan, project, f"fetch of {plan.fetch_mb} MB", plan.fetch_mb, turn)
        upload_round(lab, plan, project, turn)
    if plan.memory_mb and "ours" in plan.tools:
        measure_memory(lab, plan)


def render(samples: Sequence[Sample], notes: Mapping[str, float]) -> str:
    """The tables, in the order in which things were measured first."""
    lines = [
        (
            "Seconds: median (min–max). Ratios: median of the ratios within each repeat; below 1 we"
            " are faster."
        ),
        "",
        (
            "| case | link | n | ours | rsync | ratio | ours, kept login | rsync, open master |"
            " ratio |"
        ),
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for case, link in dict.fromkeys((sample.case, sample.link) for sample in samples):
        times = {tool: by_turn(samples, case, link, tool) for tool in TOOLS}
        cells = []
        for mine, theirs in (("ours", "rsync"), ("ours-kept", "rsync-kept")):
            cells += [spread(list(times[tool].values()), 2) for tool in (mine, theirs)]
            cells.append(spread(ratios(times[mine], times[theirs]), 2))
        lines.append(f"| {case} | {link} | {max(map(len, times.values()))} | {' | '.join(cells)} |")
    lines += ["", "| memory of one process, at most | MB |", "|---|--:|"]
    for case in dict.fromkeys(sample.case for sample in samples if sample.tool == "ours"):
        # Linux counts a child's memory from that of the process that started it, so none reads
        # smaller than ours.
        peak = max(
            sample.rss_mb for sample in samples if sample.case == case and sample.tool == "ours"
        )
        lines.append(f"| laptop's peak, {case} | {peak:.0f} |")
    return "\n".join([*lines, *(f"| {name} | {value:.0f} |" for name, value in notes.items()), ""])


def by_turn(samples: Sequence[Sample], case: str, link: str, tool: str) -> dict[int, float]:
    return {
        one.turn: one.seconds
        for one in samples
        if (one.case, one.link, one.tool) == (case, link, tool)
    }


def ratios(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    return [ours[turn] / theirs[turn] for turn in ours.keys() & theirs.keys()]


def version(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True)
    return (done.stdout or done.stderr).split("\n")[0].split(",")[0].strip()


def parse_plan(argv: Sequence[str]) -> tuple[Plan, bool]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="40 files, 40 MB, two repeats")
    parser.add_argument(
        "--write", action="store_true", help="write benchmarks/results/transfer.md and .json"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--files", type=int, nargs="+", default=[40, 300, 10_000])
    parser.add_argument("--fetch-mb", type=int, default=400)
    parser.add_argument(
        "--memory-mb", type=int, default=2000, help="the big file whose memory is watched; 0: none"
    )
    parser.add_argument("--rtt-ms", type=float, default=50.0)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    given = parser.parse_args(argv)
    if given.quick:
        given.repeats, given.files, given.fetch_mb, given.memory_mb = 2, [40], 40, 0
    tools = [tool for tool in given.tools if tool.startswith("ours") or shutil.which("rsync")]
    plan = Plan(given.repeats, given.files, given.fetch_mb, given.memory_mb, tools, given.rtt_ms)
    return plan, given.write


def main(argv: Sequence[str]) -> None:
    plan, write = parse_plan(argv)
    with open_lab(plan) as lab:
        software = ", ".join(
            [lab.server.kind, *map(version, (["ssh", "-V"], ["rsync", "--version"]))]
        )
        said = about("transfer.py", software) | {
            "relay": f"{plan.rtt_ms:g} ms round trip, no limit on throughput"
        }
        measure_all(lab, plan)
    data = {"server_peak_mb": lab.notes, "samples": [asdict(sample) for sample in lab.samples]}
    write_page(
        "transfer", "Transfers beside rsync", said, render(lab.samples, lab.notes), data, write
    )


if __name__ == "__main__":
    main(sys.argv[1:])
