"""The tasks: each takes its options, walks its way over one login per host, and shows what came of it."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from remote.errors import INTERRUPTED, RemoteError, UsageError
from remote.link.session import Project, Session, who_am_i
from remote.project.release import project_identity
from remote.project.settings import parse_settings
from remote.runs.listing import list_runs, run_json
from remote.runs.request import TrainOptions
from remote.screen.display import Display
from remote.ssh.connection import Target
from remote.tasks.command_line import LINE
from remote.tasks.run_tables import Answers, fetched_json, show_fetched, show_status, status_json
from remote.transfer.fetch import fetch_run


@dataclasses.dataclass
class Task:
    """One call of a task: the project, the hosts, and where to show things."""

    project: Project
    targets: Sequence[Target]
    display: Display
    options: dict[str, Any]

    @property
    def json(self) -> bool:
        return self.display.json_mode

    def session(self, target: Target) -> Session:
        return Session(target, self.project, self.display)

    def only_target(self, name: str) -> Target:
        if len(self.targets) > 1:
            raise UsageError(f"{name} takes one host, {len(self.targets)} were given", remedy=f"fab -H {self.targets[0].spec} {name}")
        return self.targets[0]


def run(context: Any, directory: Path, command: str, json: bool, options: dict[str, Any]) -> int:
    """Carry a task out; returns the exit code. Expected errors become one line, a bug keeps its traceback."""
    display = Display(json_mode=json)
    try:
        settings = parse_settings(dict(context.config.get("remote") or {}), directory)
        project = Project(directory, settings, None)
        if LINE.words and command != "train":
            name = command.replace("_", "-")
            raise UsageError(f"what follows -- belongs to train, not to {name}: {LINE.words[0]!r:.80}", step=name)
        if command == "demo":
            from remote.tasks.demo import demo

            return demo(project, display, **options)
        if command == "verify_submission":
            from remote.submission import submit

            return submit.verify(project, display, **options)
        targets = [complete_target(target, context, settings.timeout_s) for target in LINE.targets]
        if not targets and command not in WITHOUT_SERVER:
            name = command.replace("_", "-")
            raise UsageError(f"{name} needs a server", remedy=f"fab -H user@host[:port] {name}")
        project = dataclasses.replace(project, identity=project_identity(directory))
        return COMMANDS[command](Task(project, targets, display, options))
    except RemoteError as error:
        display.error(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        display.note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); Python must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def complete_target(target: Target, context: Any, timeout_s: float) -> Target:
    """Add what Fabric asked for by itself: a password, a passphrase, a time limit."""
    asked = dict(context.config.get("connect_kwargs") or {})
    return dataclasses.replace(
        target,
        password=asked.get("password") or target.password,
        passphrase=asked.get("passphrase") or target.passphrase,
        timeout_s=float(asked.get("timeout") or timeout_s),
    )


def on_all(task: Task, ask: Callable[[Session], Any]) -> list[tuple[Target, Any, RemoteError | None]]:
    """Ask every host at once. A host that is down gives its error in place of an answer."""

    def one(target: Target) -> tuple[Target, Any, RemoteError | None]:
        try:
            with task.session(target) as session:
                return target, ask(session), None
        except RemoteError as error:
            return target, None, error

    if len(task.targets) == 1:
        return [one(task.targets[0])]
    # Questions on the terminal would mix: with several hosts nothing is asked.
    quiet = [dataclasses.replace(target, interactive=False) for target in task.targets]
    with ThreadPoolExecutor(min(16, len(quiet))) as pool:
        return list(pool.map(one, quiet))


def first_failure(answers: Answers) -> int:
    return next((error.exit_code for _, _, error in answers if error), 0)


def deploy(task: Task) -> int:
    from remote.deploy.deploy import deploy as deploy_one
    from remote.deploy.deploy import show_summary

    results = []
    for target in task.targets:
        with task.session(target) as session:
            deployed = deploy_one(session)
            show_summary(task.display, session, deployed)
            results.append(deployed.as_json(session))
    if task.json:
        task.display.json(results)
    return 0


def train(task: Task) -> int:
    from remote.runs.launch import train_one
    from remote.runs.resume import resume_one

    options = TrainOptions(**task.options, arguments=LINE.words or None)
    with task.session(task.only_target("train")) as session:
        return resume_one(session, options.resume, options) if options.resume else train_one(session, options)


def status(task: Task) -> int:
    answers = on_all(task, list_runs)
    if task.json:
        task.display.json(status_json(answers))
    elif len(answers) == 1 and answers[0][2]:
        raise answers[0][2]
    else:
        show_status(task.display, answers)
    return first_failure(answers)


def logs(task: Task) -> int:
    from remote.runs.follow import Follower

    options = task.options
    if options["lines"] < 0:
        raise UsageError("--lines must not be negative")
    with task.session(task.only_target("logs")) as session:
        text: list[str] = []
        follower = Follower(session, options["run_name"], sink=text.append if task.json else None)
        follower.tail = options["lines"] * 200
        ended = follower.until_end() if options["follow"] else follower.now()
        if task.json:
            lines = "".join(text).splitlines()[-options["lines"] :] if options["lines"] else []
            task.display.json(run_json(ended, session.host) | {"log": lines})
        elif ended.state != "running":
            task.display.note(f"{ended.run}: {ended.state}{': ' + ended.reason if ended.reason else ''}")
    return 0


def stop(task: Task) -> int:
    from remote.runs.launch import wait_until_stopped

    with task.session(task.only_target("stop")) as session:
        answer = session.call("run_stop", run=task.options["run_name"], who=who_am_i())
        if not answer.get("asked"):
            task.display.line(f"{answer.get('run')} has ended already: {answer.get('state')}")
            return 0
        return wait_until_stopped(session, str(answer["run"]))


def attach(task: Task) -> int:
    from remote.runs.attach import attach as attach_one

    with task.session(task.only_target("attach")) as session:
        return attach_one(session, task.options["run"])


def tensorboard(task: Task) -> int:
    from remote.runs.tensorboard import serve

    options = task.options
    with task.session(task.only_target("tensorboard")) as session:
        return serve(session, options["run"], task.project.dest, options["port"], options["browser"])


def submit(task: Task) -> int:
    from remote.submission.submit import submit as submit_one

    if not task.targets:
        return submit_one(task.project, task.display, None, **task.options)
    with task.session(task.only_target("submit")) as session:
        return submit_one(task.project, task.display, session, **task.options)


def doctor(task: Task) -> int:
    from remote.deploy.doctor import examine

    return examine(task.project, [task.session(target) for target in task.targets], task.display)


def upload_data(task: Task) -> int:
    from remote.transfer.upload import show_uploaded
    from remote.transfer.upload import upload_data as upload_to

    answers = []
    for target in task.targets:
        with task.session(target) as session:
            done = upload_to(session, task.options["path"], task.options["name"])
            show_uploaded(session, done)
            answers.append({"host": session.host} | done)
    if task.json:
        task.display.json(answers)
    return 0


def setup_key(task: Task) -> int:
    from remote.deploy.setup_key import setup_key as setup_one

    for target in task.targets:
        with task.session(target) as session:
            setup_one(session)
    return 0


def check_gpu(task: Task) -> int:
    from remote.deploy.deploy import gpu_facts, gpu_json, show_gpus

    answers = on_all(task, gpu_facts)
    if task.json:
        task.display.json([gpu_json(target.spec, answer, error) for target, answer, error in answers])
        return first_failure(answers)
    for target, answer, error in answers:
        if len(answers) > 1:
            task.display.line(f"{target.spec}:")
        if error:
            task.display.error(str(error))
        else:
            show_gpus(task.display, answer)
    return first_failure(answers)


def fetch_results(task: Task) -> int:
    from remote.runs.watch import watch_run

    watching = bool(task.options.get("watch") or task.options.get("then_shutdown"))
    if watching:
        task.only_target("fetch-results --watch")
    dest = Path(task.options["dest"]).expanduser() if task.options["dest"] else task.project.dest
    results = []
    for target in task.targets:
        with task.session(target) as session:
            wanted = [task.options["run_name"]]
            if wanted == ["all"]:
                wanted = [run.run for run in list_runs(session)]
            for name in wanted:
                ask = not task.options.get("yes")
                fetched = watch_run(session, name, dest, ask) if watching else fetch_run(session, name, dest, ask)
                show_fetched(task.display, fetched)
                results.append(fetched_json(fetched, session.host))
            if task.options.get("then_shutdown"):
                from remote.runs.shutdown import shut_down

                shut_down(session, dest, bool(task.options.get("yes")))
    if task.json:
        task.display.json(results)
    return 0


def clean(task: Task) -> int:
    from remote.runs.clean import clean_one, show_cleaned

    answers = []
    for target in task.targets:
        with task.session(target) as session:
            answer = clean_one(session, task.options["yes"], task.options["named"])
            if not task.json:
                show_cleaned(task.display, session, answer, task.options["yes"])
            answers.append({"host": session.host} | answer)
    if task.json:
        task.display.json(answers)
    return 0


WITHOUT_SERVER = ("submit", "doctor")
COMMANDS: dict[str, Callable[[Task], int]] = {
    "deploy": deploy,
    "train": train,
    "status": status,
    "logs": logs,
    "stop": stop,
    "attach": attach,
    "tensorboard": tensorboard,
    "setup_key": setup_key,
    "check_gpu": check_gpu,
    "fetch_results": fetch_results,
    "clean": clean,
    "upload_data": upload_data,
    "doctor": doctor,
    "submit": submit,
}
