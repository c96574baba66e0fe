"""What a server tells of its interpreters, environments and GPUs, made up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remote.agent.root.paths import HASH
from remote.deploy.environment import plan_environment
from remote.deploy.needs import Known
from remote.link.answer import read_answer
from remote.link.answers import Inspection, Resolution
from remote.link.facts import Facts
from remote.records import EnvironmentPlan, Settings
from remote.requirements.lines import requirements_hash

TEXT = "torch>=2.4,<2.15\npytorch-lightning>=2.5\n"
TORCH = {"version": "2.5.1+cu124", "cuda": "12.4", "hip": None}
CPU_TORCH = {"version": "2.5.1+cpu", "cuda": None, "hip": None}
PACKAGES = {"torch": "2.5.1+cu124", "pytorch-lightning": "2.5.0", "torchmetrics": "1.4.0"}
REQUIRES = {
    "torch": ["nvidia-cublas-cu12==1"],
    "pytorch-lightning": ["torch>=2.1", "torchmetrics>0.7", "fsspec[http]; extra == 'x'"],
}
SYSTEM = {"machine": "x86_64", "boot_id": "boot", "host": "box"}


def interpreter(path: str, version: str = "3.11.7", **more: Any) -> dict[str, Any]:
    info = [int(part) for part in version.split(".")]
    markers = {
        "python_version": ".".join(version.split(".")[:2]),
        "python_full_version": version,
        "sys_platform": "linux",
    }
    entry = {
        "path": path,
        "version": version,
        "version_info": info,
        "markers": markers,
        "has_venv": True,
        "has_pip": True,
    }
    return entry | {"packages": {}, "requires": {}, "urls": {}, "torch": {}} | more


def image(path: str = "/opt/conda/bin/python", **more: Any) -> dict[str, Any]:
    return interpreter(path, **{"packages": PACKAGES, "requires": REQUIRES, "torch": TORCH, **more})


def gpu_facts(
    driver: str = "550.54.15", cap: float | None = 9.0, name: str = "H100", uuid: str = "GPU-1"
) -> dict[str, Any]:
    gpu = {"index": 0, "uuid": uuid, "name": name, "compute_capability": cap}
    return {"found": True, "gpus": [gpu], "driver_version": driver, **HERE}


HERE = {"boot_id": "boot", "host": "box"}
NO_GPU: dict[str, Any] = {"found": False, **HERE}


def make_facts(
    *interpreters: Mapping[str, Any],
    gpu: Mapping[str, Any] = NO_GPU,
    inspected: bool = True,
    **more: Any,
) -> dict[str, Any]:
    facts = {"system": SYSTEM, "gpus": gpu, "environments": [], "runs": [], **more}
    inspection = {"interpreters": list(interpreters), "uv": None}
    told = {"inspection": inspection, "resolution": {}, "on_top": {}}
    return told | facts if inspected else facts


def plan_told(
    told: Mapping[str, Any], settings: Settings, text: str, refresh: bool = False
) -> EnvironmentPlan:
    """The plan for what a server told: facts, with the answers to later questions among them."""
    facts = read_answer(Facts, {"root": {"path": "/r"}, **told})
    forms = {"inspection": Inspection, "resolution": Resolution, "on_top": Resolution}
    answers: dict[str, Any] = {
        name: read_answer(form, told[name])
        for name, form in forms.items()
        if told.get(name) is not None
    }
    known = Known(facts, **answers)
    return plan_environment(known, settings, text, refresh)


def record(text: str = TEXT, **more: Any) -> dict[str, Any]:
    made = {
        "key": "0" * 16,
        "ready": True,
        "valid": True,
        "requirements_hash": requirements_hash(text),
        "built": 1.0,
        "proofs": [],
    }
    made |= {"wanted": {"python": "", "torch": "auto"}, "needs_torch": True, "torch": TORCH}
    return made | {"version": "3.11.7", "python": "/v/python"} | more


PLAIN = Settings()
MINE = Settings(python="/my/python")


def plan(
    *interpreters: Mapping[str, Any], text: str = TEXT, settings: Settings = PLAIN, **more: Any
) -> EnvironmentPlan:
    found = plan_told(make_facts(*interpreters, **more), settings, text)
    if found.build.key:
        assert found.key == found.build.key and HASH.match(found.key or "")
    return found


def configured(**more: Any) -> dict[str, Any]:
    return image("/my/python", configured=True, **more)
