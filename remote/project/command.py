"""remote.command as the server runs it: its words or a shell for its signs, and what follows
`--`."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

ASSIGNMENT = re.compile(r"\s*[A-Za-z_]\w*=")
NOTEBOOK = ".ipynb"
SCRIPTS = (".py", ".sh", NOTEBOOK)
TELL_STEP = """_step() { printf %s "$1" 2>/dev/null >"${REMOTE_RUN_DIR:-/dev/null}/.step" || :; }
trap '_step "$BASH_COMMAND"' DEBUG"""
"""Names each command in the run's directory before it begins."""
RUN_NOTEBOOK = """
has() { "$python" -c "import $1" 2>/dev/null; }
python=$1 notebook=$2 out=${2%.ipynb}.done.ipynb
shift 2
if has papermill && has ipykernel; then
  exec "$python" -m papermill --log-output --no-progress-bar -k python3 "$notebook" "$out" "$@"
elif has nbconvert && has ipykernel; then
  exec "$python" -m nbconvert --to notebook --execute --ExecutePreprocessor.timeout=-1 \\
    --ExecutePreprocessor.kernel_name=python3 --output "${out##*/}" "$@" "$notebook"
fi
echo "error: $notebook needs papermill, or nbconvert, and ipykernel: name them in the requirements"
exit 1
"""


def shell_signs(line: str) -> list[str]:
    """What of a command's line only a shell understands, in order, each once; empty for plain
    words.

    Raises ValueError for an open quote.
    """
    shlex.split(line)
    found: list[str] = []
    quote, before = "", " "
    characters = iter(line.strip())
    for sign in characters:
        if sign == "\\" and quote != "'":
            next(characters, "")
        elif quote:
            quote = "" if sign == quote else quote
            found += [sign] if quote == '"' and sign in "$`" else []
        elif sign in "'\"":
            quote = sign
        elif sign in "|&;<>()$`*?\n" or (sign == "~" and before.isspace()):
            found.append(before + sign if before == sign and sign in "|&><" else sign)
        before = sign
    if ASSIGNMENT.match(line):
        found.append("=")
    doubled = {sign[0] for sign in found if len(sign) == 2}
    return list(dict.fromkeys(sign for sign in found if sign not in doubled))


def plan_words(line: str, arguments: Sequence[str], python: str) -> list[str]:
    """The command's words, a leading `python` being the environment's; or bash with the line, where
    it holds a shell's signs.

    A pipeline fails where any part of it fails; of several lines the first that fails is the last,
    and each is a step that `status` names. A notebook is run by papermill or nbconvert.
    When it is stopped, bash waits for what it has started to save its state.
    """
    if not shell_signs(line):
        words = shlex.split(line)
        if words[0].endswith(NOTEBOOK):
            return ["bash", "-c", RUN_NOTEBOOK, "notebook", python, *words, *arguments]
        return [python if words[0] in ("python", "python3") else words[0], *words[1:], *arguments]
    text = " ".join([line.rstrip(), *map(shlex.quote, arguments)])
    lines = ["trap 'exit 143' TERM", text]
    if "\n" not in line.rstrip():
        return ["bash", "-o", "pipefail", "-c", "\n".join(lines)]
    return ["bash", "-e", "-o", "pipefail", "-c", "\n".join([TELL_STEP, *lines])]


def missing_script(
    line: str, project: Path, sent: Collection[str] | None = None
) -> tuple[str, str] | None:
    """That the script which plain words start is not among what is `sent`, or not here, and what to
    do; None for what can't be told."""
    words = [] if shell_signs(line) else shlex.split(line)
    found = (word for word in words if word.endswith(SCRIPTS) and word[0] not in "-/")
    script = "" if {"-m", "-c"} & {*words} else next(found, "")
    if not script:
        return None
    if not (project / script).exists():
        return f"remote.command names {script}, which is not here", "mend fabric.yaml"
    place = PurePosixPath(os.path.normpath(script).replace(os.sep, "/"))
    # A link to a folder is sent as such, with what it leads to.
    if sent is None or any(str(path) in sent for path in (place, *place.parents)):
        return None
    remedy = "take it out of .gitignore, or name it in remote.include"
    return f"remote.command names {script}, which is not sent", remedy


def describe_command(line: str) -> str | None:
    """That it is run by a shell, and why; None where it is not."""
    signs = shell_signs(line)
    shown = [
        "a variable before it" if sign == "=" else "its lines" if sign == "\n" else sign
        for sign in signs
    ]
    return f"command: run by bash, because of {' '.join(shown)}" if shown else None


def label_of(line: str) -> str:
    """A name for the runs of a command: its script's, its module's, or that of its program."""
    words = [word for word in shlex.split(line) if not ASSIGNMENT.match(word)]
    script = next((word for word in words if word.endswith(SCRIPTS)), "")
    module = next((after for word, after in itertools.pairwise(words) if word == "-m"), "")
    program = Path(words[0] if words else "run").name
    name = Path(script).stem or module.rpartition(".")[2] or program
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:24].strip("-") or "run"
