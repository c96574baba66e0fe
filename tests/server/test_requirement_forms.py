"""What remote.requirements may name, each form deployed to a real sshd with small pure packages,
and imported in a run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.support.faults import Done, Lab, wait_until
from tests.support.project import make_tree
from tests.support.sshd import MakeServer
from tests.support.wheels import Index, fake_wheels, make_wheel, newest

pytestmark = pytest.mark.timeout(180)
CHECK = (
    "import importlib, sys\n"
    "for name in sys.argv[1:]:\n"
    "    print('imported', name, importlib.import_module(name).__file__)\n"
)
PYPROJECT = (
    "[project]\n"
    'name = "mine"\n'
    'version = "1"\n'
    'dependencies = ["demo-pkg<1.1"]\n'
    "[project.optional-dependencies]\n"
    'train = ["demo-pkg"]\n'
)
LOCAL = {"pyproject.toml": PYPROJECT, "src/mine/__init__.py": "value = 1\n"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def index(wheels: Path) -> Iterator[Index]:
    with Index(wheels) as index:
        yield index


class Scene:
    """A project whose training imports modules, on a server whose pip has an index of ours."""

    def __init__(self, server: LoopbackServer, index: Index, directory: Path) -> None:
        self.server, self.directory, self.index = server, directory, index
        lines = f"[global]\nindex-url = {index.url}\nretries = 1\nno-cache-dir = true\n"
        make_tree(server.home, {".config/pip/pip.conf": lines})

    def lab(self, requirements: str, files: Mapping[str, str | bytes], *modules: str) -> Lab:
        settings = {"requirements": requirements, "command": f"python check.py {' '.join(modules)}"}
        return Lab(
            self.server, self.directory, files={"check.py": CHECK, **files}, settings=settings
        )

    def imports(self, lab: Lab) -> dict[str, str]:
        """Module → file, as the run saw it."""
        done = lab.task("train")
        assert done.code == 0, done
        wait_until(lambda: lab.rows()[0]["state"] in ("finished", "failed"))
        assert lab.rows()[0]["state"] == "finished", lab.task("logs").out
        lines = [
            line.split()
            for line in lab.task("logs").out.splitlines()
            if line.startswith("imported ")
        ]
        return {line[1]: line[2] for line in lines}

    def tried(
        self, requirements: str, files: Mapping[str, str | bytes], *modules: str
    ) -> dict[str, str]:
        return self.imports(self.lab(requirements, files, *modules))


@pytest.fixture
def scene(make_server: MakeServer, index: Index, tmp_path: Path) -> Scene:
    return Scene(make_server(), index, tmp_path)


@pytest.mark.parametrize("line", ["-e .", ".", "--editable=.", "-e ./", "-e .[train]"])
def test_the_project_itself(scene: Scene, line: str) -> None:
    found = scene.tried("r.txt", {**LOCAL, "r.txt": line + "\n"}, "demo_pkg", "mine")
    assert "/runs/2" in found["mine"] and "/env/" in found["demo_pkg"]
    assert Path(found["mine"]).parts[-4:] == ("work", "src", "mine", "__init__.py")


@pytest.mark.parametrize(
    "line",
    ["./libs/x", "libs/x[more]", '-e "./libs/x[more]"', 'file:./libs/x ; python_version > "3.7"'],
)
def test_a_package_below_it(scene: Scene, line: str) -> None:
    about = '[project]\nname = "x"\nversion = "1"\noptional-dependencies = {more = ["demo-pkg"]}\n'
    files = {
        "libs/x/pyproject.toml": about,
        "libs/x/x_pkg/__init__.py": "",
        "requirements/r.txt": f"{line}\ndemo-pkg\n",
    }
    found = scene.tried("requirements/r.txt", files, "demo_pkg", "x_pkg")
    assert Path(found["x_pkg"]).parts[-5:] == ("work", "libs", "x", "x_pkg", "__init__.py")


def test_what_an_installation_would_have_added(scene: Scene) -> None:
    """A program as the command, metadata and entry points, of modules in a folder of another
    name; a second attempt and one with new code have what is theirs."""
    about = (
        '[project]\nname = "mine"\nversion = "1.5"\n[project.scripts]\nmytrain = "mine.cli:main"\n'
        '[project.entry-points.models]\nSmall = "mine.cli:main"\n[tool.setuptools]\n'
        'package-dir = {mine = "code"}\n'
    )
    main = (
        "import sys, os\nfrom importlib.metadata import distribution\ndef main():\n"
        "    known = distribution('mine')\n"
        "    print('found', known.version, *sorted(x.name for x in known.entry_points),"
        " sys.argv[1:])\n"
        "    sys.exit(os.path.exists('wait'))\n"
    )
    files = {
        "pyproject.toml": about,
        "code/__init__.py": "",
        "code/cli.py": main,
        "wait": "",
        "r.txt": "-e .\n",
    }
    settings = {"requirements": "r.txt", "command": "mytrain --lr 0.1"}
    lab = Lab(scene.server, scene.directory, files=files, settings=settings)
    assert lab.task("train", follow=True).code == 10
    (lab.project / "pyproject.toml").write_text(about.replace("1.5", "1.6"))
    assert lab.task("train", resume="latest", follow=True).code == 10
    (lab.project / "wait").unlink()
    changed = lab.task("train", resume="latest", follow=True, with_new_code=True)
    assert changed.code == 0, changed
    (run,) = (lab.root / "runs").glob("2*")
    assert (run / "train.log").read_text().splitlines() == [
        f"found {version} Small mytrain ['--lr', '0.1']" for version in ("1.5", "1.5", "1.6")
    ]


def test_a_package_that_git_ignores_is_told(scene: Scene) -> None:
    files = {".gitignore": "libs/\n", "libs/x/setup.cfg": "", "libs/x/x/__init__.py": ""}
    lab = scene.lab("r.txt", {**files, "r.txt": "-e libs/x\n"}, "x")
    subprocess.run(["git", "init", "-q", lab.project], check=True)
    refused(lab.task("deploy"), "libs/x is not sent", "remote.include")
    lab.settings = {**lab.settings, "include": "libs/x"}
    assert scene.imports(lab)["x"].endswith("work/libs/x/x/__init__.py")


def test_a_strangers_package_of_the_same_name_is_not_asked_for(
    make_server: MakeServer, tmp_path: Path
) -> None:
    wheels = fake_wheels(tmp_path / "wheels")
    make_wheel(wheels, "helper", "9.0", {"helper/__init__.py": "", "stranger.py": ""})
    with Index(wheels) as index:
        scene = Scene(make_server(), index, tmp_path)
        files = {
            "libs/a/pyproject.toml": '[project]\nname = "a"\ndependencies = ["helper"]\n',
            "libs/a/a/__init__.py": "import helper\n",
            "libs/helper/pyproject.toml": PYPROJECT.replace("mine", "helper"),
            "libs/helper/helper/__init__.py": "",
            "r.txt": "-e libs/a\n-e libs/helper\nhelper[train]\n-c c.txt\n",
            "c.txt": "helper<5\n",
        }
        found = scene.tried("r.txt", files, "demo_pkg", "a", "helper")
    assert "/runs/2" in found["helper"] and "/env/" in found["demo_pkg"]
    assert not any("helper" in path for path in index.asked)
    assert not list(Path(found["demo_pkg"]).parent.glob("stranger*"))


READS_A_FILE = """
from setuptools import setup
with open("needs.txt", encoding="utf-8") as file:
    meta = dict(name="old", install_requires=[line.strip() for line in file if line.strip()])
setup(**meta)
"""


def test_an_old_setup_py(scene: Scene) -> None:
    files = {
        "setup.py": READS_A_FILE,
        "needs.txt": "# what it needs\n\ndemo-pkg\n",
        "old/__init__.py": "",
        "r.txt": "-e .\n",
    }
    assert "/env/" in scene.tried("r.txt", files, "demo_pkg", "old")["demo_pkg"]


@pytest.mark.parametrize("form", ["pyproject.toml", "pyproject.toml[train]"])
def test_a_pyproject_alone(scene: Scene, form: str) -> None:
    assert "/runs/2" in scene.tried(form, LOCAL, "demo_pkg", "mine")["mine"]


def test_an_address_without_a_name(scene: Scene, wheels: Path) -> None:
    address = f"{scene.index.url.rsplit('/simple', 1)[0]}/files/{newest(wheels, 'demo_pkg').name}"
    lab = scene.lab("r.txt", {"r.txt": address + "\n"}, "demo_pkg")
    assert "/env/" in scene.imports(lab)["demo_pkg"]
    assert "environment kept" in lab.task("deploy").out
    (lab.project / "r.txt").write_text(f"{address} --hash=sha256:{digest(wheels, 'demo_pkg')}\n")
    assert lab.task("deploy").code == 0
    (lab.project / "r.txt").write_text(f"{address} --hash=sha256:{64 * '0'}\n")
    done = lab.task("deploy")
    assert done.code == 8 and "is not the file whose hash" in done.err, done


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffdemo-pkg\r\n".encode("utf-16-le"),
        "# 数据增强\ndemo-pkg\n".encode("gbk"),
        b"\xef\xbb\xbfdemo-pkg\n",
        "# -*- coding: latin-1 -*-\n# é\ndemo-pkg\n".encode("latin-1"),
    ],
)
def test_encodings(scene: Scene, content: bytes) -> None:
    assert "/env/" in scene.tried("r.txt", {"r.txt": content}, "demo_pkg")["demo_pkg"]


def digest(wheels: Path, name: str) -> str:
    return hashlib.sha256(newest(wheels, name).read_bytes()).hexdigest()


def version(wheels: Path, name: str) -> str:
    return newest(wheels, name).name.split("-")[1]


def test_hashes(scene: Scene, wheels: Path) -> None:
    pinned = (
        f"demo-pkg=={version(wheels, 'demo_pkg')} \\\n"
        f"    --hash=sha256:{'0' * 64} \\\n"
        f"    --hash=sha256:{digest(wheels, 'demo_pkg')}\n"
    )
    assert "/env/" in scene.tried("r.txt", {"r.txt": pinned}, "demo_pkg")["demo_pkg"]
    wrong = scene.lab(
        "r.txt", {"r.txt": pinned.replace(digest(wheels, "demo_pkg"), "1" * 64)}, "demo_pkg"
    ).task("deploy")
    assert wrong.code == 8 and len(wrong.error_lines) == 1, wrong


def test_hashes_that_leave_out_what_is_needed(scene: Scene) -> None:
    needy = make_wheel(scene.index.wheels, "needy", "1", requires=["demo-pkg"])
    line = f"needy==1 --hash=sha256:{hashlib.sha256(needy.read_bytes()).hexdigest()}\n"
    done = scene.lab("r.txt", {"r.txt": line}, "needy").task("deploy")
    assert done.code == 8 and "lack demo-pkg (for needy)" in done.error_lines[0], done


def test_a_lock_of_uv(scene: Scene, wheels: Path) -> None:
    registry = 'source = { registry = "https://example.org/simple" }'
    lock = (
        'version = 1\nrequires-python = ">=3.8"\n[[package]]\nname = "mine"\nversion = "1"\nsource'
        ' = { editable = "." }\ndependencies = [\n    { name = "demo-pkg", marker ='
        ' "python_full_version >= \'3.8\'" },\n    { name = "absent", marker = "sys_platform =='
        ' \'win32\'" },\n]\n[[package]]\nname = "demo-pkg"\nversion ='
        f' "{version(wheels, "demo_pkg")}"\n{registry}\nwheels = [\n    {{ url ='
        f' "https://example.org/x.whl", hash = "sha256:{digest(wheels, "demo_pkg")}"'
        f' }},\n]\n[[package]]\nname = "absent"\nversion = "1"\n{registry}\n'
    )
    found = scene.tried("uv.lock", {**LOCAL, "uv.lock": lock}, "demo_pkg", "mine")
    assert "/env/" in found["demo_pkg"] and "/runs/2" in found["mine"]


def test_a_new_dependency_is_a_new_environment_and_a_line_of_code_is_not(scene: Scene) -> None:
    """A run goes on importing its own copy when a later deploy replaces the release."""
    lab = scene.lab("r.txt", {**LOCAL, "r.txt": "-e .\n"}, "mine")
    first = scene.imports(lab)["mine"]
    (lab.project / "src" / "mine" / "__init__.py").write_text("value = 2\n")
    assert "environment kept" in lab.task("deploy").out
    assert Path(first).read_text() == "value = 1\n"
    changed = PYPROJECT.replace('["demo-pkg<1.1"]', '["demo-pkg"]')
    (lab.project / "pyproject.toml").write_text(changed)
    done = lab.task("deploy")
    assert done.code == 0 and "environment kept" not in done.out
    keys = [
        json.loads(path.read_text()).get("requirements_hash")
        for path in (lab.root / "env").glob("*/env.json")
    ]
    assert len(set(keys)) == 2


def test_a_run_goes_on_with_the_packages_that_it_has_had(scene: Scene) -> None:
    """Unless they are gone, or today's are asked for, which is said."""
    script = (
        "from importlib.metadata import version\nimport sys\nprint('has', version('demo-pkg'))\n"
        "sys.exit(3)\n"
    )
    settings = {"requirements": "r.txt", "command": "python train.py"}
    files = {"r.txt": "demo-pkg==1.0\n", "train.py": script}
    lab = Lab(scene.server, scene.directory, files=files, settings=settings)
    lab.task("train", follow=True)
    same = lab.task("train", resume="latest", follow=True)
    (lab.project / "r.txt").write_text("demo-pkg==1.1\n")
    own = lab.task("train", resume="latest", follow=True)
    (old,) = (lab.root / "env").glob("*/")
    new = lab.task("train", resume="latest", follow=True, with_new_code=True)
    kept = lab.task("train", resume="latest", follow=True)
    (run,) = (lab.root / "runs").glob("2*")
    log = (run / "train.log").read_text().split()[1::2]
    assert log == ["1.0", "1.0", "1.0", "1.1", "1.1"], log
    for done in (same, new, kept):
        assert "packages;" not in done.err and "today's packages" not in done.err, done
    assert "its own packages; --with-new-code would take today's" in own.err
    (lab.project / "r.txt").write_text("demo-pkg\n")
    for environment in {*(lab.root / "env").glob("*/")} - {old}:
        shutil.rmtree(environment)
    gone = lab.task("train", resume="latest", follow=True)
    assert "it goes on with today's packages, not its own: its environment is not there" in gone.err


CONDA = "name: x\ndependencies:\n  - python=3.11\n  - demo-pkg=1.1\n  - pip:\n    - -e .\n"
MICROMAMBA = """#!/bin/sh
test "$1 $2 $4" = "create --prefix --file" || exit 9
cp "$5" "$HOME/asked.yml"
cat $PIP_CONSTRAINT > "$HOME/limits.txt"
python3 -m venv --without-pip "$3" && for wheel in {wheels}/demo_pkg-1.1-*.whl; do
    "$3"/bin/python -m zipfile -e "$wheel" "$3"/lib/python3*/site-packages
done
"""


def test_an_environment_of_condas(scene: Scene, wheels: Path) -> None:
    """What conda does not know is read here: the project's own package, files for pip."""
    files = {**LOCAL, "gpu.yml": CONDA, "more.txt": "-c limits.txt\n", "limits.txt": "c<2\n"}
    lab = scene.lab("gpu.yml", files, "demo_pkg", "mine")
    done = lab.task("deploy")
    assert done.code == 8 and len(done.error_lines) == 1 and "gpu.yml needs" in done.err, done
    program = Path(scene.server.path) / "micromamba"
    program.write_text(MICROMAMBA.format(wheels=wheels))
    program.chmod(0o755)
    found = scene.imports(lab)
    assert "/env/" in found["demo_pkg"] and "/runs/2" in found["mine"]
    asked = scene.server.home / "asked.yml"
    assert asked.read_text().endswith("- demo-pkg=1.1\n- pip:\n  - demo-pkg<1.1\n")
    assert "environment kept" in lab.task("deploy").out
    (lab.project / "pyproject.toml").write_text(PYPROJECT.replace("<1.1", "<1.1,>0"))
    (lab.project / "gpu.yml").write_text(CONDA + "    - -r more.txt\n")
    assert "environment built" in lab.task("deploy").out
    assert asked.read_text().endswith("- pip:\n  - demo-pkg<1.1,>0\n")
    assert (scene.server.home / "limits.txt").read_text().endswith("c<2\n")
    (lab.project / "more.txt").unlink()
    refused(lab.task("deploy"), "gpu.yml, pip: more.txt can't be read")


def refused(done: Done, *words: str) -> None:
    assert (
        done.code == 2 and len(done.error_lines) == 1 and all(word in done.err for word in words)
    ), done


def test_what_cannot_be_is_one_line(scene: Scene) -> None:
    computed = {
        "setup.py": "from setuptools import setup\nsetup(install_requires=open('r').read())\n",
        "r.txt": "-e .\n",
    }
    refused(scene.lab("r.txt", computed).task("deploy"), "computes what it needs")
    poetry = {"pyproject.toml": "[tool.poetry.dependencies]\npython = '^3.10'\n"}
    refused(scene.lab("pyproject.toml", poetry).task("deploy"), "Poetry", "poetry export")
    refused(scene.lab("pyproject.toml[nope]", LOCAL).task("deploy"), "no extra 'nope'", "train")
    refused(
        scene.lab("r.txt", {"r.txt": "-e ../elsewhere\n"}).task("deploy"), "outside the project"
    )
    refused(scene.lab("uv.lock", {"uv.lock": "version = 1\n[["}).task("deploy"), "no TOML")


def test_archives_of_the_project(scene: Scene, wheels: Path) -> None:
    """They lie in the release: pip on the server takes them from there."""
    wheel = newest(wheels, "demo_pkg")
    files: dict[str, str | bytes] = {
        f"libs/{wheel.name}": wheel.read_bytes(),
        "r.txt": f"./libs/{wheel.name}\n",
    }
    lab = scene.lab("r.txt", files, "demo_pkg")
    assert "/env/" in scene.imports(lab)["demo_pkg"]
    (lab.project / "a.py").write_text("another release\n")
    assert "environment kept" in lab.task("deploy").out
    (lab.project / "r.txt").write_text("--no-index --find-links ./libs\ndemo-pkg\n")
    done = lab.task("deploy")
    assert done.code == 0 and "environment kept" not in done.out, done
    make_wheel(lab.project / "libs", "other", "1")
    done = lab.task("deploy")
    assert done.code == 0 and "environment kept" not in done.out, done
    assert not [path for path in scene.index.asked if "demo" in path]
    subprocess.run(["git", "init", "-q", str(lab.project)], check=True)
    (lab.project / ".gitignore").write_text("libs/\n")
    refused = lab.task("deploy")
    assert refused.code == 2 and "libs is not sent" in refused.error_lines[0], refused
