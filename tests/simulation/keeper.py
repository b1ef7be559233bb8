"""The person who looks after a device: makes it known, joins folders, obeys orders, and does what `status` advises.

Everything is done through the operations that commands use, so a story never needs more than its users have.
"""

import random
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

import trio

from p2psync.crypto.identity import SEED_SIZE, DeviceKeys
from p2psync.errors import P2PSyncError
from p2psync.index.writer import ROT_CODES
from p2psync.model.ids import format_device_id
from p2psync.node.node import NodeOperations
from p2psync.node.views import FolderView
from p2psync.workspace.layout import MARKER

if TYPE_CHECKING:
    from tests.simulation.harness import Host, Story

FOLDER = b"/sync/folder"
LABEL = "shared"
PORT = 22067
PATIENCE_S = 60.0
BRAKES = ("mass-delete", "mass-delete-incoming", "mass-overwrite")


@cache
def keys_of(name: str) -> DeviceKeys:
    """The keys of a device, made from its name."""
    return DeviceKeys(name.encode() * SEED_SIZE)


def id_of(name: str) -> str:
    """The full ID of a device."""
    return format_device_id(keys_of(name).device_id)


async def introduce(story: "Story") -> None:
    """The founder shares the folder with everybody who is there from the start."""
    founder, *_ = story.cast.devices
    for host in story.hosts.values():
        await _know_all(host)
    if story.station is not None:
        await story.station.introduce()
    await story.hosts[founder].node.folder_add(FOLDER, LABEL)
    await _keep_members(story.hosts[founder])
    for name, role in story.members.items():
        if role != "owner":
            host = story.hosts[name]
            with trio.fail_after(PATIENCE_S * 10):
                while not await host.node.folder_offers():
                    await trio.sleep(0.1)
            await host.node.folder_accept(LABEL, FOLDER)
    if story.station is not None:
        for host in story.hosts.values():
            await story.station.tend(host)


async def keep(host: "Host") -> None:
    """Look after one device for as long as its node lives."""
    story = host.story
    rng = story.sim.rng(f"keeper {host.device.name} {host.device.boots}")
    seen: set[str] = set()
    busy = True
    while True:
        with trio.move_on_after((6.0 if busy else 20.0) if story.calm else rng.uniform(5.0, 60.0)):
            await host.called.wait()
        host.called = trio.Event()
        orders, host.orders = host.orders, []
        busy = True
        try:
            with trio.move_on_after(PATIENCE_S):
                for order in orders:
                    await _obey(host, order)
                seen = await _tend(host, rng, seen)
                if story.station is not None:
                    await story.station.tend(host)
                busy = bool(seen) or (not host.node.state.folders and host.device.name in story.members)
        except (P2PSyncError, OSError) as error:
            story.note(host.device.name, "keeper failed", error=type(error).__name__)


async def _obey(host: "Host", order: str) -> None:
    node: NodeOperations = host.node
    if not node.state.folders:
        return
    match order:
        case "log out":
            await node.account_log_out(forget=True)
        case "pause":
            await node.folder_pause(LABEL)
        case "resume":
            await node.folder_resume(LABEL)
        case "leave":
            await node.folder_remove(LABEL)
        case "scan":
            await node.folder_scan(LABEL)
        case _:
            raise ValueError(order)
    host.story.note(host.device.name, f"keeper {order}")


async def _tend(host: "Host", rng: random.Random, before: set[str]) -> set[str]:
    """Bring the device nearer to what it should be: everybody known, the folder there, every advice followed.

    Advice is followed when it has been shown for a while: `before` is what was advised the last time; returns what is.
    """
    node: NodeOperations = host.node
    story = host.story
    await _know_all(host)
    wanted = host.device.name in story.members and not host.unplugged
    if not node.state.folders:
        if wanted:
            await _join(host)
        return set()
    (view,) = (await node.status()).folders
    if view.state == "paused" and (story.calm or rng.random() < 0.3):
        confirm = any(problem.code in BRAKES for problem in view.problems)
        await node.folder_resume(LABEL, confirm=confirm)
        story.note(host.device.name, "keeper resume")
    # Only now: while a folder is paused with an index that has failed, nobody can change its members.
    await _keep_members(host)
    advice = {problem.remedy for problem in view.problems} if wanted else set()
    await _heed(host, view, advice & before)
    return advice


async def _heed(host: "Host", view: FolderView, advice: set[str]) -> None:
    """Do what the folder's problems advise, where it is for a person to do."""
    node: NodeOperations = host.node
    for problem in view.problems:
        # Who meets nobody has nobody to be told by that a damaged file is nowhere else, either.
        nowhere = {"unavailable", *ROT_CODES} if host.story.relay_alone else {"unavailable"}
        if problem.code in nowhere and problem.remedy in advice and host.story.calm:
            # Not before everybody is back: who is away may have what nobody else has.
            if "--accept-local" in problem.remedy:
                await node.check(repair=True, quick=problem.code == "unavailable", accept_local=True)
                host.story.note(host.device.name, "keeper gives up")
            continue
        if problem.code not in {"root", "index", "removed"} or problem.remedy not in advice:
            continue
        if "--adopt" in problem.remedy:
            host.lose_track()
            await node.folder_resume(LABEL, adopt=True)
            host.story.note(host.device.name, "keeper adopt")
        elif "folder remove" in problem.remedy and (host.orphaned or host.story.may_orphan(host)):
            host.orphaned = True
            await node.folder_remove(LABEL)
            host.story.note(host.device.name, "keeper remove", problem=problem.code)
            return


async def _know_all(host: "Host") -> None:
    """Add every other device that is not known (any more)."""
    node: NodeOperations = host.node
    cast = host.story.cast
    known = {device.id for device in node.state.devices}
    for other in cast.devices:
        if other != host.device.name and id_of(other) not in known:
            await node.device_add(id_of(other), other, [] if cast.sighted else [f"{other}:{PORT}"])


async def _join(host: "Host") -> None:
    """Accept the folder once it is offered; a marker that is left from before is removed, as the message says."""
    node: NodeOperations = host.node
    if not await node.folder_offers():
        return
    root = host.user_root()
    if root.stat(MARKER) is not None:
        with suppress(OSError):
            root.unlink(MARKER)
    host.lose_track()
    await node.folder_accept(LABEL, FOLDER)
    host.orphaned = False
    host.story.note(host.device.name, "keeper accept")


async def _keep_members(host: "Host") -> None:
    """The founder lets in and takes out as the story has it."""
    story, node = host.story, host.node
    founder, *others = story.cast.devices
    if host.device.name != founder or not node.state.folders:
        return
    present = {member.id: member.role for member in await node.folder_members(LABEL)}
    for other in others:
        role, wanted = present.get(id_of(other)), story.members.get(other)
        if role == wanted:
            continue
        if wanted is None:
            await node.folder_unshare(LABEL, id_of(other))
            story.oracle.mute(other, story.elsewhere(other))
        else:
            # Another device of the account may have let in as an editor whom it did not know to be a viewer.
            is_editor = role is not None and role != "viewer"
            if wanted != "viewer" or is_editor:
                story.oracle.unmute(other)
            await node.folder_share(LABEL, id_of(other), wanted)
            if wanted == "viewer" and is_editor:
                story.oracle.mute(other, story.elsewhere(other))
        story.note(host.device.name, "keeper members", device=other, role=wanted)


# ── at the end ──────────────────────────────────────────────────────────────────────────────────────────────────────
async def unrest(story: "Story") -> list[str]:
    """I1, I25: at the end every member has the folder, at rest, with the same Merkle root, and says what it holds."""
    found: list[str] = []
    roots: dict[str, str] = {}
    listed: dict[str, list[str]] = {}
    told: dict[str, list[str]] = {}
    for name in story.members:
        host = story.hosts[name]
        if host.dead or not host.up.is_set():
            found.append(f"{name} is not up")
            continue
        views = (await host.node.status()).folders
        if not views:
            found.append(f"{name} has no folder")
            continue
        (view,) = views
        roots[name] = view.root
        told[name] = [problem.code for problem in view.problems]
        listed[name] = [problem.path for problem in view.problems if problem.path is not None]
        if view.state != "idle":
            texts = "; ".join(problem.text for problem in view.problems)
            found.append(
                f"{name} is {view.state}: {view.need_files} files needed, {view.need_deletes} deletes; {texts}"
            )
    if len(set(roots.values())) > 1:
        found.append(f"the roots differ: {roots}")
    if story.station is not None:
        found += story.station.unrest(told)
    if len(listed) == len(story.members):
        found += [str(violation) for violation in story.silence(listed)]
    return found
