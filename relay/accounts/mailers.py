"""Where mail goes: an SMTP server, or a directory of messages when the operator named none."""

from __future__ import annotations

import os
import re
import smtplib
import ssl
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from pathlib import Path
from typing import Final, Literal

from p2psync.errors import ConfigError
from p2psync.ports import Clock, Rng
from relay.config import Mail as MailConfig
from relay.ports import Mail, Mailer

TIMEOUT_S: Final = 20

_ADDRESS = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+@[A-Za-z0-9.-]+", re.ASCII)


def make_mailer(config: MailConfig, directory: Path, clock: Clock, rng: Rng) -> Mailer:
    """The mailer that the operator configured; `directory` takes the messages where there is no server.

    ConfigError when the sender is no address.
    """
    letterhead = Letterhead(config.sender, clock, rng)
    if not config.host:
        return OutboxDirectory(directory, letterhead)
    return SmtpMailer(
        letterhead,
        config.host,
        config.port,
        security=config.security,
        user=config.user,
        password=config.password,
    )


class Letterhead:
    """Turns a message into one of RFC 5322. ConfigError when `sender` is not "NAME <ADDRESS>" or an address."""

    def __init__(self, sender: str, clock: Clock, rng: Rng) -> None:
        name, address = parseaddr(sender)
        if not sender.isprintable() or not _ADDRESS.fullmatch(address):
            raise ConfigError('mail.sender: write "NAME <name@example.org>"')
        self.address = address
        self._sender = Address(name, addr_spec=address)
        self._clock = clock
        self._rng = rng

    def now(self) -> datetime:
        """The time a message carries."""
        return datetime.fromtimestamp(self._clock.wall_ns() // 1_000_000_000, UTC)

    def compose(self, mail: Mail) -> EmailMessage:
        """The message, ready to be sent. ValueError when a header could not be written."""
        message = EmailMessage(policy=SMTP)
        message["From"] = self._sender
        message["To"] = Address(addr_spec=mail.to)
        message["Subject"] = mail.subject
        message["Date"] = format_datetime(self.now())
        message["Message-ID"] = f"<{self._rng.token(16).hex()}@{self._sender.domain}>"
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(mail.body)
        return message


class OutboxDirectory:
    """Writes each message into a file of its own, which only this user can read; for tests and small relays."""

    def __init__(self, directory: Path, letterhead: Letterhead) -> None:
        self._directory = directory
        self._letterhead = letterhead

    @property
    def target(self) -> str:
        """The directory."""
        return str(self._directory)

    def send(self, mail: Mail) -> None:
        """Write the message durably; its file appears whole."""
        message = self._letterhead.compose(mail)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{self._letterhead.now():%Y%m%dT%H%M%SZ}-{message['Message-ID'][1:17]}.eml"
        partial = self._directory / f".{name}.part"
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(bytes(message))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self._directory / name)
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class SmtpMailer:
    """Hands messages to an SMTP server, one connection each."""

    def __init__(
        self,
        letterhead: Letterhead,
        host: str,
        port: int,
        *,
        security: Literal["starttls", "tls", "none"] = "starttls",
        user: str = "",
        password: str = "",
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._letterhead = letterhead
        self._host = host
        self._port = port
        self._security = security
        self._user = user
        self._password = password
        self._context = context or ssl.create_default_context()

    @property
    def target(self) -> str:
        """HOST:PORT of the server."""
        return f"{self._host}:{self._port}"

    def send(self, mail: Mail) -> None:
        """Hand over one message. OSError (smtplib's errors are) when the server does not take it."""
        message = self._letterhead.compose(mail)
        with self._connect() as server:
            if self._security == "starttls":
                server.starttls(context=self._context)
            if self._user:
                server.login(self._user, self._password)
            server.send_message(message, self._letterhead.address, [mail.to])

    def _connect(self) -> smtplib.SMTP:
        if self._security == "tls":
            return smtplib.SMTP_SSL(self._host, self._port, timeout=TIMEOUT_S, context=self._context)
        return smtplib.SMTP(self._host, self._port, timeout=TIMEOUT_S)
