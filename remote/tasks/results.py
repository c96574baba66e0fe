"""Tasks for what came of a run: fetch-results, tensorboard, submit, verify-submission."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote.errors import UsageError
from remote.project.options import FetchOptions, SubmitOptions
from remote.tasks.entry import Work, task
from remote.tasks.sweeps import fetch_sweep, only_one

if TYPE_CHECKING:
    from remote.link.session import Session


@task(
    options=FetchOptions,
    help={
        "run": "latest, all, or a run's id, its beginning or its name",
        "dest": "directory here (default: results/)",
        "watch": (
            "keep mirroring until the run has ended: a server that vanishes then costs minutes, not"
            " the run"
        ),
        "then-shutdown": (
            "mirror to the end; once every run of the project is here and verified, ask, and shut"
            " the server down"
        ),
        "yes": "don't ask before much is fetched, nor before the shutdown",
        "sweep": "every run of this sweep from all hosts, with sweep.csv and sweep.png",
        "json": "print only JSON on stdout",
    },
)
def fetch_results(work: Work, options: FetchOptions, sweep: str | None = None) -> int:
    """
    Fetch a run's results, every file verified.

    Logs, checkpoints, weights and source: everything that the run created or changed comes, beside
    caches and environments; remote.results narrows that. Only what is missing or grew is
    transferred; after a broken connection the same command goes on where it stopped. Works while it
    trains.

        fab -H user@host fetch-results --run latest
        fab -H user@host fetch-results --watch
        fab -H user@host fetch-results --then-shutdown      # ends a rented server's bill

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 7 it
    can't be shut down, 10 a run has not ended, 11 no such run, 12 not verified or no room here.
    After 4 the same command goes on where it stopped.
    """
    if sweep:
        only_one(options.run, sweep)
        if options.watch or options.then_shutdown:
            raise UsageError(
                "--sweep fetches what is there now: --watch and --then-shutdown go without it"
            )
        return fetch_sweep(work, sweep, work.dest_of(options.dest))
    return fetch(work, options)


def fetch(work: Work, options: FetchOptions) -> int:
    from remote.runs.shutdown import shut_down
    from remote.tasks.run_tables import fetched_json, show_fetched
    from remote.transfer.fetch import fetch_run
    from remote.watching.listing import list_runs
    from remote.watching.watch import watch_run

    dest, ask = work.dest_of(options.dest), not options.yes
    if options.then_shutdown:
        work.only_target("--then-shutdown")
    if options.watch and len(work.targets) > 1:
        options = watch_together(work, options, dest)
    fetch_one = watch_run if options.watch or options.then_shutdown else fetch_run

    def fetch_from(session: Session) -> Iterator[dict[str, Any]]:
        names = [options.run]
        if options.run == "all":
            names = [run.run for run in list_runs(session)]
            if not names:
                work.display.line(f"{session.host}: no runs yet, so nothing to fetch")
        for name in names:
            fetched = fetch_one(session, name, dest, ask)
            show_fetched(work.display, fetched)
            yield fetched_json(fetched, session.host)
        if options.then_shutdown:
            shut_down(session, dest, options.yes)

    return work.in_turn(fetch_from)


def watch_together(work: Work, options: FetchOptions, dest: Path) -> FetchOptions:
    """Of a run that all hosts train, the first host's part is mirrored to the end; what is left to
    fetch then. Raises UsageError where they have nothing in common."""
    from remote.watching.watch import watch_run

    session, run = work.session_of(options.run, "--watch")
    with session:
        watch_run(session, run, dest, not options.yes)
    return replace(options, run=run, watch=False)


@task(
    help={
        "run": "latest, or a run's id, its beginning or its name",
        "port": "on this computer (default: a free one)",
        "browser": "open it in a browser (default on a terminal)",
    }
)
def tensorboard(work: Work, run: str = "latest", port: int = 0, browser: bool = True) -> int:
    """
    Show a run in TensorBoard on this computer, live.

    Its logs are mirrored here and shown on 127.0.0.1, where nobody else on the server sees them.
    Ctrl-C ends it, not the training.

        fab -H user@host tensorboard

    Exit codes: 0 done, 2 usage, 3 unreachable, 4 connection lost, 5 host key, 6 login refused, 11
    no such run.
    """
    from remote.watching.tensorboard import serve

    with work.only_session() as session:
        return serve(session, run, work.project.dest, port, browser)


@task(
    options=SubmitOptions,
    server=False,
    help={
        "run": (
            "a fetched run: latest (that has a result), its id, the beginning of it, its name, or a"
            " path"
        ),
        "dest": "where the bundle is made (default: submission/)",
        "data": (
            "the images that it was tested on, here: archive or folder; default: where the run had"
            " them"
        ),
        "push": "address of a repository of yours, to which it is pushed as main",
        "github": (
            "NAME or OWNER/NAME of a public repository that GitHub's program gh creates, after"
            " asking"
        ),
        "accept": (
            "a file that may stay although it looks like a secret; may be given several times"
        ),
        "yes": "don't ask before a public repository is created",
        "json": "print only JSON on stdout: the bundle",
    },
)
def submit(work: Work, options: SubmitOptions) -> int:
    """
    Make a fetched run into a repository to hand in.

    Source, logs, weights, and a README with the accuracy. The weights are evaluated again, here or
    with -H on the server that made them, and must give the claimed figure. Keys, tokens, .env files
    and home directories in settings stop it; SHA256SUMS covers every file. Nothing is pushed unless
    you say where.

        fab submit --data cifar-10-python.tar.gz --push git@github.com:you/cifar10.git
        fab -H user@host submit                  # on a laptop without torch or the images

    Exit codes: 0 ready, 2 usage, or something must not be handed in, 11 no such images, or the
    server no longer has the run, 12 the figure is not given again, or the push failed; with -H also
    3 to 7 as everywhere.
    """
    from remote.submission.submit import submit as submit_one

    if not work.targets:
        return submit_one(work.project, work.display, None, options)
    with work.only_session() as session:
        return submit_one(work.project, work.display, session, options)


@task(
    server=False,
    help={
        "folder": "the bundle, as made by submit or as cloned",
        "data": "evaluate its weights on these images, too",
    },
)
def verify_submission(work: Work, folder: str = "submission", data: str | None = None) -> int:
    """
    Check what was handed in: files, accuracy, secrets.

    Every file against SHA256SUMS; with --data the weights themselves.

        fab verify-submission --folder clone-of-it --data cifar-10-python.tar.gz

    Exit codes: 0 it is what it claims, 2 usage, 11 no such images, 12 it is not.
    """
    from remote.submission.submit import verify

    return verify(work.project, work.display, folder, data)
