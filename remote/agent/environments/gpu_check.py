"""The proof of an environment: its torch is imported and computes on every GPU, with a known
result."""

import json
import os
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from remote.agent.environments.python_places import plain_environment
from remote.agent.launchers.slurm_nodes import node_report, on_a_node
from remote.agent.machine import gpus
from remote.agent.machine.programs import begin, watch
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import read_json, write_json
from remote.agent.shared import gpu_choice
from remote.agent.shared.environment import Environment, Proof
from remote.agent.shared.gpu_choice import GpuReport
from remote.agent.shared.reading import read, tell

PROVE_TIMEOUT_S = 300.0
"""Importing torch from a cold network disk takes minutes at times."""
PROOFS = "proofs.json"
KEPT = 16
"""Proofs kept: homes may be shared between hosts, each with GPUs of its own."""

SCRIPT = r"""
import importlib, json, sys, warnings
answer = {"devices": []}
def tell():
    print("\x1e" + json.dumps(answer), flush=True)
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        first = (str(error).splitlines() or [""])[0][:300]
        answer["failed"] = [name, "%s: %s" % (type(error).__name__, first)]
        tell(); sys.exit(0)
torch = sys.modules.get("torch")
if torch is None:
    tell(); sys.exit(0)
answer.update(torch=torch.__version__, cuda=torch.version.cuda)
answer["hip"] = getattr(torch.version, "hip", None)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    try:
        answer["available"] = torch.cuda.is_available()
        answer["arch"] = torch.cuda.get_arch_list() if answer["available"] else []
    except Exception as error:
        answer["available"], said = False, [error]
    answer["warnings"] = [str(getattr(w, "message", w)).splitlines()[0][:300] for w in said][:5]
for number in range(torch.cuda.device_count() if answer["available"] else 0):
    device = {"number": number}
    answer["devices"].append(device)
    try:
        device["name"] = torch.cuda.get_device_name(number)
        device["capability"] = ".".join(map(str, torch.cuda.get_device_capability(number)))
        at = "cuda:%d" % number
        x = torch.ones(256, 256, device=at, requires_grad=True)
        total = (x @ x).sum()
        total.backward()
        w = torch.ones(4, 3, 3, 3, device=at, requires_grad=True)
        y = torch.nn.functional.conv2d(torch.ones(2, 3, 8, 8, device=at), w)
        y.sum().backward()
        got = [total.item(), x.grad.mean().item(), y.mean().item(), w.grad.mean().item()]
        want = [256.0 ** 3, 512.0, 27.0, 72.0]
        device["ok"] = all(abs(a - b) <= 1e-3 * b for a, b in zip(got, want))
        if not device["ok"]:
            device["problem"] = "it computes %s where %s is right" % (got, want)
    except Exception as error:
        text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        device["ok"], device["problem"] = False, text
        device["busy"] = "out of memory" in text.lower() or "busy or unavailable" in text.lower()
tell()
"""


class Device(NamedTuple):
    """A GPU, as torch sees it. `busy`: others have its memory."""

    number: int = 0
    name: str = ""
    capability: str = ""
    ok: bool = False
    busy: bool = False
    problem: str = ""


class Trial(NamedTuple):
    """What SCRIPT tells. `failed`: a module that can't be imported, and the error."""

    failed: Tuple[str, ...] = ()
    torch: Optional[str] = None
    cuda: Optional[str] = None
    hip: Optional[str] = None
    available: bool = False
    arch: Tuple[str, ...] = ()
    warnings: Tuple[str, ...] = ()
    devices: Tuple[Device, ...] = ()


@operation("environment_prove")
def environment_prove(call: Call, key: str, slurm: Optional[List[str]] = None) -> Dict[str, Any]:
    """Import the environment's torch and compute on every GPU. Returns and keeps the proof.

    Raises Refusal (EnvironmentFailed, GpuUnfit) where torch and GPUs don't work together.
    `slurm`: it is done on a node that these options of srun choose. Events: step, line, seconds.
    """
    directory = call.layout.environment(key)
    made = read_environment(directory)
    if made is None:
        problem = f"there is no environment {key[:12]} on the server"
        raise Refusal("NotFound", problem, "deploy first: fab -H … deploy")
    if not made.needs_torch:
        return _told(Proof(True, None, "the requirements name no torch: nothing to prove on a GPU"))
    report = node_report(call.layout.root, slurm) if slurm else gpus.look_at_gpus()
    if not report.host:
        return not_tried(str(report.problem))
    began, trial = time.time(), Trial()
    try:
        trial = run_script(call, (on_a_node(slurm) or []) if slurm else [], made)
        verdict = verdict_of(trial, report, made)
    except Refusal as refusal:
        if slurm and "Unable to allocate" in refusal.message:
            return not_tried(refusal.message)
        _keep(directory, Proof(reason=refusal.message, time=began), trial, report)
        raise
    return _told(_keep(directory, verdict._replace(time=began), trial, report))


def _keep(directory: str, verdict: Proof, trial: Trial, report: GpuReport) -> Proof:
    """One per boot of a host, the newest last."""
    proof = verdict._replace(
        driver=report.driver_version,
        gpu_uuids=tuple(sorted(gpu.uuid for gpu in report.gpus)),
        boot_id=report.boot_id,
        host=report.host,
        seconds=round(time.time() - (verdict.time or 0), 1),
        torch=trial.torch,
        cuda=trial.cuda,
    )
    others = [old for old in read_proofs(directory) if old.boot_id != proof.boot_id]
    kept = [*others, proof][-KEPT:]
    write_json(os.path.join(directory, PROOFS), {"proofs": tell(kept)})
    return proof


def read_environment(directory: str) -> Optional[Environment]:
    """None where it is not ready."""
    record = read_json(os.path.join(directory, "env.json"))
    ready = record is not None and os.path.exists(os.path.join(directory, "ready"))
    return read(Environment, record)._replace(ready=True) if ready else None


def read_proofs(directory: str) -> Tuple[Proof, ...]:
    return read(Environment, read_json(os.path.join(directory, PROOFS))).proofs


def not_tried(why: str) -> Dict[str, Any]:
    """Of a cluster whose nodes are all taken: nothing speaks against training, and nothing for
    it."""
    return _told(Proof(True, None, f"no node was free to try it on ({why})"))


def _told(proof: Proof) -> Dict[str, Any]:
    return {"proof": tell(proof)}


def verdict_of(trial: Trial, report: GpuReport, made: Environment) -> Proof:
    """ok, gpu and reason from what torch did and what nvidia-smi shows. Raises Refusal where they
    don't fit. Pure."""
    if trial.failed:
        raise _not_imported(trial.failed, made)
    working = [device for device in trial.devices if device.ok]
    busy = [device for device in trial.devices if device.busy]
    broken = [device for device in trial.devices if not device.ok and not device.busy]
    version = f"torch {trial.torch}"
    if not report.gpus and not trial.devices:
        if report.fails:
            return Proof(False, False, "nvidia-smi fails, and torch sees no GPU")
        return Proof(True, False, "no GPU: training will run on the CPU")
    if report.gpus and not trial.cuda and not trial.hip:
        return _without_cuda(version, report, made)
    if not trial.available:
        raise _no_cuda(version, trial, report)
    if broken:
        raise _broken(version, trial, broken[0], report)
    if not working:
        full = f"every GPU is full or reserved ({busy[0].problem})" if busy else "no GPU"
        return Proof(False, False, full)
    notes = [f"gpu {device.number} could not be tried: {device.problem}" for device in busy]
    if len(trial.devices) < len(report.gpus):
        notes.append(f"torch sees {len(trial.devices)} of {len(report.gpus)} GPUs")
    return Proof(True, True, "; ".join(notes) or None)


def _not_imported(failed: Tuple[str, ...], made: Environment) -> Refusal:
    module, error = failed
    mixed = "torch and torchvision are of different builds: " if "torchvision::nms" in error else ""
    remedy = f"look at {made.base} there, or set remote.torch"
    if made.kind == "as-is":
        remedy = "set remote.python to another interpreter"
    return Refusal("EnvironmentFailed", f"{mixed}{module} can't be imported ({error})", remedy)


def _without_cuda(version: str, report: GpuReport, made: Environment) -> Proof:
    if made.wanted.get("torch") == "cpu":
        return Proof(True, False, "remote.torch is cpu: the GPUs are not used")
    remedy = _torch_remedy(report)
    if made.kind in ("as-is", "overlay"):
        remedy = (
            "choose an interpreter with a CUDA build (remote.python), or let one be built:"
            f" {remedy}"
        )
    message = (
        f"{version} is a build for the CPU, but the server has {len(report.gpus)} GPU(s)"
        f" ({report.gpus[0].name})"
    )
    raise Refusal("EnvironmentFailed", message, remedy)


def _no_cuda(version: str, trial: Trial, report: GpuReport) -> Refusal:
    said = "; ".join(trial.warnings) or "torch gives no reason"
    driver, cuda = report.driver_version, str(trial.cuda)
    lowest = gpu_choice.lowest_driver(cuda)
    if (gpu_choice.driver_major(driver) or lowest) < lowest:
        message = f"{version} (CUDA {cuda}) needs driver ≥ {lowest}; this is {driver}"
        return Refusal("GpuUnfit", message, _torch_remedy(report))
    return Refusal(
        "GpuUnfit",
        f"{version} (CUDA {cuda}) can't use the GPU: {said}",
        "check with nvidia-smi there; a reboot often helps",
    )


def _broken(version: str, trial: Trial, device: Device, report: GpuReport) -> Refusal:
    name, arch = device.name, "sm_" + device.capability.replace(".", "")
    if "no kernel image" in device.problem:
        message = f"{version} has no kernels for {name} ({arch}); it has {', '.join(trial.arch)}"
        return Refusal("GpuUnfit", message, _torch_remedy(report))
    message = f"gpu {device.number} ({name}) fails in {version}: {device.problem}"
    return Refusal("GpuUnfit", message, "choose another: --devices")


def _torch_remedy(report: GpuReport) -> str:
    driver = report.driver_version
    build = gpu_choice.fitting_build(driver, [gpu.compute_capability for gpu in report.gpus])
    if build is None:
        return f"no torch build fits driver {driver} and these GPUs: ask for a newer driver"
    return f"set remote.torch: {build} in fabric.yaml and deploy again"


def run_script(call: Call, on_node: List[str], made: Environment) -> Trial:
    """Its answer. Ends within the limit, also where a GPU hangs in the driver."""
    environment = dict(plain_environment(), CUDA_DEVICE_ORDER="PCI_BUS_ID")
    # Every GPU is tried, whatever this login hides from itself.
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    modules = made.imports or ("torch",)
    child = begin([*on_node, made.python, "-c", SCRIPT, *modules], environment, "/")
    line = f"importing {', '.join(modules)} and computing on each GPU"
    said = watch(call, child, PROVE_TIMEOUT_S, step="prove", line=line)
    if said.late:
        raise Refusal(
            "GpuUnfit",
            f"torch gave no answer within {PROVE_TIMEOUT_S:.0f} s",
            "a GPU may hang: try python -c 'import torch' and nvidia-smi there",
        )
    try:
        return read(Trial, json.loads(said.out.rpartition("\x1e")[2]))
    except ValueError:
        problem = f"torch can't be tried in {made.python}: {said.last_line[:300]}"
        raise Refusal("EnvironmentFailed", problem, "run it there by hand") from None
