"""`submit` and `verify-submission`: a fetched run becomes a repository to hand in, once its weights
give the claimed figure again."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote.errors import RemoteError, TransferFailed, UsageError
from remote.link.session import Project, Session
from remote.project.options import SubmitOptions
from remote.project.results import find_run
from remote.screen.display import Display
from remote.screen.text import one_line, percent
from remote.submission import bundle
from remote.submission.evaluation import default_data, evaluate_here, evaluate_there
from remote.submission.repository import git, make_repository, publish, push_to, require_way


@dataclass(frozen=True)
class Made:
    """What a bundle holds: of which run, what that claims, what its weights gave again, and which
    files are too large."""

    source: Path
    claim: bundle.Claim
    evaluation: Mapping[str, Any]
    left_out: list[str]


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
    require_way(options)
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
        made = Made(source, claim, evaluation, left_out)
        write_own_files(draft, made, options.accept)
        commit = make_repository(draft, f"{percent(claim.accuracy)} on the test set")
        if place.exists():
            shutil.rmtree(place)
        os.rename(draft, place)
    tell_made(display, place, made, commit)
    fab = f"fab -H {session.typed}" if session else "fab"
    hand_over(display, place, options, f"{fab} {typed(options)}")
    if display.json_mode:
        display.json(made_json(place, made, commit))
    return 0


def typed(options: SubmitOptions) -> str:
    """What makes the same bundle again."""
    words = ["submit"]
    for name, usual in (("run", "latest"), ("dest", "submission"), ("data", None)):
        if (value := getattr(options, name)) != usual:
            words += [f"--{name}", shlex.quote(value)]
    return " ".join([*words, *(f"--accept {shlex.quote(path)}" for path in options.accept)])


def tell_made(display: Display, place: Path, made: Made, commit: str | None) -> None:
    """`commit` None: there is no git here."""
    if commit:
        display.line(f"{place}: ready, one commit on main ({commit})")
    else:
        display.line(f"{place}: ready (no git here: not a repository)")
    display.line(f"  run            {made.source.name}")
    display.line(
        f"  test accuracy  {percent(made.claim.accuracy)}; from weights.pt again"
        f" {percent(made.evaluation['test_accuracy'])}"
    )
    for item in made.left_out:
        display.line(f"  left out       {item}")


def made_json(place: Path, made: Made, commit: str | None) -> dict[str, Any]:
    return {
        "path": str(place),
        "run": made.source.name,
        "commit": commit,
        "claimed": made.claim.accuracy,
        "test_accuracy": made.evaluation["test_accuracy"],
        "left_out": made.left_out,
    }


def hand_over(display: Display, place: Path, options: SubmitOptions, again: str) -> None:
    """Push it where that is asked for, else tell how. `again`: what was typed."""
    if options.push:
        push_to(place, options.push, display)
    elif options.github:
        publish(place, options.github, display, options.yes)
    else:
        display.line("push it by one of these; the last one makes a public repository:")
        for command in (f"git -C {shlex.quote(str(place))} push URL main", f"{again} --push URL"):
            display.line(f"  {command}")
        display.line(f"  {again} --github NAME")


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
        count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
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
            f"{place} exists, and is no bundle as submit made it",
            step="submit",
            remedy="move it away, or name another --dest",
        )


def refuse_findings(draft: Path, accepted: Sequence[str]) -> None:
    found = bundle.findings_in(draft, accepted)
    if found:
        rest = f" and {len(found) - 8} more" if len(found) > 8 else ""
        names = " ".join(
            f"--accept {shlex.quote(path)}"
            for path in dict.fromkeys(finding.path for finding in found[:3])
        )
        raise UsageError(
            f"this must not be handed in: {'; '.join(map(str, found[:8]))}{rest}",
            step="submit",
            remedy=f"take it out of the code and train again, or, if it is harmless: {names}",
        )


def write_own_files(draft: Path, made: Made, accept: Sequence[str]) -> None:
    own = {
        **made.evaluation,
        "weights_sha256": bundle.digest(draft / "weights.pt"),
        "time": time.strftime("%Y-%m-%d"),
        "accepted": list(accept),
    }
    texts = {
        bundle.EVALUATION: json.dumps(own, indent=1) + "\n",
        bundle.RECIPE: bundle.recipe_text(made.claim.summary),
        bundle.README: bundle.readme(made.claim, made.evaluation, made.left_out),
        # Byte for byte, whatever the clone's settings say about line ends.
        ".gitattributes": "* -text\n",
    }
    for name, text in texts.items():
        (draft / name).write_text(text, encoding="utf-8", newline="")
    (draft / bundle.SUMS).write_text(bundle.sums_of(draft), encoding="utf-8", newline="")
