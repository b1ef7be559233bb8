"""Who is believed to lack a content: a matter of what each device did, whatever the others said in between."""

from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from p2psync.reconcile.denials import CERTAIN, Denials

CONTENT, PIECE = b"c", "piece"
DEVICES = (b"1", b"2", b"3")
Act = Literal["denies", "comes back", "holds it", "holds another"]
ACTS: tuple[Act, ...] = ("denies", "denies", "denies", "comes back", "holds it", "holds another")
histories = st.lists(st.tuples(st.sampled_from(DEVICES), st.sampled_from(ACTS)), max_size=40)


def told(history: list[tuple[bytes, Act]]) -> Denials[str]:
    """A content that could not be had, and what devices did since."""
    denials = Denials[str]()
    denials.answered(PIECE, b"0", gone=True)
    denials.deny(CONTENT, [PIECE])
    for device, act in history:
        match act:
            case "denies":
                denials.answered(PIECE, device, gone=True)
            case "comes back":
                denials.connected(device)
            case "holds it":
                denials.holds(device, CONTENT)
            case "holds another":
                denials.holds(device, b"another")
    return denials


def believed(history: list[tuple[bytes, Act]], device: bytes) -> bool:
    """Whether it has denied often enough since it could last have come to the content, from its own acts alone."""
    own = [act for who, act in history if who == device and act != "holds another"]
    return len(own) >= CERTAIN and all(act == "denies" for act in own[-CERTAIN:])


@given(histories)
def test_each_is_judged_by_its_own_acts(history: list[tuple[bytes, Act]]) -> None:
    """Hence no order in which the words of different devices arrive makes a difference."""
    denials = told(history)
    everyone = all(believed(history, device) for device in DEVICES)
    assert denials.gone(CONTENT, DEVICES) == (PIECE if everyone else None)


@given(histories, st.sampled_from(DEVICES))
def test_what_somebody_delivers_is_not_gone(history: list[tuple[bytes, Act]], device: bytes) -> None:
    denials = told(history)
    denials.answered(PIECE, device, gone=False)
    assert denials.gone(CONTENT, DEVICES) is None


def test_different_pieces_that_different_devices_lack_are_not_gone() -> None:
    denials = Denials[str]()
    for device, piece in zip(DEVICES, ("a", "b", "c"), strict=True):
        for _ in range(CERTAIN):
            denials.answered(piece, device, gone=True)
    denials.deny(CONTENT, ["a", "b", "c"])
    assert denials.gone(CONTENT, DEVICES) is None
    assert denials.gone(CONTENT, DEVICES[:1]) == "a"
