"""Real engines on loopback for tests: a PostgreSQL server and an S3 store (SeaweedFS), each in a new directory."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
import psycopg
from obstore.store import S3Store

START_TIMEOUT = 60.0
ACCESS_KEY, SECRET_KEY, BUCKET = "relaytests", "relaytestssecret", "relay-tests"


@contextmanager
def postgresql() -> Iterator[str]:
    """A running server with an empty database; gives its URL."""
    binaries = _postgresql_binaries()
    # The server refuses root, and its user must reach the directory.
    user = "postgres" if os.geteuid() == 0 else None
    directory = Path(tempfile.mkdtemp(prefix="relay-pg-", dir="/tmp"))
    if user is not None:
        owner = pwd.getpwnam(user)
        os.chown(directory, owner.pw_uid, owner.pw_gid)
    data, port = directory / "data", _free_port()
    own = {"user": user, "group": user, "extra_groups": []} if user else {}
    options = ["-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale", "C", "--no-sync"]
    log = (directory / "log").open("wb")
    server: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run([binaries / "initdb", *options], check=True, stdout=log, stderr=log, cwd="/", **own)  # type: ignore[call-overload]
        # Nothing here outlives the test: what a crash would lose does not matter.
        settings = ["listen_addresses=127.0.0.1", f"unix_socket_directories={directory}", "fsync=off"]
        flags = [part for setting in settings for part in ("-c", setting)]
        server = subprocess.Popen(  # type: ignore[call-overload]
            [binaries / "postgres", "-D", data, "-p", str(port), *flags], stdout=log, stderr=log, cwd="/", **own
        )
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        _until("PostgreSQL", lambda: psycopg.connect(url).close(), psycopg.OperationalError)
        yield url
    finally:
        if server is not None:
            server.send_signal(signal.SIGQUIT)
            server.wait(START_TIMEOUT)
        log.close()
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class S3:
    """Where the store is, and its one bucket."""

    endpoint: str
    bucket: str = BUCKET
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = "us-east-1"


@contextmanager
def seaweedfs() -> Iterator[S3]:
    """A running S3 store with an empty bucket."""
    directory = Path(tempfile.mkdtemp(prefix="relay-s3-", dir="/tmp"))
    identity = {"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [{"name": "t", "credentials": [identity], "actions": actions}]}))
    master, volume, filer, s3 = (_free_port(weed=True) for _ in range(4))
    flags = {
        "dir": directory, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "master.port": master, "volume.port": volume,
        "volume.max": 20, "master.volumeSizeLimitMB": 64, "filer": "true", "filer.port": filer, "s3": "true",
        "s3.port": s3, "s3.config": config, "s3.port.lance": 0, "s3.port.iceberg": 0,
    }  # fmt: skip
    log = (directory / "log").open("wb")
    server = subprocess.Popen(
        [Path(sys.executable).parent / "weed", "server", *(f"-{name}={value}" for name, value in flags.items())],
        stdout=log,
        stderr=log,
        cwd=directory,
    )
    try:
        store = S3(f"http://127.0.0.1:{s3}")
        client = S3Store(
            store.bucket,
            endpoint=store.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region=store.region,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "timeout": "20s"},
            retry_config={"max_retries": 0},
        )
        # The first object makes the bucket, once the volume server has joined.
        _until("SeaweedFS", lambda: obstore.put(client, "probe", b""), obstore.exceptions.BaseError)
        obstore.delete(client, "probe")
        yield store
    finally:
        server.kill()
        server.wait(START_TIMEOUT)
        log.close()
        shutil.rmtree(directory, ignore_errors=True)


def _postgresql_binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        raise AssertionError("PostgreSQL is missing: `make engines` installs it")
    return found[-1]


def _free_port(*, weed: bool = False) -> int:
    # SeaweedFS listens for gRPC at its port + 10000.
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if not weed or port + 10_000 < 1 << 16:
            return port


def _until(name: str, attempt: Callable[[], object], failure: type[Exception]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            attempt()
        except failure as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"{name} did not start") from error
            time.sleep(0.1)
        else:
            return
