"""fabric.yaml as it is written: one line for what Fabric would show a traceback for, or take
without a word."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from remote.errors import UsageError
from remote.project.settings import defaults
from remote.records import SlurmSettings
from remote.screen.text import one_line

KNOWN = {"remote", *defaults(), *defaults(SlurmSettings)}


def read_yaml(path: Path, name: str) -> Any:
    """{} where there is none. Raises UsageError for what is no YAML."""
    import yaml

    if not path.exists():
        return {}
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), once_loader())
        return {} if found is None else found
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(error.problem or "it can't be read")
        if "\\t" in problem:
            problem = "a tab stands where spaces belong"
        raise UsageError(f"{name}{place}: {problem}", remedy="mend that line") from None
    except UnicodeDecodeError:
        raise UsageError(f"{name} is no UTF-8", remedy="save it as UTF-8") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = one_line(str(error), 200)
        raise UsageError(f"{name} can't be read: {said}", remedy="mend it") from None


def read_mapping(path: Path, name: str) -> dict[Any, Any]:
    """The same, of keys and values."""
    found = read_yaml(path, name)
    if not isinstance(found, dict):
        raise UsageError(f"{name}: settings stand as `key: value`", remedy="mend that file")
    return found


def once_loader() -> Any:
    """PyYAML's, which refuses a key that stands twice: the last one would count."""
    import yaml

    class Once(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            known = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in known:
                    problem = f"{one_line(key.value, 60)} is set a second time"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                known.add((key.tag, str(key.value)))
            return node

    return Once


def read_remote(path: Path) -> dict[str, Any]:
    """What is under `remote:` in fabric.yaml. Raises UsageError, also for what has no words for
    keys."""
    found = read_mapping(path, path.name)
    remote = found.get("remote", {})
    if remote is not None and not isinstance(remote, dict):
        text = f"{path.name}: settings stand as `key: value` below `remote:`"
        raise UsageError(text, remedy="mend fabric.yaml")
    tables = [one for one in (found, remote, (remote or {}).get("slurm")) if isinstance(one, dict)]
    for key in (key for table in tables for key in table):
        wrong = not isinstance(key, str) or (key.lower() in KNOWN and key != key.lower())
        if wrong or ("remote" not in found and difflib.get_close_matches("remote", [key], 1, 0.8)):
            text = f"{path.name}: {key!r:.60} is no setting"
            remedy = "settings are words in small letters, below `remote:`"
            raise UsageError(text, remedy=remedy)
    return remote or {}
