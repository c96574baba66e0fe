"""`python -m remote init`: what an existing project needs for `fab deploy`, `train` and the rest; nothing that is there is changed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from remote.display import Display
from remote.errors import UsageError

FABFILE = '''"""`fab --list` shows the tasks: deploy, train, fetch-results and more."""

from pathlib import Path

from remote.tasks import tasks

ns = tasks(Path(__file__).resolve().parent)
'''
SETTINGS = """# Fabric's own reading of ~/.ssh/config crashes on valid files; `ssh -G` is asked instead.
load_ssh_configs: false

remote:
  # What `fab train` runs, in the run's own copy of this project; a leading `python` is that of the environment.
  command: {command}
  # The packages that the server needs: a requirements file, or none
  requirements: {requirements}
  # What of the training's files comes back: names or patterns below this project, separated by commas
  results: {results}
  # Where the project lives on the server. Rented boxes often have a data disk, e.g. /root/autodl-tmp/{{project}}
  root: ~/projects/{{project}}
  # An interpreter there that already has what is required, e.g. /root/miniconda3/bin/python; empty: one is looked for
  python: ""
"""
SCRIPTS = ("train.py", "main.py", "src/train.py", "scripts/train.py", "run.py")
PACKAGES = ("requirements.txt", "requirements/base.txt", "requirements-train.txt")
RESULTS = ("lightning_logs", "checkpoints", "outputs", "logs", "runs")
"""Where trainings usually write."""
PROGRESS = "run_progress.py"


def init(directory: Path, command: str, results: str, display: Display) -> int:
    """Write fabfile.py, fabric.yaml and run_progress.py where they are missing, and say what to do next."""
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such folder", step="init")
    command = command or guess_command(directory)
    requirements = next((name for name in PACKAGES if (directory / name).exists()), "none")
    settings = SETTINGS.format(command=quoted(command), requirements=requirements, results=quoted(results or ", ".join(RESULTS)))
    texts = {"fabfile.py": FABFILE, "fabric.yaml": settings, PROGRESS: (Path(__file__).with_name(PROGRESS)).read_text(encoding="utf-8")}
    for name, text in texts.items():
        if (directory / name).exists():
            display.note(f"{name} is there already and stays as it is{HINTS.get(name, '')}")
        else:
            (directory / name).write_text(text, encoding="utf-8", newline="")
            display.line(f"wrote {name}")
    if problem := import_problem(directory):
        display.note(f"warning: {problem}")
    if requirements == "none":
        display.note("no requirements.txt was found: name the packages that the server needs, in one, and in fabric.yaml")
    display.line(f"the training: {command} (remote.command in fabric.yaml). Next:")
    display.line("    fab -H user@host:port doctor\n    fab -H user@host:port train\n    fab -H user@host:port fetch-results")
    display.line(f"`status` and `follow` show its epochs and accuracy once it tells them: see {PROGRESS}")
    return 0


HINTS = {
    "fabfile.py": ": add to it `from remote.tasks import tasks` and `ns = tasks(Path(__file__).resolve().parent)`",
    "fabric.yaml": ": add to it `load_ssh_configs: false` and a section `remote:`; fab --help and the README name its keys",
}


def quoted(text: str) -> str:
    """As YAML takes it, whatever is in it."""
    return text if re.fullmatch(r"[A-Za-z0-9_./][A-Za-z0-9_./ ,=-]*", text) else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def guess_command(directory: Path) -> str:
    """The script that looks like the training."""
    found = [name for name in SCRIPTS if (directory / name).exists()]
    if not found:
        scripts = sorted(directory.glob("*.py"))
        found = [file.name for file in scripts if re.search(r"\bTrainer\(|\.fit\(|optimizer\.step\(", file.read_text("utf-8", "replace"))]
    if not found:
        raise UsageError(
            f"no training script was found in {directory}", step="init", remedy='python -m remote init --command "python your_script.py"'
        )
    return f"python {found[0]}"


def import_problem(directory: Path) -> str | None:
    """Why `fab` could not import our tasks from within that project."""
    done = subprocess.run(
        [sys.executable, "-c", "import remote.tasks; print(remote.__path__[0])"], cwd=directory, capture_output=True, text=True
    )
    ours = Path(__file__).resolve().parent
    if done.returncode == 0 and Path(done.stdout.strip()).resolve() == ours:
        return None
    if (directory / "remote").exists() or (directory / "remote.py").exists():
        return "this project has a `remote` of its own, which hides ours: give it another name"
    return f"`remote` is not installed for {shutil.which('python') or sys.executable}: pip install {ours.parent}"
