"""What Slurm knows of our jobs, asked as seldom as a site may expect: one squeue for all of a
root's runs, at most every 15 s, kept in a file for all who look."""

import os
import re
import shutil
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from remote.agent.machine.programs import ask as ask_program
from remote.agent.root.paths import read_json, write_json

EVERY_S = float(os.environ.get("REMOTE_SLURM_EVERY_S", "15"))
ASK_S = 20.0
PREFIX = "fab-"
"""Our jobs' names begin so."""
FORMAT = "%i|%T|%r|%S|%e|%N|%j"
PLACES = "/opt/slurm/bin:/usr/local/slurm/bin:/cm/shared/apps/slurm/current/bin:/usr/local/bin"
"""Where Slurm lies on clusters whose login shell alone has it on PATH."""
AWAY = re.compile(
    r"unable to contact|connect failure|connection refused|timed out|communication|not responding"
    r"|zero bytes were transmitted|unexpected message|no route to host",
    re.IGNORECASE,
)
"""The controller's answer is lost, or it is away: nothing is known of what was asked."""


class JobRow(NamedTuple):
    """`start`: expected while it waits. `end` of a job that runs is its time limit's."""

    id: str
    state: str
    reason: str = ""
    start: Optional[float] = None
    end: Optional[float] = None
    nodes: str = ""
    exit_code: str = ""


class Queue(NamedTuple):
    """`answered`: when the controller told this, None: never. `problem`: why it tells nothing."""

    jobs: Dict[str, JobRow]
    answered: Optional[float] = None
    problem: Optional[str] = None


class Said(NamedTuple):
    """`lost`: no answer of the controller's."""

    code: int
    out: str
    err: str
    lost: bool = False

    @property
    def words(self) -> str:
        """Slurm's own reason in one line."""
        lines = [
            re.sub(r"^\w+:? (?:error|fatal): ", "", line.strip())
            for line in self.err.splitlines()
            if line.strip()
        ]
        told = [re.sub(r"^Batch job submission failed: ", "", line) for line in lines]
        return "; ".join(dict.fromkeys(told))[:400] or f"exit code {self.code}"


def find(program: str) -> Optional[str]:
    return shutil.which(program) or shutil.which(program, path=PLACES)


def ask(program: str, arguments: List[str], timeout_s: float = ASK_S) -> Said:
    """Times are told in seconds since 1970, words in English."""
    path = find(program)
    if path is None:
        return Said(127, "", f"{program} is not installed here")
    environment = dict(os.environ, LC_ALL="C", SLURM_TIME_FORMAT="%s")
    told = ask_program([path, *arguments], timeout_s, environment)
    if told.late:
        return Said(told.code, "", f"{program} did not answer within {timeout_s:.0f} s", True)
    lost = told.code != 0 and bool(AWAY.search(told.err))
    return Said(told.code, told.out, told.err, lost)


def parse_squeue(text: str) -> Dict[str, JobRow]:
    """By job name; of several with one name, the first that was submitted."""
    rows: Dict[str, JobRow] = {}
    for line in reversed(text.splitlines()):
        cells = line.split("|")
        if len(cells) == 7 and cells[6].startswith(PREFIX):
            job, state, reason, start, end, nodes, name = cells
            found = JobRow(job, state, reason, seconds(start), seconds(end), nodes)
            known = rows.get(name)
            if known is None or _number(found.id) < _number(known.id):
                rows[name] = found
    return rows


def _number(job: str) -> int:
    return int(re.sub(r"\D.*", "", job) or 0)


def seconds(text: str) -> Optional[float]:
    return float(text) if re.fullmatch(r"\d{9,11}", text) else None


def look_up(name: str) -> Tuple[Optional[JobRow], bool]:
    """The job of this name, and whether the controller has answered at all."""
    said = ask("squeue", ["-h", "-a", "--me", "-t", "all", "-n", name, "-o", FORMAT])
    return parse_squeue(said.out).get(name), said.code == 0


def queue(runs: str, fresh: bool = True) -> Queue:
    """As it is kept in the runs' folder, asked anew where that is too old."""
    place = os.path.join(runs, ".slurm.json")
    kept: Dict[str, Any] = read_json(place) or {}
    if fresh and not 0 <= time.time() - float(kept.get("asked") or 0) < EVERY_S:
        # Written before it is asked: others who look meanwhile don't ask too.
        write_json(place, dict(kept, asked=time.time()))
        said = ask("squeue", ["-h", "-a", "--me", "-t", "all", "-o", FORMAT])
        if said.code == 0:
            jobs = {name: list(row) for name, row in parse_squeue(said.out).items()}
            kept = {"answered": time.time(), "jobs": jobs}
        else:
            kept = dict(kept, problem=said.words)
        write_json(place, dict(kept, asked=time.time()))
    rows = {name: JobRow(*row) for name, row in dict(kept.get("jobs") or {}).items()}
    return Queue(rows, kept.get("answered"), kept.get("problem"))


def forget(runs: str) -> None:
    """What is kept is no longer so: the next look asks."""
    place = os.path.join(runs, ".slurm.json")
    write_json(place, dict(read_json(place) or {}, asked=0.0))


def base_state(values: Dict[str, str]) -> str:
    """While a job's processes are ended Slurm hides why."""
    if values["JobState"] != "COMPLETING":
        return values["JobState"]
    if seconds(values.get("PreemptTime", "")):
        return "PREEMPTED"
    start, end = (seconds(values.get(name, "")) for name in ("StartTime", "EndTime"))
    limit = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", values.get("TimeLimit", ""))
    if start and end and limit:
        days, hours, minutes, rest = (int(part or 0) for part in limit.groups())
        if end - start >= ((days * 24 + hours) * 60 + minutes) * 60 + rest - 1:
            return "TIMEOUT"
    return "CANCELLED"


def ask_about(job: str) -> Optional[JobRow]:
    """One job's end, by scontrol, and by the accounting where the controller has forgotten it.

    None: neither tells, though the controller answers. Raises OSError where nobody answers.
    """
    said = ask("scontrol", ["show", "job", "-o", job])
    values = dict(re.findall(r"(\w+)=(\S*)", said.out))
    if said.code == 0 and values.get("JobState"):
        return JobRow(
            job,
            base_state(values),
            values.get("Reason", ""),
            seconds(values.get("StartTime", "")),
            seconds(values.get("EndTime", "")),
            values.get("NodeList", ""),
            values.get("ExitCode", ""),
        )
    if said.lost:
        raise OSError(said.words)
    told = ask("sacct", ["-X", "-D", "-n", "-P", "-j", job, "-o", "State,ExitCode,Start,End"])
    lines = [line.split("|") for line in told.out.splitlines()]
    if told.code == 0 and lines and len(lines[-1]) == 4:
        state, code, start, end = lines[-1]
        return JobRow(job, state.split()[0], "", seconds(start), seconds(end), "", code)
    return None
