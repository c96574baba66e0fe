"""remote-train: the same tasks as fab, in a folder with a fabfile and in one without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from remote.loopback import LoopbackServer
from tests.support.project import REPOSITORY, Content, Link, make_tree

CODE = "from remote.tasks.program import main; main()"


def remote_train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", CODE, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def test_a_folder_without_a_fabfile_trains(tmp_path: Path, server: LoopbackServer) -> None:
    """By its fabric.yaml; the options before the task and what follows `--` arrive."""
    settings = "load_ssh_configs: false\nremote:\n  command: sh a.sh\n  requirements: none\n"
    project = make_tree(tmp_path / "p", {"a.sh": 'echo "got $1"\n', "fabric.yaml": settings})
    before = ("-S", str(server.ssh_config), "-H", "loopback")
    done = remote_train(project, *before, "train", "--follow", "--", "this")
    assert done.returncode == 0 and "got this" in done.stdout and "finished" in done.stdout, done
    assert (server.home / "projects" / "p" / "runs").is_dir()
    wrong = remote_train(project, *before, "status", "--", "this")
    assert wrong.returncode == 2 and "belongs to train, not to status" in wrong.stderr


def test_a_fabfile_is_used_where_there_is_one(tmp_path: Path) -> None:
    own = "from invoke import task\n@task\ndef mine(c):\n    print('mine')\n"
    project = make_tree(tmp_path / "p", {"fabfile.py": own})
    assert remote_train(project, "mine").stdout == "mine\n"
    inside = make_tree(project / "deep", {"x": ""})
    assert remote_train(inside, "mine").stdout == "mine\n"


def test_a_project_is_found_from_within(tmp_path: Path, server: LoopbackServer) -> None:
    """Its settings and its files, as fab finds them; and hints name what was typed."""
    settings = "load_ssh_configs: false\nremote: {command: sh a.sh, requirements: none}\n"
    project = make_tree(tmp_path / "p", {"a.sh": "echo up\n", "fabric.yaml": settings, "d/x": ""})
    before = ("-S", str(server.ssh_config), "-H", "loopback")
    done = remote_train(project / "d", *before, "train", "--follow")
    assert done.returncode == 0 and (server.home / "projects" / "p" / "runs").is_dir(), done
    assert "  remote-train -H loopback -S " in done.stdout and "fab " not in done.stdout
    for words in (("train", "--help"), ("--list",), ("status",), ("statsu",)):
        told = remote_train(project / "d", *words)
        assert "remote-train " in told.stdout + told.stderr, told
        assert "fab " not in told.stdout + told.stderr, told


@pytest.mark.parametrize("text", ["a: [\n", "- a\n", "a: 1\na: 2\n"])
def test_settings_of_fabrics_own_that_can_not_be_read_are_one_line(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / ".fabric.yaml").write_text(text)
    done = by_shell(tmp_path, '"$@" --list', HOME=str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done
    assert done.stderr.startswith(f"error: {tmp_path}/.fabric.yaml"), done


@pytest.mark.parametrize("line", ['"$@" --list', '"$@" train --help', '"$@"'])
def test_lists_and_help_that_can_not_be_written_end_in_no_traceback(
    tmp_path: Path, line: str
) -> None:
    for where, code in ((">/dev/full", 12), (">&-", 12)):
        done = by_shell(tmp_path, f"{line} {where}")
        assert done.returncode == code and len(done.stderr.splitlines()) == 1, done
        assert done.stderr.startswith("error: stdout can't be written: "), done
    piped = by_shell(tmp_path, f"({line}; echo ends with $? >&2) | true")
    assert piped.stderr == "ends with 0\n", piped


def test_completion(tmp_path: Path) -> None:
    """What the shells' script asks for."""
    done = remote_train(tmp_path, "--complete", "--", "remote-train train --with")
    assert "--with-new-code" in done.stdout.split(), done
    script = remote_train(tmp_path, "--print-completion-script", "bash").stdout
    assert "complete -F" in script and "remote-train" in script


def by_shell(folder: Path, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`"$@"` in the line is remote-train."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}
    return subprocess.run(
        ["sh", "-c", line, "sh", sys.executable, "-c", CODE],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


@pytest.mark.parametrize("line", ['"$@" doctor', '"$@" doctor --json'])
@pytest.mark.parametrize("where", [">/dev/full", ">&-", "2>&-", "<&-"])
def test_streams_that_can_not_be_written_end_in_no_traceback(
    tmp_path: Path, line: str, where: str
) -> None:
    project = make_tree(tmp_path / "p", {"train.py": "", "fabric.yaml": "remote: {}\n"})
    done = by_shell(project, f"{line} {where}")
    if where.startswith(">"):
        (told,) = [text for text in done.stderr.splitlines() if "error" in text.lower()]
        assert done.returncode == 12 and told.startswith("error: stdout can't be written: ")
    else:
        assert done.returncode in (0, 2) and "settings" in done.stdout, done
        assert "Traceback" not in done.stderr


def test_json_is_escaped_where_the_encoding_lacks_a_sign(tmp_path: Path) -> None:
    name = "Übung.py"
    settings = f"remote: {{command: python {name}}}\n"
    project = make_tree(tmp_path / "p", {"fabric.yaml": settings, "a.py": ""})
    for encoding in ("ascii", "utf-8"):
        done = by_shell(project, '"$@" doctor --json', PYTHONIOENCODING=encoding)
        assert any(name in check["text"] for check in json.loads(done.stdout)), done


@pytest.mark.parametrize("kind", ["a file", "a link out of reach"])
def test_results_that_can_not_be_written_are_one_line(
    tmp_path: Path, server: LoopbackServer, kind: str
) -> None:
    settings = "load_ssh_configs: false\nremote:\n  command: sh a.sh\n  requirements: none\n"
    project = make_tree(tmp_path / "p", {"a.sh": "echo up\n", "fabric.yaml": settings})
    results: Content = "x" if kind == "a file" else Link("/proc/nothing")
    make_tree(project, {"results": results})
    before = ("-S", str(server.ssh_config), "-H", "loopback")
    for words in (("train",), ("sweep", "--grid", "n=1,2", "--", "{n}")):
        done = remote_train(project, *before, *words)
        assert done.returncode == 12 and "Traceback" not in done.stderr, done
        assert f"{project}/results" in done.stderr and "can't be written: " in done.stderr
    assert not list((server.home / "projects" / "p" / "runs").glob("2*"))
    if kind == "a file":
        told = remote_train(project, "doctor")
        assert told.returncode == 2 and "results is no folder" in told.stdout, told
