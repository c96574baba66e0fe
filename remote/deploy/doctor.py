"""`doctor`: one screen that tells whether this computer and a server are fit, and what to do where
they aren't. Changes nothing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from remote.agent.shared.gpu_choice import busy_reason, choose_gpus
from remote.deploy import proofs
from remote.deploy.deploy import ask_facts, choose_environment, read_requirements
from remote.deploy.setup_key import PREFERRED
from remote.deploy.shown import show_check
from remote.deploy.torch_builds import torch_build_for
from remote.errors import EnvironmentFailed, GpuUnfit, RemoteError, ServerUnfit, UsageError
from remote.link.answers import Reach, Runs
from remote.link.facts import Facts
from remote.link.session import Project, Session
from remote.project.own_trainer import ARCHIVE, load_data_modules
from remote.screen.display import Display
from remote.screen.text import show, size

OK, WARNING, PROBLEM, HERE = "ok", "warning", "problem", "here"
LEAST_HERE_MIB, LEAST_THERE_MIB, LEAST_INODES = 2048, 8192, 20_000
SLOW_S, CLOCK_S = 0.5, 120.0


@dataclass(frozen=True)
class Check:
    """One line. `code`: the exit code of a problem."""

    where: str
    what: str
    level: str
    text: str
    remedy: str = ""
    code: int = 0


def examine(project: Project, sessions: Sequence[Session], display: Display) -> int:
    """Show every check as soon as it is done. Returns 0, or the exit code of the first problem."""
    checks: list[Check] = []
    for check in all_checks(project, sessions):
        if not display.json_mode:
            show_check(display, check, not checks or checks[-1].where != check.where)
        checks.append(check)
    if display.json_mode:
        display.json([asdict(check) for check in checks])
    found = {level: sum(check.level == level for check in checks) for level in (WARNING, PROBLEM)}
    if not sessions:
        display.note("a server is checked with: fab -H user@host doctor")
    counted = [
        f"{count} {level}{'s' if count > 1 else ''}" for level, count in found.items() if count
    ]
    display.note(", ".join(reversed(counted)) if counted else "all is well")
    return next((check.code for check in checks if check.level == PROBLEM), 0)


def all_checks(project: Project, sessions: Sequence[Session]) -> Iterator[Check]:
    yield from laptop_checks(project)
    if not sessions:  # else the login tells
        yield key_check()
    for session in sessions:
        with session:
            yield from server_checks(session)


# This computer


def laptop_checks(project: Project) -> Iterator[Check]:
    yield tools_check()
    yield from programs_checks()
    yield from project_checks(project)
    yield from room_checks(project.dest)
    yield torch_check()


def here(what: str, level: str, text: str, remedy: str = "") -> Check:
    return Check(HERE, what, level, text, remedy, UsageError.exit_code if level == PROBLEM else 0)


def tools_check() -> Check:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("fabric", "paramiko")]
    return here("python", OK, ", ".join([f"Python {platform.python_version()}", *versions]))


def programs_checks() -> Iterator[Check]:
    if shutil.which("git"):
        yield here("git", OK, "decides which files are sent")
    else:
        yield here("git", WARNING, "not found: every file of the project is sent", "install git")
    if shutil.which("ssh"):
        yield here("ssh", OK, "logs in, by your ~/.ssh/config")
    else:
        yield here(
            "ssh",
            WARNING,
            "not found: paramiko logs in, once for each command, without host certificates",
            "install the OpenSSH client",
        )
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    if encoding != "utf8":
        yield here(
            "terminal",
            WARNING,
            f"shows {sys.stdout.encoding} only: some signs become ?",
            "set PYTHONUTF8=1",
        )


def project_checks(project: Project) -> Iterator[Check]:
    settings = project.settings
    yield here("settings", OK, f"project {settings.project}, on the server in {settings.root}")
    name = settings.requirements
    if name not in ("", "none") and not (project.directory / name).exists():
        yield here(
            "packages",
            PROBLEM,
            f"remote.requirements names {name}, which is not here",
            "mend fabric.yaml",
        )
    try:
        release = project.build_release()
    except UsageError as error:
        yield here("code", PROBLEM, error.message, error.remedy or "")
        return
    left = [f"{path} ({reason})" for path, reason in release.left_out[:3]]
    more = f" and {len(release.left_out) - 3} more" if len(release.left_out) > 3 else ""
    text = f"{len(release.entries)} files, {size(release.size)}"
    if left:
        yield here(
            "code",
            WARNING,
            f"{text}; not sent: {', '.join(left)}{more}",
            "name what is to be sent in remote.include",
        )
    elif release.size > 200 << 20:
        yield here(
            "code",
            WARNING,
            f"{text}: much for code",
            "put data into .gitignore, and send it once with upload-data",
        )
    else:
        yield here("code", OK, text)


def room_checks(dest: Path) -> Iterator[Check]:
    place = dest
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free >> 20
    if free < LEAST_HERE_MIB:
        yield here(
            "results",
            WARNING,
            f"{free} MiB free for {dest}",
            "free some space, or set remote.dest to another disk",
        )
    else:
        yield here("results", OK, f"{free >> 10} GiB free for {dest}")


def torch_check() -> Check:
    if importlib.util.find_spec("torch") is None:
        return here("torch", OK, "not here, and not needed: submit with -H evaluates on the server")
    return here("torch", OK, f"{importlib.metadata.version('torch')}: fab submit can evaluate here")


def key_check() -> Check:
    keys = [name for name in PREFERRED if (Path.home() / ".ssh" / name).exists()]
    if keys:
        return here("key", OK, f"~/.ssh/{keys[0]}")
    if os.environ.get("SSH_AUTH_SOCK"):
        return here("key", OK, "none in ~/.ssh, but an SSH agent is at hand")
    return here(
        "key",
        WARNING,
        "none in ~/.ssh: servers will ask for a password",
        "fab -H user@host setup-key makes one",
    )


# The server


def server_checks(session: Session) -> Iterator[Check]:
    """From the login on; a step that fails ends them, for the rest leans on it."""

    def there(
        what: str, level: str, text: str, remedy: str = "", code: int = ServerUnfit.exit_code
    ) -> Check:
        return Check(session.host, what, level, text, remedy, code if level == PROBLEM else 0)

    begun = time.monotonic()
    try:
        facts = ask_facts(session)
        answered = time.monotonic()
        runs = session.ask(Runs).runs
        round_trip = time.monotonic() - answered
    except RemoteError as error:
        yield there("login", PROBLEM, error.message, error.remedy or "", error.exit_code)
        return
    yield from login_checks(session, there, answered - begun, round_trip)
    yield from machine_checks(facts, there)
    if session.project.settings.launcher == "slurm":
        yield slurm_check(facts, there)
    else:
        yield from staying_checks(facts, there)
    yield from gpu_checks(session.project, facts, there)
    yield from environment_checks(session, facts, there)
    yield from data_checks(session, facts, there)
    states = [run.state for run in runs]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    yield there("runs", OK, counted or "none yet")


def login_checks(
    session: Session, there: Any, seconds: float, round_trip: float
) -> Iterator[Check]:
    assert session.connection is not None
    host = session.connection.host
    text = f"{host.user}@{host.hostname}:{host.port} in {seconds:.1f} s"
    method = session.connection.method
    if "password" in method or "keyboard" in method:
        yield there("login", WARNING, f"{text}, by {method}", f"fab -H {session.typed} setup-key")
    else:
        yield there(
            "login",
            OK,
            f"{text}, {'by key' if method else 'over the login that is kept (remote.stay_s)'}",
        )
    text = f"an answer takes {1000 * round_trip:.0f} ms"
    if round_trip > SLOW_S:
        yield there("link", WARNING, text, "a slow link: every command goes on after a cut")
    else:
        yield there("link", OK, text)


def machine_checks(facts: Facts, there: Any) -> Iterator[Check]:
    system, root = facts.system, facts.root
    yield there(
        "system",
        OK,
        f"{show(system.host)}: {show(system.system)} {show(system.machine)}, {show(system.cores)}"
        f" cores, python {show(system.python)}",
    )
    wrong_s = abs(system.time - time.time()) if system.time is not None else 0.0
    if wrong_s > CLOCK_S:
        text = f"differs from this computer's by {wrong_s:.0f} s"
        yield there("clock", WARNING, text, "downloads may fail; set the clock there")
    free, inodes = root.free_mib, root.inodes_free
    if root.problem is not None:
        yield there("root", PROBLEM, root.problem.message, root.problem.remedy or "")
    elif free is not None and free < LEAST_THERE_MIB:
        remedy = (
            "fab … clean, or set remote.root to a data disk; a build of torch takes up to 8 GiB"
        )
        yield there(
            "disk", WARNING, f"{free} MiB free at {show(root.mount)} for {show(root.path)}", remedy
        )
    elif inodes is not None and inodes < LEAST_INODES:
        yield there(
            "disk",
            WARNING,
            f"only {inodes} more files fit at {show(root.mount)}",
            "fab … clean removes what nothing needs",
        )
    else:
        yield there(
            "disk", OK, f"{'–' if free is None else free >> 10} GiB free for {show(root.path)}"
        )


def slurm_check(facts: Facts, there: Any) -> Check:
    if facts.sbatch:
        found: Check = there("slurm", OK, f"{facts.sbatch}: trainings become jobs")
        return found
    missing: Check = there(
        "slurm",
        PROBLEM,
        "remote.launcher is slurm, and there is no sbatch",
        "log in to the cluster's login node",
    )
    return missing


def staying_checks(facts: Facts, there: Any) -> Iterator[Check]:
    """What keeps a training there after the login."""
    if facts.tmux:
        yield there("tmux", OK, "found")
    else:
        yield there(
            "tmux",
            WARNING,
            "not found: trainings start with setsid, and `attach` has nothing to show",
            "apt install tmux",
        )
    if facts.system.kills_at_logout:
        yield there(
            "logout",
            PROBLEM,
            "this server kills what you leave running",
            "ask its administrator for `loginctl enable-linger`",
        )


def gpu_checks(project: Project, facts: Facts, there: Any) -> Iterator[Check]:
    report = facts.gpus
    if not report.gpus:
        cpu = (
            "train with --set accelerator=cpu"
            if project.has_own_trainer
            else "fine where the command trains on a processor"
        )
        yield there("gpu", WARNING, report.problem or "nvidia-smi shows none", report.remedy or cpu)
        return
    choice = choose_gpus(report.gpus, held=facts.held)
    names = ", ".join(dict.fromkeys(show(item.name) for item in report.gpus))
    text = (
        f"{len(report.gpus)} × {names}, driver {show(report.driver_version)}, {len(choice.gpus)}"
        " free"
    )
    if choice.gpus:
        yield there("gpu", OK, text)
    else:
        busy = {gpu.index: busy_reason(gpu, facts.held) for gpu in report.gpus}
        users = "; ".join(f"gpu {index}: {why}" for index, why in busy.items() if why)
        yield there(
            "gpu",
            WARNING,
            f"{text}{f' ({users})' if users else ''}",
            "train waits for one in the queue",
        )
    build = torch_build_for(report, facts.system.machine)
    if build.problem:
        yield there(
            "driver",
            PROBLEM,
            build.problem,
            "a newer driver, or another server",
            GpuUnfit.exit_code,
        )


def environment_checks(session: Session, facts: Facts, there: Any) -> Iterator[Check]:
    try:
        plan = choose_environment(session, facts, read_requirements(session))
    except RemoteError as error:
        yield there(
            "environment",
            PROBLEM,
            error.message,
            error.remedy or "",
            error.exit_code or EnvironmentFailed.exit_code,
        )
        return
    if plan.kind == "keep":
        for line in proofs.describe_proofs(facts):
            level = WARNING if "warning:" in line else OK
            yield there("environment", level, line.replace("warning: ", ""))
    else:
        yield there("environment", OK, f"the next deploy makes it: {plan.why}")


def data_checks(session: Session, facts: Facts, there: Any) -> Iterator[Check]:
    names = facts.datasets.names
    if not session.project.has_own_trainer:
        if names:
            yield there("data", OK, ", ".join(map(show, names[:8])))
        return
    others = f"; also {', '.join(map(show, names[:8]))}" if names else ""
    if facts.datasets.cifar10:
        yield there("data", OK, f"CIFAR-10 is there ({show(facts.datasets.cifar10)})")
        return
    answer = session.ask(Reach, url=load_data_modules(session.project.directory)[0].ARCHIVE_URL)
    if answer.reached:
        yield there("data", OK, f"CIFAR-10 can be downloaded there{others}")
    else:
        remedy = f"fab -H {session.typed} upload-data {ARCHIVE}"
        yield there(
            "data",
            WARNING,
            f"CIFAR-10 is not there, and can't be downloaded ({show(answer.problem)}){others}",
            remedy,
        )
