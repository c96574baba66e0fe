"""`train --nodes` on hosts that are logged in to: all are made ready and compared, their network is
proved, and only then each is told to start its part of one run. The first one leads it."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from remote.agent.shared.reading import differing
from remote.agent.shared.run_records import Nodes
from remote.deploy.deploy import Deployed, deploy
from remote.deploy.shown import show_steps
from remote.errors import (
    ConnectionLost,
    EnvironmentFailed,
    GpuUnfit,
    RemoteError,
    ServerUnfit,
    Unreachable,
    UsageError,
)
from remote.hosts.network import find_network
from remote.link.answers import Joined, Started, Stopping
from remote.link.session import Session, who_am_i
from remote.project.options import TrainOptions
from remote.records import Asked, Run
from remote.runs.launch import asked_for, started_where, watch
from remote.runs.placement import Launch, Placement, place_run, prepare_launch, start_patiently
from remote.runs.request import (
    Pending,
    TrainRequest,
    effective_config,
    name_run,
    parse_request,
    start_run,
)
from remote.runs.resume import (
    Resumption,
    ask_on,
    asked_next,
    find_there,
    plan_resumption,
    require_first,
    send_run,
    tell_resumed,
)
from remote.runs.shutdown import tell_plan
from remote.ssh.target import typed_together
from remote.watching.follow import LAST_LINES

Describe = Callable[[Launch, Placement], Asked]
S = TypeVar("S", bound=Started)
SHOWN = 3


def train_on_hosts(sessions: Sequence[Session], options: TrainOptions) -> tuple[Session, Run]:
    """Start one training on all hosts; the session with the one that leads, the first."""
    first = sessions[0]
    request = parse_request(first.project, options)
    if first.project.has_own_trainer:
        require_devices(first, request)
    deployed = deploy_on(sessions, options.data)
    hosts = ",".join(session.host for session in sessions)
    pending = Pending(first.project, hosts, request, deployed[0].release.tree)
    try:
        run = pending.take()
        if run is None or not is_started(sessions, run):
            run = name_run(first.project, request)
            pending.write(run)
            launches = prepare_launches(sessions, request, deployed)

            def describe(launch: Launch, placement: Placement) -> Asked:
                return asked_for(launch, run, placement)

            def ask(asked: Asked) -> Started:
                return start_run(first, run, asked, request.beside)

            with pending.launching():
                answer = start_all(launches, run, describe, ask)
            first.display.line(f"run {run}: {started_where(answer)} on {hosts.replace(',', ', ')}")
            for session in sessions:
                tell_plan(session, request.shutdown)
        first.together = typed_together([session.target for session in sessions])
        return first, watch(first, run, options.follows(first.display), pending.clear)
    finally:
        pending.release()


def resume_on_hosts(
    sessions: Sequence[Session], name: str, options: TrainOptions
) -> tuple[Session, Run]:
    """The same for the next attempt of a run. The host with its newest checkpoint leads; it sends
    the others what they lack."""
    sessions, run = in_order(sessions, name)
    first, with_new_code = sessions[0], options.with_new_code
    plan = plan_resumption(first, run, options)
    following = options.follows(first.display)
    together = typed_together([session.target for session in sessions])
    require_variables(sessions, plan)
    if plan.kept and plan.kept.goes_on:
        first.together = together
        return first, watch(first, plan.run, following, tail=LAST_LINES)
    if with_new_code:
        deployed = deploy_on(sessions, plan.request.data)
    else:
        deployed = deploy_as_before(sessions, plan)
    launches = prepare_launches(sessions, plan.request, deployed)
    if plan.here:
        send_run(first, plan.here)

    def describe(launch: Launch, placement: Placement) -> Asked:
        return asked_next(launch, plan, placement, with_new_code)

    answer = start_all(launches, plan.run, describe, partial(ask_on, first, plan))
    tell_resumed(launches[0], plan, answer, with_new_code)
    for session in sessions[1:]:
        tell_plan(session, plan.request.shutdown)
    first.together = together
    return first, watch(first, plan.run, following, tail=LAST_LINES)


def in_order(sessions: Sequence[Session], name: str) -> tuple[list[Session], str]:
    """The host with the newest checkpoint first, else the one that led before; and the run's
    id."""
    found = [find_there(session, name) for session in sessions]
    run = max((known.run for known in found if known), default=name)
    if run != name:
        found = [find_there(session, run) for session in sessions]

    with_it = [session for session, known in zip(sessions, found, strict=True) if known]
    if with_it:
        require_first(with_it[0], found)

    def place(known: Run | None) -> tuple[float, int]:
        if known is None:
            return 0.0, len(sessions)
        return -(known.detail.checkpointed or 0.0), known.asked.nodes.rank

    order = sorted(range(len(sessions)), key=lambda number: place(found[number]))
    return [sessions[number] for number in order], run


def require_variables(sessions: Sequence[Session], plan: Resumption) -> None:
    """A host that lacks the run knows none of the values that it was given."""
    for session in sessions if plan.lost else ():
        if find_there(session, plan.run) is None:
            lost = ", ".join(plan.lost)
            text = f"{plan.run} was given {lost} by --env, unknown to {session.host}"
            raise UsageError(text, step="train", remedy=plan.give_again)


# -- the hosts, made ready


def require_devices(session: Session, request: TrainRequest) -> None:
    project = session.project
    most = effective_config(project, request).max_devices
    if most:
        recipe = request.recipe or project.settings.recipe
        text = f"recipe {recipe} uses {most} device{'s' if most > 1 else ''}, --nodes more"
        remedy = "take the recipe standard, or --set max_devices=0"
        raise UsageError(text, step="train", remedy=remedy)


class HostsDiffer(EnvironmentFailed):
    """In what they have installed."""


def deploy_as_before(sessions: Sequence[Session], plan: Resumption) -> list[Deployed]:
    """With the packages that the run has had, or all with today's."""
    try:
        return deploy_on(sessions, plan.request.data, plan.asked)
    except HostsDiffer as problem:
        why = f"it goes on with today's packages, not its own: {problem.message}"
        sessions[0].display.note(f"note: {why}")
        return deploy_on(sessions, plan.request.data)


def deploy_on(
    sessions: Sequence[Session], data: str | None, before: Asked | None = None
) -> list[Deployed]:
    """Raises HostsDiffer or ServerUnfit where two of them don't have the same. `before`: of a
    run that goes on."""
    deployed = []
    for session in sessions:
        session.display.note(f"{session.host}:")
        made = deploy(session, data=data, before=before)
        show_steps(session, made, only_changes=True)
        deployed.append(made)
    for session, made in zip(sessions[1:], deployed[1:], strict=True):
        require_same(sessions[0].host, deployed[0], session.host, made)
    return deployed


def require_same(one: str, left: Deployed, other: str, right: Deployed) -> None:
    if left.release.tree != right.release.tree:
        text = f"the code has changed between the deploys to {one} and {other}"
        raise ServerUnfit(text, step="deploy", remedy="run the same command again")
    mine, its = (
        {"python": minor_version(made), **made.environment.packages} for made in (left, right)
    )
    differ = [name for name in sorted({*mine, *its}) if mine.get(name) != its.get(name)]
    if differ:
        shown = "; ".join(
            f"{name} {mine.get(name) or '–'} and {its.get(name) or '–'}" for name in differ[:SHOWN]
        )
        more = f"; {len(differ) - SHOWN} more" if differ[SHOWN:] else ""
        raise HostsDiffer(
            f"{one} and {other} have other versions: {shown}{more}",
            step="environment",
            remedy="name these versions in the requirements; deploy --refresh makes it anew",
        )


def minor_version(deployed: Deployed) -> str | None:
    """Of its python: 3.11. What comes behind changes no result."""
    version = deployed.environment.version
    return version and ".".join(version.split(".")[:2])


def prepare_launches(
    sessions: Sequence[Session], request: TrainRequest, deployed: Sequence[Deployed]
) -> list[Launch]:
    pairs = zip(sessions, deployed, strict=True)
    return [prepare_launch(session, request, made) for session, made in pairs]


def place_alike(launches: Sequence[Launch]) -> list[Placement]:
    """As many free GPUs on each: what was asked for, else what the host with the fewest has. Raises
    GpuUnfit; several hosts' queues know nothing of each other, so that nothing waits in them."""

    def place(launch: Launch, gpus: int | None) -> Placement:
        request = dataclasses.replace(launch.request, gpus=gpus, now=True)
        try:
            held = launch.deployed.facts.held
            return place_run(dataclasses.replace(launch, request=request), held)
        except GpuUnfit as error:
            error.remedy = "wait until they are free: a training on several hosts does not queue"
            raise

    def counts() -> list[int]:
        return [len(placement.gpus or ()) for placement in placements]

    placements = [place(launch, launch.request.gpus) for launch in launches]
    if launches[0].request.devices == "auto" and min(counts()) and len({*counts()}) > 1:
        placements = [place(launch, min(counts())) for launch in launches]
    if len({*counts()}) > 1:
        hosts = [launch.session.host for launch in launches]
        text = ", ".join(f"{h} {count}" for h, count in zip(hosts, counts(), strict=True))
        text = f"all hosts need the same number of free GPUs: {text}"
        raise GpuUnfit(text, step="choose GPUs", remedy="name hosts with the same number")
    return placements


# -- the start


def is_started(sessions: Sequence[Session], run: str) -> bool:
    """Whether an earlier call, cut off, has started it on all hosts. Where it got to some of them
    only, it is stopped there."""
    found = [(session, find_there(session, run)) for session in sessions]
    if all(known for _, known in found):
        text = "an earlier call that was cut off has started it; no second one is started"
        sessions[0].display.line(f"run {run}: {text}")
        return True
    for session, known in found:
        if known and known.goes_on:
            session.ask(Stopping, run=run, who=who_am_i())
    return False


def start_all(
    launches: Sequence[Launch], run: str, describe: Describe, ask_first: Callable[[Asked], S]
) -> S:
    """On the first host, which the others then join. Where one can't, those before it are
    stopped."""
    first, sessions = launches[0].session, [launch.session for launch in launches]
    placements = place_alike(launches)
    boots = {launch.deployed.facts.system.boot_id for launch in launches}
    network = find_network(sessions, one_machine=len(boots) == 1)
    shown = ", ".join(f"{a.address} ({a.interface})" for a in network.addresses)
    first.display.line(f"network: {shown}; every host reaches every other, with large packets too")
    nodes = Nodes(
        count=len(launches),
        hosts=tuple(session.host for session in sessions),
        key=secrets.token_hex(16),
        address=network.addresses[0].address,
        port=network.port,
    )
    asked = [
        describe(launch, placement)._replace(nodes=nodes._replace(rank=rank))
        for rank, (launch, placement) in enumerate(zip(launches, placements, strict=True))
    ]
    started: list[Session] = []
    try:
        answer = start_patiently(first, partial(ask_first, asked[0]))
        started.append(first)
        for launch, theirs in zip(launches[1:], asked[1:], strict=True):
            join(launch.session, run, theirs, launch.request.beside)
            started.append(launch.session)
    except (ConnectionLost, Unreachable):
        raise  # the same command finds out how far it has come
    except RemoteError:
        for session in started:
            session.ask(Stopping, run=run, who=who_am_i())
        raise
    return answer


def join(session: Session, run: str, asked: Asked, beside: Mapping[str, Any]) -> None:
    """The first host alone tells a webhook of the end."""
    own = {name: value for name, value in beside.items() if name != "notify"}

    def ask() -> Joined:
        return session.ask(Joined, run=run, asked=differing(asked), **own)

    answer = start_patiently(session, ask)
    if answer.note:
        session.display.note(f"note: {session.host}: {answer.note}")
