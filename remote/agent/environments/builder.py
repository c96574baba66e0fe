"""Builds one environment, detached from any login: started as `build DIRECTORY FILE RECORD`, tells
its state in build.json.

It holds the environment's lock, handed over by who started it, for as long as it lives; in a job of
Slurm's, without FILE and RECORD, a process on the login node does. `ready` is written last.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from typing import Any, Dict, List, Optional, Sequence

from remote.agent.environments import installers, pip_settings
from remote.agent.environments.build_failures import TORCH_REMEDY, Failure, Place, classify
from remote.agent.environments.commands import Commands
from remote.agent.environments.interpreters import build_environment, describe, signature
from remote.agent.environments.python_places import glibc_version
from remote.agent.machine.processes import start_time
from remote.agent.root.disk import disk_of
from remote.agent.root.locks import held
from remote.agent.root.paths import read_json, remove_file, write_json, write_whole
from remote.agent.shared.build_plan import BuildPlan, TorchChoice
from remote.agent.shared.environment import Environment, Interpreter
from remote.agent.shared.reading import read
from remote.agent.shared.text import redact

LIMIT_S = 3 * 3600.0
"""Without a word: compiling a package for the GPU takes long, an installer that hangs longer."""
SAY_EVERY_S = 0.4

SCRIPTS = """
import importlib.metadata, os, sys
folder = os.path.dirname(sys.executable)
for one in importlib.metadata.distributions():
    for point in one.entry_points:
        place = os.path.join(folder, point.name)
        if point.group != "console_scripts" or os.sep in point.name or os.path.lexists(place):
            continue
        module, _, name = (part.strip() for part in point.value.partition("[")[0].partition(":"))
        # A shell finds the interpreter: the kernel takes no long paths and none with blanks.
        lines = ["#!/bin/sh", f"'''exec' '{sys.executable}' " + '"$0" "$@"', "' '''", "import sys"]
        lines += [f"from {module} import {name.split('.')[0]}", f"sys.exit({name}())", ""]
        with open(place, "w") as file:
            file.write(chr(10).join(lines))
        os.chmod(place, 0o755)
"""


class BuildFailed(Exception):
    """Ends the build; made of its message and remedy."""


def main(arguments: List[str]) -> int:
    directory, *lock = arguments
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with held(int(lock[0]), lock[1]) if lock else contextlib.nullcontext():
        return Builder(directory).run()


class Builder:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.plan: BuildPlan
        self.state: Dict[str, Any] = {}
        self.environment: Dict[str, str] = {}
        self.installer: installers.Installer
        self.commands = Commands(directory, "build.log", self.hear, lambda: True, LIMIT_S)
        self.said = 0.0
        self.temporary = os.path.join(directory, "tmp")
        self.venv = os.path.join(directory, "venv")
        self.python = os.path.join(self.venv, "bin", "python")

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def run(self) -> int:
        self.plan = read(BuildPlan, read_json(self.path("plan.json")))
        self.state = read_json(self.path("build.json")) or {}
        signal.signal(signal.SIGTERM, self._stop)
        self.say(
            phase="running",
            host=os.uname().nodename,
            pid=os.getpid(),
            pid_started=start_time(os.getpid()),
            line="starting",
        )
        try:
            self.build()
        except BuildFailed as failed:
            return self.fail(Failure(*failed.args))
        except installers.InstallerMissing as missing:
            return self.fail(Failure(str(missing), installers.APT_REMEDY))
        except installers.Failed as failed:
            return self.fail(classify(self.commands.output(failed.log_from), self.place()))
        except OSError as error:
            return self.fail(classify(f"{error.strerror}: {error.filename}", self.place()))
        except Exception as error:
            message = f"the builder failed: {type(error).__name__}: {error}"
            self.fail(Failure(message, "this is a mistake of ours: please report it"))
            raise
        self.say(phase="done", exit=0, line="ready")
        return 0

    def fail(self, failure: Failure) -> int:
        message, remedy = failure
        if self.plan.job is not None and "can't be reached" in message:
            remedy = f"this node is offline? remote.slurm.build: login builds there; or {remedy}"
        log = f"the whole output is in {self.commands.log} there"
        remedy = f"{remedy}; {log}" if remedy else log
        shutil.rmtree(self.venv, ignore_errors=True)
        self.clean()
        self.say(
            phase="failed",
            exit=self.commands.exit_code,
            message=message,
            remedy=remedy,
            line=message,
        )
        return 1

    def build(self) -> None:
        """Every step in order; with the last line the environment exists."""
        started = time.time()
        os.makedirs(self.temporary, mode=0o700, exist_ok=True)
        self.environment = build_environment(self.temporary)
        helpers, on_top = self.plan.helpers, self.plan.kind == "overlay"
        self.installer = installers.Installer(self.commands, self.environment, helpers, on_top)
        if self.plan.kind == "conda":
            installer = self.make_by_conda()
        else:
            self.make_venv()
            installer = self.install_all()
        if on_top:
            self.add_scripts()
        self.finish(installer, started)
        self.clean()
        write_whole(self.path("ready"), b"")

    def clean(self) -> None:
        """What was needed to build. The files may hold the passwords of indexes."""
        for name in ("install.txt", "constraints.txt", "environment.yml", "plan.json"):
            remove_file(self.path(name))
        shutil.rmtree(self.temporary, ignore_errors=True)

    def make_venv(self) -> None:
        base, parents = self.plan.python, self.plan.parent_sites
        self.say(step="venv", line=f"making a venv of {base}")
        overlay = self.plan.kind == "overlay"
        installers.make_venv(
            lambda argv: self.commands.run(argv, self.environment),
            base,
            self.venv,
            overlay and not parents,
            None if overlay else installers.find_uv(),
        )
        if parents:
            # A venv made from a venv sees only the base interpreter: its parent's packages are
            # added by name.
            line = "import site; " + "; ".join(f"site.addsitedir({site!r})" for site in parents)
            own = next(site for site in describe(self.python).sites if site.startswith(self.venv))
            write_whole(os.path.join(own, "_parent.pth"), line.encode() + b"\n", 0o644)

    def make_by_conda(self) -> str:
        """Returns the program's name."""
        conda = self.plan.python
        self.say(step="conda", line=f"{conda} makes the environment")
        file = self.installer.write("environment.yml", self.plan.conda)
        # Its pip section follows pip's settings as any other build does.
        values = pip_settings.pip_environment(self.environment, self.installer.config)
        values.update(CONDA_ALWAYS_YES="true", MAMBA_ALWAYS_YES="true")
        if limits := self.plan.constraints:
            # pip runs in this folder; a whole path would be parted at its blanks.
            name = os.path.basename(self.installer.write("constraints.txt", limits))
            values["PIP_CONSTRAINT"] = f"{values.get('PIP_CONSTRAINT', '')} {name}".strip()
        if self.commands.run(installers.conda_create(conda, self.venv, file), values) != 0:
            raise installers.Failed
        return os.path.basename(conda)

    def add_scripts(self) -> None:
        """Programs of the packages below (torchrun, accelerate, …) that run in this environment,
        and not in the one it was laid upon."""
        subprocess.run(
            [self.python, "-I", "-c", SCRIPTS],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            env=self.environment,
            timeout=120,
        )

    def install_all(self) -> str:
        """What the plan wants installed, torch from its own index first, and last what needs torch
        to be built. Returns the installer's name."""
        torch, wanted = self.plan.torch, self.plan.install
        constraints, options, late = map(
            list, (self.plan.constraints, self.plan.options, self.plan.late)
        )
        names = ["none"]

        def install(limits: List[str], lines: Sequence[str], *flags: str) -> None:
            if lines:
                asked = [*options, *lines]
                names.append(self.installer.install(self.python, asked, limits, flags))

        if torch.requirements:
            constraints.append(self.install_torch(torch, constraints, options))
        elif torch.source:
            options.append(torch.source)
        if wanted:
            text = f"installing {len(wanted)} package{'s' * (len(wanted) > 1)} and what they need"
            self.say(step="packages", line=text)
        # pip checks hashes of all lines or of none: those with hashes are a lock.
        locked = [line for line in wanted if " --hash=" in line]
        others = [line for line in wanted if line not in locked]
        for group, limits in ((locked, []), (others, constraints)):
            late += self.installer.apart(group, partial(install, limits))[1]
        if late:
            self.say(step="packages", line=f"building {', '.join(late)[:200]} with torch at hand")
            with contextlib.suppress(installers.Failed):  # they may need none of these
                install(constraints, ["setuptools", "wheel", "ninja"])
        for line in late:
            install(constraints, [line], "--no-build-isolation")
        return names[-1]

    def install_torch(self, torch: TorchChoice, constraints: List[str], options: List[str]) -> str:
        """The pin of the torch that has the build wanted; what it needs comes with the rest, from
        the index that pip is set to. Pages of wheels that pip knows are looked at first; `options`
        gets the source, for those of torch's family."""
        self.say(step="torch", line=f"installing torch ({torch.build})")
        known = [line.split(" ", 1)[1] for line in options if line.startswith("--find-links ")]
        known += self.installer.config.get("find-links", "").split()
        pages = [torch.links] if torch.links else known
        pin = self.installer.torch_on_pages(self.python, pages, torch.build, torch.requirements)
        if torch.links and not pin:
            page = redact(torch.links)
            message = f"{page} has no torch of the build {torch.build} for this python"
            raise BuildFailed(message, TORCH_REMEDY)
        if pin and not torch.links:
            return pin
        options.append(torch.source)
        if pin:
            return pin
        lines = [f"--index-url {torch.index_url}", *torch.requirements]
        self.installer.install(self.python, lines, constraints, ["--no-deps"], own_index=True)
        return f"torch=={describe(self.python).packages.get('torch')}"

    def finish(self, installer: str, started: float) -> None:
        """Look at what was installed, and write env.json."""
        self.say(step="check", line="looking at what was installed")
        found = describe(self.python, self.plan.detail)
        missing = [name for name in self.plan.names if name not in found.packages]
        problem = found.problem or (missing and f"{', '.join(missing)} is missing in it")
        if problem:
            raise BuildFailed(f"the new environment does not work: {problem}", "")
        self.require_whole_lock()
        made = describe_plan(self.plan, found)._replace(
            python=self.python,
            prefix=self.venv,
            installer=installer,
            seconds=round(time.time() - started, 1),
        )
        write_json(self.path("env.json"), made.to_json())

    def require_whole_lock(self) -> None:
        """What has hashes was installed without looking at what it needs."""
        lines = [line for line in self.plan.install if " --hash=" in line]
        if not lines:
            return
        locked = {installers.name_of(line) for line in lines}
        lacking = [pair for pair in self.installer.lacking(self.python) if pair[0] in locked]
        if lacking:
            what = ", ".join(f"{needed} (for {package})" for package, needed in lacking[:3])
            message = f"the requirements have hashes, but lack {what}"
            remedy = "write them anew with all that is needed (pip-compile --generate-hashes)"
            raise BuildFailed(message, remedy)

    def hear(self, line: Optional[str], amount: Optional[List[int]]) -> None:
        self.say(often=True, amount=amount, **({} if line is None else {"line": line}))

    def say(self, often: bool = False, **changes: Any) -> None:
        """Tell the state; `often`: at most every 0.4 s."""
        self.state.update(changes, updated=time.time())
        if not often or time.monotonic() - self.said >= SAY_EVERY_S:
            self.said = time.monotonic()
            write_json(self.path("build.json"), self.state)

    def place(self) -> Place:
        disk = disk_of(self.directory)
        return Place(
            self.plan,
            exit_code=self.commands.exit_code,
            mount=disk.mount if disk else "",
            free_mib=disk.free_mib if disk else None,
            glibc=glibc_version(),
            constraint=pip_settings.pip_config(self.environment).get("constraint", ""),
        )

    def _stop(self, *_: Any) -> None:
        self.commands.stop()
        raise BuildFailed("the build was stopped by a signal", "deploy again")


def describe_plan(plan: BuildPlan, found: Interpreter) -> Environment:
    """The part of a plan that env.json keeps, and what was found installed for it. Holds no
    addresses, so no secrets."""
    # A package may have brought torch along, though nobody expected it.
    needs_torch = plan.needs_torch or "torch" in found.requires
    return Environment(
        plan.key,
        plan.kind,
        plan.requirements_hash,
        plan.wanted,
        tuple(plan.names),
        found.version or "",
        plan.python,
        needs_torch=needs_torch,
        imports=tuple(plan.imports or (["torch"] if needs_torch else [])),
        packages={name: found.packages[name] for name in plan.names if name in found.packages},
        torch=found.torch,
        commits=found.commits,
        built=time.time(),
        signature=signature(found.path, found.sites),
    )
