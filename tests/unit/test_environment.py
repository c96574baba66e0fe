"""Keep, use as it is, install what is missing, or build: decided from facts alone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from remote.agent.shared.build_plan import NO_TORCH
from remote.deploy.environment import KEPT, plan_before
from remote.errors import EnvironmentFailed
from remote.link.answer import read_answer
from remote.link.facts import Facts
from remote.records import Asked, Settings
from remote.requirements.lines import requirements_hash
from tests.support.interpreters import (
    CPU_TORCH,
    MINE,
    PACKAGES,
    PLAIN,
    REQUIRES,
    TEXT,
    configured,
    gpu_facts,
    image,
    interpreter,
    make_facts,
    plan,
    plan_told,
    record,
)

# Keep


def test_kept_when_nothing_changed_and_without_looking_further() -> None:
    found = plan(inspected=False, environments=[record()], gpu=gpu_facts())
    assert (found.kind, found.why, found.key) == ("keep", KEPT, "0" * 16)


@pytest.mark.parametrize(
    "change",
    [
        {"ready": False},
        {"valid": False, "changed": "/usr/bin/python3 was replaced"},
        {"requirements_hash": "other"},
        {"wanted": {"python": "/other", "torch": "auto"}},
        {"wanted": {"python": "", "torch": "cpu"}},
        {"torch": CPU_TORCH},
        {"torch": {"version": "2.11", "cuda": "13.0"}},
    ],
)
def test_not_kept_when_anything_it_was_made_for_changed(change: dict[str, Any]) -> None:
    assert (
        plan(inspected=False, environments=[record(**change)], gpu=gpu_facts()).kind
        == "inspect-first"
    )


def test_why_the_last_one_is_not_kept_is_said() -> None:
    spoilt = record(valid=False, changed="/usr/bin/python3 was replaced")
    assert (
        "the environment of before is not used: /usr/bin/python3 was replaced"
        in plan(image(), environments=[spoilt]).notes
    )


def told(**more: Any) -> Facts:
    return read_answer(Facts, {"root": {"path": "/r"}, **make_facts(inspected=False, **more)})


HAD = Asked(environment_key="1" * 16, requirements_hash=requirements_hash("old"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ready": False}, "its environment is not there"),
        ({"key": "2" * 16, "requirements_hash": "older"}, "its environment is not there"),
        ({"valid": False, "changed": "/usr/bin/python3 was replaced"}, "python3 was replaced"),
        ({"wanted": {"python": "/other", "torch": "auto"}}, "remote.python or remote.torch"),
        ({"torch": CPU_TORCH}, "is a CPU build"),
    ],
)
def test_a_run_that_goes_on_has_its_own_packages_or_it_is_said_why_not(
    change: dict[str, Any], said: str
) -> None:
    own = {"key": "1" * 16, "requirements_hash": requirements_hash("old")}
    facts = told(environments=[record(), record(**own)], gpu=gpu_facts())
    found, note = plan_before(facts, PLAIN, TEXT, HAD)
    assert found and (found.kind, found.key) == ("keep", "1" * 16)
    assert note == "it goes on with its own packages; --with-new-code would take today's"
    facts = told(environments=[record(**{**own, **change})], gpu=gpu_facts())
    found, note = plan_before(facts, PLAIN, TEXT, HAD)
    assert found is None and note.startswith("it goes on with today's packages") and said in note


def test_on_another_server_it_has_what_was_made_there_for_the_same() -> None:
    there = record(key="2" * 16, requirements_hash=requirements_hash("old"))
    facts = told(environments=[record(), there], gpu=gpu_facts())
    found, _ = plan_before(facts, PLAIN, TEXT, HAD)
    assert found and (found.kind, found.key) == ("keep", "2" * 16)


def test_nothing_is_said_of_packages_that_are_the_same_today() -> None:
    facts = told(environments=[record()], gpu=gpu_facts())
    for asked in (
        Asked(environment_key="0" * 16),
        Asked(environment_key="1" * 16, requirements_hash=requirements_hash(TEXT)),
        Asked(),
    ):
        assert plan_before(facts, PLAIN, TEXT, asked) == (None, "")


def test_a_gpu_that_hides_does_not_make_a_kept_environment_unfit() -> None:
    hidden = {"found": True, "fails": True}
    assert plan(inspected=False, environments=[record(torch=CPU_TORCH)], gpu=hidden).kind == "keep"


def test_keeping_imports_no_packaging() -> None:
    program = f"""
import sys
sys.path.insert(0, {sys.path[0]!r}); sys.path[:0] = {[p for p in sys.path if p]!r}
from pathlib import Path
from remote.requirements import lines, reading
from remote.deploy import deploy
from remote.records import Settings
from tests.support.interpreters import plan_told
before = "packaging" in sys.modules
here = Path({__file__!r}).parents[2]
text = reading.read_requirements(here, "trainer/requirements.txt")
made = {record()!r} | {{"requirements_hash": lines.requirements_hash(text)}}
facts = {{"environments": [made], "gpus": {gpu_facts()!r}}}
plan = plan_told(facts, Settings(), text)
print(plan.kind, before, "packaging" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["keep", "False", "False"], done.stderr


# As it is


def test_an_interpreter_that_has_everything_is_used_as_it_is() -> None:
    found = plan(interpreter("/usr/bin/python3", "3.13.1"), image(), gpu=gpu_facts())
    assert (found.kind, found.build.python) == ("as-is", "/opt/conda/bin/python")
    assert found.build.imports == ["torch", "pytorch_lightning"] and not found.build.install


def test_the_newest_that_has_everything_is_taken_whatever_the_order() -> None:
    both = [image("/a/python", version="3.10.2"), image("/b/python", version="3.12.0")]
    assert {plan(*order).build.python for order in (both, both[::-1])} == {"/b/python"}


def test_what_its_packages_need_counts_too() -> None:
    without = {name: version for name, version in PACKAGES.items() if name != "torchmetrics"}
    found = plan(image(packages=without))
    assert found.kind == "overlay" and found.build.install == ["torchmetrics>0.7"]


def test_extras_and_markers_are_judged_by_the_interpreters_own() -> None:
    text = "demo[fast]; python_version < '3.11'\n"
    base = {
        "packages": {"demo": "1"},
        "requires": {"demo": ["speed>=2; extra == 'fast'", "slow; extra == 'slow'"]},
    }
    assert plan(interpreter("/p", "3.12.0", **base), text=text).kind == "as-is"
    found = plan(interpreter("/p", "3.10.0", **base), text=text, settings=Settings(python="/p"))
    assert found.kind == "venv" or found.build.install == ["speed>=2"]
    with_it = {**base, "packages": {"demo": "1", "speed": "2.1"}}
    assert plan(interpreter("/p", "3.10.0", **with_it), text=text).kind == "as-is"


def test_constraints_count_as_well() -> None:
    text = "demo\n--constrained-to demo<2\n"
    assert plan(interpreter("/p", packages={"demo": "1.9"}), text=text).kind == "as-is"
    found = plan(interpreter("/p", packages={"demo": "2.0"}), text=text)
    assert found.kind == "venv" and found.build.constraints == ["demo<2"]


def test_an_address_is_satisfied_by_what_was_installed_from_it() -> None:
    text = "demo @ https://me:secret@host/demo-1-py3-none-any.whl\n"
    same = interpreter(
        "/p", packages={"demo": "1"}, urls={"demo": "https://host/demo-1-py3-none-any.whl"}
    )
    assert plan(same, text=text).kind == "as-is"
    assert plan(interpreter("/p", packages={"demo": "1"}), text=text).kind == "venv"


def test_without_requirements_nothing_is_built_or_resolved() -> None:
    found = plan(interpreter("/usr/bin/python3", "3.8.10"), text="", resolution=None)
    assert (found.kind, found.build.needs_torch, found.build.names) == ("as-is", False, [])
    with pytest.raises(EnvironmentFailed, match=r"no python >=3\.8 .*python 3\.7\.10"):
        plan(interpreter("/usr/bin/python3", "3.7.10"), text="")


# On top


def test_only_what_is_missing_is_installed_and_torch_is_pinned() -> None:
    found = plan(image(), text=TEXT + "demo>=2\n", gpu=gpu_facts())
    assert found.kind == "overlay" and found.build.install == ["demo>=2"]
    assert found.build.constraints == ["torch==2.5.1+cu124"] and found.build.torch == NO_TORCH
    assert "1 missing package (demo) on top of /opt/conda/bin/python" in found.why


def test_what_comes_on_top_of_an_images_torch_is_asked_before_it_is_installed() -> None:
    facts = make_facts(image(), interpreter("/new", "3.13.0"), gpu=gpu_facts())
    del facts["resolution"], facts["on_top"]
    text = TEXT + "ultralytics\n"
    asked = plan_told(facts, PLAIN, text)
    assert (asked.kind, asked.build.kind) == ("resolve-first", "overlay")
    assert asked.build.pythons == ["/opt/conda/bin/python"]
    assert asked.build.constraints == ["torch==2.5.1+cu124"]
    comes = {"ultralytics": "8", "torchvision": "0.20.1", **{f"p{i}": "1" for i in range(8)}}
    facts["on_top"] = {"python": "/opt/conda/bin/python", "packages": comes, "late": ["p1"]}
    found = plan_told(facts, PLAIN, text)
    assert (found.kind, found.build.late, found.build.need_mib) == ("overlay", ("p1",), 0)
    assert found.build.torch.index_url.endswith("/cu124"), "torchvision comes with it"
    facts["on_top"] = {"failed": [["/opt/conda/bin/python", "ultralytics wants torch>=2.6"]]}
    asked = plan_told(facts, PLAIN, text)
    pythons = ["/new", "/opt/conda/bin/python"]
    assert (asked.build.kind, asked.build.pythons) == ("venv", pythons)
    facts["resolution"] = {"python": "/new", "packages": {"torch": "2.9"}}
    found = plan_told(facts, PLAIN, text)
    why = "its torch 2.5.1+cu124 can't stay: ultralytics wants torch>=2.6"
    assert found.kind == "venv" and f"passed over /opt/conda/bin/python: {why}" in found.notes
    mine = Settings(python="/my/python")
    facts["inspection"]["interpreters"] = [configured()]
    found = plan_told(facts, mine, text)
    assert (found.kind, found.build.python) == ("venv", "/my/python")
    assert f"passed over /my/python: {why}" in found.notes


def test_a_base_without_torch_is_asked_about_and_then_laid_upon() -> None:
    facts = make_facts(configured(packages={}, torch={}))
    del facts["resolution"], facts["on_top"]
    asked = plan_told(facts, MINE, "demo\n")
    assert (asked.kind, asked.build.pythons) == ("resolve-first", ["/my/python"])
    assert asked.build.kind == "venv", "all that is asked for"
    facts["resolution"] = {"python": "/my/python", "packages": {"demo": "1"}}
    assert plan_told(facts, MINE, "demo\n").kind == "overlay"


def test_on_top_of_a_venv_its_packages_are_named() -> None:
    found = plan(image(is_venv=True, sites=["/v/site-packages"]), text=TEXT + "demo\n")
    assert found.build.parent_sites == ("/v/site-packages",)
    assert not plan(image(), text=TEXT + "demo\n").build.parent_sites


def test_a_missing_torchvision_comes_from_the_index_of_the_torch_that_is_there() -> None:
    found = plan(image(), text=TEXT + "torchvision\n", gpu=gpu_facts())
    assert found.kind == "overlay" and found.build.install == ["torchvision"]
    assert found.build.torch.index_url == "https://download.pytorch.org/whl/cu124"
    assert found.build.torch.requirements == []
    assert found.build.constraints == ["torch==2.5.1+cu124"]


def test_a_base_without_torch_is_none() -> None:
    found = plan(interpreter("/usr/bin/python3", packages={"pytorch-lightning": "2.5.0"}))
    assert found.kind == "venv" and found.build.install == [
        "torch<2.15,>=2.4",
        "pytorch-lightning>=2.5",
    ]


def test_a_torchvision_made_for_another_torch_is_not_mended_on_top() -> None:
    packages = {**PACKAGES, "torchvision": "0.19"}
    broken = image(packages=packages, requires={**REQUIRES, "torchvision": ["torch==2.4.0"]})
    assert plan(broken, text=TEXT + "torchvision\n").kind == "venv"


# remote.python


def test_the_configured_one_is_always_the_base() -> None:
    better = image("/opt/newer", version="3.13.0")
    assert plan(configured(), better, settings=MINE).build.python == "/my/python"
    lacking = plan(configured(), better, settings=MINE, text=TEXT + "demo\n")
    assert (lacking.kind, lacking.build.python) == ("overlay", "/my/python")
    bare = plan(configured(packages={}, torch={}), better, settings=MINE)
    assert (bare.kind, bare.build.python, bare.build.constraints) == ("overlay", "/my/python", [])
    old = plan(configured(packages={**PACKAGES, "torch": "2.1"}), better, settings=MINE)
    assert (old.kind, old.build.python) == ("venv", "/my/python")
    assert "passed over /my/python: its torch 2.1 is not of the version required" in old.notes


def test_a_configured_cpu_build_on_a_gpu_server_is_an_error_with_its_remedy() -> None:
    with pytest.raises(
        EnvironmentFailed, match=r"2\.5\.1\+cpu is a CPU build.*1 GPU\(s\) \(H100\)"
    ) as caught:
        plan(configured(torch=CPU_TORCH), settings=MINE, gpu=gpu_facts())
    assert "remote.python" in str(caught.value.remedy) and "remote.torch: cpu" in str(
        caught.value.remedy
    )
    assert (
        plan(
            configured(torch=CPU_TORCH),
            settings=Settings(python="/my/python", torch="cpu"),
            gpu=gpu_facts(),
        ).kind
        == "as-is"
    )
    assert plan(configured(torch=CPU_TORCH), settings=MINE).kind == "as-is"


@pytest.mark.parametrize(
    ("gpu", "fits"),
    [(gpu_facts("470.1"), False), (gpu_facts("550.1"), True), (gpu_facts("580.1"), True)],
)
def test_a_configured_torch_must_fit_driver_and_gpu(gpu: dict[str, Any], fits: bool) -> None:
    if fits:
        assert plan(configured(), settings=MINE, gpu=gpu).kind == "as-is"
    else:
        with pytest.raises(
            EnvironmentFailed, match=r"CUDA 12\.4\) does not fit driver 470\.1 and H100"
        ):
            plan(configured(), settings=MINE, gpu=gpu)


def test_a_torch_without_kernels_for_the_gpu_is_passed_over() -> None:
    found = plan(image(), gpu=gpu_facts("580.1", cap=12.0, name="RTX 5090"))
    assert found.kind == "venv"
    said = (
        "torch 2.5.1+cu124 (CUDA 12.4) does not fit driver 580.1 and RTX 5090 (compute capability"
        " 12.0)"
    )
    assert f"passed over /opt/conda/bin/python: {said}" in found.notes


@pytest.mark.parametrize(
    ("more", "said"),
    [({"problem": "/my/python does not exist"}, "does not exist"), ({"version": "3.7.1"}, "3.7.1")],
)
def test_a_configured_one_that_is_unfit_is_never_replaced_in_silence(
    more: dict[str, Any], said: str
) -> None:
    with pytest.raises(EnvironmentFailed, match=said):
        plan(configured(**more), image(), settings=MINE)
