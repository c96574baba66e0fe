"""Logs in on an open transport: keys first, then questions. Asks for the service, the login and a session in one flight."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from paramiko.message import Message

from remote.errors import AuthenticationFailed, ConnectionLost, RemoteError
from remote.screen.text import one_line
from remote.ssh.channel import Stream
from remote.ssh.identities import Identity, Secrets
from remote.ssh.ssh_config import HostConfig
from remote.ssh.transport import POLL_S, Encoded, Transport

SERVICE_REQUEST, SERVICE_ACCEPT, REQUEST, FAILURE, SUCCESS, BANNER, QUESTION, ANSWER = 5, 6, 50, 51, 52, 53, 60, 61
MAX_KEYS_BEFORE_QUESTIONS = 5
"""OpenSSH hangs up after six failures: leave one for the password."""
MAX_QUESTIONS = 20


@dataclass(frozen=True)
class Reply:
    """`ok`, `failure` or `question` (keyboard-interactive's prompts, or a request to change the password)."""

    kind: str
    methods: tuple[str, ...] = ()
    partial: bool = False
    question: Any = None


class AuthWire:
    """The client's half of RFC 4252 on one transport; paramiko's thread hands the answers over."""

    def __init__(self, transport: Transport, user: str) -> None:
        self._transport = transport
        self._user = user
        self._asked_service = False
        self._answer: Reply | None = None
        self._waiting = False
        self._event = threading.Event()
        self.authenticated = False
        self.banner = ""
        self._handler_table = {
            SERVICE_ACCEPT: lambda message: None,
            FAILURE: self._on_failure,
            SUCCESS: self._on_success,
            BANNER: self._on_banner,
            QUESTION: self._on_question,
        }
        transport.auth_handler = self  # type: ignore[assignment]  # stands in for paramiko's own

    # -- from the transport's thread

    def is_authenticated(self) -> bool:
        return self.authenticated

    def abort(self) -> None:
        self._event.set()

    def _on_failure(self, message: Any) -> None:
        methods = message.get_binary()[:2000].decode("ascii", "replace")
        self._settle(Reply("failure", tuple(one_line(part, 60) for part in methods.split(",") if part), message.get_boolean()))

    def _on_success(self, message: Any) -> None:
        if self._waiting:
            self.authenticated = True
            self._transport._auth_trigger()
            self._settle(Reply("ok"))

    def _on_banner(self, message: Any) -> None:
        self.banner = message.get_binary()[:4000].decode("utf-8", "replace")

    def _on_question(self, message: Any) -> None:
        self._settle(Reply("question", question=message))

    def _settle(self, reply: Reply) -> None:
        if self._waiting:
            self._waiting = False
            self._answer = reply
            self._event.set()

    # -- from the one who logs in

    def request(self, method: str, rest: bytes, then: Callable[[], None] | None = None) -> Reply:
        """One attempt, one round trip: the service is asked for along with the first, and `then` sends what may follow it."""
        body = _string(self._user.encode()) + _string(b"ssh-connection") + _string(method.encode()) + rest
        first = b"" if self._asked_service else bytes([SERVICE_REQUEST]) + _string(b"ssh-userauth")
        self._asked_service = True
        return self._exchange([first] if first else [], bytes([REQUEST]) + body, then)

    def answer(self, answers: list[str]) -> Reply:
        return self._exchange(
            [], struct.pack(">BI", ANSWER, len(answers)) + b"".join(_string(text.encode()) for text in answers), None
        )

    def _exchange(self, before: list[bytes], message: bytes, then: Callable[[], None] | None) -> Reply:
        self._event.clear()
        self._answer, self._waiting = None, True
        for data in (*before, message):
            self._transport._send_user_message(Encoded(data))
        if then is not None:
            then()
        deadline = time.monotonic() + self._transport.timeout_s
        while not self._event.wait(POLL_S):
            if not self._transport.is_active() or time.monotonic() > deadline:
                break
        if self._answer is None:
            raise TimeoutError if self._transport.is_active() and not self._event.is_set() else EOFError
        return self._answer

    def sign(self, key: Any) -> bytes:
        """The publickey request's own part, with its signature."""
        certificate = getattr(key, "public_blob", None)
        kind, blob = (certificate.key_type, certificate.key_blob) if certificate else (key.get_name(), key.asbytes())
        algorithm = _algorithm(kind, self._transport.server_extensions.get("server-sig-algs", b""))
        head = b"\1" + _string(algorithm.encode()) + _string(blob)
        signed = Message()
        signed.add_string(self._transport.session_id or b"")
        signed.add_bytes(
            bytes([REQUEST]) + _string(self._user.encode()) + _string(b"ssh-connection") + _string(b"publickey") + head
        )
        signature = key.sign_ssh_data(signed.asbytes(), algorithm)
        return head + _string(bytes(signature if isinstance(signature, bytes) else signature.asbytes()))


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _algorithm(kind: str, offered: bytes | str) -> str:
    """RSA keys sign with SHA-2; the server's list, where it sent one, chooses between the two."""
    if "rsa" not in kind:
        return kind
    names = (offered.decode("ascii", "replace") if isinstance(offered, bytes) else offered).split(",")
    chosen = "rsa-sha2-256" if "rsa-sha2-256" in names and "rsa-sha2-512" not in names else "rsa-sha2-512"
    return chosen + ("-cert-v01@openssh.com" if "-cert-" in kind else "")


class Login:
    """One login. `run` returns a session already asked for, or None when it must be asked for afterwards."""

    def __init__(
        self, transport: Transport, config: HostConfig, identities: list[Identity], secrets: Secrets, notes: list[str]
    ) -> None:
        self._wire = AuthWire(transport, config.user)
        self._transport = transport
        self._config = config
        self._identities = identities
        self._secrets = secrets
        self._notes = notes
        self._tried: list[str] = []
        self._methods: tuple[str, ...] = ()
        self._session: Stream | None = None

    def run(self, with_session: bool) -> Stream | None:
        """Raises AuthenticationFailed with what was tried, ConnectionLost when the server goes silent."""
        try:
            if not self._go(with_session):
                raise self._refused("permission denied")
        except TimeoutError:
            raise ConnectionLost(f"no answer for {self._transport.timeout_s:g} s", host=self._config.name, step="login") from None
        except RemoteError:
            raise
        except Exception as error:  # EOFError, OSError, SSHException: the server has hung up on us
            raise self._hung_up(error) from None
        return self._session

    def _go(self, with_session: bool) -> bool:
        partial = False
        if not self._identities:
            reply = self._ask("none", b"")
            if reply.kind == "ok":
                return True
        for number, identity in enumerate(self._identities):
            if self._methods and "publickey" not in self._methods:
                break
            if number >= MAX_KEYS_BEFORE_QUESTIONS and self._secrets.has_password and set(self._methods) - {"publickey"}:
                break
            reply_or_none = self._offer(identity, with_session and number == 0)
            if reply_or_none is not None and reply_or_none.kind == "ok":
                return True
            if reply_or_none is not None and reply_or_none.partial:
                partial = True
                break
        for method in self._config.methods:
            if method in self._methods and method != "publickey" and self._question(method):
                return True
        if partial or not self._identities:
            return False
        return not self._methods and self._ask("none", b"").kind == "ok"

    def _ask(self, method: str, rest: bytes, then: Callable[[], None] | None = None) -> Reply:
        reply = self._wire.request(method, rest, then)
        if reply.kind == "failure":
            self._methods = reply.methods
        return reply

    def _offer(self, identity: Identity, with_session: bool) -> Reply | None:
        key = identity.key if identity.unlock is None else identity.unlock()
        if key is None:
            return None
        try:
            request = self._wire.sign(key)
        except Exception as error:  # an agent may refuse to sign, in as many ways as there are agents
            self._notes.append(f"{identity.label} could not sign ({one_line(str(error), 80)})")
            return None
        self._tried.append(identity.label)
        # RFC 4252 5.1: what follows a request that succeeds is passed on to the service. After one that fails,
        # OpenSSH passes over it; other servers may hang up, so only OpenSSH gets the session's request early.
        early = with_session and "OpenSSH" in self._transport.remote_version
        opened: list[Stream] = []
        reply = self._ask(
            "publickey", request, (lambda: opened.append(self._transport.open_stream("session"))) if early else None
        )
        for stream in opened:
            if reply.kind == "ok":
                self._session = stream
            else:
                self._transport.forget(stream)
        return reply

    # -- questions

    def _question(self, method: str) -> bool:
        if not self._secrets.has_password:
            self._notes.append(f"{method} needs somebody to answer")
            return False
        once = self._keyboard_interactive if method == "keyboard-interactive" else self._password
        for attempt in range(self._secrets.prompts + 2):
            reply = once(attempt)
            if reply is None:
                return False
            if reply.kind == "ok":
                return True
            if reply.partial or method not in self._methods:
                return False
        return False

    def _password(self, attempt: int) -> Reply | None:
        text = self._secrets.password(attempt)
        if text is None:
            return None
        self._note_tried("password")
        reply = self._ask("password", b"\0" + _string(text.encode()))
        if reply.kind == "question":
            raise self._refused("the server wants the password changed first")
        if reply.kind == "ok":
            self._secrets.worked(text)
        return reply

    def _keyboard_interactive(self, attempt: int) -> Reply | None:
        if attempt >= self._secrets.prompts:
            return None
        reply = self._ask("keyboard-interactive", _string(b"") + _string(b""))
        given: str | None = None
        for _ in range(MAX_QUESTIONS):
            if reply.kind != "question":
                break
            self._note_tried("keyboard-interactive")
            answers, given = self._answers(reply.question, attempt)
            if answers is None:
                return None
            reply = self._wire.answer(answers)
        if reply.kind == "failure":
            self._methods = reply.methods
        if reply.kind == "ok" and given is not None:
            self._secrets.worked(given)
        return reply

    def _answers(self, message: Any, attempt: int) -> tuple[list[str] | None, str | None]:
        """Answers to one set of prompts. A single hidden one is the password."""
        title, text = message.get_binary(), message.get_binary()
        message.get_binary()
        prompts = [(message.get_binary(), message.get_boolean()) for _ in range(min(message.get_int(), 10))]
        shown = [one_line(prompt.decode("utf-8", "replace"), 200) for prompt, _ in prompts]
        if len(prompts) == 1 and not prompts[0][1] and "password" in shown[0].lower():
            given = self._secrets.password(attempt, f"({self._config.user}@{self._config.name}) {shown[0]} ")
            return (None, None) if given is None else ([given], given)
        heading = one_line(f"{title.decode('utf-8', 'replace')} {text.decode('utf-8', 'replace')}", 400)
        answers = []
        for prompt in shown:
            answer = self._secrets.ask(f"({self._config.user}@{self._config.name}) {heading + ': ' if heading else ''}{prompt} ")
            if answer is None:
                return None, None
            answers.append(answer)
        return answers, None

    def _note_tried(self, what: str) -> None:
        if what not in self._tried:
            self._tried.append(what)

    # -- failures

    def _refused(self, message: str) -> AuthenticationFailed:
        tried = f"tried {', '.join(self._tried)}" if self._tried else "there was no key to try"
        accepts = f"; the server accepts {', '.join(self._methods)}" if self._methods else ""
        notes = f"; {'; '.join(dict.fromkeys(self._notes))}" if self._notes else ""
        said = f"; the server says: {one_line(self._wire.banner, 200)}" if self._wire.banner.strip() else ""
        config = self._config
        port = "" if config.port == 22 else f"-p {config.port} "
        return AuthenticationFailed(
            f"{message} for {config.user}: {tried}{accepts}{notes}{said}",
            host=config.name,
            step="login",
            remedy=f"choose a key with -i, or put yours on the server: ssh-copy-id {port}{config.user}@{config.hostname}",
        )

    def _hung_up(self, error: Exception) -> RemoteError:
        said = one_line(self._transport.said_goodbye or "", 200)
        if "too many authentication failures" in said.lower() or len(self._tried) >= MAX_KEYS_BEFORE_QUESTIONS:
            refused = self._refused("the server stopped after too many keys")
            refused.remedy = (
                "name the right one with -i, or set IdentityFile and IdentitiesOnly yes for this host in ~/.ssh/config"
            )
            return refused
        why = said or self._transport.wire.fault or one_line(str(error), 200)
        if said:
            return self._refused(f"the server hung up during the login ({why})")
        # Without a word it may as well be the network: "refused" would send people to look at their keys.
        return ConnectionLost(
            f"the connection was lost during the login{f' ({why})' if why else ''}",
            host=self._config.name,
            step="login",
            remedy="run the same command again",
        )
