"""One run of schemathesis over the whole API, in this process: every phase, every check."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from relay.api.route import MSGPACK, Raw, Route
from relay.api.routes import all_routes
from tests.relay.schema.gateway import PASS, Gateway, make_gateway

PHASES: Final = ("examples", "coverage", "fuzzing", "stateful")
DOCUMENT: Final = "/api/v1/openapi.json"
_BODIES: Final[dict[str, Any]] = {
    f"{route.method} {route.path}": route.body for route in all_routes() if isinstance(route.body, type)
}
_LIKELY: Final = 0.7
"""How often a parameter names something that exists."""
_REFUSED: Final = ["400", "401", "403", "404", "405", "409", "411", "413", "415", "416", "429", "507"]
_ACCEPTED: Final = ["2xx", "401", "403", "404", "409", "411", "429", "507"]


@schemathesis.serializer(MSGPACK)
def _msgpack(context: Any, value: Any) -> bytes:
    """What the JSON would say; bytes are bytes here, and base64 there."""
    kind = _BODIES.get(context.case.operation.label)
    with suppress(msgspec.MsgspecError, ValueError, OverflowError):
        return msgspec.msgpack.encode(msgspec.json.decode(msgspec.json.encode(value), type=kind))
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return b"\xc1"  # the byte that is no MessagePack: it has no such integers


@dataclass
class Report:
    """What a run has found."""

    seed: int
    cases: dict[str, int] = field(default_factory=dict)
    """Per phase."""
    checks: int = 0
    operations: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    """How to make each again, by what it is."""
    errors: list[str] = field(default_factory=list)
    """What schemathesis could not do."""
    requests: int = 0
    probes: int = 0
    bypasses: list[str] = field(default_factory=list)
    statuses: dict[tuple[str, int], int] = field(default_factory=dict)
    seconds: float = 0.0
    """Of CPU."""

    @property
    def wrong(self) -> list[str]:
        """Everything that should not be."""
        return [*self.failures, *self.errors, *self.bypasses]

    def figures(self) -> str:
        """One line."""
        cases = ", ".join(f"{phase} {count:,}" for phase, count in self.cases.items())
        accepted = {operation for operation, status in self.statuses if status < 300}
        return (
            f"seed {self.seed}: {len(self.operations)} operations, {sum(self.cases.values()):,} cases ({cases}), "
            f"{self.requests:,} requests, {self.checks:,} checks, {self.probes:,} forged requests; "
            f"{len(accepted)} operations succeeded; {len(self.wrong)} findings, {self.seconds:.0f} s of CPU"
        )


def settings(gateway: Gateway, examples: int, seed: int, phases: tuple[str, ...]) -> SchemathesisConfig:
    """What is generated and what is judged."""
    known = gateway.dictionaries()
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "suppress-health-check": ["all"],
            "warnings": False,
            "workers": 1,
            "continue-on-failure": True,
            "headers": {"Signature": PASS, "Authorization": f"Bearer {PASS}"},
            "generation": {"max-examples": examples, "database": "none"},
            "phases": {phase: {"enabled": phase in phases} for phase in PHASES},
            "checks": {
                # It knows one credential at a time; the gateway forges all that there is to a request.
                "ignored_auth": {"enabled": False},
                "negative_data_rejection": {"expected-statuses": _REFUSED},
                "positive_data_acceptance": {"expected-statuses": _ACCEPTED},
            },
            "operations": [
                {
                    "include-name": [f"{route.method} {route.path}" for route in _judging_contents()],
                    "checks": {"positive_data_acceptance": {"expected-statuses": ["400", "413", *_ACCEPTED]}},
                }
            ],
            "dictionaries": {name: {"values": values} for name, values in known.items()},
            "parameters": {name: {"dictionary": name, "probability": _LIKELY} for name in known},
        }
    )


def _judging_contents() -> Iterator[Route]:
    """Operations whose handlers look into what the document calls bytes or text."""
    return (route for route in all_routes() if "bad-request" in route.problems or isinstance(route.body, Raw))


def run(examples: int, seed: int = 0, phases: tuple[str, ...] = PHASES) -> Report:
    """Generate `examples` requests for each operation and phase, and those that the coverage phase knows of."""
    began, gateway, report = time.process_time(), make_gateway(seed), Report(seed)
    schema = schemathesis.openapi.from_wsgi(DOCUMENT, gateway, config=settings(gateway, examples, seed, phases))
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished():
                _note(report, event)
            case events.NonFatalError():
                report.errors.append(f"{event.label}: {event.value!r}")
            case events.FatalError():
                raise event.exception
    report.requests, report.probes, report.bypasses = gateway.requests, gateway.probes, gateway.bypasses
    report.statuses = gateway.statuses
    report.seconds = time.process_time() - began
    return report


def _note(report: Report, event: events.ScenarioFinished) -> None:
    recorder = event.recorder
    report.cases[event.phase.value] = report.cases.get(event.phase.value, 0) + len(recorder.cases)
    report.operations |= {case.value.operation.label for case in recorder.cases.values()}
    for checks in recorder.checks.values():
        for check in checks:
            report.checks += 1
            if check.failure_info is not None:
                failure = check.failure_info.failure
                what = f"{check.name}: {failure.operation}: {failure.title}: {failure.message}"
                report.failures.setdefault(what, check.failure_info.code_sample)
