"""What holds for every test: on a busy machine nothing is wrong only because it was slow."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("p2psync", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("p2psync")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of single rooms' tests, which pytest wants to know before it has found them."""
    parser.addoption("--engines", action="store_true", help="only the relay's tests that need PostgreSQL or S3")
