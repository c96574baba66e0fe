"""What we use of paramiko beyond its published face is still there, and the wire keeps its limits."""

from __future__ import annotations

import base64
import inspect
import socket
from pathlib import Path

import paramiko
import pytest
from paramiko import agent, packet

from remote.loopback import make_key
from remote.ssh import identities, transport
from remote.ssh.channel import Stream
from remote.ssh.transport import CIPHERS, Transport, Wire


def test_the_names_we_lean_on_exist() -> None:
    for name in (
        "_next_channel",
        "_send_message",
        "_send_user_message",
        "_auth_trigger",
        "_parse_disconnect",
        "_channel_handler_table",
    ):
        assert hasattr(paramiko.Transport, name), name
    ends = socket.socketpair()
    with ends[0], ends[1]:
        made = Transport(Wire(ends[0], 1.0), 1.0, ("ssh-ed25519",))
        for name in (
            "_channels",
            "channels_seen",
            "_handler_table",
            "clear_to_send",
            "server_extensions",
            "lock",
            "auth_handler",
        ):
            assert hasattr(made, name), name
        assert set(paramiko.Transport._channel_handler_table) == set(made._channel_handler_table)  # type: ignore[attr-defined]
        assert set(CIPHERS) <= set(made._cipher_info)  # type: ignore[attr-defined]
    assert "_set_remote_channel" in inspect.getsource(paramiko.Transport._parse_channel_open_success)  # type: ignore[attr-defined]
    assert hasattr(Stream, "_set_remote_channel") and hasattr(Stream, "_unlink")
    assert hasattr(agent.AgentSSH, "_connect") and hasattr(packet.Packetizer, "read_all")


def wire_with(data: bytes) -> Wire:
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.close()
    return Wire(ours, 1.0)


def test_a_packet_of_impossible_length_is_refused() -> None:
    with pytest.raises(OSError, match="impossible length"):
        wire_with(b"x").recv(1 << 30)


def test_endless_chatter_before_the_version_is_refused() -> None:
    wire = wire_with(b"x" * 60_000)
    with pytest.raises(OSError, match="no SSH server"):
        while wire.recv(128):
            pass


def test_what_a_server_says_before_it_hangs_up_is_kept() -> None:
    wire = wire_with(b"Exceeded MaxStartups\r\n")
    while wire.recv(128):
        pass
    assert wire.greeting == b"Exceeded MaxStartups\r\n"
    wire = wire_with(b"Welcome\r\nSSH-2.0-x\r\nbinary")
    while wire.recv(128):
        pass
    assert wire.greeting == b"Welcome\r\n"


def test_a_peer_that_takes_nothing_ends_the_sending() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Wire(ours, 0.2)
        wire.settimeout(0.05)
        with pytest.raises(OSError, match="took nothing"):
            for _ in range(1000):
                try:
                    wire.send(bytes(1 << 20))
                except TimeoutError:
                    continue


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
@pytest.mark.parametrize("passphrase", [None, b"secret"])
@pytest.mark.parametrize("form", ["OpenSSH", "TraditionalOpenSSL", "PKCS8"])
def test_every_spelling_of_a_key_is_read(tmp_path: Path, kind: str, passphrase: bytes | None, form: str) -> None:
    from cryptography.hazmat.primitives import serialization as serial

    if kind == "ed25519" and form == "TraditionalOpenSSL":
        pytest.skip("there is no such form")
    path = make_key(tmp_path / "key", kind)
    private = serial.load_ssh_private_key(path.read_bytes(), None)
    lock = serial.BestAvailableEncryption(passphrase) if passphrase else serial.NoEncryption()
    path.write_bytes(private.private_bytes(serial.Encoding.PEM, getattr(serial.PrivateFormat, form), lock))
    wanted = base64.b64decode((tmp_path / "key.pub").read_text().split()[1])

    notes: list[str] = []
    file = identities.read_key_file(str(path), notes)
    assert file is not None and file.encrypted == (passphrase is not None)
    assert file.public == wanted
    key = identities.load(file, passphrase, notes)
    assert key.asbytes() == wanted and notes == []
    if passphrase is not None:
        with pytest.raises(ValueError):
            identities.load(file, b"wrong", notes)
        assert identities.load(file, None, notes) is None
    assert "secret" not in repr(file) + "".join(notes)


def test_absent_and_strange_identity_files_are_passed_over(tmp_path: Path) -> None:
    notes: list[str] = []
    assert identities.read_key_file(str(tmp_path / "absent"), notes) is None and notes == []
    (tmp_path / "junk").write_bytes(b"\0junk")
    junk = identities.read_key_file(str(tmp_path / "junk"), notes)
    assert junk is not None and identities.load(junk, None, notes) is None
    assert "no private key" in notes[0]
    (tmp_path / "broken").write_bytes(
        b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n"
    )
    broken = identities.read_key_file(str(tmp_path / "broken"), notes)
    assert broken is not None


def test_logging_is_silent_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    logging.getLogger(transport.LOG).error("a traceback of paramiko's")
    assert capsys.readouterr().err == ""
