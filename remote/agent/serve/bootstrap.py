"""Sent on the command line of every connection: finds the kept agent by its hash, or takes it from
the laptop, and starts it.

The text of this file is executed by whatever python the server has, so it first refuses one that is
too old (exit code 96).
"""

import sys

if sys.version_info < (3, 8):  # noqa: UP036  this is where older ones are told
    sys.exit(96)
import hashlib
import importlib.util
import json
import os
import struct
import zlib


def read_exactly(count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = os.read(0, min(count - len(data), 1 << 20))
        if not piece:
            sys.exit(0)
        data += piece
    return bytes(data)


def read_frame() -> tuple:  # type: ignore[type-arg]  # this text must compile on any python 3
    header, blob = struct.unpack(">II", read_exactly(8))
    return json.loads(read_exactly(header)), read_exactly(blob)


def send(message: dict) -> None:  # type: ignore[type-arg]
    text = json.dumps(message).encode()
    os.write(1, struct.pack(">II", len(text), 0) + text)


def content_of(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def load(hello: dict) -> tuple:  # type: ignore[type-arg]
    """Bytes and path of the agent, whether it lies in a directory to remove, and the requests that
    came before it."""
    digest = hello["agent"]
    home = os.path.expanduser("~")
    root = os.path.normpath(os.path.join(home, os.path.expanduser(hello["root"])))
    path = os.path.join(root, "agent", digest + ".pyz")
    content = content_of(path)
    if hashlib.sha256(content).hexdigest() == digest:
        magic = importlib.util.MAGIC_NUMBER.hex()
        compiled = path[:-4] + "." + sys.implementation.cache_tag + "-" + magic + ".pyz"
        return content, compiled if os.path.exists(compiled) else path, None, []
    send({"need": digest})
    waiting = []
    while True:
        message, blob = read_frame()
        if "agent" in message:
            break
        if "ping" not in message:
            waiting.append((message, blob))
    blob = zlib.decompress(blob)
    if hashlib.sha256(blob).hexdigest() != digest:
        sys.exit(98)
    import tempfile

    directory = tempfile.mkdtemp(prefix="agent-")
    path = os.path.join(directory, digest + ".pyz")
    with open(path, "wb") as file:
        file.write(blob)
    return blob, path, directory, waiting


os.write(1, ("\n" + sys.argv[1] + "\n").encode())
HELLO, _ = read_frame()
CONTENT, PATH, DIRECTORY, WAITING = load(HELLO)
os.environ["REMOTE_AGENT_PYZ"] = PATH
os.environ["REMOTE_AGENT_HASH"] = HELLO["agent"]
sys.path.insert(0, PATH)
try:
    from remote.agent.root import program
    from remote.agent.serve import operations, server  # noqa: F401  importing operations registers them
finally:
    if DIRECTORY:
        import shutil

        shutil.rmtree(DIRECTORY, ignore_errors=True)
program.CONTENT = CONTENT
server.main(HELLO, WAITING)
