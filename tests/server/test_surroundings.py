"""Bad surroundings: each is one line with cause and remedy, before anything was uploaded where it
can be known."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from remote.loopback import LoopbackServer
from tests.e2e.test_three_commands import FAB, fab
from tests.support.faults import Done, Lab, wait_until
from tests.support.nvidia_smi import FakeGpu, write_nvidia_smi
from tests.support.project import HOSTILE, Executable, make_project, make_tree, snapshot
from tests.support.sshd import USUAL, MakeServer, base_python, sparse_path

pytestmark = pytest.mark.timeout(120)


def refused(done: Done, code: int, *words: str) -> None:
    """One line, the exit code, every word of the cause and the remedy; what follows the dash is
    what to do."""
    assert done.code == code, done
    assert len(done.err.strip().splitlines()) == 1 and done.error_lines, done
    assert " — " in done.err and all(word in done.err for word in words), done


class TestShells:
    @pytest.mark.parametrize("shell", ["fish", "csh", "tcsh", "zsh", "bash", "dash"])
    def test_every_login_shell_will_do(
        self, make_server: MakeServer, tmp_path: Path, shell: str
    ) -> None:
        place = shutil.which(shell)
        if not place:
            pytest.skip(f"no {shell} here")
        lab = Lab(make_server(shell=place, env={"HOSTILE": "a'b"}), tmp_path)
        assert lab.task("train").code == 0
        wait_until(lambda: lab.rows()[0]["state"] == "finished")

    def test_a_noisy_one_too(self, make_server: MakeServer, tmp_path: Path) -> None:
        shell = tmp_path / "noisy"
        shell.write_text(
            "#!/bin/sh\n"
            'echo "Welcome to the GPU farm"; echo "mind the gap" >&2\n'
            'exec /bin/sh "$@"\n'
        )
        shell.chmod(0o755)
        lab = Lab(make_server(shell=str(shell)), tmp_path)
        done = lab.task("train")
        assert done.code == 0 and "Welcome" not in done.out + done.err

    def test_one_that_prints_without_end(self, make_server: MakeServer, tmp_path: Path) -> None:
        shell = tmp_path / "endless"
        shell.write_text("#!/bin/sh\nwhile :; do echo hello; done\n")
        shell.chmod(0o755)
        refused(
            Lab(make_server(shell=str(shell)), tmp_path).task("deploy"),
            13,
            "prints without end",
            ".bashrc",
        )

    def test_one_that_ends_at_once(self, make_server: MakeServer, tmp_path: Path) -> None:
        shell = tmp_path / "nologin"
        shell.write_text("#!/bin/sh\necho This account is not available.\nexit 1\n")
        shell.chmod(0o755)
        refused(
            Lab(make_server(shell=str(shell)), tmp_path).task("deploy"),
            7,
            "not available",
            "forced command",
        )

    @pytest.mark.parametrize("line", ["read x", "head -c 9 >/dev/null", "head -c 99999 >/dev/null"])
    def test_one_that_reads_what_is_sent(
        self, make_server: MakeServer, tmp_path: Path, line: str
    ) -> None:
        """As `ssh-add` does in ~/.bashrc, where it asks."""
        lab = Lab(make_server(shell=reading_shell(tmp_path, line)), tmp_path)
        for name in ("status", "wait"):
            refused(lab.task(name), 7, ".bashrc", "read no input")

    def test_one_that_reads_all_of_it_is_not_waited_for_without_end(
        self, make_server: MakeServer, tmp_path: Path
    ) -> None:
        shell = reading_shell(tmp_path, "cat >/dev/null")
        lab = Lab(make_server(shell=shell), tmp_path, settings={"timeout_s": 1})
        refused(lab.task("wait"), 4, ".bashrc", "read no input")


def reading_shell(folder: Path, line: str) -> str:
    shell = folder / "reads"
    shell.write_text(f'#!/bin/sh\n{line}\nexec /bin/sh "$@"\n')
    shell.chmod(0o755)
    return str(shell)


class TestPrograms:
    def test_no_python_or_one_too_old(self, make_server: MakeServer, tmp_path: Path) -> None:
        """Where this machine has one in a place that is always looked at, the too old ones are only
        passed over."""
        bare = sparse_path(tmp_path / "bare", USUAL, without=["python3"])
        old = sparse_path(tmp_path / "old", USUAL, without=["python3"])
        (tmp_path / "old" / "python3").write_text("#!/bin/sh\nexit 96\n")
        (tmp_path / "old" / "python3").chmod(0o755)
        for path, words in (
            (bare, ("no python3", "remote.python")),
            (old, ("older than 3.8", "miniconda")),
        ):
            server = make_server(path=path)
            make_tree(server.home, {".profile": f"PATH={path}\n"})
            done = Lab(server, tmp_path, name=Path(path).name).task("deploy")
            if done.code:
                refused(done, 7, *words)

    @pytest.mark.parametrize(
        ("stub", "words"),
        [
            ('echo "pyenv: python3: command not found" >&2; exit 127', "pyenv: python3"),
            ("echo no module named zlib >&2; exit 1", "zlib"),
            ("kill -SEGV $$", "no python3 found on the server runs"),
        ],
    )
    def test_a_python_that_does_not_run_is_passed_over(
        self, make_server: MakeServer, tmp_path: Path, stub: str, words: str
    ) -> None:
        path = sparse_path(tmp_path / "bin", USUAL, without=["python3"])
        broken = tmp_path / "bin" / "python3"
        make_tree(tmp_path / "bin", {"python3": Executable(f"#!/bin/sh\n{stub}\n")})
        server = make_server(path=path)
        make_tree(server.home, {".profile": f"PATH={path}\n"})
        done = Lab(server, tmp_path, name="alone").task("status")
        if done.code:  # this machine has none in a place that is always looked at
            refused(done, 7, "no python3 found on the server runs", words, "remote.python")
        (tmp_path / "bin" / "python3.11").symlink_to(base_python())
        lab = Lab(server, tmp_path)
        assert lab.task("train").code == 0
        lab.settings = {"python": str(broken)}
        done = lab.task("deploy")
        assert done.code == 8 and f"remote.python can't be used: {broken}" in done.error_lines[0]

    def test_one_that_the_user_may_not_execute(
        self, make_server: MakeServer, tmp_path: Path
    ) -> None:
        """Other commands do without it; a deploy names it once, and why."""
        closed = make_tree(tmp_path, {"python": ""}) / "python"
        lab = Lab(make_server(), tmp_path, settings={"python": str(closed)})
        assert lab.task("status").code == 0
        done = lab.task("deploy")
        assert done.code == 8 and len(done.error_lines) == 1, done
        assert f"{closed}: it does not run as python 3" in done.error_lines[0]
        assert "Permission denied" in done.error_lines[0] and done.err.count(str(closed)) == 1

    def test_no_tmux(self, make_server: MakeServer, tmp_path: Path) -> None:
        server = make_server(path=sparse_path(tmp_path / "bin", USUAL, without=["tmux"]))
        done = Lab(server, tmp_path).task("train")
        assert (
            done.code == 0
            and "no tmux on the server: the run was started with setsid instead" in done.err
        )

    def test_sftp_is_not_needed_and_one_session_is_enough(
        self, make_server: MakeServer, tmp_path: Path
    ) -> None:
        lab = Lab(
            make_server(options={"Subsystem": "sftp /bin/false", "MaxSessions": "1"}), tmp_path
        )
        for task in ("train", "logs", "fetch_results"):
            assert lab.task(task).code == 0

    def test_a_forced_command(self, make_server: MakeServer, tmp_path: Path) -> None:
        lab = Lab(make_server(options={"ForceCommand": "echo only git is served here"}), tmp_path)
        refused(lab.task("deploy"), 7, "only git is served here", "forced command")


class TestPlaces:
    @pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C"}, {"LC_ALL": "no_SUCH.UTF-8"}])
    def test_names_arrive_in_any_locale(
        self, make_server: MakeServer, tmp_path: Path, locale: dict[str, str]
    ) -> None:
        lab = Lab(make_server(env=locale), tmp_path, files={**HOSTILE, "train.sh": "echo ü up\n"})
        assert lab.task("train").code == 0
        release = (lab.root / "current").resolve()
        assert set(snapshot(release)) >= set(HOSTILE)
        wait_until(lambda: lab.rows()[0]["state"] == "finished")
        assert "ü up" in lab.task("logs").out

    def test_a_home_with_blanks_and_quotes(self, make_server: MakeServer, tmp_path: Path) -> None:
        lab = Lab(make_server(home=tmp_path / "home of 'mine' $x"), tmp_path)
        for task in ("train", "logs"):
            assert lab.task(task).code == 0
        wait_until(lambda: lab.rows()[0]["state"] == "finished")
        assert lab.task("fetch_results").code == 0

    @pytest.mark.parametrize("years", [-1, 1])
    def test_a_clock_that_is_a_year_off(
        self, server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, years: int
    ) -> None:
        lab = Lab(server, tmp_path)
        assert lab.task("train").code == 0
        wait_until(lambda: lab.rows()[0]["state"] == "finished")
        real = time.time
        written = time.strftime
        monkeypatch.setattr(time, "time", lambda: real() + years * 365 * 86400)
        monkeypatch.setattr(
            time,
            "strftime",
            lambda form, *when: written(form, *(when or (time.localtime(time.time()),))),
        )
        second = lab.task("train", set=[])
        assert second.code == 0
        newest = lab.rows()[0]["run"]
        assert newest in second.out
        wait_until(lambda: lab.rows()[0]["state"] == "finished")
        assert newest in lab.task("fetch_results").out
        done = lab.task("deploy")
        assert done.code == 0 and "code kept" in done.out


GPUS: dict[str, tuple[dict[str, Any], list[FakeGpu], tuple[str, ...]]] = {
    "driver mismatch": ({"exit_code": 18}, [], ("Driver/library version mismatch", "reboot")),
    "no driver": ({"exit_code": 9}, [], ("driver", " — ")),
    "no device": ({"exit_code": 6}, [], ("No devices were found",)),
    "lost": ({"exit_code": 15}, [], ("GPU is lost", "reboot")),
    "hanging": ({"hang": True}, [], ("nvidia-smi does not answer", "reboot")),
    "ERR!": ({}, [FakeGpu(memory_used="ERR!", utilization="ERR!")], ("H100", "–")),
    "[N/A]": ({}, [FakeGpu(memory_used="[N/A]", compute_cap="[N/A]")], ("H100", "–")),
    "MIG": ({}, [FakeGpu(mig="Enabled")], ("H100",)),
}


class TestGpus:
    @pytest.mark.parametrize("fault", GPUS)
    def test_what_is_wrong_is_shown_and_what_is_unknown_is_no_zero(
        self, server: LoopbackServer, tmp_path: Path, fault: str
    ) -> None:
        options, gpus, words = GPUS[fault]
        write_nvidia_smi(Path(server.path) / "nvidia-smi", gpus, **options)
        done = Lab(server, tmp_path).task("check_gpu")
        assert done.code == 0 and all(word in done.out for word in words), done

    def test_none_is_asked_for_where_there_is_none(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        done = Lab(server, tmp_path).task("check_gpu")
        assert "GPUs: none (no nvidia-smi on the server" in done.out

    def test_two_trains_at_once_do_not_share_a_gpu(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        """Both see it free: nvidia-smi shows nothing before torch is imported. The server gives it
        to one of them."""
        write_nvidia_smi(Path(server.path) / "nvidia-smi", [FakeGpu()])
        settings = {
            "requirements": "none",
            "command": "sh train.sh",
            "project": "p",
            "root": "~/projects/p",
        }
        files = {"train.sh": "echo up; sleep 30\n"}
        project = make_project(
            tmp_path / "project", files, settings=settings, parts=("fabfile.py", "remote")
        )
        fab(project, server, "deploy")
        together = [start_fab(project, server, "train", "--no-follow", "--now") for _ in range(2)]
        told = [one.communicate(timeout=60) for one in together]
        assert sorted(one.returncode for one in together) == [0, 9], told
        (refusal,) = [err for one, (_, err) in zip(together, told, strict=True) if one.returncode]
        assert (
            "no GPU is free: gpu 0: the run 2" in refusal
            and "--devices 0" in refusal
            and "Traceback" not in refusal
        )
        assert len(list((server.home / "projects" / "p" / "runs").glob("2*"))) == 1
        assert (
            "gpu 0 is not free: the run 2"
            in fab(project, server, "train", "--no-follow", "--devices", "0").stderr
        )


class TestTogether:
    def test_two_deploys_at_once_both_end_well(
        self, server: LoopbackServer, tmp_path: Path
    ) -> None:
        settings = {"requirements": "none", "command": "sh train.sh", "project": "p"}
        project = make_project(
            tmp_path / "project",
            {"big": os.urandom(5 << 20)},
            settings=settings,
            parts=("fabfile.py", "remote"),
        )
        together = [start_fab(project, server, "deploy") for _ in range(3)]
        told = [one.communicate(timeout=60) for one in together]
        assert [one.returncode for one in together] == [0, 0, 0], told
        release = (server.home / "projects" / "p" / "current").resolve()
        assert {
            name: what for name, what in snapshot(project).items() if name in snapshot(release)
        } == snapshot(release)
        assert [path.name for path in release.parent.iterdir() if path.name.startswith(".")] == []


def start_fab(project: Path, server: LoopbackServer, *words: str) -> subprocess.Popen[str]:
    argv = [*FAB, "-S", str(server.ssh_config), "-H", "loopback", *words]
    return subprocess.Popen(
        argv,
        cwd=project,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_gpus_that_are_asked_for_where_none_are_start_nothing(
    server: LoopbackServer, tmp_path: Path
) -> None:
    """Not a training on the processor, taken for one on the GPU until the morning."""
    lab = Lab(server, tmp_path)
    for options, words in (({"gpus": 2}, "--gpus 2"), ({"devices": "0"}, "--devices 0")):
        done = lab.task("train", **options)
        assert (
            done.code == 9
            and f"{words}: the server has no GPU (" in done.err
            and "to train on its processor" in done.err
        )
    assert not list((lab.root / "runs").glob("2*")) and lab.task("train").code == 0
