"""What stands on fab's command line beside the task: hosts, identities, ssh_config; and what fab
says of a line that it can't read.

Fabric would build a connection of its own for every host, reading ssh_config files that crash it
and one host after the other. Our tasks take the hosts over while the fabfile is imported, so that
Fabric runs each task once and logs in nowhere; tasks of the user's own in the same fabfile are left
as they are.
"""

from __future__ import annotations

import difflib
import logging
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from invoke.exceptions import Exit, ParseError

from remote.screen.language import translate
from remote.screen.plain import leave_pipe, open_closed_streams, say
from remote.screen.text import as_typed
from remote.ssh.target import Target, typed_together

FIRST = {"hosts": "-H", "identity": "-i", "ssh-config": "-S"}
"""fab's own options that have to stand before the task."""
NO_USE = ("dry", "warn-only", "command-timeout", "echo", "hide", "pty", "prompt-for-sudo-password")
"""Those that promise something of commands that fab would run itself."""

PATH_BEGUN = re.compile(r" upload-data( +[^-\s]\S*)? *$")
"""The Tab key was pressed behind it; whether a blank stood there, the shells don't tell."""


@dataclass
class TaskLine:
    """What every task needs beside its own options; `project`: the directory whose fabfile.py is in
    use."""

    targets: list[Target] = field(default_factory=list)
    # What follows `--`, word for word.
    words: list[str] = field(default_factory=list)
    project: Path = field(default_factory=Path.cwd)
    # Settings by FABRIC_REMOTE_… variables.
    environment: Mapping[str, Any] = field(default_factory=dict)


LINE = TaskLine()


def take_over(groups: Mapping[str, Sequence[str]]) -> None:
    """Called by a fabfile with the names of its tasks that are ours, in the groups that `--list`
    shows. Does nothing where no fab is running."""
    from fabric.main import program

    core = getattr(program, "core", None)
    if not core:
        return
    list_tasks, no_tasks = program.list_tasks, program.no_tasks_given

    def show_list() -> None:
        if program.list_format == "flat" and not program.list_root:
            show_tasks(program.collection, groups)
        else:
            list_tasks()

    def show_list_or_run() -> None:
        if core.remainder:
            no_tasks()
        else:
            show_tasks(program.collection, groups)
            raise Exit

    program.parse_cleanup = partial(written, program.parse_cleanup)
    program.list_tasks = show_list
    program.no_tasks_given = show_list_or_run
    ours = {name for names in groups.values() for name in names}
    program.parse_tasks = partial(parse_tasks, program, program.parse_tasks, ours)
    if core.unparsed and _dashed(core.unparsed[0]) in ours:
        take_hosts(program)


def parse_tasks(program: Any, read_tasks: Callable[[], None], ours: Collection[str]) -> None:
    """As Fabric does it, with a line of ours for what it can't read, or would misunderstand."""
    words, arguments = list(program.core.unparsed), program.core[0].args
    if arguments.complete.value and PATH_BEGUN.search(program.core.remainder):
        raise Exit  # with nothing said the shell completes files
    if words and {"-h", "--help"} & set(words[1:]):
        # Else a task's first word would be taken for what it needs.
        arguments.help.value, program.core.unparsed = words[0], []
    if words and words[0].isdigit() and arguments.pty.value and arguments.hosts.value:
        raise refusal(host_meant(words[0], f"{arguments.hosts.value}:{words[0]}"))
    try:
        read_tasks()
    except ParseError as error:
        names = [*program.collection.task_names]
        raise refusal(explain(str(error), error.context, names)) from None
    except ValueError as error:  # of int and float, which names what is none
        given = str(error).rpartition(": ")[2]
        raise refusal(with_help(f"{given} is no number", words[0])) from None
    helped = arguments.help.value
    if isinstance(helped, str) and helped not in program.parser.contexts:
        raise refusal(host_meant(helped, helped))
    if isinstance(helped, str):
        context = program.parser.contexts[helped]
        context.help_for = partial(with_value, context, context.help_for)
    for context in program.tasks:
        void = [name for name in NO_USE if arguments[name].got_value]
        if void and context.name in ours:
            raise refusal(
                f"{context.name} takes no --{void[0]}, and nothing was done: leave it out"
            )
        if bare := bare_option(context, words):
            raise refusal(needs_value(bare, context.name))
    given = program.core_via_tasks.args
    if late := [sign for name, sign in FIRST.items() if given[name].got_value]:
        line = " ".join([*(f"{sign} …" for sign in late), words[0]])
        if hosts := given.hosts.value:
            line = line.replace("-H …", f"-H {hosts}")
        raise refusal(f"{late[0]} goes before the task: fab {line}")


def host_meant(word: str, host: str) -> str:
    return f"there is no task {word}; is -H {host} meant?"


def with_value(
    context: Any, help_for: Callable[[str], tuple[str, str]], flag: str
) -> tuple[str, str]:
    """An option's line of help: also that it takes a value, and what it is without one."""
    (names, text), argument = help_for(flag), context.flags[flag]
    if argument.kind in (list, float):
        names += "=STRING" if argument.kind is list else "=NUMBER"
    if argument.takes_value and argument.default and argument.kind is not list:
        text += translate(f" (default: {argument.default})")
    return names, text


def written(show: Callable[[], None]) -> None:
    """Help and lists, as far as stdout takes them."""
    open_closed_streams()
    try:
        try:
            show()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        leave_pipe()
        raise Exit from None
    except OSError as error:
        leave_pipe()
        raise refusal(f"stdout can't be written: {error.strerror}", 12) from None


def refusal(problem: str, code: int = 2) -> Exit:
    return Exit(as_typed(translate(f"error: {problem}")), code)


def take_hosts(program: Any) -> None:
    core = program.core
    # With --debug it would tell the password and the words of the command line.
    logging.getLogger("invoke").setLevel(logging.INFO)
    LINE.targets = read_targets(program)
    if core.remainder:
        # Fabric would run it as a command of its own, after joining the words.
        argv = list(program.argv)
        LINE.words, core.remainder = argv[argv.index("--") + 1 :], ""
    arguments = core[0].args
    for name in FIRST:
        if name in arguments:
            arguments[name]._value = None


def read_targets(program: Any) -> list[Target]:
    """The hosts of `fab -H`, in order, with what -i and -S gave."""
    args = program.core[0].args
    return [
        Target(
            spec=spec.strip(),
            identities=tuple(args["identity"].value or ()),
            ssh_config=args["ssh-config"].value,
        )
        for spec in (args["hosts"].value or "").split(",")
        if spec.strip()
    ]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def bare_option(context: Any, words: Sequence[str]) -> str | None:
    """One that may be given several times, without its value: invoke would say nothing."""
    for argument in context.args.values():
        sign = f"--{_dashed(argument.name)}"
        given = sum(word == sign or word.startswith(f"{sign}=") for word in words)
        if argument.kind is list and given > len(argument.value or ()):
            return str(argument.name)
    return None


def needs_value(option: str, task: str) -> str:
    return with_help(f"--{_dashed(option)} needs a value", task)


def with_help(said: str, task: str) -> str:
    return f"{said} — fab {task} --help tells its options"


def explain(said: str, context: Any, names: Sequence[str]) -> str:
    """One line for what the parser can't read: what it is, and what was probably meant."""
    task = getattr(context, "name", None)
    unknown = re.fullmatch(r"No idea what '(.*)' is!", said)
    if unknown is None:
        missing = re.fullmatch(r"'(.*)' did not receive required positional arguments: (.*)", said)
        if missing:
            wanted = missing[2].replace("'", "").upper()
            hosts = typed_together(LINE.targets) if LINE.targets else "user@host"
            return f"{missing[1]} needs {wanted}: fab -H {hosts} {missing[1]} {wanted}"
        bare = re.fullmatch(r"Flag <Argument: (\w+)[^>]*> needed value and was not .*", said)
        if bare and len(bare[1]) == 1:
            return f"-{bare[1]} goes before the task: fab -{bare[1]} … {task or 'TASK'}"
        if bare:
            return needs_value(bare[1], task or "TASK")
        return with_help(said, task or "TASK")
    word = unknown[1]
    if task and word.startswith("-"):
        near = _near(word, list(context.flags))
        if task in ("train", "sweep") and not near:
            return (
                f"{task} has no option {word}; the training's own follow --: fab {task} -- {word} …"
            )
        return f"{task} has no option {word}{near}; fab {task} --help lists them"
    if word == "init":
        return "init is no task: python -m remote init [FOLDER]"
    if word == "help":
        return "help is no task: fab --list shows them, fab TASK --help tells a task's options"
    near = _near(word, names)
    option = "set" if "=" in word else "run"
    if task and not near and option in context.args:
        return f"there is no task {word}; is --{option} {word} meant?"
    return f"there is no task {word}{near}; fab --list shows them"


def _near(word: str, known: Sequence[str]) -> str:
    begun = [name for name in known if name.startswith(word)]
    found = begun[:1] or difflib.get_close_matches(word, known, 1)
    return f" (did you mean {found[0]}?)" if found else ""


def show_tasks(collection: Any, groups: Mapping[str, Sequence[str]]) -> None:
    """`fab --list`: ours in their groups, what else the fabfile has below them; a line each."""
    known = {_dashed(name): task for name, task in collection.tasks.items()}
    ours = {name for names in groups.values() for name in names}
    others = [name for name in sorted(collection.task_names) if name not in ours]
    for title, names in {**groups, "Of this fabfile": others}.items():
        if names:
            say(translate(f"{title}:"))
        for name in names:
            told = (known[name].__doc__ if name in known else "") or ""
            say(f"  {name:<18} {next(iter(told.strip().splitlines()), '')}".rstrip())
        if names:
            say("")
    told = "fab TASK --help tells its options; fab -H user@host TASK runs it on a server"
    say(as_typed(translate(told)))
