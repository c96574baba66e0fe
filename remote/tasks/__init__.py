"""The tasks as `fab --list` shows them: arguments in, one call into the rooms below, an expected error as one line with an exit code.

A project's fabfile.py is three lines: `from remote.tasks import tasks` and `ns = tasks(Path(__file__).parent)`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from remote.project.settings import defaults
from remote.tasks import command_line
from remote.tasks.command_line import LINE


def call(c: Context, command: str, *, json: bool = False, **options: Any) -> None:
    from remote.tasks import commands

    sys.exit(commands.run(c, LINE.project, command, json, options))


@task(auto_shortflags=False, help={"json": "print only JSON on stdout"})
def deploy(c: Context, json: bool = False) -> None:
    """
    Put code and dependencies on the server, and check its GPUs.

    Sends the files that git would track (uncommitted and new ones too), prepares a Python environment for
    remote.requirements, and proves it with a real operation on the GPU. What is in place already is kept.

        fab -H user@host:port deploy

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 7 server, 8 environment, 9 GPU.
    All are in docs/reliability.md.
    """
    call(c, "deploy", json=json)


@task(
    auto_shortflags=False,
    iterable=["set"],
    help={
        "recipe": "standard, demo or another of trainer/recipes (default: remote.recipe)",
        "set": "field=value, a field of the recipe to change; may be given several times",
        "data": "where the data is on the server: a path, or `synthetic`; default: the recipe's",
        "devices": "GPUs to use: auto takes the free ones, 0,1 are nvidia-smi's indices",
        "gpus": "so many of the free ones; where too few are free the run waits in the server's queue",
        "now": "refuse rather than wait for a GPU",
        "max-restarts": "after a crash or a kill the server itself goes on from the newest checkpoint, so often",
        "notify": "a webhook that is told when the run has ended (ntfy, Slack, Feishu, WeCom, …): its address, or @FILE with it",
        "name": "a name for the run, to find it by",
        "resume": "go on with a run that has ended, from its newest checkpoint: latest, its id, the beginning of it, or its name",
        "follow": "stay and show the training (default on a terminal); the training goes on without you",
        "no-follow": "come back as soon as the training runs",
    },
)
def train(
    c: Context,
    recipe: str | None = None,
    set: list[str] | None = None,
    data: str | None = None,
    devices: str = "auto",
    name: str | None = None,
    resume: str | None = None,
    gpus: int = 0,
    now: bool = False,
    max_restarts: int = 0,
    notify: str | None = None,
    follow: bool = False,
    no_follow: bool = False,
) -> None:
    """
    Start a training on the server, in tmux; deploys first if something changed.

    The laptop may be closed afterwards. Ctrl-C while following leaves the training alone.

        fab -H user@host train --recipe demo --set max_epochs=3
        fab -H user@host train --resume latest      # a run that the server no longer has is brought there from results/

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused,
    7 server, 8 environment, 9 GPU, 10 the training failed. After 4 the same command never starts a second run.
    """
    following = True if follow else False if no_follow else None
    call(
        c, "train", recipe=recipe, fields=set or [], data=data, devices=devices, name=name, resume=resume, gpus=gpus or None,
        now=now, max_restarts=max_restarts, notify=notify, follow=following,
    )  # fmt: skip


@task(
    auto_shortflags=False,
    help={"run": "latest, all, or a run's id, its beginning or its name", "dest": "directory here (default: results/)",
          "watch": "keep mirroring until the run has ended: a server that vanishes then costs minutes, not the run",
          "then-shutdown": "mirror to the end; once every run of the project is here and verified, ask, and shut the server down",
          "yes": "don't ask before much is fetched, nor before the shutdown", "json": "print only JSON on stdout"},
)  # fmt: skip
def fetch_results(
    c: Context, run: str = "latest", dest: str | None = None, watch: bool = False, then_shutdown: bool = False, yes: bool = False,
    json: bool = False,
) -> None:  # fmt: skip
    """
    Bring a run's logs, checkpoints, weights and source here, every file verified.

    Everything that the run created or changed comes, beside caches and environments; remote.results narrows that. Only what is
    missing or grew is transferred; after a broken connection the same command goes on where it stopped. Works while it trains.

        fab -H user@host fetch-results --run latest
        fab -H user@host fetch-results --watch
        fab -H user@host fetch-results --then-shutdown      # ends a rented server's bill; its command is remote.shutdown

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused,
    7 it can't be shut down, 10 a run has not ended, 11 no such run, 12 not verified or no room here.
    After 4 the same command goes on where it stopped.
    """
    call(c, "fetch_results", json=json, run_name=run, dest=dest, watch=watch, then_shutdown=then_shutdown, yes=yes)


@task(
    auto_shortflags=False,
    help={"path": "here: the CIFAR-10 archive, or a folder of images", "name": "its name there (default: that of the path)",
          "json": "print only JSON on stdout"},
)  # fmt: skip
def upload_data(c: Context, path: str, name: str | None = None, json: bool = False) -> None:
    """
    Send images to the server once, for all runs there; `train --data NAME` uses them.

    Only what the server lacks is sent, every file is verified; a broken connection is gone on with where it stopped.

        fab -H user@host upload-data cifar-10-python.tar.gz
        fab -H user@host upload-data photos                 # photos/train/<class>/*, photos/test/<class>/*

    Exit codes: 0 done, 2 usage, or no images, 3 unreachable, 4 connection lost, 5 host key, 6 login refused,
    7 no room there, 12 not verified. After 4 the same command goes on where it stopped.
    """
    call(c, "upload_data", json=json, path=path, name=name)


@task(auto_shortflags=False, help={"json": "print only JSON on stdout: a list, newest run first"})
def status(c: Context, json: bool = False) -> None:
    """
    Show all runs of this project on the server: state, progress, accuracy, GPUs.

    With -H a,b all hosts are asked at once.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused.
    A server that can't be reached is shown as unreachable, never as a failed run.
    """
    call(c, "status", json=json)


@task(
    auto_shortflags=False,
    help={"run": "latest, or a run's id, its beginning or its name", "follow": "stay and show new lines until the run ends",
          "lines": "how many of the last lines to begin with", "json": "print only JSON on stdout"},
)  # fmt: skip
def logs(c: Context, run: str = "latest", follow: bool = False, lines: int = 40, json: bool = False) -> None:
    """
    Show the end of a run's log; with --follow what comes after it, too.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 11 no such run.
    """
    call(c, "logs", json=json, run_name=run, follow=follow, lines=lines)


@task(auto_shortflags=False, help={"run": "latest, or a run's id, its beginning or its name"})
def stop(c: Context, run: str = "latest") -> None:
    """
    Stop a run politely: it has a minute to save its state.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 10 it did not stop, 11 no such run.
    """
    call(c, "stop", run_name=run)


@task(auto_shortflags=False, help={"run": "latest, or a run's id, its beginning or its name"})
def follow(c: Context, run: str = "latest") -> None:
    """
    Show a run live: its last log lines and what comes, progress, accuracy, time left, GPU use. Ctrl-C leaves it alone.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 11 no such run.
    """
    call(c, "logs", run_name=run, follow=True, lines=12)


@task(auto_shortflags=False, help={"run": "latest, or a run's id, its beginning or its name"})
def attach(c: Context, run: str = "latest") -> None:
    """
    Go into a run's tmux with the system's ssh; Ctrl-b d comes back and leaves it running.

    Exit codes: ssh's own, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 10 it does not run in tmux,
    11 no such run.
    """
    call(c, "attach", run=run)


@task(
    auto_shortflags=False,
    help={"run": "latest, or a run's id, its beginning or its name", "port": "on this computer (default: a free one)",
          "browser": "open it in a browser (default on a terminal)"},
)  # fmt: skip
def tensorboard(c: Context, run: str = "latest", port: int = 0, browser: bool = True) -> None:
    """
    Mirror a run's logs and show them in TensorBoard on 127.0.0.1, where nobody else on the server sees them. Ctrl-C ends it.

        fab -H user@host tensorboard

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 11 no such run.
    """
    call(c, "tensorboard", run=run, port=port, browser=browser)


@task(auto_shortflags=False)
def setup_key(c: Context) -> None:
    """
    Put your public key on the server, so that later commands ask for no password.

    Takes the key of -i, else the first of ~/.ssh, else makes an ed25519 key. Then logs in with it alone, to be sure.

        fab -H user@host:port setup-key

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, also with the new key.
    """
    call(c, "setup_key")


@task(auto_shortflags=False, help={"json": "print only JSON on stdout"})
def doctor(c: Context, json: bool = False) -> None:
    """
    Check this computer, and with -H the server: each line ok, a warning or a problem, with what to do. Changes nothing.

        fab -H user@host doctor

    Exit codes: 0 nothing worse than warnings, else that of the first problem: 2 this computer or the settings, 3 unreachable,
    5 host key, 6 login refused, 7 server, 8 environment, 9 GPU.
    """
    call(c, "doctor", json=json)


@task(auto_shortflags=False, help={"json": "print only JSON on stdout"})
def check_gpu(c: Context, json: bool = False) -> None:
    """
    Show the server's GPUs: nvidia-smi as a table, who uses them, and what torch sees.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused.
    """
    call(c, "check_gpu", json=json)


@task(
    auto_shortflags=False,
    iterable=["run"],
    help={"yes": "remove what is listed", "run": "a run that may go although not all of it was fetched; may be given several times",
          "json": "print only JSON on stdout"},
)  # fmt: skip
def clean(c: Context, yes: bool = False, run: list[str] | None = None, json: bool = False) -> None:
    """
    List what nothing on the server needs: releases, environments, and runs that were fetched; with --yes remove it.

    A run that has not ended stays, and so does one of which something is not here, unless it is named by --run.

        fab -H user@host clean --yes

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 7 another project's root.
    """
    call(c, "clean", json=json, yes=yes, named=run or [])


@task(
    auto_shortflags=False,
    help={
        "data": "a CIFAR-10 archive or a folder of images; without it, synthetic images are made",
        "keep": "keep the demo's server directory",
    },
)
def demo(c: Context, data: str | None = None, keep: bool = False) -> None:
    """
    Show the whole way on this computer: an SSH server on loopback, deploy, train, fetch-results.
    """
    call(c, "demo", data=data, keep=keep)


@task(
    auto_shortflags=False,
    iterable=["accept"],
    help={
        "run": "a fetched run: latest (that has a result), its id, the beginning of it, its name, or a path",
        "dest": "where the bundle is made (default: submission/)",
        "data": "the images that it was tested on, here: archive or folder; default: where the run had them",
        "push": "address of a repository of yours, to which it is pushed as main",
        "github": "NAME or OWNER/NAME of a public repository that GitHub's program gh creates, after asking",
        "accept": "a file that may stay although it looks like a secret; may be given several times",
        "yes": "don't ask before a public repository is created",
    },
)
def submit(
    c: Context,
    run: str = "latest",
    dest: str = "submission",
    data: str | None = None,
    push: str | None = None,
    github: str | None = None,
    accept: list[str] | None = None,
    yes: bool = False,
) -> None:
    """
    Make a fetched run into a repository to hand in: source, logs, weights, and a README with the accuracy.

    The weights are evaluated again, here or with -H on the server that made them, and must give the claimed figure.
    Keys, tokens, .env files and home directories in settings stop it; SHA256SUMS covers every file. Nothing is pushed
    unless you say where.

        fab submit --data cifar-10-python.tar.gz --push git@github.com:you/cifar10.git
        fab -H user@host submit                             # on a laptop without torch or without the images

    Exit codes: 0 ready, 2 usage, or something must not be handed in, 12 the figure is not given again, or the push failed;
    with -H also 3 to 7 as everywhere, and 11 the server no longer has the run.
    """
    call(c, "submit", run=run, dest=dest, data=data, push=push, github=github, accept=accept or [], yes=yes)


@task(
    auto_shortflags=False,
    help={"folder": "the bundle, as made by submit or as cloned", "data": "evaluate its weights on these images, too"},
)
def verify_submission(c: Context, folder: str = "submission", data: str | None = None) -> None:
    """
    Check a bundle: every file against SHA256SUMS, the claimed accuracy, secrets; with --data the weights themselves.

        fab verify-submission --folder clone-of-it --data cifar-10-python.tar.gz

    Exit codes: 0 it is what it claims, 2 usage, 12 it is not.
    """
    call(c, "verify_submission", folder=folder, data=data)


TASKS = (
    deploy, train, fetch_results, status, follow, logs, attach, tensorboard, stop, upload_data, check_gpu, doctor, setup_key, clean,
    submit, verify_submission, demo,
)  # fmt: skip


def tasks(project: Path) -> Collection:
    """All of them, for the project whose fabfile asks: code, settings and results are those of its directory."""
    LINE.project = project.resolve()
    collection = Collection(*TASKS)
    collection.configure({"remote": defaults()})
    command_line.take_over(list(collection.task_names))
    return collection
