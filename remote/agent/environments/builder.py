"""Builds one environment, detached from any login: started as `build DIRECTORY LOCK_FD`, tells its
state in build.json.

It holds the environment's lock, inherited from who started it, for as long as it lives. `ready` is
written last.
"""

import codecs
import os
import platform
import re
import select
import shutil
import signal
import subprocess
import time
from typing import Any, Dict, List, Optional

from remote.agent.environments import installers
from remote.agent.environments.build_failures import Place, classify
from remote.agent.environments.interpreters import (
    describe,
    inspect_packages,
    plain_environment,
    signature,
)
from remote.agent.machine.processes import start_time
from remote.agent.root.paths import read_json, write_json, write_whole
from remote.agent.shared.text import redact

LIMIT_S = 3 * 3600.0
"""For one command: compiling a package for the GPU takes long, an installer that hangs longer."""
SAY_EVERY_S = 0.4
TAIL = 256 << 10
ROOMY_MIB = 20 << 10
"""Wheels are cached only where the home has this much free: torch's alone take 3 GiB."""


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
    """Ends the build; message and remedy are for the user."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


def main(arguments: List[str]) -> int:
    directory, lock = arguments[0], int(arguments[1])
    # What is started from here must not hold the lock: it tells whether the builder lives.
    os.set_inheritable(lock, False)
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return Builder(directory).run()


class Builder:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.plan: Dict[str, Any] = {}
        self.state: Dict[str, Any] = {}
        self.environment: Dict[str, str] = {}
        self.child: Optional[subprocess.Popen[bytes]] = None
        self.exit_code: Optional[int] = None
        self.said = 0.0
        self.venv = os.path.join(directory, "venv")
        self.python = os.path.join(self.venv, "bin", "python")

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def run(self) -> int:
        self.plan = read_json(self.path("plan.json")) or {}
        self.state = read_json(self.path("build.json")) or {}
        signal.signal(signal.SIGTERM, self._stop)
        self.say(
            phase="running", pid=os.getpid(), pid_started=start_time(os.getpid()), line="starting"
        )
        try:
            self.build()
        except BuildFailed as failed:
            return self.fail(failed.message, failed.remedy)
        except installers.InstallerMissing as missing:
            return self.fail(
                str(missing),
                f"{installers.APT_REMEDY}; the whole output is in {self.path('build.log')} there",
            )
        except OSError as error:
            failure = classify(f"{error.strerror}: {error.filename}", self.place())
            return self.fail(failure.message, failure.remedy)
        except Exception as error:
            self.fail(
                f"the builder failed: {type(error).__name__}: {error}",
                "this is a mistake of ours: please report it",
            )
            raise
        self.say(phase="done", exit=0, line="ready")
        return 0

    def fail(self, message: str, remedy: str) -> int:
        shutil.rmtree(self.venv, ignore_errors=True)
        self.say(phase="failed", exit=self.exit_code, message=message, remedy=remedy, line=message)
        return 1

    def build(self) -> None:
        """Every step in order; with the last line the environment exists."""
        started = time.time()
        temporary = self.path("tmp")
        os.makedirs(temporary, mode=0o700, exist_ok=True)
        self.environment = installers.build_environment(plain_environment(), temporary)
        try:
            made_by = self.make_venv()
            installer = self.install_all()
            if self.plan["kind"] == "overlay":
                self.add_scripts()
            self.finish(made_by, installer, started)
        finally:
            # These may hold the passwords of indexes.
            for name in ("install.txt", "constraints.txt", "plan.json"):
                if os.path.exists(self.path(name)):
                    os.unlink(self.path(name))
            shutil.rmtree(temporary, ignore_errors=True)
        write_whole(self.path("ready"), b"")

    def make_venv(self) -> str:
        base = str(self.plan["python"])
        self.say(step="venv", line=f"making a venv of {base}")
        overlay = self.plan["kind"] == "overlay"
        parents = list(self.plan.get("parent_sites") or []) if overlay else []
        made_by = installers.make_venv(
            self.command,
            base,
            self.venv,
            overlay and not parents,
            None if overlay else installers.find_uv(),
        )
        if parents:
            # A venv made from a venv sees only the base interpreter: its parent's packages are
            # added by name.
            line = "import site; " + "; ".join(f"site.addsitedir({site!r})" for site in parents)
            own = [
                site
                for site in describe(self.python).get("sites") or []
                if site.startswith(self.venv)
            ]
            write_whole(os.path.join(own[0], "_parent.pth"), line.encode() + b"\n", 0o644)
        return made_by

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
        """What the plan wants installed, torch from its own index first. Returns the installer's
        name."""
        config = installers.pip_config()
        torch = self.plan.get("torch") or {}
        constraints = list(self.plan.get("constraints") or [])
        options = list(self.plan.get("options") or [])
        index = torch.get("index")
        installer = "none"
        if index and torch.get("requirements"):
            self.say(step="torch", line=f"installing torch ({torch['build']})")
            installer = self.install(
                [f"--index-url {index}", *torch["requirements"]], constraints, config, isolated=True
            )
            found = inspect_packages(self.python)["packages"]
            constraints += [f"{name}=={found[name]}" for name in torch["pins"] if name in found]
        wanted = list(self.plan.get("install") or [])
        if wanted:
            self.say(
                step="packages",
                line=(
                    f"installing {len(wanted)} package{'s' * (len(wanted) > 1)} and what they need"
                ),
            )
            if index:
                options.append(f"--extra-index-url {index}")
            # pip checks hashes of all lines or of none: those with hashes are a lock, complete by
            # itself.
            locked = [line for line in wanted if " --hash=" in line]
            if locked:
                installer = self.install([*options, *locked], None, config)
            rest = [line for line in wanted if line not in locked]
            if rest:
                installer = self.install([*options, *rest], constraints, config)
        return installer

    def install(
        self,
        lines: List[str],
        constraints: Optional[List[str]],
        config: Dict[str, str],
        isolated: bool = False,
    ) -> str:
        """By uv where nothing of pip's configuration is lost, else by pip; by pip too where uv
        failed. Raises BuildFailed.

        Without `constraints` the lines are a whole lock with hashes. `isolated`: the indexes that
        pip was configured with are left out, so that the one in `lines` decides.
        """
        uv = (
            installers.find_uv()
            if self.plan["kind"] == "venv" and not installers.pip_only_options(config)
            else None
        )
        cache = _free_mib(os.path.expanduser("~")) >= ROOMY_MIB
        file = self.path("install.txt")
        limits = self.path("constraints.txt") if constraints is not None else None
        if limits:
            write_whole(limits, _text(constraints or []))
        if uv:
            configured = installers.index_lines(
                installers.without_indexes(config) if isolated else config
            )
            write_whole(file, _text(installers.merge_options(configured, lines)))
            environment = dict(self.environment, **installers.uv_environment(config))
            if (
                self.command(
                    installers.uv_install(uv, self.python, file, limits, cache), environment
                )
                == 0
            ):
                return "uv"
            if self.exit_code is not None and self.exit_code < 0:
                raise self.failure()
        pip = installers.find_pip(self.python, list(self.plan.get("helpers") or []))
        if pip is None and not uv:
            raise installers.InstallerMissing(f"no pip can install into {self.python}")
        if pip is None:
            raise self.failure()
        if uv:
            self.say(line="uv failed; trying pip")
        before = os.path.getsize(self.path("build.log"))
        write_whole(file, _text(lines))
        environment = (
            installers.isolated_environment(self.environment, config)
            if isolated
            else self.environment
        )
        if self.command(installers.pip_install(pip, file, limits, cache), environment) != 0:
            raise self.failure(before)
        return "pip"

    def finish(self, made_by: str, installer: str, started: float) -> None:
        """Look at what was installed, and write env.json."""
        self.say(step="check", line="looking at what was installed")
        described, found = describe(self.python), inspect_packages(self.python)
        problem = described.get("problem") or found.get("problem")
        names = list(self.plan.get("names") or [])
        missing = [name for name in names if name not in found["packages"]]
        if not problem and missing:
            problem = f"{', '.join(missing)} is missing in it"
        if problem:
            raise BuildFailed(
                f"the new environment does not work: {problem}",
                f"see {self.path('build.log')} there",
            )
        record = dict(
            describe_plan(self.plan),
            python=self.python,
            prefix=self.venv,
            version=described["version"],
            packages={name: found["packages"][name] for name in names},
            torch=found.get("torch") or {},
            installer=installer,
            made_by=made_by,
            built=time.time(),
            seconds=round(time.time() - started, 1),
            signature=signature(self.python, described["sites"]),
        )
        write_json(self.path("env.json"), record)

    def command(self, argv: List[str], environment: Optional[Dict[str, str]] = None) -> int:
        """Run one command, its output in the log and its last line in build.json. Returns the exit
        code."""
        end = time.monotonic() + LIMIT_S
        with open(self.path("build.log"), "ab") as log:
            log.write(redact("$ " + " ".join(argv) + "\n").encode("utf-8", "replace"))
            log.flush()
            self.child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment or self.environment,
                cwd=self.directory,
            )
            assert self.child.stdout is not None
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            rest = ""
            while True:
                ready = select.select([self.child.stdout], [], [], 10.0)[0]
                if time.monotonic() > end:
                    self.child.kill()
                if not ready:
                    continue
                data = os.read(self.child.stdout.fileno(), 64 << 10)
                lines = re.split(r"[\r\n]", rest + decoder.decode(data))
                rest = lines.pop()[-10_000:] if data else ""
                for line in lines:
                    self._hear(line, log)
                log.flush()
                if not data:
                    break
            self.exit_code = self.child.wait()
        self.state.pop("amount", None)
        return self.exit_code

    def _hear(self, line: str, log: Any) -> None:
        progress = re.match(r"Progress (\d{1,15}) of (\d{1,15})\s*$", line)
        if progress:
            self.say(often=True, amount=[int(progress.group(1)), int(progress.group(2))])
        elif line.strip():
            shown = redact(line)
            log.write(shown.encode("utf-8", "replace") + b"\n")
            if not line.startswith(("WARNING:", "[notice]")):
                self.say(often=True, line=shown.strip()[:300], amount=None)

    def say(self, often: bool = False, **changes: Any) -> None:
        """Tell the state; `often`: at most every 0.4 s."""
        self.state.update(changes, updated=time.time())
        if not often or time.monotonic() - self.said >= SAY_EVERY_S:
            self.said = time.monotonic()
            write_json(self.path("build.json"), self.state)

    def failure(self, log_from: int = 0) -> BuildFailed:
        with open(self.path("build.log"), "rb") as log:
            log.seek(max(log_from, os.fstat(log.fileno()).st_size - TAIL))
            text = log.read().decode("utf-8", "replace")
        failure = classify(text, self.place(), self.exit_code)
        return BuildFailed(failure.message, failure.remedy)

    def place(self) -> Place:
        mount = os.path.realpath(self.directory)
        while not os.path.ismount(mount):
            mount = os.path.dirname(mount)
        return Place(
            log=self.path("build.log"),
            mount=mount,
            free_mib=_free_mib(self.directory),
            need_mib=self.plan.get("need_mib"),
            python=self.plan.get("version"),
            glibc=platform.libc_ver()[1] or None,
        )

    def _stop(self, *_: Any) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
        raise BuildFailed("the build was stopped by a signal", "deploy again")


def describe_plan(plan: Dict[str, Any]) -> Dict[str, Any]:
    """The part of a plan that env.json keeps: what the environment was made for. Holds no
    addresses, so no secrets."""
    kept = (
        "key",
        "kind",
        "requirements_hash",
        "wanted",
        "imports",
        "names",
        "needs_torch",
        "version",
    )
    record = {name: plan.get(name) for name in kept}
    return dict(record, base=plan.get("python"), torch_build=(plan.get("torch") or {}).get("build"))


def _text(lines: List[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode("utf-8")


def _free_mib(path: str) -> int:
    try:
        disk = os.statvfs(path)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize >> 20
