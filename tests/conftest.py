"""What holds for every test: on a busy machine nothing is wrong only because it was slow."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("p2psync", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("p2psync")
