"""The house: which room may import from which, and what only one room may do. The picture is in
docs/architecture.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAPTOP = (
    "errors",
    "records",
    "screen",
    "project",
    "release",
    "ssh",
    "link",
    "requirements",
    "deploy",
    "transfer",
    "watching",
    "runs",
    "hosts",
    "submission",
    "loopback",
    "tasks",
)
AGENT = (
    "shared",
    "root",
    "machine",
    "launchers",
    "releases",
    "data",
    "environments",
    "run_files",
    "runs",
    "results",
    "training",
    "group",
    "supervisor",
    "serve",
)
"""Each may import from those before it, and none from those behind it."""


def imports(file: Path) -> Iterator[str]:
    """Full names of what a file imports, inside functions too; `from package import name` gives
    package.name."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: relative imports hide the room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rooms(package: Path, order: tuple[str, ...]) -> Iterator[tuple[str, Path]]:
    """(room, file) of everything in the package but its own entrances."""
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__") and not (
            package.name == "remote" and parts[0] == "agent"
        ):
            assert parts[0] in order, f"{file}: a room that stands in no order"
            yield parts[0], file


def test_imports_on_the_laptop_go_one_way_and_of_the_agent_to_what_is_shared() -> None:
    wrong = []
    for room, file in rooms(ROOT / "remote", LAPTOP):
        for name in imports(file):
            parts = name.split(".")
            if name.startswith("remote.agent"):
                wrong += [f"{file}: {name}"] if parts[2] != "shared" else []
            elif parts[0] == "remote" and LAPTOP.index(parts[1]) > LAPTOP.index(room):
                wrong.append(f"{file}: {name}")
    assert not wrong, "\n".join(wrong)


def test_the_agent_s_imports_go_one_way_and_to_the_standard_library() -> None:
    wrong = []
    for room, file in rooms(ROOT / "remote" / "agent", AGENT):
        for name in imports(file):
            parts = name.split(".")
            if parts[:2] == ["remote", "agent"]:
                wrong += [f"{file}: {name}"] if AGENT.index(parts[2]) > AGENT.index(room) else []
            elif parts[0] not in sys.stdlib_module_names:
                wrong.append(f"{file}: {name}")
    assert not wrong, "\n".join(wrong)


def test_no_files_need_each_other() -> None:
    """Else neither can be read, or tried, alone."""
    needs: dict[str, set[str]] = {}
    for package in ("remote", "trainer"):
        for file in (ROOT / package).rglob("*.py"):
            if file.name != "__init__.py" and file.name != "__main__.py":
                needs[".".join(file.relative_to(ROOT).with_suffix("").parts)] = {*imports(file)}
    for name, found in needs.items():
        known = {other for one in found for other in (one, one.rpartition(".")[0])}
        needs[name] = (known & {*needs}) - {name}
    assert [*TopologicalSorter(needs).static_order()]


def test_the_trainer_knows_nothing_of_the_orchestrator() -> None:
    assert [
        file
        for file in (ROOT / "trainer").rglob("*.py")
        if any(name.split(".")[0] == "remote" for name in imports(file))
    ] == []


def test_only_the_ssh_room_knows_paramiko_and_only_the_screen_prints_and_knows_rich() -> None:
    for room, file in rooms(ROOT / "remote", LAPTOP):
        if room != "ssh" and file.name != "doctor.py":  # which tells its version
            assert not any(name.split(".")[0] == "paramiko" for name in imports(file)), file
        if room != "screen":
            assert not any(name.split(".")[0] == "rich" for name in imports(file)), file
        if file.name == "run_progress.py":  # belongs to the user's project
            continue
        calls = [
            node.func
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        ]
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), file
