"""The proof of an environment: its torch is imported and computes on every GPU, with a known
result."""

import json
import os
import time
from typing import Any, Dict, List, Optional

from remote.agent.environments.python_places import plain_environment
from remote.agent.launchers.slurm_nodes import node_report, on_a_node
from remote.agent.machine import gpus
from remote.agent.machine.programs import begin, watch
from remote.agent.root.calls import Call, Refusal, operation
from remote.agent.root.paths import read_json, write_json
from remote.agent.shared import gpu_choice
from remote.agent.shared.gpu_choice import GpuReport

PROVE_TIMEOUT_S = 300.0
"""Importing torch from a cold network disk takes minutes at times."""
PROOFS = "proofs.json"
KEPT = 16
"""Proofs kept: homes may be shared between hosts, each with GPUs of its own."""

SCRIPT = r"""
import importlib, json, sys, warnings
answer = {"modules": {}, "devices": []}
def tell():
    print("\x1e" + json.dumps(answer), flush=True)
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        answer["modules"][name] = str(getattr(module, "__version__", ""))
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


@operation("environment_prove")
def environment_prove(call: Call, key: str, slurm: Optional[List[str]] = None) -> Dict[str, Any]:
    """Import the environment's torch and compute on every GPU. Returns and keeps the proof.

    ok: nothing speaks against training here; gpu: some GPU computed; reason: what to know beside
    it. Raises Refusal (EnvironmentFailed, GpuUnfit) where torch and GPUs don't work together.
    `slurm`: it is done on a node that these options of srun choose. Events: step, line, seconds.
    """
    directory = call.layout.environment(key)
    record = ready_record(directory, key)
    if not record.get("needs_torch"):
        reason = "the requirements name no torch: nothing to prove on a GPU"
        return {"proof": {"ok": True, "gpu": None, "reason": reason}}
    report = node_report(call.layout.root, slurm) if slurm else gpus.look_at_gpus()
    if not report.host:
        return not_tried(str(report.problem))
    proof = begin_proof(report)
    started = time.monotonic()
    try:
        proof.update(run_script(call, (on_a_node(slurm) or []) if slurm else [], record))
        proof.update(verdict_of(proof, report, record))
    except Refusal as refusal:
        if slurm and "Unable to allocate" in refusal.message:
            return not_tried(refusal.message)
        proof.update(ok=False, reason=refusal.message)
        raise
    finally:
        proof["seconds"] = round(time.monotonic() - started, 1)
        if "ok" in proof:
            _keep(directory, proof)
    return {"proof": proof}


def ready_record(directory: str, key: str) -> Dict[str, Any]:
    record = read_json(os.path.join(directory, "env.json"))
    if record is None or not os.path.exists(os.path.join(directory, "ready")):
        problem = f"there is no environment {key[:12]} on the server"
        raise Refusal("NotFound", problem, "deploy first: fab -H … deploy")
    return record


def begin_proof(report: GpuReport) -> Dict[str, Any]:
    """Of which machine it is, as nvidia-smi and the kernel tell it."""
    uuids = sorted(gpu.uuid for gpu in report.gpus)
    own = {"boot_id": report.boot_id, "host": report.host, "time": time.time()}
    return {"driver": report.driver_version, "gpu_uuids": uuids, **own}


def not_tried(why: str) -> Dict[str, Any]:
    """Of a cluster whose nodes are all taken: nothing speaks against training, and nothing for
    it."""
    reason = f"no node was free to try it on ({why})"
    return {"proof": {"ok": True, "gpu": None, "reason": reason}}


def verdict_of(proof: Dict[str, Any], report: GpuReport, record: Dict[str, Any]) -> Dict[str, Any]:
    """ok, gpu and reason from what torch did and what nvidia-smi shows. Raises Refusal where they
    don't fit. Pure."""
    if proof.get("failed"):
        raise _not_imported(proof["failed"], record)
    working = [device for device in proof["devices"] if device.get("ok")]
    busy = [device for device in proof["devices"] if device.get("busy")]
    broken = [
        device for device in proof["devices"] if not device.get("ok") and not device.get("busy")
    ]
    version = f"torch {proof.get('torch')}"
    if not report.gpus and not proof["devices"]:
        if report.fails:
            return _without_gpu(False, "nvidia-smi fails, and torch sees no GPU")
        return _without_gpu(True, "no GPU: training will run on the CPU")
    if report.gpus and not proof.get("cuda") and not proof.get("hip"):
        return _without_cuda(version, report, record)
    if not proof.get("available"):
        raise _no_cuda(version, proof, report)
    if broken:
        raise _broken(version, proof, broken[0], report)
    if not working:
        full = f"every GPU is full or reserved ({busy[0]['problem']})" if busy else "no GPU"
        return _without_gpu(False, full)
    notes = [f"gpu {device['number']} could not be tried: {device['problem']}" for device in busy]
    if len(proof["devices"]) < len(report.gpus):
        notes.append(f"torch sees {len(proof['devices'])} of {len(report.gpus)} GPUs")
    return {"ok": True, "gpu": True, "reason": "; ".join(notes) or None}


def _without_gpu(ok: bool, reason: str) -> Dict[str, Any]:
    return {"ok": ok, "gpu": False, "reason": reason}


def _not_imported(failed: List[str], record: Dict[str, Any]) -> Refusal:
    module, error = failed
    mixed = "torch and torchvision are of different builds: " if "torchvision::nms" in error else ""
    remedy = f"look at {record.get('base') or record.get('python')} there, or set remote.torch"
    if record.get("kind") == "as-is":
        remedy = "set remote.python to another interpreter"
    return Refusal("EnvironmentFailed", f"{mixed}{module} can't be imported ({error})", remedy)


def _without_cuda(version: str, report: GpuReport, record: Dict[str, Any]) -> Dict[str, Any]:
    if dict(record.get("wanted") or {}).get("torch") == "cpu":
        return _without_gpu(True, "remote.torch is cpu: the GPUs are not used")
    remedy = _torch_remedy(report)
    if record.get("kind") in ("as-is", "overlay"):
        remedy = (
            "choose an interpreter with a CUDA build (remote.python), or let one be built:"
            f" {remedy}"
        )
    message = (
        f"{version} is a build for the CPU, but the server has {len(report.gpus)} GPU(s)"
        f" ({report.gpus[0].name})"
    )
    raise Refusal("EnvironmentFailed", message, remedy)


def _no_cuda(version: str, proof: Dict[str, Any], report: GpuReport) -> Refusal:
    said = "; ".join(proof.get("warnings") or []) or "torch gives no reason"
    driver, cuda = report.driver_version, str(proof.get("cuda"))
    lowest = gpu_choice.lowest_driver(cuda)
    if (gpu_choice.driver_major(driver) or lowest) < lowest:
        message = f"{version} (CUDA {cuda}) needs driver ≥ {lowest}; this is {driver}"
        return Refusal("GpuUnfit", message, _torch_remedy(report))
    return Refusal(
        "GpuUnfit",
        f"{version} (CUDA {cuda}) can't use the GPU: {said}",
        "check with nvidia-smi there; a reboot often helps",
    )


def _broken(
    version: str, proof: Dict[str, Any], device: Dict[str, Any], report: GpuReport
) -> Refusal:
    name, cap = device.get("name"), str(device.get("capability") or "")
    arch = "sm_" + cap.replace(".", "")
    if "no kernel image" in device["problem"]:
        message = (
            f"{version} has no kernels for {name} ({arch}); it has"
            f" {', '.join(proof.get('arch') or [])}"
        )
        return Refusal("GpuUnfit", message, _torch_remedy(report))
    return Refusal(
        "GpuUnfit",
        f"gpu {device['number']} ({name}) fails in {version}: {device['problem']}",
        "choose another: --devices",
    )


def _torch_remedy(report: GpuReport) -> str:
    driver = report.driver_version
    build = gpu_choice.fitting_build(driver, [gpu.compute_capability for gpu in report.gpus])
    if build is None:
        return f"no torch build fits driver {driver} and these GPUs: ask for a newer driver"
    return f"set remote.torch: {build} in fabric.yaml and deploy again"


def run_script(call: Call, on_node: List[str], record: Dict[str, Any]) -> Dict[str, Any]:
    """Its answer. Ends within the limit, also where a GPU hangs in the driver."""
    environment = dict(plain_environment(), CUDA_DEVICE_ORDER="PCI_BUS_ID")
    # Every GPU is tried, whatever this login hides from itself.
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    python, modules = str(record["python"]), [str(x) for x in record.get("imports") or ["torch"]]
    child = begin([*on_node, python, "-c", SCRIPT, *modules], environment, "/")
    line = f"importing {', '.join(modules)} and computing on each GPU"
    said = watch(call, child, PROVE_TIMEOUT_S, step="prove", line=line)
    if said.late:
        raise Refusal(
            "GpuUnfit",
            f"torch gave no answer within {PROVE_TIMEOUT_S:.0f} s",
            "a GPU may hang: try python -c 'import torch' and nvidia-smi there",
        )
    try:
        return dict(json.loads(said.out.rpartition("\x1e")[2]))
    except ValueError:
        problem = f"torch can't be tried in {python}: {said.last_line[:300]}"
        raise Refusal("EnvironmentFailed", problem, "run it there by hand") from None


def read_proofs(directory: str) -> List[Dict[str, Any]]:
    kept = (read_json(os.path.join(directory, PROOFS)) or {}).get("proofs")
    return [proof for proof in kept if isinstance(proof, dict)] if isinstance(kept, list) else []


def _keep(directory: str, proof: Dict[str, Any]) -> None:
    """One per boot of a host, the newest last."""
    names = (
        "driver",
        "gpu_uuids",
        "boot_id",
        "host",
        "time",
        "torch",
        "cuda",
        "ok",
        "gpu",
        "reason",
        "seconds",
    )
    others = [old for old in read_proofs(directory) if old.get("boot_id") != proof["boot_id"]]
    kept = [*others, {name: proof.get(name) for name in names}]
    write_json(os.path.join(directory, PROOFS), {"proofs": kept[-KEPT:]})
