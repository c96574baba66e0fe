"""The demo's task: the whole way on this computer."""

from __future__ import annotations

from remote.tasks.entry import Work, task


@task(
    server=False,
    help={
        "data": "a CIFAR-10 archive or a folder of images; without it, synthetic images are made",
        "keep": "keep the demo's server directory",
    },
)
def demo(work: Work, data: str | None = None, keep: bool = False) -> int:
    """
    Show the whole way on this computer, without any server.

    An SSH server on loopback, then deploy, train and fetch-results against it.

    Exit codes: 0 done, else that of the command that failed.
    """
    from remote.tasks.demo_way import demo as play

    return play(work.project, work.display, data, keep)
