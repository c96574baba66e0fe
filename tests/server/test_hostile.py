"""Hostile strings from the user's side arrive as they are; a hostile server can't write, draw or
grow anything here.

benchmarks/faults.py tries thousands of strings and replies.
"""

from __future__ import annotations

import functools
import hashlib
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote.agent.shared import protocol
from remote.loopback import LoopbackServer
from tests.support.faults import Lab, wait_until
from tests.support.hostile import Frames, LyingLab, encode, mutations, recording

pytestmark = pytest.mark.timeout(180)
MIB = 1 << 20


GOOD = b"good"
GOOD_HASH = hashlib.sha256(GOOD).hexdigest()
RUN = {"run": "r1", "state": "finished", "detail": {"ended": 1.0}, "asked": {}}


def manifest(*files: Any, run: Any = None) -> Frames:
    return [({"event": {"files": list(files)}}, b""), ({"result": {"run": run or RUN}}, b"")]


def fetching(
    files: Any, *events: tuple[dict[str, Any], bytes], run: Any = None
) -> Callable[[str, dict[str, Any]], Frames]:
    """A server that lists `files` and then sends `events`."""

    def answer(op: str, args: dict[str, Any]) -> Frames:
        if op == "fetch_manifest":
            return manifest(*files, run=run)
        return [*(({"event": event}, blob) for event, blob in events), ({"result": {}}, b"")]

    return answer


def listing(*files: Any, run: Any = None) -> Callable[[str, dict[str, Any]], Frames]:
    """One that names a file, and sends whatever is asked for with right hashes."""

    def answer(op: str, args: dict[str, Any]) -> Frames:
        if op == "fetch_manifest":
            return manifest(*files, run=run)
        events = [
            {"file": path, "offset": 0, "done": GOOD_HASH} for path, *_ in args.get("ranges", [])
        ]
        return [*(({"event": event}, GOOD) for event in events), ({"result": {}}, b"")]

    return answer


def always(*frames: Any) -> Callable[[str, dict[str, Any]], Frames]:
    return lambda op, args: frames


def one(path: Any, size: Any = 4, mode: Any = 0o644, sha256: Any = None) -> list[Any]:
    return [path, size, mode, sha256]


FILE = one("a", 4)
DONE = {"file": "a", "offset": 0, "done": GOOD_HASH}
ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\x1b]52;c;cHduZWQ=\x07"
ENDED = {"run": ESCAPES, "state": "failed"}
# task, how the server lies, and the exit code.
REPLIES: list[tuple[str, str, Callable[[str, dict[str, Any]], Frames], int]] = [
    ("parent", "fetch_results", listing(one("../pwned")), 13),
    ("deep parent", "fetch_results", listing(one("a/../../pwned")), 13),
    ("absolute", "fetch_results", listing(one("/tmp/pwned")), 13),
    ("dot", "fetch_results", listing(one("./a")), 13),
    ("empty name", "fetch_results", listing(one("")), 13),
    ("double slash", "fetch_results", listing(one("a//b")), 13),
    ("NUL", "fetch_results", listing(one("a\0b")), 13),
    ("part file", "fetch_results", listing(one(".fetch/0")), 13),
    ("name too long", "fetch_results", listing(one("x" * 300)), 13),
    ("name is a number", "fetch_results", listing(one(7)), 13),
    ("the same twice", "fetch_results", listing(FILE, FILE), 13),
    ("file and directory", "fetch_results", listing(one("a"), one("a/b")), 12),
    ("run is a path", "fetch_results", listing(FILE, run={**RUN, "run": "../r1"}), 13),
    ("run is absolute", "fetch_results", listing(FILE, run={**RUN, "run": "/tmp/r1"}), 13),
    ("run is hidden", "fetch_results", listing(FILE, run={**RUN, "run": ".pending"}), 13),
    ("run has no name", "fetch_results", listing(FILE, run={"state": "x"}), 13),
    ("device mode", "fetch_results", listing(one("a", 4, 0o20644)), 13),
    ("setuid mode", "fetch_results", listing(one("a", 4, 0o4755)), 13),
    ("long link", "fetch_results", listing(one("source/a", 1 << 20, 0o120000)), 13),
    ("negative size", "fetch_results", listing(one("a", -1)), 13),
    ("size of a petabyte", "fetch_results", listing(one("a", 1 << 50)), 13),
    ("size beyond this disk", "fetch_results", listing(one("a", 1 << 49)), 12),
    ("list is a number", "fetch_results", always(({"event": {"files": 7}}, b""), *manifest()), 13),
    ("size is text", "fetch_results", listing(one("a", "4")), 13),
    ("hash is no hash", "fetch_results", listing(one("a", 4, 0o644, "x")), 13),
    ("row is no row", "fetch_results", listing(["a"]), 13),
    ("wrong hash", "fetch_results", fetching([FILE], ({**DONE, "done": "0" * 64}, GOOD)), 12),
    (
        "hash differs from the release",
        "fetch_results",
        listing(one("source/a", 4, 0o644, "1" * 64)),
        12,
    ),
    (
        "more than announced",
        "fetch_results",
        fetching([FILE], ({**DONE, "done": None}, GOOD * 2)),
        13,
    ),
    (
        "endless bytes",
        "fetch_results",
        fetching([FILE], *[({"file": "a", "offset": 0}, GOOD), *[({}, b"x" * MIB)] * 100]),
        13,
    ),
    ("another file", "fetch_results", fetching([FILE], ({**DONE, "file": "../b"}, GOOD)), 13),
    ("bytes of no file", "fetch_results", fetching([FILE], ({}, GOOD)), 13),
    ("negative offset", "fetch_results", fetching([FILE], ({**DONE, "offset": -4}, GOOD)), 13),
    ("offset beyond", "fetch_results", fetching([FILE], ({**DONE, "offset": 10**9}, GOOD)), 13),
    ("files without end", "fetch_results", fetching([FILE], *[(DONE, GOOD)] * 50), 13),
    ("giant frame announced", "status", always(protocol.HEADER.pack(2**32 - 1, 2**32 - 1)), 13),
    ("giant blob announced", "status", always(protocol.HEADER.pack(2, 2**31) + b"{}"), 13),
    (
        "16 MB of brackets",
        "status",
        always(protocol.HEADER.pack(16 * MIB, 0) + b"[" + b"[]," * (16 * MIB // 3)),
        13,
    ),
    ("deep JSON", "status", always(protocol.HEADER.pack(200_000, 0) + b"[" * 200_000), 13),
    ("no JSON", "status", always(protocol.HEADER.pack(4, 0) + b"\xff\xfe\x00x"), 13),
    ("JSON of a list", "status", always(protocol.HEADER.pack(2, 0) + b"[]"), 13),
    ("nothing but life signs", "status", always(*[encode({"alive": True})] * 5000), 4),
    ("result is a list", "status", always(({"result": []}, b"")), 13),
    ("runs of nonsense", "status", always(({"result": {"runs": [1, None, "x"]}}, b"")), 13),
    (
        "refusal with escapes",
        "status",
        always(({"error": {"kind": "NotFound", "message": ESCAPES, "remedy": ESCAPES}}, b"")),
        11,
    ),
    (
        "refusal of an unknown kind",
        "status",
        always(({"error": {"kind": "SystemExit", "message": "x"}}, b"")),
        13,
    ),
    (
        "refusal of many lines",
        "status",
        always(({"error": {"kind": "RunFailed", "message": "a\nerror: b\n" * 9999}}, b"")),
        10,
    ),
    (
        "a traceback of its own",
        "status",
        always(({"error": {"kind": "bug", "message": f"Traceback\n  File x\nE{ESCAPES}"}}, b"")),
        13,
    ),
    (
        "escapes in the table",
        "status",
        always(({"result": {"runs": [{**RUN, "reason": ESCAPES, "host": ESCAPES}]}}, b"")),
        0,
    ),
    (
        "a state that is none",
        "status",
        always(({"result": {"runs": [{**RUN, "state": ESCAPES}]}}, b"")),
        13,
    ),
    (
        "escapes in the log",
        "logs",
        always(({"event": {"log": 0}}, ESCAPES.encode()), ({"result": {"described": RUN}}, b"")),
        0,
    ),
    (
        "a log from elsewhere",
        "logs",
        always(
            ({"event": {"log": 0}}, b"a\n"),
            ({"event": {"log": 9}}, b"b\n"),
            ({"result": {"described": RUN}}, b""),
        ),
        13,
    ),
    (
        "a line without end",
        "logs",
        always(
            *[({"event": {"log": n * MIB}}, b"x" * MIB) for n in range(40)],
            ({"result": {"described": RUN}}, b""),
        ),
        0,
    ),
    (
        "a run's name of escapes",
        "stop",
        always(({"result": ENDED | {"asked": False, "described": ENDED}}, b"")),
        0,
    ),
    (
        "asks for our program without end",
        "status",
        always(*[encode({"need": "x"})] * 3, ({"result": []}, b"")),
        13,
    ),
    ("root is no text", "deploy", always(({"result": {"root": {"path": 7}}}, b"")), 13),
    (
        "GPUs of nonsense",
        "check_gpu",
        always(({"result": {"root": {"path": "/x"}, "gpus": {"found": True, "gpus": [1]}}}, b"")),
        13,
    ),
    (
        "wants what is not in the release",
        "deploy",
        always(
            ({"result": {"root": {"path": "/x"}, "missing": ["../../etc/passwd", "0" * 64]}}, b""),
            ({"result": {}}, b""),
        ),
        8,
    ),
]


@pytest.mark.parametrize(
    ("task", "answer", "code"), [r[1:] for r in REPLIES], ids=[r[0] for r in REPLIES]
)
def test_a_lying_server_is_refused_in_one_line(
    tmp_path: Path, task: str, answer: Any, code: int
) -> None:
    lab = LyingLab(tmp_path)
    tracemalloc.start()
    try:
        done = lab.ask(task, answer)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done.code == code, done
    assert peak < 160 * MIB, f"{peak / MIB:.0f} MiB"
    if lab.results.exists():
        written = sum(file.stat().st_size for file in lab.results.rglob("*") if file.is_file())
        assert written <= 4 + len("*\n"), "more than was announced"
        assert done.code == 0 or not [
            file for file in lab.results.rglob("a") if file.is_file() and file.read_bytes() != GOOD
        ]


def test_a_server_that_lives_but_never_answers_is_given_up(tmp_path: Path) -> None:
    """Its life signs keep every single wait short: the answer as a whole has a limit, too."""
    lab = LyingLab(tmp_path)
    lab.settings = {"timeout_s": 0.02}
    done = lab.ask("status", always(*[encode({"alive": True})] * 60_000))
    assert done.code == 4 and "lives but gives no answer" in done.err and done.seconds < 15


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Any]]]:
    """What an honest agent answers in every task."""
    found: dict[str, dict[str, list[Any]]] = {}
    directory = tmp_path_factory.mktemp("honest")
    with LoopbackServer(directory / "server") as server:
        lab = Lab(server, directory)
        for task in (
            "deploy",
            "train",
            "status",
            "logs",
            "check_gpu",
            "fetch_results",
            "doctor",
            "clean",
            "stop",
        ):
            if task == "fetch_results":
                wait_until(lambda: lab.rows()[0]["state"] == "finished")
            found[task] = {}
            with recording(found[task]):
                assert lab.task(task).code == 0
    return found


def altered(
    honest: dict[str, dict[str, list[Any]]], number: int
) -> Iterator[tuple[str, str, list[Any]]]:
    """Honest answers with one part replaced: `number` for every message of every task."""
    choose = random.Random(1)
    for task, ops in honest.items():
        for op, frames in ops.items():
            for index, (message, blob) in enumerate(frames):
                (kind,) = message
                odd = list(mutations(message[kind]))
                for value in choose.sample(odd, min(number, len(odd))):
                    yield task, op, [*frames[:index], ({kind: value}, blob), *frames[index + 1 :]]


def test_no_part_of_an_answer_can_bring_out_a_traceback(
    tmp_path: Path, honest: dict[str, dict[str, list[Any]]]
) -> None:
    lab = LyingLab(tmp_path)
    tried = 0
    for task, op, frames in altered(honest, 12):
        ops = {**honest[task], op: frames}
        refused: list[Any] = [({"error": {"kind": "NotFound", "message": "no"}}, b"")]
        lab.ask(
            task,
            functools.partial(
                lambda ops, refused, name, args: ops.get(name, refused), ops, refused
            ),
        )
        shutil.rmtree(lab.results, ignore_errors=True)
        tried += 1
    assert tried > 250


def test_a_link_of_the_server_does_not_lead_a_later_file_out(tmp_path: Path) -> None:
    lab = LyingLab(tmp_path)
    link = b"../../.."
    files = [one("source/a", len(link), 0o120000), one("source/a/pwned")]
    events = [
        ({"file": "source/a", "offset": 0, "done": hashlib.sha256(link).hexdigest()}, link),
        ({"file": "source/a/pwned", "offset": 0, "done": GOOD_HASH}, GOOD),
    ]
    assert lab.ask("fetch_results", fetching(files, *events)).code in (12, 13)
    assert not list(tmp_path.rglob("pwned")) or all(
        "results" in str(path) for path in tmp_path.rglob("pwned")
    )


def test_a_checkpoint_that_runs_code_is_not_run_here(tmp_path: Path) -> None:
    """What comes from a server is only bytes here: fetching opens no checkpoint, and the trainer
    loads weights only."""
    import pickle

    torch = pytest.importorskip("torch")
    from trainer.checkpoints import load_checkpoint

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "pwned",))

    evil = tmp_path / "evil.ckpt"
    torch.save({"state_dict": Evil()}, evil)
    content = evil.read_bytes()
    lab = LyingLab(tmp_path / "lab")
    event = {
        "file": "checkpoints/last.ckpt",
        "offset": 0,
        "done": hashlib.sha256(content).hexdigest(),
    }
    assert (
        lab.ask(
            "fetch_results",
            fetching([one("checkpoints/last.ckpt", len(content))], (event, content)),
        ).code
        == 0
    )
    with pytest.raises(Exception, match=r"(?i)weights.?only|checkpoint|unsupported|not.*allowed"):
        load_checkpoint(next(lab.results.rglob("last.ckpt")))
    assert not (tmp_path / "pwned").exists()
    pickle.loads(pickle.dumps(Evil()))  # the trap works
    assert (tmp_path / "pwned").exists()
