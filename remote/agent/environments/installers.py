"""Ways to make a venv and to install into it, whichever this server has: pip, uv, virtualenv,
another python's pip."""

import functools
import json
import os
import re
import shutil
from typing import Callable, Dict, List, Optional, Sequence, Tuple, TypeVar

from remote.agent.environments import pip_settings
from remote.agent.environments.build_failures import missing_module
from remote.agent.environments.commands import Commands
from remote.agent.environments.python_places import CONDA_PLACES, ask_plainly
from remote.agent.root.disk import disk_of
from remote.agent.root.paths import write_whole
from remote.agent.shared.names import canonical

T = TypeVar("T")
Run = Callable[[List[str]], int]
"""`run(argv)`: the output goes to the build's log; returns the exit code."""

BIN_PLACES = (
    *("~/.local/bin", "~/.cargo/bin", "/usr/local/bin"),
    *(f"{place}/bin" for place in CONDA_PLACES),
)
ROOMY_MIB = 20 << 10
"""Wheels are cached only where their disk has this much free: torch's alone take 3 GiB."""
GOOD_PIP, REPORTING_PIP = (25, 2), (22, 2)
"""From which version pip goes on with a download that was cut, and resolves without downloading;
and from which it reports what it resolved."""
LAZY = "--use-feature=fast-deps"
"""Where an index offers no metadata apart, they are read out of a wheel's end alone."""
NOT_INSTALLED = re.compile(
    r"([\w.-]+)`?(?: \d\S*)? requires `?([\w.-]+)[^,\n]*, (?:which is|but it's) not installed"
)
"""In the words of `pip check` and of `uv pip check`."""
APT_REMEDY = "ask for `apt install python3-venv` there, or set remote.python to a conda python"

PICK = """
import re, sys
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.version import Version
build, lines = sys.argv[1], [Requirement(line).specifier for line in sys.argv[2].split(chr(10))]
def cuda(tag):
    found = re.match(r"cu(\\d+)(\\d)$", tag or "")
    return [int(part) for part in found.groups()] if found else None
def fits(version):
    own, wanted = cuda(version.local), cuda(build)
    older = own and wanted and own[0] == wanted[0] and own <= wanted
    return (older or version.local == build) and all(version in line for line in lines)
found = [version for version in map(Version, sys.argv[3:]) if fits(version)]
print("torch==%s" % max(found) if found else "")
"""


class InstallerMissing(Exception):
    """No way was found to make a venv, or to install into it."""


def find_uv() -> Optional[str]:
    return _find("uv")


def find_conda() -> Optional[str]:
    return _find("mamba", "micromamba", "conda")


def _find(*names: str) -> Optional[str]:
    """The first of them on the PATH, or where uv and conda put themselves."""
    places = [os.environ.get("PATH", os.defpath), *map(os.path.expanduser, BIN_PLACES)]
    found = (shutil.which(name, path=os.pathsep.join(places)) for name in names)
    return next(filter(None, found), None)


def conda_create(conda: str, target: str, file: str) -> List[str]:
    start = ["create"] if os.path.basename(conda) == "micromamba" else ["env", "create"]
    return [conda, *start, "--prefix", target, "--file", file]


def make_venv(run: Run, python: str, target: str, inherit: bool, uv: Optional[str]) -> None:
    """Make a venv of `python` at `target`; `inherit`: it sees the interpreter's own packages, which
    is asked for without `uv`."""
    options = [*(["--system-site-packages"] if inherit else []), target]
    ways = [[uv, "venv", "--python", python, target]] if uv else []
    ways += [[python, "-m", module, *options] for module in ("venv", "virtualenv")]
    if shutil.which("virtualenv"):
        ways.append(["virtualenv", "-p", python, *options])
    ways.append([python, "-m", "venv", "--without-pip", *options])
    for argv in ways:
        shutil.rmtree(target, ignore_errors=True)
        if run(argv) == 0 and os.access(os.path.join(target, "bin", "python"), os.X_OK):
            return
    raise InstallerMissing(f"{python} can't make a venv: the module venv or ensurepip is missing")


class Failed(Exception):
    """An installer failed; its words stand in the log from `log_from` on."""

    def __init__(self, log_from: int = 0) -> None:
        super().__init__()
        self.log_from = log_from


class Installer:
    """uv where nothing of pip's configuration is lost, else pip; pip too where uv failed.

    `on_top`: it installs beside what another interpreter has, which uv does not see. The commands'
    directory takes the files of requirements; whoever made it removes them: they may hold
    passwords of indexes.
    """

    def __init__(
        self,
        commands: Commands,
        environment: Dict[str, str],
        helpers: Sequence[str],
        on_top: bool = False,
    ) -> None:
        self.commands = commands
        self.environment = environment
        self.helpers = helpers
        self.config = pip_settings.pip_config(environment)
        self.on_top = on_top
        pip_alone = on_top or pip_settings.PIP_ALONE & set(self.config)
        self.uv = None if pip_alone else find_uv()

    def install(
        self,
        python: str,
        lines: List[str],
        constraints: Sequence[str],
        flags: Sequence[str] = (),
        own_index: bool = False,
    ) -> str:
        """Returns the installer's name. `own_index`: the indexes that pip was configured with are
        left out, so that the one in `lines` decides. Raises Failed, or InstallerMissing."""
        # A lock is complete by itself.
        flags = [*flags, *(["--no-deps"] if any(" --hash=" in line for line in lines) else [])]
        config = pip_settings.without_indexes(self.config) if own_index else self.config
        limits = self.write("constraints.txt", constraints)
        before = self.commands.written
        if self.uv:
            file = self.write("install.txt", pip_settings.index_lines(config, lines))
            argv = [self.uv, "pip", "install", "--python", python, "-r", file]
            argv += [*self._limits(limits), *flags, *self._cacheless("uv", flags)]
            values = pip_settings.uv_environment(self.environment, config, own_index)
            if self.commands.run(argv, values) == 0:
                return "uv"
            if self.commands.exit_code is not None and self.commands.exit_code < 0:
                raise Failed(before)
        pip = self._good_pip(python)
        if pip is None and self.uv:
            raise Failed(before)
        if pip is None:
            raise InstallerMissing(f"no pip can install into {python}")
        if self.uv:
            self.commands.hear("uv failed; trying pip", None)
        before = self.commands.written
        argv = [*pip, "install", "-r", self.write("install.txt", lines), "-c", limits, *flags]
        argv += ["--progress-bar", "raw"] if _pip_version(*pip) >= (24, 1) else []
        argv += self._cacheless("pip", flags)
        if self.commands.run(argv, pip_settings.pip_environment(self.environment, config)) != 0:
            raise Failed(before)
        return "pip"

    def apart(self, lines: Sequence[str], act: Callable[[Sequence[str]], T]) -> Tuple[T, List[str]]:
        """What `act` gives for `lines` but for those that need another package to be built, and
        these. Raises Failed."""
        late: List[str] = []
        while True:
            try:
                return act(lines), late
            except Failed as failure:
                needing = missing_module(self.commands.output(failure.log_from))
                moved = [line for line in lines if needing and name_of(line) == needing[0]]
                if not moved:
                    raise
            lines, late = [line for line in lines if line not in moved], late + moved

    def resolve(self, python: str, lines: List[str], constraints: Sequence[str]) -> Dict[str, str]:
        """Canonical name → version of all that would be installed; nothing is. Raises Failed, or
        InstallerMissing where no pip there can tell."""
        limits = self.write("constraints.txt", constraints)
        if self.uv:
            file = self.write("install.txt", pip_settings.index_lines(self.config, lines))
            told = os.path.join(self.commands.directory, "resolved.txt")
            argv = [self.uv, "pip", "compile", "--python", python, file, "-o", told]
            argv += ["--quiet", "--no-header", "--no-annotate", *self._cacheless("uv")]
            argv += self._limits(limits)
            environment = pip_settings.uv_environment(self.environment, self.config)
            if self.commands.run(argv, environment) == 0:
                with open(told, encoding="utf-8") as text:
                    found = re.findall(r"^([\w.-]+)(?:\[.*?\])?(?:==| @ )(\S+)", text.read(), re.M)
                return {canonical(name): version for name, version in found}
        pip = self._good_pip(python)
        if pip is None or _pip_version(*pip) < REPORTING_PIP:
            raise InstallerMissing(f"no pip of {python} tells beforehand what it would install")
        before = self.commands.written
        told = os.path.join(self.commands.directory, "report.json")
        argv = [*pip, "install", "--dry-run", "--report", told, "-c", limits]
        argv += ["-r", self.write("install.txt", lines), *self._cacheless("pip")]
        argv += [] if self.on_top else ["--ignore-installed"]
        # The build asks longer: an index out of reach shall not be waited for twice.
        argv += [] if "retries" in self.config else ["--retries", "2"]
        environment = pip_settings.pip_environment(self.environment, self.config)
        if self.commands.run([*argv, LAZY], environment) != 0:
            # Some indexes refuse the question for a file's size, and a pip may not know of it.
            refused = re.search(
                r"\b[45]\d\d \w+ Error|invalid choice", self.commands.output(before)
            )
            if not refused or self.commands.run(argv, environment) != 0:
                raise Failed(before)
        with open(told, encoding="utf-8") as text:
            installed = [item["metadata"] for item in json.load(text)["install"]]
        return {canonical(item["name"]): item["version"] for item in installed}

    def lacking(self, python: str) -> List[Tuple[str, str]]:
        """Package and what it requires, where that is not installed, in canonical form; empty where
        no pip can tell."""
        pip = find_pip(python, self.helpers)
        if not self.uv and pip is None:
            return []
        before = self.commands.written
        argv = [self.uv, "pip", "check", "--python", python] if self.uv else [*(pip or ()), "check"]
        self.commands.run(argv, self.environment)
        found = NOT_INSTALLED.findall(self.commands.output(before))
        return [(canonical(package), canonical(needed)) for package, needed in found]

    def torch_on_pages(
        self, python: str, pages: Sequence[str], build: str, lines: Sequence[str]
    ) -> Optional[str]:
        """The newest torch on pages or in folders of wheels that is of this build, or of an older
        CUDA of the same kind, and fits `lines`: as a pin. None where there is none."""
        pip = find_pip(python, self.helpers)
        if pip is None or not pages:
            return None
        before = self.commands.written
        argv = [*pip, "install", "--no-deps", "--no-index", "torch==0"]
        argv += [word for page in pages for word in ("--find-links", page)]
        config = pip_settings.without_indexes(self.config)
        config.pop("constraint", None)
        self.commands.run(argv, pip_settings.pip_environment(self.environment, config))
        found = re.search(r"from versions: ([^)]*)\)", self.commands.output(before))
        offered = found.group(1).split(", ") if found else []
        picked = _ask([pip[0], "-c", PICK, build, "\n".join(lines), *offered])
        return picked.strip() or None if picked else None

    def _limits(self, file: str) -> List[str]:
        """For uv, which on its command line forgets those of its settings."""
        files = [file, *self.config.get("constraint", "").split()]
        return [word for one in files for word in ("-c", one)]

    def _cacheless(self, tool: str, flags: Sequence[str] = ()) -> List[str]:
        """What was built against one torch must not be found for another: it is never kept."""
        disk = disk_of(pip_settings.cache_place(tool, self.config, self.environment))
        flag = "--no-cache" if tool == "uv" else "--no-cache-dir"
        keeps = disk and disk.free_mib >= ROOMY_MIB and "--no-build-isolation" not in flags
        return [] if keeps else [flag]

    def _good_pip(self, python: str) -> Optional[List[str]]:
        """A pip for `python`, brought for the purpose where the one there is older: that would
        download all that it resolves, several GB for torch, and begin anew after each cut."""
        pip = find_pip(python, self.helpers)
        if pip is None or _pip_version(*pip) >= GOOD_PIP:
            return pip
        place = os.path.join(self.environment["TMPDIR"], "pip" + re.sub(r"\W", "_", python))
        if not os.path.isdir(place):
            os.mkdir(place)
            argv = [*pip, "install", "-qqq", "--no-deps", "--target", place, "--retries", "0"]
            argv += ["--timeout", "10", f"pip>={GOOD_PIP[0]}.{GOOD_PIP[1]}"]
            config = {name: value for name, value in self.config.items() if name != "constraint"}
            values = pip_settings.pip_environment(self.environment, config)
            self.commands.run(argv, values, shown=False)  # an index may not have it
        if os.path.isdir(os.path.join(place, "pip")):
            return [pip[0], os.path.join(place, "pip"), *pip[3:]]
        return pip

    def write(self, name: str, lines: Sequence[str]) -> str:
        path = os.path.join(self.commands.directory, name)
        write_whole(path, "".join(line + "\n" for line in lines).encode("utf-8"))
        return path


def find_pip(python: str, helpers: Sequence[str]) -> Optional[List[str]]:
    """The start of a pip command that installs into `python`: its own pip, else that of another
    interpreter."""
    own = [python, "-m", "pip"]
    if _pip_version(*own):
        return own
    others = ([helper, "-m", "pip", "--python", python] for helper in helpers)
    return next((pip for pip in others if _can_list(*pip)), None)


def name_of(line: str) -> str:
    """The package that a requirement names; empty for a bare address."""
    found = re.match(r"([A-Za-z0-9._-]+)(?!.*://)|([A-Za-z0-9._-]+)\s*@", line)
    return canonical(found.group(1) or found.group(2)) if found else ""


@functools.lru_cache(maxsize=None)  # a python starts slowly
def _pip_version(*pip: str) -> Tuple[int, ...]:
    """Empty where it does not run."""
    match = re.match(r"pip (\d+)\.(\d+)", _ask([*pip, "--version"]) or "")
    return (int(match.group(1)), int(match.group(2))) if match else ()


@functools.lru_cache(maxsize=None)
def _can_list(*pip: str) -> bool:
    """A pip that is too old for a python tells its version there, and crashes with the rest."""
    return _ask([*pip, "list"]) is not None


def _ask(argv: List[str]) -> Optional[str]:
    """stdout, or None where the command fails."""
    said = ask_plainly(argv, 60)
    return said.out if said.code == 0 else None
