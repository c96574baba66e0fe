"""The agent as it is sent: a zipapp of its files, and the shell command that starts it."""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import re
import zipfile
import zlib
from pathlib import Path

AGENT = Path(__file__).resolve().parent.parent / "agent"
PYTHONS = "python3 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8"
PYTHON_PLACES = (
    "$HOME/miniconda3 $HOME/anaconda3 $HOME/miniforge3 /opt/conda /opt/miniconda3 /root/miniconda3"
    " /venv/main /usr/local $HOME/.conda/envs/* $HOME/micromamba/envs/* $HOME/.pyenv/versions/*"
    " $HOME/.local/share/uv/python/*"
)
NO_PYTHON, OLD_PYTHON, BROKEN_PYTHON, INPUT_READ = 97, 95, 93, 92


@functools.cache
def agent_program() -> bytes:
    """The agent as a zipapp; the same files give the same bytes. Not compressed: its hash is asked
    for at every connection."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:

        def add(name: str, text: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)

        add("__main__.py", b"import remote.agent.__main__\n")
        add("remote/__init__.py", b"")
        for file in sorted(AGENT.rglob("*.py")):
            add(f"remote/agent/{file.relative_to(AGENT).as_posix()}", _source(file))
    return buffer.getvalue()


@functools.cache
def agent_hash() -> str:
    return hashlib.sha256(agent_program()).hexdigest()


def _source(file: Path) -> bytes:
    return file.read_bytes().replace(b"\r\n", b"\n")


def start_command(nonce: str, python: str = "") -> str:
    """One command that sh, bash, zsh, fish and csh all pass on unharmed: one line, no `!`, no
    backslash, no inner single quote.

    A configured interpreter is tried first where its path needs no quoting; any other python >= 3.8
    serves as well.
    """
    code = base64.b64encode(zlib.compress(_source(AGENT / "serve" / "bootstrap.py"), 9)).decode()
    loader = "import sys,base64,zlib;exec(zlib.decompress(base64.b64decode(sys.argv.pop())))"
    first = python if re.fullmatch(r"[A-Za-z0-9_./~+-]+", python) else ""
    # 0, 92 and 94: our program has run, and a signal from outside may have ended it; 126: one that
    # this user may not execute, which dash's `command -v` names all the same. Whatever else: it is
    # a python that does not run, and the next one may.
    attempt = (
        '"$p" -I -S -c "$2" "$1" "$3"; r=$?; case $r in 0|92|94|129|130|131|137|141|143) exit'
        " $r;; 126) ;; 96) o=$p;; *) b=$p;; esac"
    )
    script = (
        f"for p in {first} {PYTHONS}; do command -v $p >/dev/null 2>&1 || continue; {attempt};"
        " done; "
        f"for d in {PYTHON_PLACES}; do p=$d/bin/python3; test -x $p || continue; {attempt}; done; "
        # Last, the PATH that a login shell sets.
        'for p in $("${SHELL:-sh}" -lc "command -v python3" </dev/null 2>/dev/null | tail -n 1); do'
        f" test -x $p || continue; {attempt}; done; "
        f'test -n "$b" && exit {BROKEN_PYTHON}; test -n "$o" && exit {OLD_PYTHON}; exit {NO_PYTHON}'
    )
    return f"exec sh -c '{script}' sh '{nonce}' '{loader}' '{code}'"
