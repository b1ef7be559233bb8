"""What `doctor` can tell without a node: the machine under it, tested by doing rather than by asking for its name."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from p2psync.errors import P2PSyncError
from p2psync.node.home import Home
from p2psync.node.views import Diagnosis

MIN_PYTHON = (3, 11)
MIN_FREE = 256 << 20
MIN_WATCHES = 65_536
MAX_CLOCK_DIFFERENCE_S = 5
MDNS_GROUP = "224.0.0.251"
_INOTIFY = Path("/proc/sys/fs/inotify")


def examine(home: Home, node_runs: bool) -> list[Diagnosis]:
    """Every check, in the order a person should mend them. Blocks for at most a second or two."""
    checks: list[Callable[[], Diagnosis]] = [_python, lambda: _home(home), _watches]
    if home.path.is_dir():
        checks += [lambda: _file_system(home.path), lambda: _space(home.path), lambda: _clock(home.path)]
    if not node_runs:
        checks.append(lambda: _port(home))
    checks.append(_multicast)
    return [check() for check in checks]


def _python() -> Diagnosis:
    ok = sys.version_info >= MIN_PYTHON
    return Diagnosis("python", ok, f"Python {platform.python_version()}", "use Python 3.11 or later")


def _home(home: Home) -> Diagnosis:
    if not home.initialised:
        return Diagnosis("home", False, f"there is no device in {home.path}", "run: p2psync init")
    if (mode := home.path.stat().st_mode & 0o777) & 0o022:
        return Diagnosis("home", False, f"others can write to {home.path} ({mode:o})", f"run: chmod 700 {home.path}")
    return Diagnosis("home", True, str(home.path))


def _watches() -> Diagnosis:
    try:
        watches = int((_INOTIFY / "max_user_watches").read_text())
        instances = int((_INOTIFY / "max_user_instances").read_text())
    except (OSError, ValueError):
        return Diagnosis("watches", True, "no inotify here; changes are found by scans where the watcher cannot help")
    text = f"{watches:,} directories can be watched, by {instances} programs"
    remedy = f"as root: sysctl fs.inotify.max_user_watches={8 * MIN_WATCHES}; until then scans find what is not watched"
    return Diagnosis("watches", watches >= MIN_WATCHES, text, remedy)


def _file_system(path: Path) -> Diagnosis:
    trial = path / f".doctor-{secrets.token_hex(4)}"
    other = trial.with_suffix(".renamed")
    try:
        with trial.open("wb") as file:
            file.write(b"p2psync")
            file.flush()
            os.fsync(file.fileno())
        trial.replace(other)
        intact = other.read_bytes() == b"p2psync"
    except OSError as error:
        return Diagnosis("disk", False, f"cannot write in {path}: {error.strerror}", "make it writable, or use --home")
    finally:
        trial.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
    return Diagnosis("disk", intact, f"{path} keeps what is written", "the file system lost data: move the home")


def _space(path: Path) -> Diagnosis:
    free = shutil.disk_usage(path).free
    return Diagnosis("space", free >= MIN_FREE, f"{free >> 20:,} MiB free for the index", "free some space")


def _clock(path: Path) -> Diagnosis:
    """A clock far from that of the file system: one of them is wrong. It decides no content, only names and dates."""
    trial = path / f".doctor-{secrets.token_hex(4)}"
    try:
        trial.touch()
        difference = time.time() - trial.stat().st_mtime
    except OSError as error:
        return Diagnosis("clock", False, f"cannot compare clocks: {error.strerror}", "see the check of the disk")
    finally:
        trial.unlink(missing_ok=True)
    ok = abs(difference) <= MAX_CLOCK_DIFFERENCE_S and time.time() > 1_700_000_000
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, {abs(difference):.1f} s from the file system's"
    return Diagnosis("clock", ok, text, "set the clock (timedatectl set-ntp true)")


def _port(home: Home) -> Diagnosis:
    from p2psync.node.config import load_config

    try:
        addresses = load_config(home.config_file).network.listen
    except P2PSyncError as error:
        return Diagnosis("port", False, str(error), "correct the file, or remove the line")
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            found = socket.getaddrinfo(
                host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, kind, protocol, _, where = found[0]
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(where)
        except (OSError, ValueError) as error:
            remedy = "end the program that uses it, or: p2psync config set network.listen :0"
            return Diagnosis("port", False, f"cannot listen on {address}: {error}", remedy)
    return Diagnosis("port", True, f"free: {', '.join(addresses)}")


def _multicast() -> Diagnosis:
    """Send a packet to the group of mDNS on a port of our own and see whether it comes back."""
    remedy = "give addresses instead: p2psync device add ID --address HOST:PORT (usual in containers and on some Wi-Fi)"
    word = secrets.token_bytes(16)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
            trial.bind(("", 0))
            trial.settimeout(1)
            membership = struct.pack("4s4s", socket.inet_aton(MDNS_GROUP), bytes(4))
            trial.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            trial.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            trial.sendto(word, (MDNS_GROUP, trial.getsockname()[1]))
            heard = trial.recv(64) == word
    except OSError as error:
        return Diagnosis("multicast", False, f"not possible here: {error}", remedy)
    return Diagnosis("multicast", heard, "devices nearby can be found by mDNS", remedy)
