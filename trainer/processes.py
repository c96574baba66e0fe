"""Several processes of one training: who talks, who waits for whom, and that none is left
behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

END_S = 10.0
"""The other processes have so long to end by themselves."""
_others: list[subprocess.Popen[bytes]] = []


def is_first_process() -> bool:
    """Lightning starts the others with LOCAL_RANK set."""
    return (
        int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0
    )


def host_count() -> int:
    """Hosts that train together: whoever starts the training on each of them says so."""
    return int(os.environ.get("NNODES", "1")) if "MASTER_ADDR" in os.environ else 1


def say(text: str) -> None:
    """Of several processes only the first one talks."""
    if is_first_process():
        print(text, flush=True)


def wait_for_others() -> None:
    """The first process writes the checkpoints that all read."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def leave_others() -> None:
    """When all that they do together is done: what follows must not wait for them."""
    import torch.distributed

    wait_for_others()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def remember_others(launcher: object) -> None:
    """The processes that Lightning's launcher has started, if it has; it waits for none of them."""
    _others.extend(process for process in getattr(launcher, "procs", []) if process not in _others)


def end_others() -> None:
    """At the end of the first process. One that hangs in a collective would keep its GPU for
    good."""
    deadline = time.monotonic() + (END_S if sys.exc_info()[0] is None else 0.0)
    for process in _others:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _others.clear()


def end_with_parent() -> None:
    """In every process but the first: end when that one is killed, whatever this one is doing."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
