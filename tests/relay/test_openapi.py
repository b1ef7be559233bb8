"""The API's document: valid, complete, and with a bound on everything that a client may send."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta
from openapi_spec_validator import OpenAPIV31SpecValidator

from relay.api.openapi import make_document
from relay.api.route import Auth
from relay.api.routes import all_routes
from relay.config import Limits
from relay.errors import PROBLEMS
from tests.relay.stack import Stack

Json = dict[str, Any]


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method} {path}", operation


@pytest.fixture
def document() -> Json:
    made: Json = msgspec.json.decode(msgspec.json.encode(make_document(all_routes(), Limits())))
    return made


def test_the_document_is_valid(document: Json) -> None:
    OpenAPIV31SpecValidator(document).validate()


async def test_the_relay_serves_it(stack: Stack) -> None:
    served = (await stack.client().get("/api/v1/openapi.json", signed=False)).json()
    assert served["openapi"] == "3.1.0"
    assert "/api/v1/openapi.json" in served["paths"]


def test_every_route_says_what_it_is_and_how_it_ends(document: Json) -> None:
    listed = dict(operations(document))
    assert len(listed) == len(all_routes())
    assert len({operation["operationId"] for operation in listed.values()}) == len(listed)
    for name, operation in listed.items():
        assert operation["summary"], name
        assert operation["x-limits"]["calls-per-minute"]["account"] > 0, name
        assert {"400", "429", "500", "503"} <= operation["responses"].keys(), name
        assert ("401" in operation["responses"]) or not operation["security"], name


def test_a_part_of_a_chunk_is_in_the_document(document: Json) -> None:
    answers = document["paths"]["/api/v1/chunks/{chunk_id}"]
    assert {"200", "206", "416"} <= answers["get"]["responses"].keys()
    assert not any("content" in answer for answer in answers["head"]["responses"].values())


def encoded(value: Any) -> Iterator[Json]:
    """Everything that is bytes, as base64."""
    if isinstance(value, dict):
        if "contentEncoding" in value:
            yield value
        value = list(value.values())
    for inner in value if isinstance(value, list) else ():
        yield from encoded(inner)


def test_what_base64_may_be_is_in_the_document(document: Json) -> None:
    schemas = document["components"]["schemas"]
    found = list(encoded(schemas))
    assert len(found) > 30
    assert all("pattern" in schema for schema in found)
    kinds = {
        16: schemas["KeyLogIn"]["properties"]["account_id"],
        32: schemas["NewRef"]["properties"]["chunk_ids"]["items"],
    }
    for size, schema in kinds.items():
        for other in range(50):
            text = base64.b64encode(bytes(other)).decode()
            assert bool(re.search(schema["pattern"], text)) == (other == size)
    some = schemas["NewLink"]["properties"]["link"]["pattern"]
    assert all(re.search(some, base64.b64encode(bytes(size)).decode()) for size in range(50))
    assert not [text for text in ("QQ", "Q===", "QQ==QQ==", "QQ=a", "-_==", "QQ==\n\n") if re.search(some, text)]


def test_every_segment_of_a_path_has_its_form(document: Json) -> None:
    for name, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            assert parameter["in"] == "query" or "pattern" in parameter["schema"], name


def test_every_problem_is_one_of_the_table() -> None:
    for route in all_routes():
        assert set(route.problems) <= PROBLEMS.keys(), route.path


def unbounded(schema: Json, components: Json, place: str) -> Iterator[str]:
    """Places where a client may send as much as it likes."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from unbounded(components[name], components, f"{place}:{name}")
    for inner in schema.get("anyOf", ()):
        yield from unbounded(inner, components, place)
    if "enum" in schema or "const" in schema:
        return
    match schema.get("type"):
        case "string" if "maxLength" not in schema and "pattern" not in schema:
            yield place
        case "integer" if not ({"maximum", "exclusiveMaximum"} & schema.keys() and "minimum" in schema):
            yield place
        case "array":
            if "maxItems" not in schema and "prefixItems" not in schema:
                yield place
            items = [*schema.get("prefixItems", ()), *([schema["items"]] if schema.get("items") else [])]
            for item in items:
                yield from unbounded(item, components, f"{place}[]")
        case "object":
            if schema.get("additionalProperties", True) is not False:
                yield f"{place} (unknown fields)"
            for name, field in schema.get("properties", {}).items():
                yield from unbounded(field, components, f"{place}.{name}")


def sent_by_clients() -> list[type[msgspec.Struct]]:
    kinds = {kind for route in all_routes() for kind in (route.body, route.query) if isinstance(kind, type)}
    return sorted(kinds, key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize("kind", sent_by_clients(), ids=lambda kind: str(kind.__name__))
def test_everything_a_client_may_send_has_a_bound(kind: type[msgspec.Struct]) -> None:
    (reference,), components = msgspec.json.schema_components([kind])
    assert list(unbounded(reference, components, "")) == []


def test_the_search_for_bounds_itself_sees() -> None:
    class Open(msgspec.Struct):
        text: str
        count: int
        items: Annotated[list[bytes], Meta(max_length=3)]

    (reference,), components = msgspec.json.schema_components([Open])
    found = list(unbounded(reference, components, ""))
    assert found == [":Open (unknown fields)", ":Open.text", ":Open.count", ":Open.items[]"]


def test_what_needs_no_session_is_known() -> None:
    def open_to(auth: Auth) -> set[str]:
        return {f"{route.method} {route.path}" for route in all_routes() if route.auth is auth}

    assert open_to(Auth.NONE) == OPEN_TO_ALL
    assert open_to(Auth.SIGNED) == OPEN_TO_DEVICES


OPEN_TO_ALL = {
    "GET /healthz",
    "GET /readyz",
    "GET /metrics",
    "GET /api/v1/openapi.json",
    "GET /api/v1/plans",
    "POST /api/v1/billing/events",
    "GET /api/v1/presigned",
    "PUT /api/v1/presigned",
}
OPEN_TO_DEVICES = {
    "POST /api/v1/accounts",
    "POST /api/v1/accounts/verify",
    "POST /api/v1/sessions",
    "POST /api/v1/sessions/key",
    "POST /api/v1/sessions/refresh",
    "POST /api/v1/password-resets",
    "POST /api/v1/password-resets/confirm",
}
