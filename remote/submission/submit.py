"""`submit` and `verify-submission`: a fetched run becomes a repository to hand in, once its weights
give the claimed figure again."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.deploy.deploy import show_steps
from remote.errors import RemoteError, TransferFailed, UsageError
from remote.link.answers import Evaluated
from remote.link.session import Project, Session
from remote.project.results import find_run, read_mapping
from remote.screen.display import Display
from remote.screen.text import one_line, percent
from remote.submission import bundle

NOBODY = ("-c", "user.name=submission", "-c", "user.email=submission@localhost")
"""The commit's identity where the user has none."""


@dataclass(frozen=True)
class SubmitOptions:
    """The options of `fab submit` as they were typed."""

    run: str = "latest"
    dest: str = "submission"
    data: str | None = None
    push: str | None = None
    github: str | None = None
    accept: tuple[str, ...] = ()
    yes: bool = False


def submit(
    project: Project, display: Display, session: Session | None, options: SubmitOptions
) -> int:
    """Build the bundle beside its place, check it, and only then give it its name; then push where
    that is asked for.

    With a session the weights are evaluated on that server, which has made them.
    """
    source = find_run(project.dest, options.run)
    place = Path(options.dest).expanduser().absolute()
    require_free(place)
    claim = bundle.read_claim(source)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".submission-", dir=place.parent) as folder:
        draft = Path(folder) / "draft"
        draft.mkdir()
        left_out = bundle.collect(source, draft)
        refuse_findings(draft, options.accept)
        display.note("evaluating the weights again")
        if session:
            evaluation = evaluate_there(session, source, draft, options.data)
        else:
            evaluation = evaluate_here(project, draft, options.data or default_data(claim))
        bundle.check_evaluation(claim, evaluation)
        write_own_files(draft, claim, evaluation, left_out, options.accept)
        commit = make_repository(draft, f"{percent(claim.accuracy)} on the test set")
        if place.exists():
            shutil.rmtree(place)
        os.rename(draft, place)
    display.line(
        f"{place}: ready, one commit on main ({commit})"
        if commit
        else f"{place}: ready (no git here: not a repository)"
    )
    display.line(f"  run            {source.name}")
    display.line(
        f"  test accuracy  {percent(claim.accuracy)}; from weights.pt again"
        f" {percent(evaluation['test_accuracy'])}"
    )
    for item in left_out:
        display.line(f"  left out       {item}")
    if not commit and (options.push or options.github):
        raise UsageError(
            "nothing can be pushed without git",
            step="submit",
            remedy="install git, then the same command again",
        )
    if options.push:
        push_to(place, options.push, display)
    elif options.github:
        publish(place, options.github, display, options.yes)
    else:
        again = f"fab -H {session.typed} submit" if session else "fab submit"
        display.line("push it by one of these; the last one makes a public repository:")
        for command in (f"git -C {place} push URL main", f"{again} --push URL"):
            display.line(f"  {command}")
        display.line(f"  {again} --github NAME")
    return 0


def verify(project: Project, display: Display, folder: str, data: str | None) -> int:
    """Check a bundle against its checksums and its own claim; with `data` its weights, too. Raises
    TransferFailed where it fails."""
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UsageError(f"{folder}: no such folder", step="verify-submission")
    problems = bundle.problems_of(place)
    claim = bundle.read_claim(place)
    if data and not problems:
        bundle.check_evaluation(claim, evaluate_here(project, place, data))
    for problem in problems[:20]:
        display.note(f"  {one_line(problem, 300)}")
    if problems:
        count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
        raise TransferFailed(
            f"{folder} has {count}",
            step="verify-submission",
            remedy="don't trust it; ask for it again",
        )
    measured = (
        "and the weights give it" if data else "the weights were not evaluated (--data would)"
    )
    display.line(
        f"{folder}: {len(bundle.files_of(place))} files as listed; {percent(claim.accuracy)} is"
        f" claimed everywhere, {measured}"
    )
    return 0


def require_free(place: Path) -> None:
    """An earlier bundle, unchanged and with its one commit, may be replaced; anything else may hold
    somebody's work."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    commits = git(place, "rev-list", "--all", "--count") if (place / ".git").is_dir() else "0"
    try:
        ours = place.is_dir() and commits in ("0", "1") and not bundle.problems_of(place)
    except RemoteError:
        ours = False
    if not ours:
        raise UsageError(
            f"{place} exists and is no unchanged bundle",
            step="submit",
            remedy="move it away, or name another --dest",
        )


def refuse_findings(draft: Path, accepted: tuple[str, ...]) -> None:
    found = bundle.findings_in(draft, accepted)
    if found:
        rest = f" and {len(found) - 8} more" if len(found) > 8 else ""
        names = " ".join(
            f"--accept {path}" for path in dict.fromkeys(finding.path for finding in found[:3])
        )
        raise UsageError(
            f"this must not be handed in: {'; '.join(map(str, found[:8]))}{rest}",
            step="submit",
            remedy=f"take it out of the code and train again, or, if it is harmless: {names}",
        )


def default_data(claim: bundle.Claim) -> str:
    data = str(dict(claim.summary.get("config") or {}).get("data") or "")
    if data == "synthetic" or os.path.exists(data):
        return data
    raise UsageError(
        "the weights must be evaluated again, and the images are not here",
        step="submit",
        remedy=(
            "name them: --data PATH (archive or folder), or have it done on the server: fab -H …"
            " submit"
        ),
    )


def evaluate_here(project: Project, place: Path, data: str) -> Mapping[str, Any]:
    """What this project's own code measures with the bundle's weights. Raises UsageError or
    TransferFailed.

    Not the bundle's code: it came from a server, or from whoever handed it in, and must run nothing
    here.
    """
    if importlib.util.find_spec("torch") is None:
        remedy = "fab -H … submit has it done on the server, or: pip install -r requirements.txt"
        raise UsageError(
            "evaluating the weights needs torch, which is not installed here",
            step="submit",
            remedy=remedy,
        )
    where = data if data == "synthetic" else str(Path(data).expanduser().absolute())
    argv = [
        sys.executable,
        "-m",
        "trainer.evaluate",
        "--checkpoint",
        str((place / "weights.pt").absolute()),
        "--data",
        where,
        "--json",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PYTHONDONTWRITEBYTECODE": "1"
    }
    done = subprocess.run(
        argv,
        cwd=project.directory,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )
    try:
        told = json.loads(done.stdout.splitlines()[-1])
        return {
            "test_accuracy": float(told["test_accuracy"]),
            **{key: told.get(key) for key in ("test_images", "data_sha256")},
        }
    except (IndexError, ValueError, KeyError, TypeError):
        last = next(
            (line for line in reversed(done.stderr.splitlines()) if line.strip()),
            f"exit code {done.returncode}",
        )
        text = one_line(last.removeprefix("error: "), 300)
        raise TransferFailed(
            f"the weights can't be evaluated: {text}", step="submit", remedy="look at --data"
        ) from None


def evaluate_there(
    session: Session, source: Path, draft: Path, data: str | None
) -> Mapping[str, Any]:
    """The same by the server that made the run, with the run's own release. Raises NotFound where
    it has lost the run or the images."""
    place = data or data_of(source)
    told = session.ask(
        Evaluated,
        show_steps(session),
        run=source.name,
        weights_sha256=bundle.digest(draft / "weights.pt"),
        data=place,
    ).told
    session.display.clear()
    if told.test_accuracy is None:
        raise TransferFailed("the server tells no accuracy", host=session.host, step="submit")
    return {**dataclasses.asdict(told), "where": "on the server"}


def data_of(run: Path) -> str:
    """Where the run had its images on the server: of its command, else of its configuration."""
    argv = list(map(str, read_mapping(run, "run.json").get("argv") or []))
    if "--data" in argv[:-1]:
        return argv[argv.index("--data") + 1]
    return str(dict(read_mapping(run, "summary.json").get("config") or {}).get("data") or "")


def write_own_files(
    draft: Path,
    claim: bundle.Claim,
    evaluation: Mapping[str, Any],
    left_out: list[str],
    accept: Sequence[str],
) -> None:
    own = {
        **evaluation,
        "weights_sha256": bundle.digest(draft / "weights.pt"),
        "time": time.strftime("%Y-%m-%d"),
        "accepted": list(accept),
    }
    (draft / bundle.EVALUATION).write_text(
        json.dumps(own, indent=1) + "\n", encoding="utf-8", newline=""
    )
    (draft / bundle.RECIPE).write_text(
        bundle.recipe_text(claim.summary), encoding="utf-8", newline=""
    )
    (draft / bundle.README).write_text(
        bundle.readme(claim, evaluation, left_out), encoding="utf-8", newline=""
    )
    # Byte for byte, whatever the clone's settings say about line ends.
    (draft / ".gitattributes").write_text("* -text\n", encoding="utf-8", newline="")
    (draft / bundle.SUMS).write_text(bundle.sums_of(draft), encoding="utf-8", newline="")


# git


def git(place: Path, *words: str, options: Sequence[str] = ()) -> str:
    """Its output. Raises TransferFailed with its last words."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("GIT_") or key == "GIT_SSH_COMMAND"
    }
    done = subprocess.run(
        ["git", *options, *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        fatal = next(
            (line for line in lines if line.startswith(("fatal:", "error:", "remote: error"))),
            lines[-1] if lines else "",
        )
        raise TransferFailed(
            f"git {words[0]} failed: {one_line(fatal, 300)}",
            step="submit",
            remedy=f"look at {place}",
        )
    return done.stdout.strip()


def make_repository(place: Path, message: str) -> str | None:
    """One commit on main with every file, ignored ones included; its short name, or None without
    git."""
    if shutil.which("git") is None:
        return None
    git(place, "init", "--quiet", "--initial-branch=main")
    known = all(_configured(place, name) for name in ("user.name", "user.email"))
    git(place, "add", "--all", "--force")
    git(
        place,
        "commit",
        "--quiet",
        "--no-verify",
        "--no-gpg-sign",
        "-m",
        message,
        options=() if known else NOBODY,
    )
    return git(place, "rev-parse", "--short", "HEAD")


def _configured(place: Path, name: str) -> bool:
    try:
        return bool(git(place, "config", name))
    except RemoteError:
        return False


def push_to(place: Path, url: str, display: Display) -> None:
    if url.startswith("-"):
        raise UsageError(
            f"--push needs the address of a repository, not {url!r:.60}", step="submit"
        )
    git(place, "push", "--quiet", url, "main:main")
    display.line(f"pushed to {without_password(url)}")


def without_password(url: str) -> str:
    head, separator, rest = url.partition("://")
    return f"{head}://{rest.rpartition('@')[2]}" if separator else url


def publish(place: Path, name: str, display: Display, yes: bool) -> None:
    """Create a public repository by GitHub's own program, after a confirmation; its address is what
    is to be sent."""
    if shutil.which("gh") is None:
        raise UsageError(
            "GitHub's program gh is not installed",
            step="submit",
            remedy="create a repository by hand, then --push URL",
        )
    if not yes:
        agreed = display.confirm(
            f"create the PUBLIC repository {name} on GitHub and push {place} to it?"
        )
        if agreed is None:
            raise UsageError(
                "a public repository is created only after a confirmation",
                step="submit",
                remedy="--yes says so beforehand",
            )
        if not agreed:
            display.note("not published; the bundle stays where it is")
            return
    done = subprocess.run(
        [
            "gh",
            "repo",
            "create",
            name,
            "--public",
            f"--source={place}",
            "--remote=origin",
            "--push",
        ],
        capture_output=True,
        text=True,
    )
    address = next((line for line in done.stdout.splitlines() if line.startswith("https://")), "")
    if done.returncode or not address:
        raise TransferFailed(
            f"gh: {one_line(done.stderr.strip() or done.stdout, 300)}",
            step="submit",
            remedy="gh auth login",
        )
    display.line(f"published, to be sent: {address}")
