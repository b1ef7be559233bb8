"""Mail: queued with its cause, tried until it is taken, readable by its reader alone."""

from __future__ import annotations

import base64
import email
import email.policy
import smtplib
import socket
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import pytest
import trio
from sqlalchemy import select

from p2psync.errors import ConfigError, IntegrityError
from p2psync.testing.world import SimRng
from relay.accounts import letters
from relay.accounts.mailers import Letterhead, OutboxDirectory, SmtpMailer, make_mailer
from relay.accounts.outbox import GIVE_UP_S, LEASE_S, NOBODY, POLL_S, Outbox, _take
from relay.accounts.secrets import Secrets, new_code, read_code, show_code
from relay.accounts.tables import outbox
from relay.config import Mail as MailConfig
from relay.config import Server
from relay.db.database import Database
from relay.ports import Mail
from relay.tls import find_certificate, make_context
from tests.relay.stack import Inline, ManualClock, MemoryMailer

MAIL = letters.verification("ann@example.org", "ABCDEFGH", 60)


def letterhead(sender: str = "Our relay <relay@example.net>") -> Letterhead:
    return Letterhead(sender, ManualClock(), SimRng("mail"))


class Flaky(MemoryMailer):
    """Fails as often as it is told."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def send(self, mail: Mail) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionRefusedError(111, "Connection refused")
        super().send(mail)


@dataclass
class Post:
    database: Database
    mailer: MemoryMailer
    secret: bytes = b"s" * 32
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.outbox = Outbox(self.database, Inline(), self.clock, Secrets(self.secret), self.mailer)

    async def queue(self, mail: Mail = MAIL) -> None:
        now = int(self.clock.now)
        await self.database.write(lambda c: self.outbox.queue(c, mail, now, bytes(12)))

    async def waiting(self) -> list[bytes]:
        return await self.database.read(lambda c: list(c.execute(select(outbox.c.sealed)).scalars()))


# ── the queue ───────────────────────────────────────────────────────────────────────────────────────────────────────
async def test_a_message_is_sent_once_it_is_due_and_forgotten(database: Database) -> None:
    post = Post(database, MemoryMailer())
    await post.queue()
    assert len(await post.waiting()) == 1
    assert not await post.outbox.send_due()
    assert (post.mailer.sent, await post.waiting()) == ([MAIL], [])


async def test_a_failure_is_tried_again_later_and_later(database: Database) -> None:
    mailer = Flaky(3)
    post = Post(database, mailer)
    await post.queue()
    tried = []
    for _ in range(200):
        before = mailer.failures, len(mailer.sent)
        await post.outbox.send_due()
        if (mailer.failures, len(mailer.sent)) != before:
            tried.append(int(post.clock.now) - 1_800_000_000)
        post.clock.advance(1)
    assert tried == [0, 15, 45, 105]
    assert mailer.sent == [MAIL]


async def test_a_message_nobody_takes_is_given_up(database: Database) -> None:
    post = Post(database, Flaky(10**6))
    await post.queue()
    for _ in range(100):
        await post.outbox.send_due()
        post.clock.advance(3600)
    assert await post.waiting() == []
    assert GIVE_UP_S < 100 * 3600


async def test_two_processes_do_not_send_the_same_message(database: Database) -> None:
    one, two = Post(database, MemoryMailer()), Post(database, MemoryMailer())
    await one.queue()
    taken = await database.write(lambda c: _take(c, int(one.clock.now)))
    await two.outbox.send_due()
    assert (len(taken), two.mailer.sent) == (1, [])
    two.clock.advance(LEASE_S)
    await two.outbox.send_due()
    assert two.mailer.sent == [MAIL], "the first process died"


async def test_the_worker_sends_when_it_is_rung_for(database: Database, autojump_clock: trio.testing.MockClock) -> None:
    post = Post(database, MemoryMailer())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(post.outbox.run)
        await trio.testing.wait_all_tasks_blocked()
        begun = trio.current_time()
        for _ in range(40):
            await post.queue()
        post.outbox.ring()
        while len(post.mailer.sent) < 40:
            await trio.sleep(0.1)
        assert trio.current_time() - begun < POLL_S
        await post.queue()
        await trio.sleep(POLL_S + 1)
        assert len(post.mailer.sent) == 41
        nursery.cancel_scope.cancel()


async def test_what_waits_is_sealed(database: Database) -> None:
    post = Post(database, MemoryMailer())
    await post.queue()
    (sealed,) = await post.waiting()
    assert b"ABCD" not in sealed
    assert b"ann" not in sealed
    with pytest.raises(IntegrityError):
        Secrets(b"t" * 32).unseal(sealed)
    other = Post(database, MemoryMailer(), b"t" * 32)
    await other.outbox.send_due()
    assert (other.mailer.sent, await post.waiting()) == ([], []), "it can never be sent"


async def test_a_message_that_cannot_be_written_stands_in_nobodys_way(database: Database) -> None:
    class Picky(MemoryMailer):
        def send(self, mail: Mail) -> None:
            if mail.subject == "odd":
                raise UnicodeEncodeError("ascii", "ä", 0, 1, "not ASCII")
            super().send(mail)

    post = Post(database, Picky())
    await post.queue(Mail("ann@example.org", "odd", ""))
    await post.queue()
    await post.outbox.send_due()
    assert (post.mailer.sent, await post.waiting()) == ([MAIL], [])


async def test_a_message_to_nobody_is_thrown_away(database: Database) -> None:
    post = Post(database, MemoryMailer())
    await post.queue(Mail(NOBODY, "s", "b"))
    await post.outbox.send_due()
    assert (post.mailer.sent, await post.waiting()) == ([], [])


def test_codes_are_read_as_people_type_them() -> None:
    code = new_code(bytes(range(250, 255)))
    assert len(code) == 8
    for typed in (code, show_code(code), show_code(code).lower(), f" {code[:3]} {code[3:]} "):
        assert read_code(typed) == code
    for typed in ("", code[:-1], code + "A", "ÄÄÄÄÄÄÄÄ", "A" * 10_000):
        assert read_code(typed) == ""
    assert len({new_code(bytes((0, 0, 0, 0, n))) for n in range(256)}) == 256


# ── where it goes ───────────────────────────────────────────────────────────────────────────────────────────────────
def test_a_message_is_a_file_for_its_owner_only(tmp_path: Path) -> None:
    mailer = make_mailer(
        MailConfig(sender="Our relay <relay@example.net>"), tmp_path / "outbox", ManualClock(), SimRng("m")
    )
    assert mailer.target == str(tmp_path / "outbox")
    mailer.send(MAIL)
    mailer.send(MAIL)
    files = sorted((tmp_path / "outbox").iterdir())
    assert len(files) == 2
    assert stat.S_IMODE((tmp_path / "outbox").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    message = email.message_from_bytes(files[0].read_bytes(), policy=email.policy.default)
    assert (message["From"], message["To"]) == ("Our relay <relay@example.net>", "ann@example.org")
    assert message["Date"].datetime.timestamp() == 1_800_000_000
    assert message["Message-ID"].endswith("@example.net>")
    assert message["Auto-Submitted"] == "auto-generated"
    assert "ABCD-EFGH" in message.get_content()
    assert not message.defects


@pytest.mark.parametrize("sender", ["", "nobody", "a b@example.org", "x@y\r\nBcc: z@example.org"])
def test_a_sender_that_is_no_address_is_refused(tmp_path: Path, sender: str) -> None:
    with pytest.raises(ConfigError, match=r"mail\.sender"):
        make_mailer(MailConfig(sender=sender), tmp_path, ManualClock(), SimRng("m"))


class SmtpServer:
    """As much of RFC 5321 as one client needs, with STARTTLS and AUTH."""

    def __init__(self, context: ssl.SSLContext | None, refuse: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._context = context
        self._refuse = refuse
        self.lines: list[str] = []
        self.messages: list[bytes] = []
        self.thread = Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        self._listener.close()
        connection.settimeout(10)
        connection.sendall(b"220 test ESMTP\r\n")
        stream = connection.makefile("rb")
        while line := stream.readline().decode().strip():
            self.lines.append(line)
            match line.split()[0].upper():
                case "EHLO":
                    connection.sendall(b"250-test\r\n250-STARTTLS\r\n250 AUTH PLAIN\r\n")
                case "STARTTLS":
                    connection.sendall(b"220 go\r\n")
                    assert self._context is not None
                    connection = self._context.wrap_socket(connection, server_side=True)
                    stream = connection.makefile("rb")
                case "AUTH":
                    connection.sendall(b"235 ok\r\n")
                case "RCPT" if self._refuse:
                    connection.sendall(b"550 no such user ann@example.org\r\n")
                case "DATA":
                    connection.sendall(b"354 go on\r\n")
                    text = b""
                    while not text.endswith(b"\r\n.\r\n"):
                        text += stream.readline()
                    self.messages.append(text[:-3])
                    connection.sendall(b"250 taken\r\n")
                case "QUIT":
                    connection.sendall(b"221 bye\r\n")
                    break
                case _:
                    connection.sendall(b"250 ok\r\n")
        stream.close()
        connection.close()


@contextmanager
def smtp_server(context: ssl.SSLContext | None = None, *, refuse: bool = False) -> Iterator[SmtpServer]:
    server = SmtpServer(context, refuse)
    server.thread.start()
    yield server
    server.thread.join(10)
    assert not server.thread.is_alive()


def test_smtp_in_the_clear() -> None:
    with smtp_server() as server:
        mailer = SmtpMailer(letterhead(), "127.0.0.1", server.port, security="none")
        mailer.send(MAIL)
    assert mailer.target == f"127.0.0.1:{server.port}"
    assert "mail FROM:<relay@example.net>" in " ".join(server.lines)
    assert "rcpt TO:<ann@example.org>" in server.lines
    assert b"ABCD-EFGH" in server.messages[0]


def test_smtp_with_starttls_and_a_password(tmp_path: Path) -> None:
    certificate = find_certificate(Server(), tmp_path, "127.0.0.1")
    trusting = ssl.create_default_context(cafile=str(certificate.chain))
    with smtp_server(make_context(certificate, forwarding=False)) as server:
        SmtpMailer(letterhead(), "127.0.0.1", server.port, user="u", password="pw", context=trusting).send(MAIL)
    begun = server.lines.index("STARTTLS")
    (login,) = [line for line in server.lines if line.startswith("AUTH")]
    assert server.lines.index(login) > begun
    assert base64.b64decode(login.split()[2]) == b"\0u\0pw"
    assert len(server.messages) == 1


def test_a_server_that_is_not_who_it_says_gets_nothing(tmp_path: Path) -> None:
    context = make_context(find_certificate(Server(), tmp_path, "127.0.0.1"), forwarding=False)
    listener = SmtpServer(context, refuse=False)

    def serve() -> None:
        with pytest.raises(ssl.SSLError):
            listener._serve()

    listener.thread = Thread(target=serve)
    listener.thread.start()
    with pytest.raises(ssl.SSLCertVerificationError):
        SmtpMailer(letterhead(), "127.0.0.1", listener.port, user="u", password="pw").send(MAIL)
    listener.thread.join(10)
    assert not [line for line in listener.lines if line.startswith(("AUTH", "mail", "rcpt"))]


def test_a_refusal_is_an_os_error_that_the_queue_understands() -> None:
    with smtp_server(refuse=True) as server, pytest.raises(smtplib.SMTPRecipientsRefused) as caught:
        SmtpMailer(letterhead(), "127.0.0.1", server.port, security="none").send(MAIL)
    assert isinstance(caught.value, OSError)


async def test_the_log_names_no_address(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    class Refusing(MemoryMailer):
        def send(self, mail: Mail) -> None:
            raise smtplib.SMTPRecipientsRefused({mail.to: (550, b"no such user")})

    post = Post(database, Refusing())
    await post.queue()
    await post.outbox.send_due()
    captured = capsys.readouterr()
    assert "SMTPRecipientsRefused" in captured.out + captured.err
    assert "ann@" not in captured.out + captured.err


def test_a_directory_that_is_gone_is_made_again(tmp_path: Path) -> None:
    mailer = OutboxDirectory(tmp_path / "a" / "outbox", letterhead())
    mailer.send(MAIL)
    assert len(list((tmp_path / "a" / "outbox").iterdir())) == 1
