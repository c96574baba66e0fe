"""Where packages come from and land, as real servers have it set: mirrors, pages of wheels,
pip.conf, PYTHONPATH, packages that need torch to be built. Over a real sshd; GPU and wheels are
fakes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from remote.agent.environments import installers
from remote.agent.root.disk import Disk
from remote.deploy.deploy import Deployed
from remote.errors import EnvironmentFailed
from tests.support.environment_scene import Scene
from tests.support.nvidia_smi import FakeGpu
from tests.support.project import make_tree
from tests.support.sshd import MakeServer
from tests.support.wheels import (
    Index,
    fake_wheels,
    make_image,
    make_sdist,
    make_wheel,
    newest,
    site_of,
    torch_wheel,
    unpack,
)

pytestmark = pytest.mark.timeout(240)
VISION = "vision-kit\n"
"""Needs a package that needs torch."""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = fake_wheels(tmp_path_factory.mktemp("wheels"))
    torch_wheel(directory, "2.9.0", "13.0")
    make_wheel(directory, "backbones", "1.0", requires=["torch>=2.4"])
    make_wheel(directory, "vision-kit", "1.0", requires=["backbones"])
    make_wheel(directory, "new-kit", "1.0", requires=["torch>=2.6"])
    make_sdist(directory, "flash_kit", "1.0", "torch")
    return directory


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torch's own index has."""
    directory = tmp_path_factory.mktemp("builds")
    for version, cuda in (
        ("2.5.0+cu118", "11.8"),
        ("2.5.0+cu126", "12.6"),
        ("2.9.0+cu130", "13.0"),
    ):
        torch_wheel(directory / version.partition("+")[2], version, cuda)
        torch_wheel(directory, version, cuda)
    return directory


@pytest.fixture
def scene(make_server: MakeServer, wheels: Path, tmp_path: Path) -> Iterator[Scene]:
    with Index(wheels) as index:
        yield Scene(make_server(), index, tmp_path)


def last(deployed: Deployed) -> str:
    return deployed.steps[-1].text


def test_torch_that_a_package_of_a_package_brings_is_of_the_build_that_fits(
    scene: Scene, builds: Path
) -> None:
    scene.use_gpus(FakeGpu(), driver="535.54.03")
    with Index(builds / "cu126") as torch:
        deployed = scene.deploy(VISION, torch_index=torch.url)
        assert "torch: cu126 fits driver 535.54.03" in scene.shown
        assert "torch 2.5.0+cu126, CUDA 12.6" in last(deployed)
        assert "GPU works (tried just now)" in last(deployed)
        asked = len(torch.asked) + len(scene.index.asked)
        assert any(path.startswith("/simple/cu126/torch") for path in torch.asked)
        again = scene.deploy(VISION, torch_index=torch.url)
        assert "environment kept" in last(again) and scene.requests == 1
        assert len(torch.asked) + len(scene.index.asked) == asked, "nothing is resolved again"


def test_an_image_keeps_its_torch_for_a_package_of_a_package(scene: Scene) -> None:
    scene.use_gpus(FakeGpu(), driver="535.54.03")
    image = make_image(scene.server.home / "miniconda3", scene.project.parent / "none")
    unpack(scene.index.wheels / "torch-2.5.0-py3-none-any.whl", site_of(image))
    deployed = scene.deploy(VISION)
    assert "on top of" in last(deployed) and "torch 2.5.0, CUDA 12.4" in last(deployed)
    assert "GPU works" in last(deployed)


@pytest.mark.parametrize("where", ["requirements", "pip.conf", "remote.torch_index"])
def test_a_page_of_wheels_serves_as_the_source_of_the_chosen_build(
    scene: Scene, builds: Path, where: str
) -> None:
    scene.use_gpus(FakeGpu(), driver="535.54.03")
    if where == "pip.conf":
        lines = f"[global]\nindex-url = {scene.index.url}\nfind-links = {builds}\n"
        make_tree(scene.server.home, {".config/pip/pip.conf": lines})
    line = f"--find-links {builds}\n" if where == "requirements" else ""
    setting = f"-f {builds}/{{build}}" if where == "remote.torch_index" else ""
    deployed = scene.deploy(line + "torch<2.9\n", torch_index=setting)
    assert "torch 2.5.0+cu126, CUDA 12.6" in last(deployed)


def test_a_torch_index_out_of_reach_is_told_with_a_mirror_of_torchs(scene: Scene) -> None:
    scene.use_gpus(FakeGpu(), driver="535.54.03")
    with pytest.raises(EnvironmentFailed, match=r"torch's index .* can't be reached") as caught:
        scene.deploy("torch\n", torch_index="http://127.0.0.1:9/whl")
    assert "remote.torch_index" in str(caught.value.remedy)
    with pytest.raises(EnvironmentFailed, match="has no torch of the build cu126"):
        scene.deploy("torch\n", torch_index="-f /nowhere/{build}")


def test_a_package_on_pythonpath_is_not_taken_for_installed(
    make_server: MakeServer, wheels: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    unpack(newest(wheels, "demo_pkg"), shared)
    with Index(wheels) as index:
        server = make_server(env={"PYTHONPATH": str(shared), "PYTHONHOME": "/nowhere"})
        scene = Scene(server, index, tmp_path)
        deployed = scene.deploy("demo-pkg\n")
    assert list(site_of(Path(deployed.environment.python)).glob("demo_pkg-*"))
    assert f"note: PYTHONPATH is set there: runs import from {shared} first" in scene.shown


def test_nothing_lands_in_a_folder_of_the_users(scene: Scene) -> None:
    lines = f"[global]\nindex-url = {scene.index.url}\nno-cache-dir = true\n"
    target = scene.server.home / "mine"
    bent = f"target = {target}\nuser = true\ndry-run = true\nrequire-virtualenv = true\n"
    make_tree(scene.server.home, {".config/pip/pip.conf": lines + bent})
    deployed = scene.deploy("demo-pkg\n")
    assert "environment built" in last(deployed) and not target.exists()
    assert list(site_of(Path(deployed.environment.python)).glob("demo_pkg-*"))


def test_the_servers_own_constraints_are_named_as_the_other_side(scene: Scene) -> None:
    limits = make_tree(scene.server.home, {"limits.txt": "demo-pkg<1.1\n"}) / "limits.txt"
    lines = f"[global]\nindex-url = {scene.index.url}\nno-cache-dir = true\nconstraint = {limits}\n"
    make_tree(scene.server.home, {".config/pip/pip.conf": lines})
    with pytest.raises(EnvironmentFailed, match=f"contradict {limits} on the server"):
        scene.deploy("demo-pkg>=1.1\n")


def test_a_servers_constraints_hold_for_uv_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv's own variable for them is void where -c stands on its command line."""
    monkeypatch.setenv("PIP_CONSTRAINT", "/etc/limits.txt")
    monkeypatch.setattr(installers, "find_uv", lambda: "/bin/uv")
    ran: list[list[str]] = []

    def run(argv: list[str], environment: dict[str, str], shown: bool = True) -> int:
        ran.append(argv)
        (tmp_path / "resolved.txt").write_text("demo==1\n")
        return 0

    commands = SimpleNamespace(run=run, directory=str(tmp_path), written=0)
    installer = installers.Installer(commands, dict(os.environ, TMPDIR=str(tmp_path)), [])  # type: ignore[arg-type]
    installer.install(sys.executable, ["demo"], ["demo<2"])
    assert installer.resolve(sys.executable, ["demo"], ["demo<2"]) == {"demo": "1"}
    for argv in ran:
        limits = [argv[number + 1] for number, word in enumerate(argv) if word == "-c"]
        assert limits == [str(tmp_path / "constraints.txt"), "/etc/limits.txt"]


def locked(directory: Path, *files: str) -> str:
    """Requirements that name a version and a hash of each."""
    lines = []
    for file in files:
        name, version = file.removesuffix(".tar.gz").split("-")[:2]
        digest = hashlib.sha256((directory / file).read_bytes()).hexdigest()
        lines.append(f"{name}=={version.partition('+')[0]} --hash=sha256:{digest}\n")
    return "".join(lines)


@pytest.mark.parametrize("is_lock", [False, True])
@pytest.mark.parametrize("below", ["venv", "image", "torch's own index"])
def test_what_needs_torch_to_be_built_is_built_after_it(
    scene: Scene, builds: Path, below: str, is_lock: bool
) -> None:
    version, text, own = "2.9.0", "flash-kit\ntorch\n", below == "torch's own index"
    scene.use_gpus(FakeGpu(), driver="535.54.03" if own else "580.65.06")
    if own:
        version, text = "2.5.0", "flash-kit\ntorch<2.9\n"
    if is_lock:
        files = "flash_kit-1.0.tar.gz", f"torch-{version}-py3-none-any.whl"
        text = locked(scene.index.wheels, *files)
    if below == "image":
        make_image(scene.server.home / "miniconda3", scene.index.wheels, "torch")
    with Index(builds / "cu126") as torch:
        deployed = scene.deploy(text, torch_index=torch.url)
    made = site_of(Path(deployed.environment.python)) / "flash_kit.py"
    assert made.read_text() == f"made_with = '{version}{'+cu126' if own else ''}'"
    assert "GPU works" in last(deployed)
    assert ("on top of" in last(deployed)) is (below == "image")


def test_what_belongs_to_the_chosen_build_of_a_locked_torch_comes_with_it(
    scene: Scene, tmp_path: Path
) -> None:
    """The lock has the libraries and the torchvision of the default build."""
    for version in ("12.6", "13.0"):
        make_wheel(tmp_path / "mirror", "cuda-libs", version)
    torch_wheel(tmp_path / "mirror", "2.9.0", "13.0", ["cuda-libs==13.0"])
    torch_wheel(tmp_path / "own", "2.9.0+cu126", "12.6", ["cuda-libs==12.6"])
    make_wheel(tmp_path / "mirror", "torchvision", "0.24.0", requires=["torch==2.9.0"])
    make_wheel(tmp_path / "own", "torchvision", "0.24.0+cu126", requires=["torch==2.9.0"])
    scene.use_gpus(FakeGpu(), driver="535.54.03")
    scene.index.wheels = tmp_path / "mirror"
    files = [path.name for path in (tmp_path / "mirror").iterdir() if "12.6" not in path.name]
    with Index(tmp_path / "own") as torch:
        deployed = scene.deploy(locked(scene.index.wheels, *files), torch_index=torch.url)
    assert "torch 2.9.0+cu126, CUDA 12.6" in last(deployed)
    has = {found.name for found in site_of(Path(deployed.environment.python)).glob("*.dist-info")}
    assert {"cuda_libs-12.6.dist-info", "torchvision-0.24.0+cu126.dist-info"} <= has


@pytest.mark.parametrize("configured", [False, True])
def test_an_image_whose_torch_cannot_stay_is_known_before_anything_is_built(
    scene: Scene, configured: bool
) -> None:
    scene.use_gpus(FakeGpu())
    image = make_image(scene.server.home / "miniconda3", scene.project.parent / "none")
    unpack(scene.index.wheels / "torch-2.5.0-py3-none-any.whl", site_of(image))
    deployed = scene.deploy("torch\nnew-kit\n", python=str(image) if configured else "")
    why = "its torch 2.5.0 can't stay: the requirements contradict each other: new-kit 1.0 depends"
    begin = f"venv of {image} (" if configured else f"passed over {image}: {why}"
    assert begin in scene.shown and why in scene.shown
    assert "new-kit 1.0 depends on torch>=2.6; (constraint) torch" in scene.shown
    assert "a venv of" in last(deployed) and "torch 2.9.0, CUDA 13.0" in last(deployed)
    assert scene.only_environment().name == deployed.environment.key


@pytest.mark.parametrize(("tool", "flag"), [("pip", "--no-cache-dir"), ("uv", "--no-cache")])
@pytest.mark.parametrize("roomy", ["home", "elsewhere"])
def test_wheels_are_kept_where_the_disk_of_their_own_cache_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, flag: str, roomy: str
) -> None:
    """pip's cache and uv's may lie on different disks, and neither in the home."""
    variables = {"pip": "PIP_CACHE_DIR", "uv": "UV_CACHE_DIR"}
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for variable in variables.values():
        monkeypatch.delenv(variable, raising=False)
    sizes = {str(tmp_path / "home"): 1 << 40, str(tmp_path / "elsewhere"): 1 << 30}
    if roomy == "elsewhere":
        sizes = dict(zip(sizes, reversed(sizes.values()), strict=True))

    def disk_of(path: str) -> Disk:
        place = next(place for place in sizes if path.startswith(place))
        return Disk(place, sizes[place], 1 << 42, None, False)

    monkeypatch.setattr(installers, "disk_of", disk_of)
    monkeypatch.setattr(installers, "find_uv", lambda: "/bin/uv" if tool == "uv" else None)
    ran: list[list[str]] = []

    def run(argv: list[str], environment: dict[str, str], shown: bool = True) -> int:
        ran.append(argv)
        return 0

    commands = SimpleNamespace(run=run, directory=str(tmp_path), written=0)
    for named in (False, True):
        if named:
            monkeypatch.setenv(variables[tool], str(tmp_path / "elsewhere" / "cache"))
        installer = installers.Installer(commands, dict(os.environ, TMPDIR=str(tmp_path)), [])  # type: ignore[arg-type]
        assert installer.install(sys.executable, ["demo"], []) == tool
        assert (flag not in ran[-1]) is ((roomy == "elsewhere") is named)
        installer.install(sys.executable, ["demo"], [], ["--no-build-isolation"])
        assert flag in ran[-1], "what was built against one torch is not kept for another"


def test_a_branch_says_which_commit_it_stands_for_and_is_renewed_when_asked(
    scene: Scene, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    make_tree(source, {"pyproject.toml": "", "own.py": ""})
    sdist = make_sdist(tmp_path, "moving", "1.0", "sys")
    subprocess.run(["tar", "xf", sdist, "--strip-components=1", "-C", source], check=True)
    (source / "own.py").write_text(
        (source / "own.py").read_text().replace("__version__", "version")
    )
    git = ["git", "-C", str(source), "-c", "user.name=x", "-c", "user.email=x@x.invalid"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)

    def commit() -> str:
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
        return subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()[:10]

    first = commit()
    line = f"moving @ git+file://localhost{source}@main\n"
    made = scene.deploy(line)
    assert f"moving@main is commit {first}" in last(made)
    assert "used as it is" in last(scene.deploy(line, python=made.environment.python))
    second = commit()
    assert f"moving@main is commit {first}" in last(scene.deploy(line))
    assert f"moving@main is commit {second}" in last(scene.deploy(line, refresh=True))
    assert f"moving@main is commit {second}" in last(scene.deploy(line))
