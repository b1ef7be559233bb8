"""The operator's one TOML file: every setting with its meaning and default, checked strictly.

A size is a number of bytes or text such as "10GB" or "4MiB". A secret is text, or `{ file = "/run/secrets/x" }`, which
keeps it out of the file; neither is ever shown.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec
from msgspec import Meta

from p2psync.errors import ConfigError

MAX_CONFIG_BYTES: Final = 1 << 20
MAX_SECRET_BYTES: Final = 4096
MASK: Final = "••••••"
DEFAULT_PORT: Final = 22443
FREE: Final = "free"
"""How commands call the allowance of accounts without a plan."""

_UNITS: Final = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for suffix, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGT", start=1)
}
_SIZE = re.compile(r"([0-9]{1,15}) ?([KMGT]?i?B?)", re.ASCII)


class Size(int):
    """A number of bytes; in the file also as text with a unit."""


class Secret(str):
    """Text that no output shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Secret({MASK!r})" if self else "Secret('')"


Text = Annotated[str, Meta(max_length=500)]
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Positive = Annotated[int, Meta(ge=1, le=1 << 40)]
Seconds = Annotated[int, Meta(ge=1, le=10 * 365 * 86_400)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every section: unknown settings are errors."""


def _about(meaning: str) -> Meta:
    return Meta(description=meaning)


class Server(Section, frozen=True):
    """How the relay is reached."""

    listen: Annotated[Text, _about('Where to accept connections: "HOST:PORT"; ":PORT" is every interface.')] = (
        f":{DEFAULT_PORT}"
    )
    url: Annotated[
        Text,
        _about('The URL that devices are given, such as "https://relay.example"; empty: made from what it listens on.'),
    ] = ""
    certificate: Annotated[
        Text, _about("PEM file of the certificate chain; empty: a self-made one, which devices pin.")
    ] = ""
    key: Annotated[Text, _about("PEM file of the certificate's private key.")] = ""
    pin_certificate: Annotated[
        bool,
        _about("Put the given certificate's fingerprint into the relay URL, as is always done with a self-made one."),
    ] = False
    max_connections: Annotated[Positive, _about("Connections at the same time.")] = 10_000
    max_connections_per_address: Annotated[
        Positive, _about("Connections at the same time from one address (/64 of IPv6).")
    ] = 256
    new_connections_per_address: Annotated[
        Positive, _about("New connections from one address (/64 of IPv6) in a minute; as many may come at once.")
    ] = 1200
    handshake_timeout_s: Annotated[Seconds, _about("A TLS handshake must be done in this time.")] = 10
    header_timeout_s: Annotated[Seconds, _about("The head of a request must arrive in this time once it began.")] = 30
    idle_timeout_s: Annotated[Seconds, _about("A connection without a request is closed after this time.")] = 75
    stall_timeout_s: Annotated[
        Seconds, _about("A client that takes nothing of its answer for this long is dropped.")
    ] = 30
    drain_s: Annotated[Seconds, _about("At the end, requests in progress may take this long.")] = 10


class Database(Section, frozen=True):
    """Where everything but chunks is kept."""

    url: Annotated[
        Secret, _about('Empty: SQLite in the data directory. Else "postgresql://USER:PASSWORD@HOST:PORT/NAME".')
    ] = Secret("")
    pool: Annotated[Annotated[int, Meta(ge=1, le=256)], _about("Connections to the database at the same time.")] = 8


class Storage(Section, frozen=True):
    """Where sealed chunks are kept."""

    url: Annotated[
        Text, _about('Empty: "chunks" in the data directory. Else "s3://BUCKET" or "s3://BUCKET/PREFIX".')
    ] = ""
    endpoint: Annotated[Text, _about("URL of an S3 service other than Amazon's.")] = ""
    region: Annotated[Text, _about("Region of the S3 bucket.")] = "us-east-1"
    access_key: Annotated[Text, _about("Name of the S3 key.")] = ""
    secret_key: Annotated[Secret, _about("The S3 key itself.")] = Secret("")
    allow_http: Annotated[bool, _about("Talk to the S3 service without TLS, on a network that you trust.")] = False
    presign: Annotated[bool, _about("Let devices send and fetch chunks at the S3 service directly.")] = False
    min_free: Annotated[
        Size, _about("Take no more chunks while the disk of the data directory has less free than this.")
    ] = Size(256 << 20)
    memory: Annotated[Size, _about("Memory for chunks on their way; one account gets a quarter of it.")] = Size(
        256 << 20
    )
    keep_unreferenced_s: Annotated[
        Seconds, _about("A chunk that nothing refers to any more is deleted after this time.")
    ] = 86_400
    scrub_rate: Annotated[
        Size, _about("Stored bytes read again per second, to find what the disk has lost; 0: none.")
    ] = Size(2 << 20)


class Mail(Section, frozen=True):
    """How messages reach people."""

    host: Annotated[Text, _about('SMTP server; empty: messages are written to "outbox" in the data directory.')] = ""
    port: Annotated[Annotated[int, Meta(ge=1, le=65535)], _about("Port of the SMTP server.")] = 587
    security: Annotated[
        Literal["starttls", "tls", "none"], _about("How the connection to the SMTP server is protected.")
    ] = "starttls"
    user: Annotated[Text, _about("User at the SMTP server; empty: none is needed.")] = ""
    password: Annotated[Secret, _about("That user's password.")] = Secret("")
    sender: Annotated[Text, _about("Address that messages come from.")] = "p2psync relay <relay@localhost>"


class Accounts(Section, frozen=True):
    """Who may have an account."""

    signup: Annotated[
        Literal["open", "closed"], _about("Whether anyone may sign up, or only who the operator adds.")
    ] = "open"
    hash_memory: Annotated[Size, _about("Memory that checking one password takes (Argon2id).")] = Size(19 << 20)
    hash_passes: Annotated[Annotated[int, Meta(ge=1, le=64)], _about("How often that memory is filled.")] = 2
    hash_parallel: Annotated[
        Annotated[int, Meta(ge=1, le=64)], _about("Passwords checked at the same time; others wait, or are sent away.")
    ] = 2
    mails_per_network: Annotated[
        Positive, _about("Sign-ups and new passwords that one network may ask for in a day before it has to wait.")
    ] = 20
    guesses_per_network: Annotated[
        Positive, _about("Wrong passwords and codes from one network in an hour before it has to wait.")
    ] = 30


class Allowance(Section, frozen=True):
    """What an account may use."""

    bytes: Annotated[Size, _about("Sealed bytes stored in all folders that the account owns.")] = Size(10**9)
    devices: Annotated[Positive, _about("Devices of the account.")] = 20
    folders: Annotated[Positive, _about("Folders that the account owns at the relay.")] = 20


class Plan(Allowance, frozen=True, kw_only=True):
    """What an account can subscribe to."""

    name: Annotated[
        Annotated[str, Meta(pattern="^[a-z0-9-]{1,32}$")], _about("Name in the API and on the command line.")
    ]
    price: Annotated[Text, _about("What it costs, as people read it.")] = ""


class Billing(Section, frozen=True):
    """Who may change plans from outside."""

    webhook_secret: Annotated[
        Secret, _about("Key that the billing provider signs with; empty: nothing is accepted.")
    ] = Secret("")
    checkout: Annotated[
        Text, _about("URL where people pay for a plan; {plan} and {reference} in it are filled in. Empty: none.")
    ] = ""


class Limits(Section, frozen=True):
    """How often a client may call. Each number is calls per minute; as many may come at once."""

    standard_per_account: Annotated[Positive, _about("Ordinary calls of one account.")] = 1200
    standard_per_address: Annotated[Positive, _about("Ordinary calls from one network (/24 of IPv4, /48 of IPv6).")] = (
        6000
    )
    bulk_per_account: Annotated[Positive, _about("Chunks and batches of one account.")] = 60_000
    bulk_per_address: Annotated[Positive, _about("Chunks and batches from one network.")] = 120_000
    sensitive_per_account: Annotated[Positive, _about("Log-ins, mails and the like of one account or device.")] = 20
    sensitive_per_address: Annotated[Positive, _about("Log-ins, mails and the like from one network.")] = 60


class Forwarding(Section, frozen=True):
    """Moving bytes between two devices that cannot reach each other. The account of the device that asked pays."""

    enabled: Annotated[bool, _about("Whether this relay forwards at all.")] = True
    sessions: Annotated[Positive, _about("Pairs of devices at the same time.")] = 1000
    sessions_per_account: Annotated[Positive, _about("Pairs of devices at the same time for one account.")] = 32
    rate_per_account: Annotated[Size, _about("Bytes per second for all pairs of one account; 0: no limit.")] = Size(
        64 << 20
    )
    rate_per_session: Annotated[Size, _about("Bytes per second for one pair, both ways together; 0: no limit.")] = Size(
        32 << 20
    )
    idle_s: Annotated[Seconds, _about("A pair that sends nothing for so long is parted.")] = 180
    session_s: Annotated[Seconds, _about("A pair is parted after this time in any case; it may call again.")] = 6 * 3600


class Log(Section, frozen=True):
    """What the relay tells about itself: one JSON line each, on stderr."""

    level: Annotated[Literal["debug", "info", "warning", "error"], _about("Least important messages shown.")] = "info"
    access: Annotated[
        bool, _about("One line per request: route, status, time, sizes, network; no names, no secrets.")
    ] = True


class Metrics(Section, frozen=True):
    """Figures for Prometheus at /metrics."""

    token: Annotated[
        Secret, _about("What Prometheus must send as bearer token; empty: only this machine is answered.")
    ] = Secret("")


class Config(Section, frozen=True):
    """Every setting; each section of the file is one field."""

    server: Server = Server()
    database: Database = Database()
    storage: Storage = Storage()
    mail: Mail = Mail()
    accounts: Accounts = Accounts()
    free: Allowance = Allowance()
    plans: tuple[Plan, ...] = ()
    billing: Billing = Billing()
    limits: Limits = Limits()
    forwarding: Forwarding = Forwarding()
    log: Log = Log()
    metrics: Metrics = Metrics()


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: it cannot be read, is not TOML, or holds an unknown setting or a bad value; the text names the file
            and the setting.
    """
    try:
        raw = path.read_bytes()[: MAX_CONFIG_BYTES + 1]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; this is not a configuration file")
    return parse_config(raw, str(path))


def parse_config(raw: bytes, source: str) -> Config:
    """Check the bytes of a configuration file; `source` names it in errors. Raises ConfigError."""
    try:
        document = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid TOML: {error}") from error
    try:
        config = msgspec.convert(document, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        # The library says `... - at `$.server.listen``; the path is what the operator looks for.
        what, _, where = str(error).partition(" - at `$")
        raise ConfigError(f"{source}: {where.strip('`.') or 'the file'}: {what}") from error
    _check(config, source)
    return config


def _check(config: Config, source: str) -> None:
    names = [plan.name for plan in config.plans]
    if len(set(names)) != len(names):
        raise ConfigError(f"{source}: plans: two plans have the same name")
    if FREE in names:
        raise ConfigError(f'{source}: plans: "{FREE}" is what accounts without a plan have; see [free]')
    if bool(config.server.certificate) != bool(config.server.key):
        raise ConfigError(f"{source}: server: give both `certificate` and `key`, or neither")
    try:
        parse_listen(config.server.listen)
    except ValueError as error:
        raise ConfigError(f"{source}: server.listen: {error}") from error
    if config.server.url and not re.fullmatch(r"https://[A-Za-z0-9.:\[\]-]+/?", config.server.url):
        raise ConfigError(f'{source}: server.url: write "https://HOST" or "https://HOST:PORT"')


def _decode(kind: type, value: Any) -> Any:
    if kind is Size:
        return _size(value)
    if kind is Secret:
        return _secret(value)
    raise TypeError(f"no setting is a {kind.__name__}")


def _size(value: Any) -> Size:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None or match[2] not in _UNITS:
            raise ValueError(f'{value[:40]!r} is not a size; write bytes, or a number with a unit as in "10GB"')
        value = int(match[1]) * _UNITS[match[2]]
    if type(value) is not int or not 0 <= value <= 1 << 60:
        raise ValueError("a size is a number of bytes, or text with a unit")
    return Size(value)


def _secret(value: Any) -> Secret:
    match value:
        case str():
            return Secret(value)
        case {"file": str(path), **rest} if not rest:
            try:
                raw = Path(path).read_bytes()[: MAX_SECRET_BYTES + 1]
                text = raw.decode().rstrip("\r\n")
            except OSError as error:
                raise ValueError(f"cannot read {path}: {error.strerror}") from None
            except UnicodeDecodeError:
                raise ValueError(f"{path} is not UTF-8 text") from None
            if len(raw) > MAX_SECRET_BYTES:
                raise ValueError(f"{path} is larger than {MAX_SECRET_BYTES} bytes")
            return Secret(text)
    raise ValueError('a secret is text, or { file = "PATH" }')


def parse_listen(text: str) -> tuple[str | None, int]:
    """Host (None: every interface) and port of "HOST:PORT", "[IPv6]:PORT" or ":PORT". ValueError when it is neither."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]*):([0-9]{1,5})", text)
    if match is None or int(match[2]) > 65535:
        raise ValueError(f'{text[:80]!r} is not "HOST:PORT", "[IPv6]:PORT" or ":PORT"')
    return match[1].strip("[]") or None, int(match[2])


# ── showing ─────────────────────────────────────────────────────────────────────────────────────────────────────────
def render_config(config: Config) -> str:
    """The configuration in force as TOML, every setting under its meaning; secrets are masked."""
    lines: list[str] = []
    for name, value in _fields(config):
        if name == "plans":
            for plan in config.plans:
                lines += ["[[plans]]", *_settings(plan), ""]
        else:
            lines += [f"# {type(value).__doc__}", f"[{name}]", *_settings(value), ""]
    return "\n".join(lines)


def _settings(section: Section) -> Iterator[str]:
    for name, value in _fields(section):
        yield f"# {_meanings(type(section))[name]}"
        yield f"{name} = {_show(value)}"


def _fields(struct: msgspec.Struct) -> Iterator[tuple[str, Any]]:
    return ((name, getattr(struct, name)) for name in struct.__struct_fields__)


@functools.cache
def _meanings(section: type[Section]) -> Mapping[str, str]:
    meanings = {}
    for name, hint in get_type_hints(section, include_extras=True).items():
        if name in section.__struct_fields__:
            meanings[name] = next(meta.description for meta in reversed(hint.__metadata__) if meta.description)
    return meanings


def _show(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case Secret():
            return f'"{MASK}"' if value else '""'
        case int():
            return str(int(value))
        case _:
            return msgspec.json.encode(value).decode()
