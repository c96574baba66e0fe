"""Ends a rented server's bill, once nothing on it is needed any more."""

import os
from typing import Any, Dict

from remote.agent.machine.others import other_people
from remote.agent.machine.programs import ask
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.run_files.fetched import why_not_fetched
from remote.agent.run_files.records import list_runs
from remote.agent.runs.queue import one_launch_at_a_time
from remote.agent.shared.states import FINAL

COMMAND_S = 30.0


@operation("shutdown")
def shutdown(call: Call, command: str, really: bool) -> Dict[str, Any]:
    """Refuses while a run of ours has not ended or has not been fetched. Without `really` it only
    tells what would be done."""
    layout = call.layout
    chosen = command or default_command()
    with one_launch_at_a_time(layout):
        for run in list_runs(layout):
            if run.detail.elsewhere:
                continue
            if run.state not in FINAL:
                raise Refusal(
                    "RunFailed",
                    f"{run.run} is {run.state}: the server was not shut down",
                    "wait for it, or stop it",
                )
            why = why_not_fetched(layout, run, narrowed=True)
            if why:
                text = f"{run.run}: {why}; the server was not shut down"
                raise Refusal("RunFailed", text, "fetch-results --run all")
        if really:
            carry_out(chosen)
    return {"command": chosen, "others": other_people()}


def default_command() -> str:
    return "shutdown -h now" if os.getuid() == 0 else "sudo -n shutdown -h now"


def carry_out(command: str) -> None:
    said = ask(["sh", "-c", command], COMMAND_S, directory=os.path.expanduser("~"))
    if said.code == 0 or said.late:  # it may well be on its way down
        return
    words = " ".join((said.out + said.err).split())[-200:]
    remedy = (
        "set remote.shutdown in fabric.yaml to the command that your provider names, or stop it"
        " on the provider's page"
    )
    raise Refusal("ServerUnfit", f"`{command}` failed (exit code {said.code}): {words}", remedy)
