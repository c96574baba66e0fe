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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from remote.agent.shared.gpu_choice import busy_reason, choose_gpus
from remote.deploy import proofs
from remote.deploy.deploy import ask_facts, choose_environment, read_requirements
from remote.deploy.setup_key import PREFERRED
from remote.deploy.torch_builds import torch_build_for
from remote.errors import (
    EnvironmentFailed,
    GpuUnfit,
    NotFound,
    RemoteError,
    ServerUnfit,
    UsageError,
)
from remote.link.answers import Reach, Runs
from remote.link.facts import Facts, Root
from remote.link.session import Project, Session
from remote.project.command import missing_script
from remote.project.own_trainer import ARCHIVE, load_data_modules
from remote.project.results import room_at
from remote.project.run_env import read_env
from remote.project.settings import listed
from remote.records import Release
from remote.release.code_files import FETCHED_RUNS, how_to_send
from remote.screen.display import Display
from remote.screen.language import title, translate
from remote.screen.text import padded, show, size

OK, WARNING, PROBLEM, HERE = "ok", "warning", "problem", "here"
LEAST_HERE_MIB, LEAST_THERE_MIB, LEAST_INODES = 2048, 8192, 20_000
MUCH_CODE = 200 << 20
SLOW_S, CLOCK_S = 0.5, 120.0


@dataclass(frozen=True)
class Check:
    """One line. `where`: here, or a host; `code`: the exit code of a problem."""

    where: str
    what: str
    level: str
    text: str
    remedy: str = ""
    code: int = 0


def show_check(display: Display, check: Check, new_place: bool) -> None:
    if new_place:
        display.line("this computer:" if check.where == "here" else f"{check.where}:")
    display.line(
        check.text, f"  {padded(translate(check.level), 8)} {padded(title(check.what), 12)} "
    )
    if check.remedy:
        display.line(check.remedy, f"{'':24}→ ")


def fine(what: str, text: str) -> Check:
    return Check(HERE, what, OK, text)


def warning(what: str, text: str, remedy: str) -> Check:
    return Check(HERE, what, WARNING, text, remedy)


def problem(what: str, text: str, remedy: str, kind: type[RemoteError]) -> Check:
    return Check(HERE, what, PROBLEM, text, remedy, kind.exit_code)


def failed(what: str, error: RemoteError) -> Check:
    return problem(what, error.message, error.remedy or "", type(error))


def examine(project: Project, sessions: Sequence[Session], display: Display) -> int:
    """Show every check as soon as it is done. Returns 0, or the exit code of the first problem."""
    checks: list[Check] = []
    for check in all_checks(project, sessions):
        if not display.json_mode:
            show_check(display, check, not checks or checks[-1].where != check.where)
        checks.append(check)
    if display.json_mode:
        display.json([asdict(check) for check in checks])
    found = {level: sum(check.level == level for check in checks) for level in (PROBLEM, WARNING)}
    if not sessions:
        display.note("a server is checked with: fab -H user@host doctor")
    counted = [
        f"{count} {level}{'s' if count > 1 else ''}" for level, count in found.items() if count
    ]
    display.note(", ".join(counted) or "all is well")
    return next((check.code for check in checks if check.level == PROBLEM), 0)


def all_checks(project: Project, sessions: Sequence[Session]) -> Iterator[Check]:
    yield from laptop_checks(project)
    if not sessions:  # else the login tells
        yield key_check()
    for session in sessions:
        with session:
            for check in server_checks(session):
                yield replace(check, where=session.host)


# This computer


def laptop_checks(project: Project) -> Iterator[Check]:
    yield tools_check()
    yield from programs_checks(project.settings.ssh)
    yield from project_checks(project)
    yield room_check(project.dest)
    yield torch_check()


def tools_check() -> Check:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("fabric", "paramiko")]
    return fine("python", ", ".join([f"Python {platform.python_version()}", *versions]))


def programs_checks(login: str) -> Iterator[Check]:
    """`login`: remote.ssh."""
    if shutil.which("git"):
        yield fine("git", "decides which files are sent")
    else:
        yield warning("git", "not found: every file of the project is sent", "install git")
    if login == "paramiko":
        yield fine("ssh", "paramiko logs in, once for each command, as remote.ssh says")
    elif shutil.which("ssh"):
        yield fine("ssh", "logs in, by your ~/.ssh/config")
    else:
        text = "not found: paramiko logs in, once for each command, without host certificates"
        yield warning("ssh", text, "install the OpenSSH client")
    encoding = (sys.stdout.encoding or "ascii").lower().replace("-", "")
    if encoding != "utf8":
        text = f"shows {sys.stdout.encoding} only: some signs become ?"
        yield warning("terminal", text, "set PYTHONUTF8=1")


def project_checks(project: Project) -> Iterator[Check]:
    settings = project.settings
    yield fine("settings", f"project {settings.project}, on the server in {settings.root}")
    release: Release | None = None
    code: list[Check] = []
    try:
        release = project.build_release()
    except UsageError as error:
        code = [failed("code", error)]
    sent = {entry.path for entry in release.entries} if release else None
    if missing := missing_script(settings.command, project.directory, sent):
        yield problem("command", *missing, UsageError)
    try:
        read_requirements(project)
    except UsageError as error:
        yield failed("packages", error)
    try:
        read_env(listed(settings.env), "remote.env", project.directory)
    except ValueError as error:
        yield problem("variables", str(error), "mend it, or fabric.yaml", UsageError)
    yield from code if release is None else [code_check(release)]


def code_check(release: Release) -> Check:
    unsent = [row for row in release.left_out if row[1] != FETCHED_RUNS]
    left = [f"{path} ({reason})" for path, reason in unsent[:3]]
    more = f" and {len(unsent) - 3} more" if len(unsent) > 3 else ""
    text = f"{len(release.entries)} files, {size(release.size)}"
    if left:
        text = f"{text}; not sent: {', '.join(left)}{more}"
        return warning("code", text, "; ".join(how_to_send(unsent)))
    if release.size > MUCH_CODE:
        remedy = "put data into .gitignore, and send it once with upload-data"
        return warning("code", f"{text}: much for code", remedy)
    return fine("code", text)


def room_check(dest: Path) -> Check:
    place, free_bytes = room_at(dest)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        text = f"{place} can't be written" if place.is_dir() else f"{place} is no folder"
        return problem("results", text, "set remote.dest to a folder of yours", UsageError)
    free = free_bytes >> 20
    if free < LEAST_HERE_MIB:
        remedy = "free some space, or set remote.dest to another disk"
        return warning("results", f"{free} MiB free for {dest}", remedy)
    return fine("results", f"{free >> 10} GiB free for {dest}")


def torch_check() -> Check:
    if importlib.util.find_spec("torch") is None:
        return fine("torch", "not here, and not needed: submit with -H evaluates on the server")
    return fine("torch", f"{importlib.metadata.version('torch')}: fab submit can evaluate here")


def key_check() -> Check:
    keys = [name for name in PREFERRED if (Path.home() / ".ssh" / name).exists()]
    if keys:
        return fine("key", f"~/.ssh/{keys[0]}")
    if os.environ.get("SSH_AUTH_SOCK"):
        return fine("key", "none in ~/.ssh, but an SSH agent is at hand")
    text = "none in ~/.ssh: servers will ask for a password"
    return warning("key", text, "fab -H user@host setup-key makes one")


# The server


def server_checks(session: Session) -> Iterator[Check]:
    """From the login on; a step that fails ends them, for the rest leans on it."""
    begun = time.monotonic()
    try:
        facts = ask_facts(session)
        answered = time.monotonic()
        runs = session.ask(Runs).runs
        round_trip = time.monotonic() - answered
    except RemoteError as error:
        yield failed("system" if isinstance(error, ServerUnfit) else "login", error)
        return
    yield from login_checks(session, answered - begun, round_trip)
    yield from machine_checks(facts)
    if session.project.settings.launcher == "slurm":
        yield slurm_check(facts)
    else:
        yield from staying_checks(facts)
    yield from gpu_checks(session.project, facts)
    yield from environment_checks(session, facts)
    yield from data_checks(session, facts)
    states = [run.state for run in runs]
    counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    yield fine("runs", counted or "none yet")


def login_checks(session: Session, seconds: float, round_trip: float) -> Iterator[Check]:
    assert session.connection is not None
    host, method = session.connection.host, session.connection.method
    text = f"{host.user}@{host.hostname}:{host.port} in {seconds:.1f} s"
    if "password" in method or "keyboard" in method:
        yield warning("login", f"{text}, by {method}", f"fab -H {session.typed} setup-key")
    else:
        how = "by key" if method else "over the login that is kept (remote.stay_s)"
        yield fine("login", f"{text}, {how}")
    if session.target.stay_s > 0 and not session.connection.shared and os.name != "nt":
        remedy = "set XDG_RUNTIME_DIR to a folder of your own with a short name"
        yield warning("login", "can't be kept: every command logs in anew", remedy)
    text = f"an answer takes {1000 * round_trip:.0f} ms"
    if round_trip > SLOW_S:
        yield warning("link", text, "a slow link: every command goes on after a cut")
    else:
        yield fine("link", text)


def machine_checks(facts: Facts) -> Iterator[Check]:
    system = facts.system
    yield fine(
        "system",
        f"{show(system.host)}: {show(system.system)} {show(system.machine)}, {show(system.cores)}"
        f" cores, python {show(system.python)}",
    )
    wrong_s = abs(system.time - time.time()) if system.time is not None else 0.0
    if wrong_s > CLOCK_S:
        text = f"differs from this computer's by {wrong_s:.0f} s"
        yield warning("clock", text, "downloads may fail; set the clock there")
    yield disk_check(facts.root)


def disk_check(root: Root) -> Check:
    free, inodes = root.free_mib, root.inodes_free
    if root.problem is not None:
        return problem("root", root.problem.message, root.problem.remedy or "", ServerUnfit)
    if free is not None and free < LEAST_THERE_MIB:
        text = f"{free} MiB free at {show(root.mount)} for {show(root.path)}"
        remedy = (
            "fab … clean, or set remote.root to a data disk; a build of torch takes up to 8 GiB"
        )
        return warning("disk", text, remedy)
    if inodes is not None and inodes < LEAST_INODES:
        text = f"only {inodes} more files fit at {show(root.mount)}"
        return warning("disk", text, "fab … clean removes what nothing needs")
    return fine("disk", f"{'–' if free is None else free >> 10} GiB free for {show(root.path)}")


def slurm_check(facts: Facts) -> Check:
    if facts.sbatch:
        return fine("slurm", f"{facts.sbatch}: trainings become jobs")
    text = "remote.launcher is slurm, and there is no sbatch"
    return problem("slurm", text, "log in to the cluster's login node", ServerUnfit)


def staying_checks(facts: Facts) -> Iterator[Check]:
    """What keeps a training there after the login."""
    if facts.tmux:
        yield fine("tmux", "found")
    else:
        text = "not found: trainings start with setsid, and `attach` has nothing to show"
        yield warning("tmux", text, "apt install tmux")
    if facts.system.kills_at_logout:
        text = "this server kills what you leave running"
        remedy = "ask its administrator for `loginctl enable-linger`"
        yield problem("logout", text, remedy, ServerUnfit)


def gpu_checks(project: Project, facts: Facts) -> Iterator[Check]:
    report = facts.gpus
    if not report.gpus:
        remedy = "fine where the command trains on a processor"
        if project.has_own_trainer:
            remedy = "train with --set accelerator=cpu"
        text = report.problem or "nvidia-smi shows none"
        yield warning("gpu", text, report.remedy or remedy)
        return
    free = len(choose_gpus(report.gpus, held=facts.held).gpus)
    names = ", ".join(dict.fromkeys(show(item.name) for item in report.gpus))
    text = f"{len(report.gpus)} × {names}, driver {show(report.driver_version)}, {free} free"
    if free:
        yield fine("gpu", text)
    else:
        busy = {gpu.index: busy_reason(gpu, facts.held) for gpu in report.gpus}
        users = "; ".join(f"gpu {index}: {why}" for index, why in busy.items() if why)
        text = f"{text}{f' ({users})' if users else ''}"
        yield warning("gpu", text, "train waits for one in the queue")
    build = torch_build_for(report, facts.system.machine)
    if build.problem:
        yield problem("driver", build.problem, "a newer driver, or another server", GpuUnfit)


def environment_checks(session: Session, facts: Facts) -> Iterator[Check]:
    try:
        plan = choose_environment(session, facts, read_requirements(session.project))
    except RemoteError as error:
        yield failed("environment", error)
        return
    doubt, need, free = plan.doubt, plan.build.need_mib, facts.root.free_mib
    if free is not None and free < need:
        remedy = "free some space (fab … clean), or set remote.root to another disk"
        doubt = f"it needs about {need} MiB, {free} MiB are free", remedy
    if doubt:
        text = f"the next deploy can't make it: {show(doubt[0])}"
        yield problem("environment", text, show(doubt[1]), EnvironmentFailed)
        return
    if plan.kind != "keep":
        yield fine("environment", f"the next deploy makes it: {plan.why}")
        return
    kept = next(made for made in facts.environments if made.key == plan.key)
    line = proofs.describe_proof(kept, facts).removeprefix("environment ")
    level = WARNING if "warning:" in line else OK
    yield Check(HERE, "environment", level, line.replace("warning: ", ""))


def data_checks(session: Session, facts: Facts) -> Iterator[Check]:
    for name in facts.datasets.lacking(session.project.settings):
        remedy = f"fab -H {session.typed} upload-data PATH --name {name}"
        yield problem("data", f"remote.data names {name}, which is not there", remedy, NotFound)
    names = ", ".join(map(show, facts.datasets.names[:8]))
    if not session.project.has_own_trainer:
        if names:
            yield fine("data", names)
        return
    if facts.datasets.cifar10:
        yield fine("data", f"CIFAR-10 is there ({show(facts.datasets.cifar10)})")
        return
    others = f"; also {names}" if names else ""
    answer = session.ask(Reach, url=load_data_modules(session.project.directory)[0].ARCHIVE_URL)
    if answer.reached:
        yield fine("data", f"CIFAR-10 can be downloaded there{others}")
    else:
        why = show(answer.problem)
        text = f"CIFAR-10 is not there, and can't be downloaded ({why}){others}"
        yield warning("data", text, f"fab -H {session.typed} upload-data {ARCHIVE}")
