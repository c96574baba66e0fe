"""Which torch an environment gets, and from where: by driver and GPU, a mirror, a lock."""

from __future__ import annotations

from typing import Any

import pytest

from remote.agent.shared.build_plan import NO_TORCH
from remote.records import Settings
from tests.support.interpreters import (
    NO_GPU,
    PLAIN,
    TEXT,
    gpu_facts,
    interpreter,
    make_facts,
    plan,
    plan_told,
)


@pytest.mark.parametrize(
    ("gpu", "torch", "build"),
    [
        (gpu_facts("580.1"), "auto", "default"),
        (gpu_facts("550.1"), "auto", "cu126"),
        (gpu_facts("580.1", cap=7.0, name="Tesla V100"), "auto", "cu126"),
        (gpu_facts("470.1", cap=8.0), "auto", "cu118"),
        (gpu_facts("550.1"), "cu121", "cu121"),
        (gpu_facts("550.1"), "cpu", "cpu"),
        (NO_GPU, "auto", "default"),
    ],
)
def test_the_torch_build_is_chosen_by_driver_and_capability(
    gpu: dict[str, Any], torch: str, build: str
) -> None:
    found = plan(
        interpreter("/p"), text=TEXT + "torchvision\n", gpu=gpu, settings=Settings(torch=torch)
    )
    chosen = found.build.torch
    assert chosen.build == build
    if build == "default":
        assert not chosen.source and found.build.install[0] == "torch<2.15,>=2.4"
    else:
        assert chosen.index_url == f"https://download.pytorch.org/whl/{build}"
        assert chosen.requirements == ["torch<2.15,>=2.4"]
    assert found.build.need_mib == (1500 if build == "cpu" else 7168)


@pytest.mark.parametrize(
    "line",
    [
        "--no-index",
        "--extra-index-url https://download.pytorch.org/whl/cu121",
        "torch==2.4.0+cu121",
        "torch @ https://host/torch-2.4.0-py3-none-any.whl",
    ],
)
def test_whoever_names_the_source_of_torch_gets_it_from_there(line: str) -> None:
    chosen = plan(
        interpreter("/p"), text=f"{line}\ntorch\ntorchvision\n", gpu=gpu_facts("550.1")
    ).build
    assert not chosen.torch.source and "torchvision" in chosen.install
    assert plan(
        interpreter("/p"),
        text=f"{line}\ntorch\n",
        gpu=gpu_facts(),
        settings=Settings(torch="cu126"),
    ).build.torch.index_url


@pytest.mark.parametrize(
    ("setting", "place", "address"),
    [
        ("https://mirror/whl/", "index_url", "https://mirror/whl/cu126"),
        ("https://mirror/whl/cu121", "index_url", "https://mirror/whl/cu121"),
        ("-f https://mirror/wheels/{build}/", "links", "https://mirror/wheels/cu126/"),
        ("-f https://mirror/torch_stable.html", "links", "https://mirror/torch_stable.html"),
        ("-f /data/wheels/{build}", "links", "/data/wheels/cu126"),
    ],
)
def test_builds_of_torch_come_from_a_mirror_of_theirs(
    setting: str, place: str, address: str
) -> None:
    settings = Settings(torch_index=setting)
    chosen = plan(interpreter("/p"), gpu=gpu_facts("550.1"), settings=settings).build.torch
    assert (chosen.index_url, chosen.links) == (
        (address, "") if place == "index_url" else ("", address)
    )


@pytest.mark.parametrize(
    ("driver", "setting", "local"), [("550.1", "auto", ""), ("580.1", "cu126", "+cpu")]
)
def test_a_lock_has_the_hashes_of_one_build_of_torch(driver: str, setting: str, local: str) -> None:
    """Another one comes with its own torchvision, and its own libraries."""
    hashes = {"torch": "11", "torchvision": "22", "demo": "33"}
    text = "".join(
        f"{name}==1{local if name != 'demo' else ''} --hash=sha256:{digest}\n"
        for name, digest in hashes.items()
    )
    settings = Settings(torch=setting)
    found = plan(interpreter("/p"), text=text, gpu=gpu_facts(driver), settings=settings).build
    assert found.torch.requirements == ["torch==1"]
    assert found.install == ["torch==1", "torchvision==1", "demo==1 --hash=sha256:33"]


def test_what_a_lock_has_for_another_system_says_nothing_of_this_one() -> None:
    text = (
        "--extra-index-url https://download.pytorch.org/whl/cu130\n"
        "torch==2.9.0+cu130; sys_platform == 'win32' --hash=sha256:11\n"
        "torch==2.9.0; sys_platform == 'linux' --hash=sha256:22\n"
    )
    found = plan(interpreter("/p"), text=text, gpu=gpu_facts("550.1")).build
    assert found.torch.build == "cu126" and found.install == ["torch==2.9.0"]
    text = text.replace("'win32'", "'x'").replace("'linux'", "'win32'").replace("'x'", "'linux'")
    found = plan(interpreter("/p"), text=text, gpu=gpu_facts("550.1")).build
    assert found.torch.build == "own" and "--hash=sha256:11" in found.install[0]


def test_torch_that_a_package_of_a_package_brings_is_chosen_and_counted_all_the_same() -> None:
    """As ultralytics, timm and transformers[torch] do."""
    facts = make_facts(interpreter("/p"), gpu=gpu_facts("535.1"))
    del facts["resolution"]
    asked = plan_told(facts, PLAIN, "ultralytics\n--pre\nb==1+cu118\n")
    assert asked.kind == "resolve-first"
    assert asked.build.install == ["ultralytics", "b==1"] and asked.build.pythons == ["/p"]
    packages = {"ultralytics": "8", "torch": "2.4.0+cu130", "torchvision": "0.19.0"}
    facts["resolution"] = {"python": "/p", "packages": packages, "late": [], "failed": []}
    found = plan_told(facts, PLAIN, "ultralytics\n")
    assert found.build.torch.build == "cu126" and found.build.need_mib == 7168
    assert found.build.torch.requirements == ["torch", "torch<=2.4.0"]
    assert found.build.needs_torch and found.build.imports == ["torch", "torchvision"]
    facts["resolution"]["packages"] = {"ultralytics": "8"}
    found = plan_told(facts, PLAIN, "ultralytics\n")
    assert (found.build.torch, found.build.needs_torch) == (NO_TORCH, False)
