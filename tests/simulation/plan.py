"""What a seed decides before its story starts, so that the report of a failure says what the story was about."""

import random
from dataclasses import dataclass, replace

from p2psync.model.manifest import MAX_CHUNK
from tests.simulation.cast import Cast
from tests.simulation.relay import RelayPlan

YEARS_S = 10 * 365 * 86_400.0
LONG_SHARE = 0.04


@dataclass(frozen=True)
class Plan:
    """Every option of one story.

    Bugs are found by variety more than by length, and a story costs about its users' actions times its devices: most
    stories are short, and one in 25 is long for what only shows when much has piled up.
    """

    seed: int
    devices: tuple[str, ...]
    duration_s: float
    pause_s: float
    """Mean time between two actions of one user."""
    trouble_s: float
    """Mean time between two faults; infinite in a quiet run."""
    sync_share: float
    """How often users fsync what they write."""
    hint_loss: float
    overflow: float
    skews_s: tuple[float, ...]
    slow_share: float
    """How many of a node's blocking calls take time."""
    slow_s: float
    """How long those take at most."""
    longest_chunk: int
    """Where files are cut: the smallest makes manifests that are too long to travel inside a record."""
    cast: Cast
    relay: RelayPlan | None = None

    @staticmethod
    def draw(seed: int) -> "Plan":
        """The plan of a seed."""
        rng = random.Random(f"{seed} plan")
        cast = Cast.draw(random.Random(f"{seed} cast"))
        devices = cast.devices
        relay = RelayPlan.draw(seed, devices)
        if relay is not None and relay.meeting == "none":
            # All are in one account, and whoever has not heard yet what one of them is to be makes it an owner.
            cast = replace(cast, viewers=())
        long = rng.random() < LONG_SHARE
        actions = _log_uniform(rng, 150, 600) if long else _log_uniform(rng, 15, 150)
        troubles = 0 if rng.random() < 0.15 else _log_uniform(rng, 3, 30)
        duration_s = _log_uniform(rng, 10, 240 if long else 120)
        return Plan(
            seed=seed,
            devices=devices,
            duration_s=duration_s,
            pause_s=duration_s * len(devices) / actions,
            trouble_s=duration_s / troubles if troubles else float("inf"),
            sync_share=rng.choice((0.0, 0.5, 1.0, 1.0)),
            hint_loss=rng.choice((0.0, 0.0, 0.3, 1.0)),
            overflow=rng.choice((0.0, 0.0, 0.05)),
            skews_s=tuple(rng.choice((0.0, 1.0, -3600.0, YEARS_S, -YEARS_S)) for _ in devices),
            slow_share=rng.choice((0.0, 0.01, 0.01, 0.2)),
            slow_s=rng.choice((0.002, 0.02, 0.2)),
            longest_chunk=rng.choice((1000, 4096, MAX_CHUNK)),
            cast=cast,
            relay=relay,
        )


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    """Small and large values alike often, by their order of magnitude."""
    return float(low * (high / low) ** rng.random())
