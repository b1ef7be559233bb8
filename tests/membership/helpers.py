"""Devices with fixed keys, and shorthand to grow a folder's membership."""

from __future__ import annotations

from functools import cache

from p2psync.crypto.identity import DeviceKeys
from p2psync.membership import Action, Add, Membership, Remove, Role, SetRole, create_folder, make_link
from p2psync.model.hashing import Algorithm
from p2psync.model.ids import replica


@cache
def device(number: int) -> DeviceKeys:
    return DeviceKeys(bytes([number + 1]) * 64)


def found(owner: int = 0) -> Membership:
    return create_folder(device(owner), "photos", Algorithm.BLAKE3, b"r" * 16, name=f"device {owner}")


def add(number: int, role: Role, floor: int = 0) -> Add:
    return Add(device(number).device_id, role, f"device {number}", floor)


def remove(number: int, *cut: tuple[int, int]) -> Remove:
    return Remove(device(number).device_id, cuts(number, *cut))


def demote(number: int, role: Role, *cut: tuple[int, int]) -> SetRole:
    return SetRole(device(number).device_id, role, cuts(number, *cut))


def promote(number: int, role: Role, floor: int = 0) -> SetRole:
    return SetRole(device(number).device_id, role, None, floor)


def cuts(number: int, *cut: tuple[int, int]) -> list[tuple[bytes, int]]:
    return [(replica(device(number).device_id, incarnation), counter) for incarnation, counter in cut]


def act(membership: Membership, author: int, action: Action) -> Membership:
    return membership.extend([make_link(device(author), membership, action)])


def merged(*views: Membership) -> Membership:
    result = views[0]
    for view in views[1:]:
        result = result.extend(view.encoded_links())
    return result


def roles(membership: Membership) -> dict[int, str]:
    numbers = {device(n).device_id: n for n in range(12)}
    return {numbers[d]: member.role.label for d, member in membership.members.items()}


def team(*given: Role) -> Membership:
    """Device 0 owns; devices 1, 2, … have the given roles, added in turn."""
    membership = found()
    for number, role in enumerate(given, 1):
        membership = act(membership, 0, add(number, role))
    return membership
