"""Environments over a real sshd: made once, kept, proved, and never used half-built. The GPU and
the wheels are fakes."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote.agent.machine.processes import children_of
from remote.agent.shared.build_plan import BuildPlan
from remote.agent.shared.reading import tell
from remote.deploy.deploy import Deployed
from remote.errors import ConnectionLost, EnvironmentFailed, RemoteError, ServerUnfit
from remote.link.session import Session
from remote.loopback import LoopbackServer
from tests.support.agent import agent
from tests.support.environment_scene import Scene
from tests.support.nvidia_smi import FakeGpu
from tests.support.project import snapshot
from tests.support.sshd import MakeServer, drop_connections
from tests.support.wheels import (
    LIGHTNING,
    Index,
    fake_wheels,
    make_image,
    make_wheel,
    newest,
    site_of,
    torch_wheel,
    unpack,
)

TORCH = "torch>=2.4\npytorch-lightning>=2.5  # and what it needs\n"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def scene(make_server: MakeServer, wheels: Path, tmp_path: Path) -> Iterator[Scene]:
    with Index(wheels) as index:
        yield Scene(make_server(), index, tmp_path)


def installed(python: Path) -> dict[str, str]:
    """What is in the interpreter's site-packages, byte for byte."""
    return {
        name: content
        for name, content in snapshot(site_of(python)).items()
        if "__pycache__" not in name
    }


def last_step(deployed: Deployed) -> tuple[bool, str]:
    return deployed.steps[-1].changed, deployed.steps[-1].text


def test_a_venv_is_built_and_proved_once_and_then_kept(scene: Scene) -> None:
    scene.use_gpus(FakeGpu())
    scene.use_index(scene.index.url.replace("http://", "http://me:hunter2@"))
    secret = f"--extra-index-url {scene.index.url.replace('http://', 'http://me:hunter3@')}\n"
    first = scene.deploy("demo-pkg<1.1\n" + TORCH + secret)
    fetched = ["demo_pkg", "lightning_utilities", "pytorch_lightning", "torch", "torchmetrics"]
    assert scene.fetched() == fetched, "from the mirror that pip is configured with"
    assert "/files/demo_pkg-1.0-py3-none-any.whl" in scene.index.asked
    changed, text = last_step(first)
    assert changed and "environment built" in text and "GPU works (tried just now)" in text
    assert "torch: default wheels (CUDA 13) fit driver 580.65.06" in scene.shown
    asked, imports, first_shown = len(scene.index.asked), scene.imports, scene.shown

    second = scene.deploy("# the same, in another order\n" + secret + TORCH + "demo-pkg < 1.1")
    assert last_step(second)[0] is False
    assert (
        last_step(second)[1].startswith("environment kept: requirements unchanged")
        and "GPU works" in last_step(second)[1]
    )
    assert second.environment.key == first.environment.key
    assert second.environment.python == first.environment.python
    assert (len(scene.index.asked), scene.imports) == (asked, imports), (
        "nothing is installed and no torch imported"
    )
    kept = "".join(
        path.read_text(errors="replace")
        for path in scene.only_environment().iterdir()
        if path.is_file()
    )
    assert "hunter" not in kept + scene.shown + first_shown and "demo" in kept


def test_a_deploy_that_changes_nothing_is_one_request(scene: Scene) -> None:
    image = make_image(scene.server.home / "image", scene.index.wheels, "demo-pkg")
    scene.deploy("demo-pkg\n", python=str(image))
    scene.deploy("demo-pkg\n", python=str(image))
    assert scene.requests == 1


def test_an_interpreter_that_has_everything_is_used_as_it_is(scene: Scene) -> None:
    scene.use_gpus(FakeGpu())
    image = make_image(scene.server.home / "miniconda3", scene.index.wheels, "torch", *LIGHTNING)
    before = installed(image)
    deployed = scene.deploy(TORCH)
    assert (
        deployed.environment.python == str(image)
        and "used as it is" in last_step(deployed)[1]
        and "GPU works" in last_step(deployed)[1]
    )
    assert scene.index.asked == [] and not list(scene.environments.glob("*/venv"))
    assert installed(image) == before
    assert last_step(scene.deploy(TORCH))[1].startswith("environment kept")


def test_only_what_is_missing_is_installed_on_top(scene: Scene) -> None:
    """pytorch-lightning and its torchmetrics are there, but not what torchmetrics needs."""
    scene.use_gpus(FakeGpu())
    image = make_image(scene.server.home / "image", scene.index.wheels, "torch", *LIGHTNING[:2])
    before = installed(image)
    deployed = scene.deploy(TORCH + "demo-pkg\n", python=str(image))
    assert scene.fetched() == ["demo_pkg", "lightning_utilities"], "its torch stays"
    assert "on top of" in last_step(deployed)[1] and "GPU works" in last_step(deployed)[1]
    assert deployed.environment.python.startswith(str(scene.only_environment()))
    assert installed(image) == before
    assert last_step(scene.deploy(TORCH + "demo-pkg\n", python=str(image)))[0] is False


def test_the_same_on_top_of_a_plain_interpreter_with_packages_of_the_users(scene: Scene) -> None:
    """As `pip install --user` leaves them."""
    scene.use_gpus(FakeGpu())
    site = (
        scene.server.home
        / f".local/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    )
    for name in ("torch", *LIGHTNING):
        unpack(newest(scene.index.wheels, name), site)
    deployed = scene.deploy(TORCH + "demo-pkg\n")
    assert scene.fetched() == ["demo_pkg"]
    assert "on top of" in last_step(deployed)[1] and "GPU works" in last_step(deployed)[1]
    assert not list(site.glob("demo*"))


def test_no_requirements_build_nothing(scene: Scene) -> None:
    deployed = scene.deploy("demo\n", requirements="none")
    assert "nothing of requirements.txt is installed" in scene.shown
    assert scene.requests == 4, "facts, code, interpreters, record"
    assert "no packages are asked for" in last_step(deployed)[1] and not list(
        scene.environments.glob("*/venv")
    )
    assert (
        last_step(scene.deploy("demo\n", requirements="none"))[0] is False and scene.requests == 1
    )


def test_code_of_many_files_costs_no_more_requests(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server lacks of it is told by the operation that takes it."""
    monkeypatch.setattr("remote.deploy.deploy.SMALL_MANIFEST", 0)
    scene.deploy("", requirements="none")
    (scene.project / "train.py").write_text("print('another')\n")
    assert scene.deploy("", requirements="none").steps[0].changed and scene.requests == 2


def test_the_proof_is_made_again_when_driver_or_gpus_change(scene: Scene) -> None:
    image = make_image(scene.server.home / "image", scene.index.wheels, "torch", *LIGHTNING)
    card, other = FakeGpu(), FakeGpu()
    old, new = "580.65.06", "580.95.05"
    seen = []
    for gpu, driver in (card, old), (card, old), (card, new), (other, new), (other, new):
        scene.use_gpus(gpu, driver=driver)
        changed, _ = last_step(scene.deploy(TORCH, python=str(image)))
        seen.append((changed, scene.imports))
    assert seen == [(True, 1), (False, 1), (True, 2), (True, 3), (False, 3)]


def test_no_gpu_is_a_warning(scene: Scene) -> None:
    torch_wheel(scene.project.parent / "cpu", "2.6.0+cpu", None)
    image = make_image(scene.server.home / "image", scene.index.wheels, *LIGHTNING)
    make_image(scene.server.home / "image", scene.project.parent / "cpu", "torch")
    deployed = scene.deploy(TORCH, python=str(image))
    assert last_step(deployed)[1].endswith("warning: no GPU: training will run on the CPU")


@pytest.mark.parametrize("configured", [True, False])
def test_a_cpu_build_of_torch_on_a_gpu_server_is_an_error_with_its_remedy(
    scene: Scene, wheels: Path, tmp_path: Path, configured: bool
) -> None:
    scene.use_gpus(FakeGpu())
    cpu = tmp_path / "cpu"
    torch_wheel(cpu, "2.6.0+cpu", None)
    make_wheel(cpu, "torchmetrics", "1.4.0")
    image = make_image(scene.server.home / "miniconda3", cpu, "torch", "torchmetrics")
    scene.index.wheels = cpu
    requirements = "torch\ntorchmetrics\n"
    with pytest.raises(EnvironmentFailed, match="build") as caught:
        scene.deploy(requirements, python=str(image) if configured else "")
    assert "the server has 1 GPU(s) (NVIDIA H100 80GB HBM3)" in caught.value.message
    assert "remote.python" in str(caught.value.remedy) or "remote.torch" in str(caught.value.remedy)
    if not configured:
        assert f"passed over {image}: torch 2.6.0+cpu is a CPU build" in scene.shown
        with pytest.raises(EnvironmentFailed, match="build for the CPU"):
            scene.deploy(requirements)
    else:
        assert scene.index.asked == []
        deployed = scene.deploy(requirements, python=str(image), torch="cpu")
        assert "remote.torch is cpu" in last_step(deployed)[1]


@pytest.mark.parametrize("fault", ["unreachable", "unsatisfiable"])
def test_a_failed_build_is_one_line_and_leaves_nothing_to_use(scene: Scene, fault: str) -> None:
    requirements = "demo-pkg\n"
    if fault == "unreachable":
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        scene.use_index(f"http://127.0.0.1:{port}/simple")
    else:
        requirements = "demo-pkg>=7\n"
    with pytest.raises(EnvironmentFailed) as caught:
        scene.deploy(requirements)
    error = caught.value
    assert "\n" not in str(error) and "build.log" in str(error.remedy)
    if fault == "unreachable":
        assert (
            "127.0.0.1" in error.message
            and "can't be reached from the server" in error.message
            and "mirror" in str(error.remedy)
        )
    else:
        assert (
            error.message
            == "the requirement demo-pkg>=7 can't be satisfied; the newest offered is 1.1"
        )
    assert not (scene.only_environment() / "ready").exists()


class Cut:
    """A deploy whose connection is cut while pip waits for the index; the build goes on."""

    def __init__(self, scene: Scene, requirements: str) -> None:
        self.error: RemoteError | None = None
        scene.index.gate.clear()
        scene.index.holds_when = lambda: any(scene.environments.glob("*/build.json"))
        thread = threading.Thread(target=self._deploy, args=(scene, requirements))
        thread.start()
        assert scene.index.waiting.wait(90)
        drop_connections(scene.server)
        thread.join(30)
        self.state = scene.build_state()
        self.builder = int(self.state["pid"])
        assert (
            isinstance(self.error, ConnectionLost)
            and not (scene.only_environment() / "ready").exists()
        )

    def _deploy(self, scene: Scene, requirements: str) -> None:
        try:
            scene.deploy(requirements)
        except RemoteError as error:
            self.error = error


def test_a_build_goes_on_without_the_laptop_and_the_next_deploy_follows_it(scene: Scene) -> None:
    cut = Cut(scene, "demo-pkg\n")
    time.sleep(0.3)
    os.kill(cut.builder, 0)
    threading.Timer(1.0, scene.index.gate.set).start()
    deployed = scene.deploy("demo-pkg\n")
    assert scene.build_state()["id"] == cut.state["id"], "no second build was started"
    assert deployed.environment.key == scene.only_environment().name
    assert scene.fetched() == ["demo_pkg"]


def test_a_build_that_was_killed_is_never_used_and_made_again(scene: Scene) -> None:
    cut = Cut(scene, "demo-pkg\n")
    os.kill(cut.builder, signal.SIGKILL)
    scene.index.gate.set()
    deployed = scene.deploy("demo-pkg\n")
    assert "the last build was cut off; building again" in scene.shown
    assert scene.build_state()["id"] != cut.state["id"]
    assert last_step(deployed)[0] and (scene.only_environment() / "ready").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_two_login_nodes_whose_locks_are_their_own_build_it_once(
    make_server: MakeServer,
    wheels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: bool,
) -> None:
    """They share a home on a disk that knows no flock. One that is killed is made again there."""
    original = Session.ask

    def node(name: str, **options: Any) -> LoopbackServer:
        (tmp_path / name).mkdir()
        own = {"TMPDIR": str(tmp_path / name), "REMOTE_NO_FLOCK": "1", "REMOTE_LOCK_SILENT_S": "3"}
        return make_server(env=own, **options)

    with Index(wheels) as index:
        scene = Scene(node("one"), index, tmp_path)
        cut = Cut(scene, "demo-pkg\n")
        scene.server = node("two", home=scene.server.home, path=scene.server.path)
        if killed:
            os.kill(cut.builder, signal.SIGKILL)
        else:
            (installer,) = children_of(cut.builder)
            os.kill(installer, signal.SIGSTOP)

            def ask(self: Session, kind: Any, *arguments: Any, **options: Any) -> Any:
                if kind.OP == "environment_prepare":
                    threading.Timer(4.0, os.kill, (installer, signal.SIGCONT)).start()
                return original(self, kind, *arguments, **options)

            monkeypatch.setattr(Session, "ask", ask)
        index.gate.set()
        deployed = scene.deploy("demo-pkg\n")
        assert (scene.build_state()["id"] == cut.state["id"]) is not killed
        assert deployed.environment.key == scene.only_environment().name
        assert scene.fetched() == ["demo_pkg"]


def test_an_environment_that_was_spoilt_is_made_again(scene: Scene) -> None:
    first = scene.deploy("demo-pkg\n")
    site = site_of(Path(first.environment.python))
    (site / "demo_pkg.py").unlink()
    for path in sorted(site.glob("demo_pkg-*/*")):
        path.unlink()
    next(site.glob("demo_pkg-*")).rmdir()
    second = scene.deploy("demo-pkg\n")
    assert last_step(second)[0] and (site / "demo_pkg.py").exists()
    assert f"the environment of before is not used: the packages in {site} changed" in scene.shown


def test_no_environment_is_made_in_another_projects_root(scene: Scene) -> None:
    scene.deploy("", requirements="none")
    record = json.loads((scene.only_environment() / "env.json").read_text())
    plan = tell(BuildPlan("a" * 16, "as-is", record["base"]))
    with agent(scene.server) as link, pytest.raises(ServerUnfit, match="belongs to the project"):
        link.call("environment_prepare", root=link.root, project="other", identity=None, plan=plan)
    assert scene.only_environment().name == record["key"]


def test_wrong_requirements_are_told_before_anything_is_sent(scene: Scene) -> None:
    with pytest.raises(RemoteError, match=r"2 wrong lines: line 2: .* line 4: "):
        scene.deploy("demo-pkg\ntorch>=>2\n# fine\n./nowhere\n")
    assert not (scene.server.home / "projects").exists()
