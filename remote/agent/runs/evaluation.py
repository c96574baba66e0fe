"""The accuracy of a run's weights, measured once more on the server that has the images and the
GPU."""

import hashlib
import json
import os
import subprocess
import tempfile
import time
from typing import Any, Dict, List

from remote.agent.data.datasets import find_data
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import HASH, Layout
from remote.agent.runs.queue import free_gpus
from remote.agent.runs.records import find_run
from remote.agent.shared.states import FINAL

TOLD_EVERY_S = 2.0


@operation("evaluate")
def evaluate(call: Call, run: str, weights_sha256: str, data: str) -> Dict[str, Any]:
    """What `trainer.evaluate`, as the run's release has it, prints for weights.pt. On a free GPU,
    else on the processor."""
    layout = call.layout
    found = find_run(layout, run)
    weights, tree = os.path.join(found["path"], "weights.pt"), str(found["release"])
    if found["state"] not in FINAL or not os.path.exists(weights):
        raise Refusal(
            "NotFound",
            f"{found['run']} is {found['state']} and has no weights to evaluate",
            "wait for its end",
        )
    if hash_file(weights) != weights_sha256:
        raise Refusal(
            "TransferFailed",
            f"the weights of {found['run']} on the server are not those that were fetched",
            "fetch it again",
        )
    if not HASH.match(tree) or not os.path.isdir(layout.release(tree)):
        raise Refusal(
            "NotFound",
            f"the code of {found['run']} is not on the server any more",
            "evaluate here: submit without -H",
        )
    place = data if data == "synthetic" else find_data(layout, data)
    if not data or place is None:
        raise Refusal("NotFound", f"the images are not at {data} any more", "name them: --data")
    python = str(found["asked"].get("python") or "python3")
    argv = [python, "-m", "trainer.evaluate", "--checkpoint", weights, "--data", place, "--json"]
    return {"run": found["run"], "told": last_json(run_command(call, argv, layout, tree))}


def hash_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(1 << 20), b""):
            digest.update(data)
    return digest.hexdigest()


def run_command(call: Call, argv: List[str], layout: Layout, tree: str) -> str:
    """Its output; it ends with the laptop's connection. Raises Refusal with its last words where it
    fails."""
    free, _ = free_gpus(layout)
    environment = dict(
        os.environ,
        PYTHONDONTWRITEBYTECODE="1",
        CUDA_DEVICE_ORDER="PCI_BUS_ID",
        CUDA_VISIBLE_DEVICES="",
    )
    if free:
        environment["CUDA_VISIBLE_DEVICES"] = free[0][0]
    begun = told = time.monotonic()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            code = layout.release(tree)
            child = subprocess.Popen(
                argv,
                cwd=code,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        except OSError as error:
            raise Refusal(
                "EnvironmentFailed", f"the evaluation could not be started: {error}", "deploy again"
            ) from None
        try:
            while child.poll() is None:
                if time.monotonic() - told > TOLD_EVERY_S:
                    told = time.monotonic()
                    where = f"GPU {free[0][1]}" if free else "the server's processor"
                    call.event(step=f"evaluating the weights on {where}", seconds=told - begun)
                if not call.alive():
                    raise BrokenPipeError
                time.sleep(0.1)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        output.seek(0)
        errors.seek(0)
        if child.returncode:
            lines = [
                line
                for line in errors.read().decode("utf-8", "replace").splitlines()
                if line.strip()
            ]
            text = (lines[-1] if lines else f"exit code {child.returncode}").replace(
                "error: ", "", 1
            )
            raise Refusal(
                "TransferFailed", f"the weights can't be evaluated: {text[:300]}", "look at --data"
            )
        return output.read().decode("utf-8", "replace")


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
