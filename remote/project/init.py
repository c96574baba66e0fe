"""`python -m remote init`: what an existing project needs for `fab deploy`, `train` and the rest;
nothing that is there is changed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from remote.errors import UsageError
from remote.screen.display import Display

FABFILE = '''"""`fab --list` shows the tasks: deploy, train, fetch-results and more."""

from pathlib import Path

from remote.tasks import tasks

ns = tasks(Path(__file__).resolve().parent)
'''
SETTINGS = """# Fabric's own reading of ~/.ssh/config crashes on valid files; ssh reads it itself.
load_ssh_configs: false

remote:
  # What `fab train` runs, in the run's own copy of this project; a leading `python` is that of
  # the environment.
  command: {command}
  # The packages that the server needs: a requirements file, uv.lock, pyproject.toml[extra],
  # conda's environment.yml, or none
  requirements: {requirements}
  # What comes back of all that the training writes: names or patterns, separated by commas;
  # empty: everything
  results: {results}
  # Where the project lives on the server. Rented boxes often have a data disk, e.g.
  # /root/autodl-tmp/{{project}}
  root: ~/projects/{{project}}
  # An interpreter there that already has what is required, e.g. /root/miniconda3/bin/python;
  # empty: one is looked for
  python: ""
"""
SCRIPTS = ("train.py", "main.py", "src/train.py", "scripts/train.py", "run.py")
PACKAGES = (
    "requirements.txt",
    "requirements/train*.txt",
    "requirements[-_]train*.txt",
    "requirements/base.txt",
    "uv.lock",
    "pyproject.toml",
    "requirements/*.txt",
    "requirements*.txt",
    "environment.y*ml",
    "environment[-_.]*.y*ml",
    "conda*.y*ml",
    "env*/*.y*ml",
)
MARKS = {
    ".toml": r"^\[(project|tool\.poetry\.dependencies)\]",
    ".yml": r"^dependencies:",
    ".yaml": r"^dependencies:",
}
"""What such a file holds where it names packages; why Poetry's own table won't do is
said by deploy and doctor."""
OTHER_PACKAGES = {
    "pdm.lock": "pdm export -o requirements.txt writes what is read",
    "Pipfile": "pipenv requirements > requirements.txt writes what is read",
    "setup.py": "a requirements.txt with the line `-e .` reads it",
    "setup.cfg": "a requirements.txt with the line `-e .` reads it",
}
"""Name packages, too, in forms that remote.requirements does not take by themselves."""
TRAINS = re.compile(r"\bTrainer\(|\.fit\(|optimizer\.step\(")
NO_TRAINING = ("fabfile.py", "setup.py", "conftest.py", "run_progress.py")
PROGRESS = "run_progress.py"
HINTS = {
    "fabfile.py": (
        ": add to it `from remote.tasks import tasks` and `ns ="
        " tasks(Path(__file__).resolve().parent)`"
    ),
    "fabric.yaml": (
        ": add to it `load_ssh_configs: false` and a section `remote:`; fab --help and the README"
        " name its keys"
    ),
}


def find_packages(directory: Path) -> list[str]:
    """What names the server's packages, the likeliest first; a pyproject.toml may hold settings of
    tools alone, and a .yml anything."""
    found = [path for pattern in PACKAGES for path in sorted(directory.glob(pattern))]
    named = [
        path.relative_to(directory).as_posix()
        for path in dict.fromkeys(found)
        if (mark := MARKS.get(path.suffix)) is None
        or re.search(mark, path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    ]
    return [name for name in named if not re.search(r"dev|test|docs?\b|lint", name)]


def init(directory: Path, command: str, results: str, display: Display) -> int:
    """Write fabfile.py, fabric.yaml and run_progress.py where they are missing, and say what to do
    next."""
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such folder", step="init")
    command, others = (command, []) if command else guess_command(directory)
    packages = find_packages(directory) or ["none"]
    settings = SETTINGS.format(
        command=quoted(command), requirements=packages[0], results=quoted(results)
    )
    write_missing(directory, settings, display)
    if problem := import_problem(directory):
        display.note(f"warning: {problem}")
    tell_packages(directory, packages, display)
    for name in others[:5]:
        display.note(f"{name} may be a training, too: --command says which is meant")
    display.line(f"the training: {command} (remote.command in fabric.yaml). Next:")
    for task in ("doctor", "train", "fetch-results"):
        display.line(f"    fab -H user@host:port {task}")
    display.line(
        f"`status` and `follow` show its epochs and accuracy once it tells them: see {PROGRESS}"
    )
    return 0


def write_missing(directory: Path, settings: str, display: Display) -> None:
    texts = {
        "fabfile.py": FABFILE,
        "fabric.yaml": settings,
        PROGRESS: Path(__file__).with_name(PROGRESS).read_text(encoding="utf-8"),
    }
    for name, text in texts.items():
        if (directory / name).exists():
            display.note(f"{name} is there already and stays as it is{HINTS.get(name, '')}")
        else:
            (directory / name).write_text(text, encoding="utf-8", newline="")
            display.line(f"wrote {name}")


def tell_packages(directory: Path, packages: list[str], display: Display) -> None:
    if packages[1:]:
        display.note(f"packages: {packages[0]}; also there: {', '.join(packages[1:4])}")
    elif packages == ["none"]:
        there = [name for name in OTHER_PACKAGES if (directory / name).exists()]
        told = "; ".join(f"{name}: {OTHER_PACKAGES[name]}" for name in there)
        told = told or "name them in a requirements.txt, and that in fabric.yaml"
        display.note(
            "warning: nothing that names the packages was found, so none are installed there."
            f" {told}"
        )


def quoted(text: str) -> str:
    """As YAML takes it, whatever is in it."""
    if re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./ ,=-]*", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def guess_command(directory: Path) -> tuple[str, list[str]]:
    """The script or notebook that looks like the training, and the others that do."""
    found = [name for name in SCRIPTS if (directory / name).exists()]
    scripts = sorted(directory.glob("*.py"))
    found += [
        file.name
        for file in scripts
        if file.name not in (*found, *NO_TRAINING)
        and TRAINS.search(file.read_text("utf-8", "replace"))
    ]
    if (
        not found
        and len(only := [file.name for file in scripts if file.name not in NO_TRAINING]) == 1
    ):
        found = only
    commands = [f"python {name}" for name in found]
    commands += sorted(path.name for path in directory.glob("*.ipynb"))
    if not commands:
        raise UsageError(
            f"no training script was found in {directory}",
            step="init",
            remedy='python -m remote init --command "python your_script.py"',
        )
    return commands[0], [*found[1:], *commands[len(found) or 1 :]]


def import_problem(directory: Path) -> str | None:
    """Why `fab` could not import our tasks from within that project."""
    done = subprocess.run(
        [sys.executable, "-c", "import remote.tasks; print(remote.__path__[0])"],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    ours = Path(__file__).resolve().parent.parent
    if done.returncode == 0 and Path(done.stdout.strip()).resolve() == ours:
        return None
    if (directory / "remote").exists() or (directory / "remote.py").exists():
        return "this project has a `remote` of its own, which hides ours: give it another name"
    return (
        f"`remote` is not installed for {shutil.which('python') or sys.executable}: pip install"
        f" {ours.parent}"
    )
