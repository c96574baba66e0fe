"""The agent's own bytes, so that it can be kept in a root; and the same program compiled, which
starts 40 ms sooner."""

import importlib.util
import io
import marshal
import sys
from typing import List, Set

from remote.agent.root.paths import write_whole

CONTENT = b""
"""Set by the bootstrap."""
_wanted: Set[str] = set()
UNCHECKED = (1).to_bytes(4, "little")
"""PEP 552: a pyc that is valid whatever became of its source; ours has none beside it."""


def command(program: str, *arguments: str) -> List[str]:
    """What starts the agent anew, for work that outlives this login."""
    return [sys.executable, "-I", "-S", program, *arguments]


def compile_later(path: str) -> None:
    """Nobody waits for it: it is done when the laptop has gone."""
    _wanted.add(path)


def compile_wanted() -> None:
    for path in _wanted:
        try:
            write_whole(path, compile_program(CONTENT))
        except OSError:  # a full disk, or the project is gone: the next login tries again
            pass
    _wanted.clear()


def compiled_name(digest: str) -> str:
    """The file name of the program compiled for this very interpreter."""
    return f"{digest}.{sys.implementation.cache_tag}-{importlib.util.MAGIC_NUMBER.hex()}.pyz"


def compile_program(content: bytes) -> bytes:
    """The zipapp with compiled modules in place of sources."""
    import zipfile  # no other command waits for it

    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            code = compile(source.read(name), name, "exec", dont_inherit=True)
            # A fixed time: the same program gives the same file, whoever has sent it.
            info = zipfile.ZipInfo(name[:-3] + ".pyc", (1980, 1, 1, 0, 0, 0))
            target.writestr(
                info, importlib.util.MAGIC_NUMBER + UNCHECKED + bytes(8) + marshal.dumps(code)
            )
    return buffer.getvalue()
