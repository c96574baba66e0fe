"""Wheels made by hand, an index that serves them, and interpreters that have them: nothing here
needs the network.

wheels = fake_wheels(directory)                 # torch, a little Lightning, demo-pkg image =
make_image(directory, wheels, "torch")  # an interpreter with these, like a rented image's with
Index(wheels) as index: ...                # index.url; index.asked; index.gate.clear() makes it
wait
"""

from __future__ import annotations

import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote
from venv import EnvBuilder

from tests.support.sshd import base_python

LIGHTNING = ("pytorch-lightning", "torchmetrics", "lightning-utilities")
"""The first needs the second, which needs the third."""
IMPORTS = "torch-imports"
"""In the HOME of whoever imports the fake torch; a line for each time."""

_TORCH = f"""
import os
with open(os.path.join(os.path.expanduser("~"), {IMPORTS!r}), "a") as file:
    file.write("imported\\n")
from torch.version import __version__
from torch import cuda, nn, version
class Number:
    def __init__(self, value): self.value = value
    def item(self): return self.value
    def mean(self): return self
class Sum(Number):
    def __init__(self, value, parameter, gradient):
        super().__init__(value)
        self.parameter, self.gradient = parameter, gradient
    def backward(self): self.parameter.grad = Number(self.gradient)
class Product:
    def __init__(self, parameter, total, mean, gradient):
        self.parameter, self.total, self.average, self.gradient = parameter, total, mean, gradient
    def sum(self): return Sum(self.total, self.parameter, self.gradient)
    def mean(self): return Number(self.average)
class Tensor:
    def __matmul__(self, other): return Product(self, 256.0 ** 3, 256.0, 512.0)
def ones(*shape, device, requires_grad=False): return Tensor()
nn.functional.conv2d = lambda x, w: Product(w, 27.0 * 288, 27.0, 72.0)
"""
_CUDA = """
from torch import version
def is_available(): return version.cuda is not None
def device_count(): return 1
def get_arch_list(): return ["sm_90"]
def get_device_name(number): return "NVIDIA H100 80GB HBM3"
def get_device_capability(number): return (9, 0)
"""


def make_wheel(
    directory: Path,
    name: str,
    version: str,
    files: Mapping[str, str] | None = None,
    requires: Sequence[str] = (),
) -> Path:
    """A pure wheel; without `files` it holds one empty module."""
    directory.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    path = directory / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    metadata = [
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
        *(f"Requires-Dist: {line}" for line in requires),
    ]
    content = {
        **(files or {f"{module}.py": f"__version__ = {version!r}\n"}),
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = "".join(f"{file},,\n" for file in (*content, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**content, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return path


_BACKEND = """
import {module}, zipfile
def get_requires_for_build_wheel(settings=None): return []
def build_wheel(directory, settings=None, metadata=None):
    name = "{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(directory + "/" + name, "w") as archive:
        info = "{name}-{version}.dist-info/"
        archive.writestr("{name}.py", "made_with = " + repr({module}.__version__))
        about = "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
        archive.writestr(info + "METADATA", about)
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        archive.writestr(info + "RECORD", "")
    return name
"""


def make_sdist(directory: Path, name: str, version: str, module: str) -> Path:
    """A package that needs another one to be built, and does not say so: as flash-attn does."""
    about = f'[project]\nname = "{name}"\nversion = "{version}"\n'
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "pyproject.toml": f'{about}[build-system]\nrequires = []\nbuild-backend = "own"\n'
        'backend-path = ["."]\n',
        "own.py": _BACKEND.format(name=name, version=version, module=module),
    }
    path = directory / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for file, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{file}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def torch_wheel(
    directory: Path, version: str = "2.5.0", cuda: str | None = "12.4", requires: Sequence[str] = ()
) -> Path:
    """A torch that gives the right answers to the proof, and works on a GPU unless it is a build
    for the CPU."""
    files = {
        "torch/__init__.py": _TORCH,
        "torch/version.py": f"__version__ = {version!r}\ncuda = {cuda!r}\nhip = None\n",
        "torch/cuda.py": _CUDA,
        "torch/nn/__init__.py": "from torch.nn import functional\n",
        "torch/nn/functional.py": "",
    }
    return make_wheel(directory, "torch", version, files, requires)


def fake_wheels(directory: Path) -> Path:
    """torch for CUDA, Lightning with what it needs, and demo-pkg in two versions."""
    torch_wheel(directory)
    make_wheel(directory, "lightning-utilities", "0.11.0")
    make_wheel(directory, "torchmetrics", "1.4.0", requires=["lightning-utilities>=0.8"])
    make_wheel(
        directory,
        "pytorch-lightning",
        "2.5.0",
        requires=["torch>=2.1", "torchmetrics>0.7", 'rich>12; extra == "extra"'],
    )
    make_wheel(directory, "demo-pkg", "1.0")
    make_wheel(directory, "demo-pkg", "1.1")
    return directory


def make_image(directory: Path, wheels: Path, *names: str) -> Path:
    """An interpreter that has the newest wheel of each name. It is a venv; returns its python."""
    EnvBuilder(symlinks=True, with_pip=False).create(directory)
    python = directory / "bin" / "python"
    for link in (directory / "bin").glob("python*"):
        link.unlink()
    python.symlink_to(base_python())
    for name in names:
        unpack(newest(wheels, name), site_of(python))
    return python


def newest(wheels: Path, name: str) -> Path:
    return sorted(wheels.glob(f"{name.replace('-', '_')}-*.whl"))[-1]


def site_of(python: Path) -> Path:
    return next((python.parent.parent / "lib").glob("python*/site-packages"))


def unpack(wheel: Path, site: Path) -> None:
    """Install it, as far as a pure wheel needs."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


class Index:
    """A package index on loopback. While `gate` is clear and `holds_when` says so, every answer
    waits; `asked` holds the paths asked for."""

    def __init__(self, wheels: Path) -> None:
        self.wheels = wheels
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.holds_when: Callable[[], bool] = lambda: True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/simple"

    def __enter__(self) -> Index:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, index: Index, *arguments: object) -> None:
        self.index = index
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(200, b"", "application/octet-stream")

    def do_GET(self) -> None:
        self.index.asked.append(self.path)
        if not self.index.gate.is_set() and self.index.holds_when():
            self.index.waiting.set()
            self.index.gate.wait(60)
        kind, _, name = unquote(self.path).strip("/").partition("/")
        if kind == "simple":
            name = name.rpartition("/")[2]  # one index for each build of torch
            found = sorted(self.index.wheels.glob(f"{name.replace('-', '_')}-*"))
            links = "".join(f'<a href="/files/{path.name}">{path.name}</a>\n' for path in found)
            self._answer(
                200 if found else 404,
                f"<!DOCTYPE html><html><body>{links}</body></html>".encode(),
                "text/html",
            )
        elif (self.index.wheels / name).is_file():
            self._answer(200, (self.index.wheels / name).read_bytes(), "application/octet-stream")
        else:
            self._answer(404, b"", "text/plain")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            pass  # whoever asked was killed, which a test may want

    def log_message(self, *arguments: object) -> None:
        pass
