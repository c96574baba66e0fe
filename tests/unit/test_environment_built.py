"""Which interpreter an environment is built with, and what it then is."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.agent.environments.builder import SCRIPTS
from remote.agent.training.surroundings import base_programs
from remote.deploy import doctor
from remote.errors import EnvironmentFailed, GpuUnfit
from remote.records import Settings
from tests.support.interpreters import (
    CPU_TORCH,
    PACKAGES,
    PLAIN,
    TEXT,
    gpu_facts,
    image,
    interpreter,
    make_facts,
    plan,
    plan_told,
    record,
)
from tests.support.project import make_tree

# A venv


def test_other_interpreters_with_an_unfit_torch_are_passed_over_and_the_reason_is_said() -> None:
    found = plan(image("/usr/bin/python3", torch=CPU_TORCH), gpu=gpu_facts())
    assert (
        found.kind == "venv"
        and "passed over /usr/bin/python3: torch 2.5.1+cpu is a CPU build" in found.notes
    )


def test_the_base_is_the_newest_that_torch_has_wheels_for_and_that_can_make_a_venv() -> None:
    choices = [
        interpreter("/a", "3.10.1"),
        interpreter("/b", "3.12.1"),
        interpreter("/c", "3.13.1", has_venv=False),
        interpreter("/d", "3.15.0"),
        interpreter("/e", "3.12.1"),
    ]
    assert plan(*choices).build.python == "/b"
    assert plan(*choices, text="demo\n").build.python == "/d"


def test_where_nothing_can_install_the_plan_says_so() -> None:
    """doctor tells it before a deploy does."""
    bare: dict[str, Any] = {"has_pip": False, "has_venv": False}
    told = make_facts(interpreter("/a", **bare), interpreter("/b", **bare))
    with pytest.raises(EnvironmentFailed, match="no python on the server has pip or ensurepip"):
        plan_told(told, PLAIN, TEXT)
    for more in ({"uv": "/bin/uv"}, {"virtualenv": "/bin/virtualenv"}):
        able = told | {"inspection": {**told["inspection"], **more}}
        assert plan_told(able, PLAIN, TEXT).kind == "venv"
    has_all = interpreter("/a", packages={"numpy": "2.0"}, **bare)
    assert plan(has_all, text="numpy\n").kind == "as-is"


@pytest.mark.parametrize(
    ("told", "free_mib", "said"),
    [
        ({"failed": [["/p", "the package index can't be reached", "set a mirror"]]}, 900, "index"),
        ({"failed": [["/p", "no pip of /p tells beforehand"]]}, 900, None),
        ({"failed": [["/old", "too new", "x"]], "python": "/p", "packages": {}}, 900, None),
        (
            {"python": "/p", "packages": {"demo": "1", "torch": "2.9"}},
            900,
            "it needs about 7168 MiB",
        ),
        ({"python": "/p", "packages": {"demo": "1"}}, 19, None),
    ],
)
def test_doctor_tells_beforehand_why_an_environment_can_not_be_made(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], free_mib: int, said: str | None
) -> None:
    facts = make_facts(interpreter("/p"), interpreter("/old"), resolution=told)
    found = plan_told(facts, PLAIN, "demo\n")
    monkeypatch.setattr(doctor, "choose_environment", lambda *_: found)
    monkeypatch.setattr(doctor, "read_requirements", lambda *_: "demo\n")
    seen = SimpleNamespace(root=SimpleNamespace(free_mib=free_mib), environments=())
    (check,) = doctor.environment_checks(SimpleNamespace(project=None), seen)  # type: ignore[arg-type]
    assert (check.level == "problem") is bool(said) and (said or "makes it") in check.text


def test_torch_that_stands_below_what_is_asked_for_is_judged_and_proved() -> None:
    has: dict[str, Any] = {
        "packages": {**PACKAGES, "timm": "1"},
        "requires": {"timm": ["torch"], "torch": []},
    }
    found = plan(image(**has), text="timm\n", gpu=gpu_facts())
    assert found.kind == "as-is" and found.build.imports == ["torch"]
    unfit = image(**has, torch=CPU_TORCH)
    assert plan(unfit, text="timm\n", gpu=gpu_facts()).kind == "venv"


def test_an_image_keeps_its_torch_though_the_requirements_name_it_only_by_a_package() -> None:
    resolution = {"python": "/new", "packages": {"timm": "1", "torch": "2.9"}}
    both = [image(), interpreter("/new", "3.13.0")]
    found = plan(*both, text="timm\n", gpu=gpu_facts(), resolution=resolution)
    assert found.kind == "overlay" and found.build.constraints == ["torch==2.5.1+cu124"]


def test_the_python_is_one_that_project_and_packages_take() -> None:
    pythons = [
        interpreter("/old", "3.9.1"),
        interpreter("/mid", "3.11.2"),
        interpreter("/new", "3.13.0"),
    ]
    facts = make_facts(*pythons)
    del facts["resolution"]
    text = "--requires-python >=3.10\nnumba==0.57\n"
    asked = plan_told(facts, PLAIN, text)
    assert asked.build.pythons == ["/new", "/mid"]
    preferred = plan_told(facts, PLAIN, text + "--prefers-python 3.11\n")
    assert preferred.build.pythons == ["/mid", "/new"]
    absent = plan(*pythons, text=text + "--prefers-python 3.1\n")
    assert ".python-version asks for python 3.1, which is not there" in absent.notes
    failed = [["/new", "numba==0.57 takes python < 3.12, this is 3.13.0"]]
    facts["resolution"] = {"python": "/mid", "packages": {"numba": "0.57"}, "failed": failed}
    found = plan_told(facts, PLAIN, text)
    assert found.build.python == "/mid" and "python < 3.12" in found.notes[-1]
    assert found.build.older == "" and plan(*pythons, text="x\n").build.older.startswith("/mid")
    with pytest.raises(EnvironmentFailed, match=r"no python >=3\.14 .*requires-python is >=3\.14"):
        plan(*pythons, text="--requires-python >=3.14\nx\n")


def test_a_python_of_3_9_with_all_that_is_asked_for_is_used() -> None:
    assert plan(image(version="3.9.1")).kind == "as-is"


def test_what_bends_every_run_is_said() -> None:
    system = {"machine": "x86_64", "pythonpath": "/shared/lib"}
    found = plan(image(), system=system, text=TEXT + "-i https://${TOKEN}@x/simple\n")
    assert "PYTHONPATH is set there: runs import from /shared/lib first" in found.notes
    assert "${TOKEN} is not set here: pip takes the server's" in found.notes


def test_a_server_whose_pip_asks_no_index_is_not_sent_to_one() -> None:
    facts = make_facts(interpreter("/p"), gpu=gpu_facts("550.1"))
    facts["inspection"]["no_index"] = True
    assert not plan_told(facts, Settings(), TEXT).build.torch.source


def test_a_driver_too_old_for_any_torch_is_told_before_gigabytes_are_fetched() -> None:
    with pytest.raises(GpuUnfit, match="too old for any torch build") as caught:
        plan(interpreter("/p"), gpu=gpu_facts("390.1", cap=6.1))
    assert "remote.torch: cpu" in str(caught.value.remedy)


def test_a_gpu_too_old_for_any_torch_is_known_by_name_where_the_driver_does_not_tell() -> None:
    with pytest.raises(GpuUnfit, match="no torch build has kernels for all of these GPUs"):
        plan(interpreter("/p"), gpu=gpu_facts("470.1", cap=None, name="Tesla K80"))
    found = plan(interpreter("/p"), gpu=gpu_facts("470.1", cap=None, name="Tesla V100"))
    assert found.build.torch.build == "cu118"


def test_torch_is_needed_though_only_lightning_is_named() -> None:
    found = plan(interpreter("/p"), text="lightning\n", gpu=gpu_facts("550.1"))
    assert found.build.needs_torch and found.build.torch.requirements == ["torch"]
    assert found.build.imports == ["torch", "lightning"]


def test_options_go_along_and_no_password_is_shown() -> None:
    text = "-i https://me:secret@mirror/simple\n--find-links=/wheels\ndemo\n"
    found = plan(interpreter("/p"), text=text)
    assert found.build.options == (
        "--index-url https://me:secret@mirror/simple",
        "--find-links /wheels",
    )
    kept = found.build._replace(options=())
    assert "secret" not in f"{found.why} {found.notes} {kept}"


def test_the_key_is_requirements_interpreter_and_torch_build() -> None:
    base = plan(interpreter("/p")).key
    assert plan(interpreter("/p"), text="pytorch-lightning >= 2.5\n\n# x\n" + TEXT).key == base
    others = [
        plan(interpreter("/q")).key,
        plan(interpreter("/p", "3.11.8")).key,
        plan(interpreter("/p"), text=TEXT + "demo\n").key,
        plan(interpreter("/p"), settings=Settings(torch="cpu")).key,
    ]
    assert len({base, *others}) == 5


def test_a_spoilt_environment_is_built_anew_beside_it_while_a_training_may_use_it() -> None:
    key = plan(interpreter("/p")).key
    spoilt = record(key=key, valid=False, changed="x")
    assert plan(interpreter("/p"), environments=[spoilt]).key == key
    again = plan(
        interpreter("/p"), environments=[spoilt], runs=[{"run": "1", "state": "running"}]
    ).key
    assert again != key
    both = [spoilt, record(key=again, valid=False)]
    assert plan(
        interpreter("/p"), environments=both, runs=[{"run": "1", "state": "running"}]
    ).key not in (key, again)


def test_an_interpreter_whose_packages_cannot_be_read_is_passed_over() -> None:
    broken = interpreter("/broken", "3.13.0", problem="no answer within 60 s", packages={})
    found = plan(broken, interpreter("/p"))
    assert (
        found.build.python == "/p" and "passed over /broken: no answer within 60 s" in found.notes
    )


def test_the_inspection_follows_what_is_named_with_its_extras() -> None:
    text = "Demo_Pkg[b,a]>=1\n-i https://x/simple\ntorch\n"
    asked = plan(inspected=False, text=text, settings=Settings(python="/p"))
    assert asked.kind == "inspect-first"
    assert list(asked.detail) == ["demo-pkg[a,b]", "torch"]


KNOWN = [
    "torch",
    "torchmetrics>1",
    "a; extra == 'b'",
    "1.0",
    "x @ file:///y",
    "2.5.1+cu124",
    "1.0.dev0",
]
WORDS = st.text(max_size=20) | st.sampled_from(KNOWN)


@given(
    st.dictionaries(WORDS, WORDS, max_size=4),
    st.dictionaries(WORDS, st.lists(WORDS, max_size=4), max_size=4),
)
def test_whatever_a_server_tells_of_its_packages_a_plan_comes_out(
    packages: dict[str, str], requires: dict[str, list[str]]
) -> None:
    merged = {**PACKAGES, **packages}
    found = plan(
        image(packages=merged, requires={**requires, "torch": list(packages.values())}),
        gpu=gpu_facts(),
    )
    assert found.kind in ("as-is", "overlay", "venv")


def test_programs_of_the_packages_below_run_in_the_environment_above(tmp_path: Path) -> None:
    """An image's torchrun is on the PATH of an environment that was laid upon it, and starts that
    environment's python."""
    make_tree(
        tmp_path / "below",
        {
            "tool.py": (
                "import sys\n"
                "class Main:\n"
                "    @staticmethod\n"
                "    def run():\n"
                "        print(sys.prefix, sys.argv[1:])\n"
            ),
            "tool-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: tool\nVersion: 1\n",
            "tool-1.dist-info/entry_points.txt": (
                "[console_scripts]\n"
                "tool = tool:Main.run\n"
                "extra = tool:Main.run [all]\n"
                "[other]\n"
                "no = tool:x\n"
            ),
        },
    )
    above = tmp_path / "with a blank"
    venv.create(above, with_pip=False)
    (site,) = above.glob("lib/python*/site-packages")
    (site / "below.pth").write_text(str(tmp_path / "below"))
    subprocess.run([above / "bin" / "python", "-I", "-c", SCRIPTS], check=True)
    for name in ("tool", "extra"):
        told = subprocess.run(
            [above / "bin" / name, "a b"], capture_output=True, text=True, check=True
        ).stdout
        assert told == f"{above} ['a b']\n"
    assert not (above / "bin" / "no").exists()


def test_the_base_interpreters_programs_follow_the_environments(tmp_path: Path) -> None:
    make_tree(
        tmp_path,
        {
            "over/pyvenv.cfg": (
                "home = /opt/conda/bin\ninclude-system-site-packages = true\nversion = 3.11\n"
            ),
            "alone/pyvenv.cfg": "home = /opt/conda/bin\ninclude-system-site-packages = false\n",
            "plain/bin/python": "",
        },
    )
    assert base_programs(str(tmp_path / "over/bin/python")) == ["/opt/conda/bin"]
    assert (
        base_programs(str(tmp_path / "alone/bin/python"))
        == []
        == base_programs(str(tmp_path / "plain/bin/python"))
    )
