"""Tasks that prepare: deploy, doctor, setup-key, check-gpu, upload-data, clean."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from remote.tasks.entry import Work, first_code, task

if TYPE_CHECKING:
    from remote.link.session import Session


@task(
    help={
        "json": "print only JSON on stdout",
        "refresh": "make the environment anew, with what branches like @main stand for today",
    }
)
def deploy(work: Work, refresh: bool = False) -> int:
    """
    Put code and dependencies on the server, check its GPUs.

    Sends the files that git would track (uncommitted and new ones too), prepares a Python
    environment for remote.requirements, and proves it with a real operation on the GPU. What is in
    place already is kept.

        fab -H user@host:port deploy

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 7
    server, 8 environment, 9 GPU. All are in docs/reliability.md.
    """
    return deploy_all(work, refresh)


def deploy_all(work: Work, refresh: bool) -> int:
    def deploy_to(session: Session) -> Iterator[dict[str, Any]]:
        session.open()  # the login waits for the network, while the rest is loaded
        from remote.deploy.deploy import deploy as deploy_one
        from remote.deploy.shown import deploy_json, show_summary

        deployed = deploy_one(session, refresh=refresh)
        show_summary(session, deployed)
        if work.name == "deploy":  # the demo's server does not stay
            work.display.line(f"next: fab -H {session.typed} train")
        yield deploy_json(session, deployed)

    return work.in_turn(deploy_to)


@task(help={"json": "print only JSON on stdout"}, server=False)
def doctor(work: Work) -> int:
    """
    Check this computer, and with -H the server.

    Each line is ok, a warning or a problem, with what to do about it. Changes nothing.

        fab -H user@host doctor

    Exit codes: 0 nothing worse than warnings, else that of the first problem: 2 this computer or
    the settings, 3 unreachable, 5 host key, 6 login refused, 7 server, 8 environment, 9 GPU.
    """
    from remote.deploy.doctor import examine

    return examine(work.project, [work.session(target) for target in work.targets], work.display)


@task()
def setup_key(work: Work) -> int:
    """
    Log in without a password from now on.

    Puts your public key on the server. Takes the key of -i, else the first of ~/.ssh, else makes an
    ed25519 key. Then logs in with it alone, to be sure.

        fab -H user@host:port setup-key

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, also
    with the new key.
    """
    from remote.deploy.setup_key import setup_key as setup_one

    return first_code(work.on_each(work.targets, setup_one))


@task()
def logout(work: Work) -> int:
    """
    End the login that is kept for the next command.

        fab -H user@host logout

    It is kept for remote.stay_s, 10 minutes by default.
    A ControlPath of your own in ~/.ssh/config is used and never ended. Exit codes: 0 also where
    none was kept, 2 usage.
    """
    from remote.ssh.openssh import log_out

    for target in work.targets:
        work.display.line(
            f"{target.spec}: {'logged out' if log_out(target) else 'no login was kept'}"
        )
    return 0


@task(help={"json": "print only JSON on stdout"})
def check_gpu(work: Work) -> int:
    """
    Show the server's GPUs, who uses them, and which are free.

    Beside nvidia-smi's figures: what torch has computed on them. With Slurm also the partition's
    nodes and who waits.

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused.
    """
    from remote.deploy.shown import gpu_json, look_at_gpus, show_gpus

    answers = work.on_all(look_at_gpus)
    work.tell_json([gpu_json(target.spec, answer, error) for target, answer, error in answers])
    for target, answer, error in answers if not work.json else ():
        if len(answers) > 1:
            work.display.line(f"{target.spec}:")
        if error:
            work.display.error(error)
        else:
            show_gpus(work.display, answer)
    return work.first_failure(answers)


@task(
    help={
        "path": "here: any file or folder; for our trainer CIFAR-10's archive or images",
        "name": "its name there (default: that of the path)",
        "json": "print only JSON on stdout",
    }
)
def upload_data(work: Work, path: str, name: str | None = None) -> int:
    """
    Send data to the server once, for all runs there.

    `train --data NAME` uses it, and a command of one's own finds it in $REMOTE_DATA_DIR/NAME. Only
    what the server lacks is sent, every file is verified; a broken connection is gone on with where
    it stopped.

        fab -H user@host upload-data cifar-10-python.tar.gz
        fab -H user@host upload-data photos      # <class>/*, train/ and test/ of them, or a CSV
        fab -H user@host upload-data photos.zip

    Exit codes: 0 done, 2 usage, or no images, 3 unreachable, 4 connection lost, 5 host key, 6 login
    refused, 7 no room there, 12 not verified. After 4 the same command goes on where it stopped.
    """
    from remote.transfer.upload import show_uploaded
    from remote.transfer.upload import upload_data as upload_to

    def upload(session: Session) -> Iterator[dict[str, Any]]:
        done = upload_to(session, path, name)
        show_uploaded(session, done)
        yield {"host": session.host} | dataclasses.asdict(done)

    return work.in_turn(upload)


@task(
    help={
        "yes": "remove what is listed",
        "run": "this run alone, although not all of it is here; may be given several times",
        "dest": "where fetch-results has brought the runs (default: results/)",
        "json": "print only JSON on stdout",
    }
)
def clean(work: Work, yes: bool = False, run: Sequence[str] = (), dest: str | None = None) -> int:
    """
    List what nothing on the server needs; --yes removes it.

    That is releases, environments, images, and runs that lie here completely, as they were fetched.
    A run that has not ended stays, and so does one of which something is not here, whoever has
    fetched it, unless it is named by --run: then nothing else goes.

        fab -H user@host clean --yes

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 7
    another project's root.
    """
    from remote.runs.clean import clean_one, show_cleaned

    def clean_there(session: Session) -> Iterator[dict[str, Any]]:
        answer = clean_one(session, yes, run, work.dest_of(dest))
        if not work.json:
            show_cleaned(session, answer, yes, dest)
        yield {"host": session.host} | dataclasses.asdict(answer)

    return work.in_turn(clean_there)
