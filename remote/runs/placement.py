"""What a launch needs, settled before anything starts, and the GPUs that it gets."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from remote.agent.shared.gpu_choice import choose_gpus
from remote.agent.shared.run_records import SlurmJob
from remote.deploy.deploy import Deployed
from remote.errors import GpuUnfit, NotFound, RemoteError
from remote.link.session import Session
from remote.project.slurm import job_request
from remote.records import Gpu
from remote.runs.request import TrainRequest, effective_config, require_gpu
from remote.transfer.upload import provide_cifar10, provide_weights

TRIES = 5
S = TypeVar("S")


@dataclass(frozen=True)
class Launch:
    """All that a launch needs, settled before GPUs are chosen. `images`: where the trainer finds
    them there."""

    session: Session
    request: TrainRequest
    deployed: Deployed
    images: str | None = None
    # A training on the processor alone takes no GPU; 0 means any number of them.
    wants_gpu: bool = True
    most_gpus: int = 0

    @property
    def root(self) -> str:
        return self.deployed.root

    @property
    def by_slurm(self) -> bool:
        return self.session.project.settings.launcher == "slurm"


@dataclass(frozen=True)
class Placement:
    """The GPUs of a run: taken now, or a place in the server's queue. `devices`: for the trainer's
    own option."""

    gpus: tuple[Gpu, ...] | None = None
    queue: bool = False
    wanted: int = 1
    devices: str = "auto"
    # What is asked of Slurm, which places the run then.
    slurm: SlurmJob = field(default_factory=SlurmJob)
    # Where the site takes no more jobs at once it is submitted later, and not refused.
    later: bool = False


def prepare_launch(session: Session, request: TrainRequest, deployed: Deployed) -> Launch:
    """Raises GpuUnfit or NotFound for what can't be had there."""
    facts = deployed.facts
    launch = Launch(session, request, deployed, facts.data_path or request.data)
    if session.project.has_own_trainer:
        config = effective_config(session.project, request)
        require_gpu(config, launch.by_slurm or bool(facts.gpus.gpus), session.host)
        launch = dataclasses.replace(
            launch, wants_gpu=config.accelerator != "cpu", most_gpus=config.max_devices
        )
        if request.data is None and not os.path.isabs(config.data) and config.data != "synthetic":
            # Shared by all runs, and not downloaded into each.
            shared = f"{deployed.root}/{config.data}"
            images = provide_cifar10(session, facts) if config.data == "data" else shared
            launch = dataclasses.replace(launch, images=images)
    for name in facts.datasets.lacking(session.project.settings):
        text = f"remote.data names {name}, which is not in {deployed.root}/data there"
        remedy = f"send it once: fab -H {session.typed} upload-data PATH --name {name}"
        raise NotFound(text, host=session.host, step="train", remedy=remedy)
    if request.data not in (None, "synthetic") and facts.data_path is None:
        here = os.path.exists(os.path.expanduser(str(request.data)))
        send = f"it is here; send it once: fab -H {session.typed} upload-data {request.data}"
        there = "give its path there (absolute, below your home, or a name in the project's data/)"
        text = f"--data {request.data}: no such file or directory on the server"
        raise NotFound(text, host=session.host, step="train", remedy=send if here else there)
    here_only = not launch.by_slurm and (request.gpus or request.devices != "auto")
    if not facts.gpus.gpus and launch.wants_gpu and here_only:
        wanted = f"--gpus {request.gpus}" if request.gpus else f"--devices {request.devices}"
        raise GpuUnfit(
            f"{wanted}: the server has no GPU ({facts.gpus.problem or 'nvidia-smi shows none'})",
            host=session.host,
            step="choose GPUs",
            remedy="leave it out to train on its processor",
        )
    return launch


def with_weights(launch: Launch) -> Launch:
    """The same, of a new run, told where pretrained weights lie that were sent to the server."""
    session, request = launch.session, launch.request
    if not session.project.has_own_trainer:
        return launch
    config = effective_config(session.project, request)
    if getattr(config, "pretrained", "") != "true" or "HF_ENDPOINT" in request.env:
        return launch
    path = provide_weights(session, launch.deployed.facts, config.network)
    fields = (*request.fields, ("pretrained", path)) if path else request.fields
    return dataclasses.replace(launch, request=dataclasses.replace(request, fields=fields))


def require_so_many(launch: Launch, there: int | None) -> None:
    """`there`: GPUs of the server; None: Slurm knows."""
    wanted, most = launch.request.gpus or 0, launch.most_gpus
    for limit, has in ((most, f"this recipe uses {most}"), (there, f"the server has {there}")):
        if limit and wanted > limit:
            raise GpuUnfit(
                f"--gpus {wanted}: {has}",
                host=launch.session.host,
                step="choose GPUs",
                remedy="ask for fewer",
            )


def place_run(launch: Launch, held: Mapping[str, str]) -> Placement:
    """GPUs that are free now, or a place in the server's queue. Raises GpuUnfit where that can't
    help, or with --now."""
    request, facts = launch.request, launch.deployed.facts
    gpus = facts.gpus.gpus
    most, host = launch.most_gpus, launch.session.host
    if launch.by_slurm:
        require_so_many(launch, None)
        slurm = launch.session.project.settings.slurm
        asked = job_request(slurm, request.time, request.gpus, launch.wants_gpu, request.nodes)
        return Placement(slurm=asked)
    if not gpus:
        return Placement(devices=request.devices)
    if not launch.wants_gpu:
        return Placement((), devices=request.devices)
    require_so_many(launch, len(gpus))
    choice = choose_gpus(gpus, request.devices, limit=request.gpus or most, held=held)
    waiting = facts.waiting
    enough = len(choice.gpus) >= (request.gpus or 1) and not waiting
    if request.devices == "auto" and not enough and not request.now and facts.usable:
        return Placement((), queue=True, wanted=request.gpus or 1)
    if choice.problem is not None:
        step = "choose GPUs"
        raise GpuUnfit(choice.problem, host=host, step=step, remedy=choice.remedy)
    if request.now and not enough:
        free = f"{len(choice.gpus)} of {request.gpus} GPUs are free"
        raise GpuUnfit(
            "; ".join([f"runs that wait already: {waiting}" if waiting else free, *choice.notes]),
            host=host,
            step="choose GPUs",
            remedy="leave out --now to wait for them",
        )
    for note in choice.notes:
        launch.session.display.note(f"note: {note}")
    return Placement(choice.gpus)


def launch_on_free_gpus(launch: Launch, start: Callable[[Placement], S]) -> S:
    """`start` on GPUs that are free. Where another launch was quicker to take one, the rest are
    looked at again."""
    held = launch.deployed.facts.held
    while True:
        try:
            placement = place_run(launch, held)
            return start_patiently(launch.session, partial(start, placement))
        except RemoteError as error:
            taken = error.details.get("taken")
            known = {gpu.uuid for gpu in launch.deployed.facts.gpus.gpus}
            more = {u: str(run) for u, run in taken.items()} if isinstance(taken, dict) else {}
            if not known & more.keys() - held.keys():
                raise
            held = held | more


def start_patiently(session: Session, start: Callable[[], S]) -> S:
    """A launch whose answer is lost is asked for again: its id makes it the same launch."""
    return session.patiently(start, "asking again starts no second run", TRIES)
