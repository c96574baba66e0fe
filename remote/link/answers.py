"""The form of the agent's answers, checked once where they arrive: what lies above may rely on it,
whoever runs the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remote.errors import ProtocolError

Shape = Any
"""A type or several; {name: shape} for an object, whose names may be missing or null; [shape] for a
list of these; "any"."""

NUMBER = (int, float)
TEXTS = [str]
TORCH = {"version": str, "cuda": str, "hip": str, "build": str}
PROOF = {"boot_id": str, "host": str, "driver": str, "gpu_uuids": TEXTS, "reason": str}
ENVIRONMENT = {
    "key": str,
    "python": str,
    "prefix": str,
    "base": str,
    "version": str,
    "installer": str,
    "torch": TORCH,
    "proofs": [PROOF],
    "names": TEXTS,
    "built": NUMBER,
    "seconds": NUMBER,
    "requirements_hash": str,
    "wanted": dict,
}
INTERPRETER = {
    "path": str,
    "version": str,
    "problem": str,
    "packages": {},
    "torch": TORCH,
    "markers": {},
    "sites": TEXTS,
    "version_info": [int],
}
RUN = {"run": str, "state": str}
SHAPES: Mapping[str, Shape] = {
    "facts": {
        "system": {"machine": str, "boot_id": str, "host": str},
        "root": {
            "path": str,
            "problem": {"message": str, "remedy": str},
            "free_mib": int,
            "mount": str,
        },
        "gpu": {},
        "environments": [ENVIRONMENT],
        "interpreters": [INTERPRETER],
        "releases": [dict],
        "runs": [RUN],
        "missing": TEXTS,
        "partial": {},
        "datasets": {"names": TEXTS, "cifar10": str},
        "current": str,
        "data_path": str,
        "tmux": str,
    },
    "environment_inspect": {"interpreters": [INTERPRETER], "pip_config": {}},
    "environment_prepare": {"environment": ENVIRONMENT},
    "environment_prove": {"proof": PROOF},
    "release_missing": {"missing": TEXTS, "partial": {}},
    "data_missing": {"exists": bool, "named": bool, "missing": TEXTS, "partial": {}},
    "data_put": {"path": str, "received": int},
    "reach": {"reached": bool, "problem": str},
    "runs": {"runs": [dict]},
    "fetch_manifest": {"run": dict, "files": [list], "left": [list], "seen": str, "marked": str},
    "fetch_lane": {"short": bool},
    "fetch_hash": {"sha256": str},
    "run_start": {"launched": str, "note": str, "again": bool},
    "run_resume": {"run": str, "launched": str, "note": str, "again": bool, "attempt": int},
    "run_import": {"run": str, "exists": bool},
    "evaluate": {
        "run": str,
        "told": {"test_accuracy": NUMBER, "test_images": int, "data_sha256": str},
    },
    "shutdown": {"command": str, "others": TEXTS},
    "run_stop": {"run": str, "state": str, "asked": bool},
    "clean": {"items": [{"bytes": int}], "kept": [{"run": str, "state": str}]},
}


def check_answer(op: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer itself; raises ProtocolError that names the part which has the wrong form."""
    wrong = find_wrong(SHAPES.get(op, {}), answer, "")
    if wrong is not None:
        raise ProtocolError(
            f"the server's answer to {op!r} has the wrong form{f' at {wrong}' if wrong else ''}"
        )
    return answer


def find_wrong(shape: Shape, value: Any, place: str) -> str | None:
    """Where `value` departs from `shape`; None where it does not. The place is made of our own
    names and numbers only."""
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            return place
        parts = (
            (inner, value[name], f"{place}.{name}".lstrip("."))
            for name, inner in shape.items()
            if value.get(name) is not None
        )
        return next((wrong for part in parts if (wrong := find_wrong(*part)) is not None), None)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return place
        items = ((shape[0], item, f"{place}[{number}]") for number, item in enumerate(value))
        return next((wrong for item in items if (wrong := find_wrong(*item)) is not None), None)
    kinds = shape if isinstance(shape, tuple) else (shape,)
    right = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
    return None if right else place
