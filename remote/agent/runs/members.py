"""A host that trains along in a run which another one leads: with a copy of the run on its own
disk, or with a folder in the run's directory where they share one."""

import os
from typing import Any, Dict, Tuple

from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.roots import prepare_root
from remote.agent.root.run_json import load, save
from remote.agent.run_files.attempts import queued_state
from remote.agent.run_files.private import keep_private, read_variables
from remote.agent.run_files.records import find_run
from remote.agent.runs.launch import Start, create_run, launch_once
from remote.agent.runs.planned_shutdown import plan_shutdown, require_possible
from remote.agent.runs.queue import one_launch_at_a_time, require_free_gpus
from remote.agent.runs.resume import begin_attempt
from remote.agent.shared.reading import read
from remote.agent.shared.run_records import Asked, RunDetail
from remote.agent.shared.states import FINAL


@operation("run_join", takes=Start)
def run_join(call: Call, start: Start) -> Dict[str, Any]:
    """Launch this host's part of an attempt, which the key of its `nodes` names: the same start
    when it is repeated."""
    layout, run, asked = call.layout, start.run, read(Asked, start.asked)
    prepare_root(call)
    require_possible(layout, start.shutdown)
    with one_launch_at_a_time(layout):
        directory = layout.run(run)
        known = load(Asked, directory).nodes
        if not os.path.isdir(directory):
            create_run(layout, start, asked)
        elif known.count > 1 and not known.rank:
            require_free_gpus(layout, asked)
            directory = prepare_folder(directory, asked)
        elif known.key != asked.nodes.key:
            found = find_run(layout, run)
            if found.state not in FINAL:
                raise Refusal("RunFailed", f"{run} is {found.state} here still", "stop it first")
            begin_attempt(layout, found, asked)
            keep_private(directory, start.notify, start.env)
    launched = launch_once(layout, directory)
    plan_shutdown(layout, start.shutdown)
    return launched._asdict()


def prepare_folder(home: str, asked: Asked) -> str:
    """node-K in the run's directory: what this host tells of its part."""
    folder = os.path.join(home, f"node-{asked.nodes.rank}")
    if load(Asked, folder).nodes.key != asked.nodes.key:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        keep_private(folder, "", read_variables(home))
        save(asked._replace(home=home), folder)
        save(queued_state(), folder)
    return folder


def node_of_job(home: str, token: str, addresses: str, port: str) -> Tuple[str, str]:
    """Directory and token of this node's supervisor, which Slurm's srun has started for the job's
    first one, whose attempt is `token`."""
    asked = load(Asked, home)
    # A step that leaves out the first node counts from 0.
    rank = int(os.environ["SLURM_PROCID"]) + 1
    nodes = asked.nodes._replace(rank=rank, address=addresses, port=int(port), key=token)
    folder = prepare_folder(home, asked._replace(nodes=nodes))
    return folder, load(RunDetail, folder).token
