"""The accuracy of a run's weights, measured once more on the server that has the images and the
GPU."""

import json
import os
from typing import Any, Dict, List

from remote.agent.data.datasets import find_data
from remote.agent.machine.programs import begin, watch
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import HASH, hash_file
from remote.agent.run_files.records import find_run
from remote.agent.runs.queue import free_gpus
from remote.agent.shared.states import FINAL


@operation("evaluate")
def evaluate(call: Call, run: str, weights_sha256: str, data: str) -> Dict[str, Any]:
    """What `trainer.evaluate`, as the run's release has it, prints for weights.pt. On a free GPU,
    else on the processor."""
    layout = call.layout
    found = find_run(layout, run)
    weights, tree = os.path.join(found.path, "weights.pt"), found.asked.release
    if found.state not in FINAL or not os.path.exists(weights):
        raise Refusal(
            "NotFound",
            f"{found.run} is {found.state} and has no weights to evaluate",
            "wait for its end",
        )
    if hash_file(weights) != weights_sha256:
        raise Refusal(
            "TransferFailed",
            f"the weights of {found.run} on the server are not those that were fetched",
            "fetch it again",
        )
    if not HASH.match(tree) or not os.path.isdir(layout.release(tree)):
        raise Refusal(
            "NotFound",
            f"the code of {found.run} is not on the server any more",
            "evaluate here: submit without -H",
        )
    place = data if data == "synthetic" else find_data(layout, data)
    if not data or place is None:
        raise Refusal("NotFound", f"the images are not at {data} any more", "name them: --data")
    python = found.asked.python or "python3"
    argv = [python, "-m", "trainer.evaluate", "--checkpoint", weights, "--data", place, "--json"]
    return {"told": last_json(measure(call, argv, layout.release(tree)))}


def measure(call: Call, argv: List[str], code: str) -> str:
    """Its output; it ends with the laptop's connection. Raises Refusal with its last words where it
    fails."""
    free, _ = free_gpus(call.layout)
    where = f"GPU {free[0][1]}" if free else "the server's processor"
    environment = dict(
        os.environ,
        PYTHONDONTWRITEBYTECODE="1",
        CUDA_DEVICE_ORDER="PCI_BUS_ID",
        CUDA_VISIBLE_DEVICES=free[0][0] if free else "",
    )
    try:
        child = begin(argv, environment, code)
    except OSError as error:
        raise Refusal(
            "EnvironmentFailed", f"the evaluation could not be started: {error}", "deploy again"
        ) from None
    said = watch(call, child, step=f"evaluating the weights on {where}")
    if said.code:
        text = said.last_line.replace("error: ", "", 1)
        raise Refusal(
            "TransferFailed", f"the weights can't be evaluated: {text[:300]}", "look at --data"
        )
    return said.out


def last_json(text: str) -> Dict[str, Any]:
    try:
        value = json.loads(text.splitlines()[-1])
    except (IndexError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise Refusal(
            "TransferFailed", "the evaluation tells no accuracy", "look at the run's release"
        )
    return {key: value.get(key) for key in ("test_accuracy", "test_images", "data_sha256")}
