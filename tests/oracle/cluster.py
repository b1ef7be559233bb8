"""Real nodes on this machine, every pair joined by a loopback link that can be slowed, stalled, cut and reset."""

from __future__ import annotations

import json
import math
import random
import re
import socket
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from p2psync.testing.oracle import Oracle, Violation
from p2psync.testing.processes import CommandFailedError, Device, share
from tests.e2e.proxy import Proxy, proxied
from tests.oracle.folders import kept, temporaries, tree
from tests.oracle.judge import FLAT, OWNED, WILD, Judge

LABEL = "shared"
PATIENCE_S = 240.0
"""For all nodes to find each other and agree; only reached when something is wrong, or the machine is very busy."""
CALM_S = 15.0
"""For a node to see that what was a problem is none any more."""
SETTINGS = """
[guards]
# People who do a year's work in a minute would be asked whether they mean it.
max_delete_count = 0
max_overwrite_count = 0
"""
_TRACEBACK = re.compile(r'Traceback \(most recent call last\)|"exception":')


class Node(Device):
    """A `Device` with a folder, whose starts go on in the background and whose control API is asked directly."""

    def __init__(self, base: Path, name: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        super().__init__(base, name, listen=f"127.0.0.1:{port}")
        self.path = base / name
        self.starting: threading.Thread | None = None
        self._failure: Exception | None = None
        self._read = 0

    @property
    def up(self) -> bool:
        """Whether it was started and has not been ended by us; it may not be ready yet."""
        return self.process is not None or self.starting is not None

    @property
    def getting_up(self) -> bool:
        """Whether it was started and is neither ready nor has failed to be."""
        return self.starting is not None and self.starting.is_alive()

    def start_soon(self) -> None:
        """Start in the background; `started` waits for it."""
        self.starting = threading.Thread(target=self._start, daemon=True)
        self.starting.start()

    def _start(self) -> None:
        try:
            self.start()
        except (CommandFailedError, OSError) as error:
            self._failure = error

    def started(self) -> None:
        """Start if that has not been done, and wait until the node is ready. Raises what kept it from starting."""
        if not self.up:
            self.start_soon()
        if self.starting is not None:
            self.starting.join()
            self.starting = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def crash(self) -> None:
        """kill -9, also while it starts: that start has then failed because of us, and only then may it have failed."""
        if not self.getting_up:
            if self.up:
                self.started()
        elif self.starting is not None:
            while self.process is None and self.starting.is_alive():
                time.sleep(0.001)
            if self.process is not None:
                self.process.kill()
            self.starting.join()
            self.starting = self._failure = None
        self.kill()

    def ask(self, operation: str, **arguments: Any) -> Any:
        """The result of an operation of the control API; CommandFailedError when there is none."""
        try:
            control = json.loads((self.home / "control.json").read_bytes())
            request = urllib.request.Request(
                f"{control['url']}/v1/{operation}",
                json.dumps(arguments).encode(),
                {"Authorization": f"Bearer {control['token']}"},
            )
            patience = 30 + arguments.get("timeout_s", 0)
            with urllib.request.urlopen(request, timeout=patience) as answer:
                return json.loads(answer.read())
        except (OSError, ValueError) as error:
            raise CommandFailedError(f"{self.name}: {operation}: {error}") from error

    def status(self) -> Any:
        """As `Device.status`, without the cost of a process."""
        return self.ask("status")

    def tracebacks(self) -> list[str]:
        """Log lines since the last call that tell of an error nobody thought of, with what follows them."""
        with self.log.open(errors="replace") as log:
            log.seek(self._read)
            lines = log.readlines()
            self._read = log.tell()
        return ["".join(lines[i : i + 40]) for i, line in enumerate(lines) if _TRACEBACK.search(line)]


class Cluster:
    """Nodes that share one folder; the first owns it. Use as a context: every process is ended with it.

    What happens is noted in `base`/story, to be read beside the nodes' logs.
    """

    def __init__(self, base: Path, names: tuple[str, ...]) -> None:
        self.base = base
        base.mkdir(parents=True, exist_ok=True)
        self.nodes = [Node(base, name) for name in names]
        self.links: dict[tuple[int, int], Proxy] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for node in self.nodes:
            with suppress(CommandFailedError):
                node.crash()
        self._stack.close()

    def _set_up(self) -> None:
        self.each(self._make)
        for one, other in combinations(range(len(self.nodes)), 2):
            here, there = self.nodes[one], self.nodes[other]
            self.links[one, other] = link = self._stack.enter_context(proxied(there.address))
            here.ask("device_add", device=there.id, name=there.name, addresses=[link.address])
            there.ask("device_add", device=here.id, name=here.name, addresses=[])
        first, *others = self.nodes
        first.path.mkdir()
        for area in (*OWNED, WILD, FLAT):
            (first.path / area.decode()).mkdir()
        first.run("folder", "add", str(first.path), "--label", LABEL)
        for node in others:
            first.connected(node, PATIENCE_S)
        share(first, LABEL, [(node, node.path) for node in others], wait=PATIENCE_S)

    def note(self, who: str, what: str) -> None:
        """Add a line to the story, with the time as it stands in the logs."""
        with (self.base / "story").open("a") as story:
            story.write(f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {who} {what}\n")

    @staticmethod
    def _make(node: Node) -> None:
        node.init()
        config = node.home / "config.toml"
        config.write_text(f'[device]\nname = "{node.name}"\n{SETTINGS}')
        node.started()

    def each(self, work: Any) -> list[Any]:
        """Do something for every node at once; the results in the order of the nodes."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            return list(pool.map(work, self.nodes))

    # ── weather ─────────────────────────────────────────────────────────────────────────────────────────────────────
    def trouble(self, rng: random.Random) -> None:
        """Something happens to one link, or it recovers."""
        between = rng.choice(sorted(self.links))
        link = self.links[between]
        what = rng.choice(("cut", "reset", "stall", "slow", "crawl", "heal", "heal"))
        heal(link)
        match what:
            case "cut" | "reset":
                link.blocked = rng.random() < 0.5
                link.resets = what == "reset"
                link.cut()
            case "stall":
                link.frozen = True
            case "slow":
                link.delay = 0.2
            case "crawl":
                link.rate = 300_000.0
        self.note("-".join(self.nodes[i].name for i in between), what)

    # ── quiet ───────────────────────────────────────────────────────────────────────────────────────────────────────
    def settle(self) -> list[Violation]:
        """All nodes up, all links whole, and every node says that everything is identical; what went wrong instead."""
        self.note("all", "settle")
        for link in self.links.values():
            heal(link)
        deadline = time.monotonic() + 2 * PATIENCE_S
        try:
            for node in self.nodes:
                node.started()
            while not all(self.each(self._agrees)):
                if time.monotonic() > deadline:
                    return [Violation("I1", "connections do not last long enough to agree")]
        except CommandFailedError as error:
            return [Violation("I1", str(error))]
        return []

    def _agrees(self, node: Node) -> bool:
        """Whether a node says that everything is identical on all others; False when one was not connected."""
        others = [other for other in self.nodes if other is not node]
        for other in others:
            node.connected(other, PATIENCE_S)
        answer = node.ask("wait", timeout_s=PATIENCE_S)
        if not answer["identical"]:
            raise CommandFailedError(f"{node.name}: not identical: {answer['missing']}")
        (folder,) = answer["folders"]
        return {other.id for other in others} <= {*folder["equal_with"]}

    def end(self) -> list[Violation]:
        """After all of it the commands a person types say that all is well, and each node ends when it is asked to."""
        found = []
        for node in self.nodes:
            for command in (("wait", "--timeout", str(PATIENCE_S)), ("check",)):
                result = node.run(*command, expect=None, timeout=PATIENCE_S + 30)
                if result.returncode:
                    found.append(Violation("end", f"{node.name}: {command[0]}: {result.stdout}{result.stderr}"))
        codes = {node.name: node.stop() for node in self.nodes}
        return found + [
            Violation("end", f"{name} ended with {code} on SIGTERM") for name, code in codes.items() if code
        ]

    def examine(self, judge: Judge, since: float) -> list[Violation]:
        """Everything wrong with disks, indexes and logs; to be called after `settle`."""
        trees = {node.name: tree(node.path) for node in self.nodes}
        wrong, spurious = judge.at_quiet(trees, {node.name: kept(node.path) for node in self.nodes}, since)
        left = [
            Violation("tmp", one.text)
            for one in Oracle.leftovers({node.name: temporaries(node.path) for node in self.nodes})
        ]
        found = [*wrong, *spurious, *left]
        for node, report in zip(self.nodes, self.each(lambda node: node.ask("check", repair=False)), strict=True):
            found.extend(Violation("check", f"{node.name}: {finding}") for finding in report["findings"])
            found.extend(Violation("log", f"{node.name}: {text}") for text in node.tracebacks())
            try:
                node.until("no problem is left", lambda status: not status["folders"][0]["problems"], CALM_S)
            except CommandFailedError as error:
                found.append(Violation("I25", str(error)))
        return found


def heal(link: Proxy) -> None:
    """Nothing is wrong with a link any more."""
    link.blocked = link.frozen = link.resets = False
    link.delay, link.rate = 0.0, math.inf


def pause(rng: random.Random, mean_s: float) -> None:
    """Users and crashes have a pace of their own; nothing depends on how long this is."""
    time.sleep(min(rng.expovariate(1 / mean_s), 10 * mean_s))
