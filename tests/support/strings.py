"""Strings that break what quotes badly, and a stub trainer that tells what arrived."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

from hypothesis import strategies as st

from remote.link.link import Link
from remote.loopback import LoopbackServer
from remote.project.command import plan_words
from tests.support.agent import ROOT, follow, put, start
from tests.support.project import make_tree

HOSTILE_STRINGS = [
    "",
    " ",
    "  two  blanks  ",
    "'",
    '"',
    "`touch pwned1`",
    "$(touch pwned2)",
    "${HOME}",
    "$HOME",
    "; touch pwned3",
    "&& touch pwned4",
    "| touch pwned5",
    "> pwned6",
    "\n touch pwned7\n",
    "line\nbreak",
    "tab\tand\rreturn",
    "-rf",
    "--help",
    "-",
    "--",
    "*",
    "?",
    "[a-z]",
    "{a,b}",
    "~",
    "~root",
    "!!",
    "!event",
    "#note",
    "%s%d%n",
    "\\",
    "\\n",
    "\\\\'",
    "a\\",
    "'\"'\"'",
    "\x1b[31mred",
    "\x07",
    "\x7f",
    "ünïcödé",
    "日本語",
    "🎉",
    "\u202e reversed",
    "e\u0301",
    "\ufeff",
    "\udcff\udc80 no unicode",
    "a=b",
    "=",
    "@file",
    "x" * 100_000,
    "#{pane_id}",
    "#(touch pwned8)",
    "C:\\path",
    "$'\\x41'",
    "&",
    "()",
    "<(touch pwned9)",
]
"""Quotes, newlines, substitutions, dashes, tmux formats, unicode, bytes that are no unicode, 100
kB."""

_ALPHABET = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
hostile_text = st.one_of(
    st.sampled_from(HOSTILE_STRINGS),
    st.text(_ALPHABET, max_size=60),
    st.text(st.sampled_from("'\"`$(){};&|<>\\ \n\t-*?~!#%=\x1b"), max_size=30),
)

STUB = """
import json, os, sys
told = {"argv": sys.argv[1:], "environment": os.environ.get("HOSTILE")}
with open(os.path.join(os.environ["REMOTE_RUN_DIR"], "told.json"), "w") as file:
    json.dump(told, file)
print("told")
"""


class Echo:
    """Sends strings as a user's command, value and name would go: settings → argv → agent → tmux →
    supervisor → trainer."""

    def __init__(self, server: LoopbackServer, link: Link, directory: Path) -> None:
        self.server, self.link = server, link
        self.release = put(link, make_tree(directory / "echo", {"stub.py": STUB}))
        self.runs = 0
        self.deploys = link.requests

    def send(self, texts: list[str]) -> list[str]:
        """The strings as the trainer saw them. Half go through remote.command's own words, the rest
        as arguments."""
        run = f"echo-{self.runs:05}"
        self.runs += 1
        middle = len(texts) // 2
        command = f"python stub.py {shlex.join(texts[:middle])}"
        words = plan_words(command, (), sys.executable)
        value = texts[0] if texts else ""
        start(
            self.link,
            run,
            self.release,
            *words,
            *texts[middle:],
            env={"HOSTILE": value},
            name=value,
        )
        described, _ = follow(self.link, run)
        assert described["state"] == "finished" and described["asked"]["name"] == value, described
        told = json.loads((self.server.home / ROOT[2:] / "runs" / run / "told.json").read_text())
        assert told["environment"] == value
        arrived: list[str] = told["argv"]
        return arrived
