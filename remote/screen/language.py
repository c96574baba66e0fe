"""The language that people read. The code words everything in English. Where a line is shown, it is
looked up in gettext's catalogue: as it is, then as one of the templates with something filled in,
then part by part. What is not found stays English."""

from __future__ import annotations

import functools
import itertools
import os
import re
import string
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import cleandoc
from pathlib import Path

from remote.errors import RemoteError

LOCALE = Path(__file__).resolve().parent.parent / "locale"
SIMPLIFIED = re.compile(r"zh(_(?!TW|HK|MO|Hant)|[.@]|$)|Chinese(_China| \(Simplified\))")
"""How systems name the Chinese of zh_CN."""
TITLE = "title\x04"
"""gettext's context for columns' titles and the like, which could be a host's name elsewhere."""

ONE = re.compile(r"(?<![\w.,:-])(?<!of )1 (epoch|file|GPU|host|image|item|point)s\b")
HEADS = re.compile(r"(error|warning|note|waiting|kept|not sent|not fetched): (?=\S)")
ANYTHING, ONE_PART = "(.*?)", "((?:(?![:;,] ).)*?)"
BALANCED = r"([^()]*(?:\([^()]*\)[^()]*)*)"
JOINTS = (
    (re.compile(r"(.*?)\n(.*)", re.DOTALL), "{}\n{}"),
    (re.compile(r"(.*?) — (.*)"), "{} — {}"),
    (re.compile(r"(.*?); (.*)"), "{}；{}"),
    (re.compile(rf"(.*?) \({BALANCED}\)"), "{}（{}）"),
    (re.compile(r"(.*?): (.*)"), "{}：{}"),
    (re.compile(r"(.*?), (.*)"), "{}，{}"),
    (re.compile(r"(.*?)  (.*)"), "{}  {}"),
    (re.compile(r"(.*):()"), "{}：{}"),
)
"""Where lines are put together from parts, and how these are joined in Chinese."""
LATE, EARLY = re.compile(r"\n| — |; "), re.compile(r"(?!\w+: \{0\}$)[A-Za-z].*([:,] | \()")
"""Messages without a joint of such a kind are looked for in the parts of a line before they are in
the whole."""
MOST_JOINTS = 50
"""A longer line is no message of ours put together, and would be looked at for long."""
WORD = re.compile(r"\S+")
OURS = {"running", "queued", "finished", "failed", "stopped", "unknown", "unreachable"}
OURS |= {"error", "warning", "note", "waiting", "kept", "somebody"}
"""Single words that are translated beside a joint. Others may be what a person typed (a name, a
folder, a host), and so may any word in a template unless the catalogue marks its place: `{1!s}`."""
LITTLE = r"(\d[\d.]*(?: \w+(?: \d+ \w+)?)?|\S*?)"
FEW = 9
"""A template with less text of its own would fit anything: only a number with its unit or a single
word may stand in it."""


@dataclass(frozen=True)
class Template:
    """A message with places to fill in, `{0}` and on. `own`: how much of it is text, which counts
    more at its beginning; `longest`: the text to look for first; `loose`: what is filled in before
    its end may be several parts of a line, too."""

    msgid: str
    translation: str
    own: int
    longest: str
    loose: bool = False

    @property
    def is_part(self) -> bool:
        """Whether it is put behind something else: ", about {0} are needed"."""
        return self.msgid[0] in " ,;:(" and not self.msgid.startswith("  ")

    @property
    def is_weak(self) -> bool:
        return self.own < FEW and not self.msgid.startswith((",", ";", ":", "(", "  "))

    @functools.cached_property
    def ours(self) -> set[int]:
        """The places that only words of our own are put in."""
        parsed = string.Formatter().parse(self.translation)
        return {int(name or 0) for _, name, _, marked in parsed if marked}

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        place = LITTLE if self.is_weak else ANYTHING
        told = "(.*)" if self.is_part else "()"
        for text, name, *_ in string.Formatter().parse(self.msgid):
            told += re.escape(text) + ("" if name is None else place)
        told = told.replace(rf"\({ANYTHING}\)", rf"\({BALANCED}\)")
        if not self.loose:
            inside = told.count(ANYTHING) - told.endswith(ANYTHING)
            told = told.replace(ANYTHING, ONE_PART, inside)
        return re.compile(told, re.DOTALL)


def make_template(msgid: str, translation: str) -> Template:
    texts = [text for text, *_ in string.Formatter().parse(msgid)]
    own = len("".join("".join(texts).split())) + 5 * msgid[:1].isalpha()
    return Template(msgid, translation, own, max(texts, key=len))


def least_english(*told: str | None) -> str | None:
    return min(filter(None, told), key=lambda one: len(re.findall("[a-z]", one)), default=None)


class Catalogue:
    """From finished English lines to those of another language."""

    def __init__(self, entries: Mapping[str, str]) -> None:
        entries = {msgid: told for msgid, told in entries.items() if msgid}
        exact = {m.format(): told.format() for m, told in entries.items() if "{0}" not in m}
        beginnings = {m[:-2]: told.rstrip("： ") for m, told in exact.items() if m.endswith(": ")}
        self.exact = beginnings | exact
        made = [make_template(*one) for one in entries.items() if TITLE not in one[0]]
        made = [one for one in made if "{0}" in one.msgid or one.is_part]
        made.sort(key=lambda one: one.own, reverse=True)
        self.whole = [one for one in made if not one.is_weak and not one.is_part]
        self.parts = [one for one in made if not one.is_weak and one.is_part]
        self.weak = [one for one in made if one.is_weak]
        self.loose = [replace(one, loose=True) for one in (*self.whole, *self.parts)]
        self.first = [one for one in self.loose if LATE.search(one.msgid) and not one.is_part]
        self.first += [one for one in self.whole if EARLY.match(one.msgid)]
        self.find = functools.lru_cache(4096)(self._find)

    def translate(self, text: str, ours: bool = True) -> str:
        """Not `ours`: a single word is somebody's name, and stays."""
        found = self.find(text) if ours or not WORD.fullmatch(text) else None
        return text if found is None else found

    def _find(self, text: str, whole: bool = False) -> str | None:
        """What fits most surely comes first: the text itself, a message that has the joints of
        several parts in it, parts that are all known, other messages, and only then what is known
        in part. `whole`: None for that."""
        if not text or (exact := self.exact.get(text)) is not None:
            return exact if text else None
        head = HEADS.match(text)
        is_known = bool(head and text[head.end() :] in self.exact)
        if not is_known and (first := self._filled(self.first, text)) is not None:
            return first
        if head:
            return f"{self.exact[head[1]]}：{self.translate(text[head.end() :])}"
        found = least_english(
            self._joined(text, all), self._filled(self.whole, text)
        ) or self._filled(self.parts, text)
        weak = None if found else self._filled(self.weak, text)
        if found or whole:
            return found or weak
        return least_english(
            self._joined(text, any), self._filled(self.loose, text), weak
        ) or self._inside_blanks(text)

    def _filled(self, templates: Sequence[Template], text: str) -> str | None:
        """By the first that fits, or the second where that leaves less in English."""
        return least_english(*itertools.islice(self._fillings(templates, text), 2))

    def _fillings(self, templates: Sequence[Template], text: str) -> Iterator[str]:
        for one in templates:
            if one.longest in text and (match := one.pattern.fullmatch(text)):
                before, *values = match.groups()
                if one.is_weak and " " in before and not self.find(before, True):
                    continue
                if before.count("(") == before.count(")"):
                    told = (self.translate(v, n in one.ours) for n, v in enumerate(values))
                    start = self.translate(before, before in OURS)
                    yield start + one.translation.format(*told)

    def _joined(self, text: str, known: Callable[[Iterable[str | None]], bool]) -> str | None:
        if len(re.findall(r"\n|[:;,] ", text)) > MOST_JOINTS:
            return None
        told = []
        for joint, theirs in JOINTS:
            if match := joint.fullmatch(text):
                parts = match.groups()
                names = {part for part in parts if WORD.fullmatch(part)} - OURS
                found = [None if p in names else self.find(p, known is all) for p in parts]
                if known(found):
                    told.append(theirs.format(*(a or b for a, b in zip(found, parts, strict=True))))
        return least_english(*told)

    def _inside_blanks(self, text: str) -> str | None:
        inner = text.strip()
        found = self.find(inner) if inner != text else None
        return found and text.replace(inner, found)


_chosen: Catalogue | None = None


def choose_language(setting: str) -> None:
    """`setting`: en, zh, or auto: what the environment or else the system says. English where the
    terminal can't show the other."""
    global _chosen
    chinese = setting == "zh" or (setting == "auto" and system_is_chinese())
    try:
        "中文".encode(getattr(sys.stdout, "encoding", None) or "ascii")  # none where it is closed
    except UnicodeError:
        chinese = False
    _chosen = load("zh_CN") if chinese else None


def system_is_chinese() -> bool:
    """As gettext reads the environment; where that says nothing, as the system is set."""
    told = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    wanted = os.environ.get("LANGUAGE", "").partition(":")[0]
    if not told and not wanted:
        import locale

        told = locale.getlocale()[0] or ""
    return bool(SIMPLIFIED.match(told if told in ("C", "POSIX") else wanted or told))


@functools.lru_cache
def load(name: str) -> Catalogue:
    import gettext

    return Catalogue(vars(gettext.translation("remote", LOCALE, [name]))["_catalog"])


def translate(text: str, ours: bool = True) -> str:
    """A line as it is shown to a person; in English as it came, but for what there is one of."""
    return _chosen.translate(text, ours) if _chosen else ONE.sub(r"1 \1", text)


def title(text: str) -> str:
    """Of a column, a check or a step."""
    return _chosen.exact.get(TITLE + text, text) if _chosen else text


def translate_paragraphs(text: str) -> str:
    """A task's docstring; of its examples the comments."""
    if not _chosen:
        return text
    told = re.sub(r"(?<=  # ).*", lambda comment: translate(comment[0]), cleandoc(text))
    return "\n\n".join(map(translate, told.split("\n\n")))


def translate_error(error: RemoteError | str) -> str:
    """In one line: where, what, and what to type next."""
    if isinstance(error, str) or not _chosen:
        return translate(f"error: {error}")
    where = "，".join(part for part in (error.host, title(error.step or "")) if part)
    remedy = f" — {translate(error.remedy)}" if error.remedy else ""
    return f"错误：{where and where + '：'}{translate(error.message)}{remedy}"
