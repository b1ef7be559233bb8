"""The API's own document (OpenAPI 3.1), made from the table of routes: nothing in it can differ from what is served."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
from msgspec import inspect
from starlette.responses import Response

import p2psync
from p2psync.membership.sigchain import ACCOUNT_ID_SIZE
from p2psync.model.hashing import DIGEST_SIZE
from relay import errors
from relay.api.limits import per_minute
from relay.api.route import JSON, MSGPACK, Auth, Call, Raw, Route, encode_id
from relay.config import Limits
from relay.errors import PROBLEMS, TYPE_PREFIX

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)\}")
_FOLDER_ID: Final = {"type": "string", "pattern": "^[A-Za-z2-7]{26}$"}
_PATH_PARAMETERS: Final[Mapping[str, Schema]] = {
    "folder_id": _FOLDER_ID,
    "account_id": {"type": "string", "pattern": f"^[A-Za-z0-9_-]{{{len(encode_id(bytes(ACCOUNT_ID_SIZE)))}}}$"},
    "ref_id": {"type": "string", "pattern": f"^[A-Za-z0-9_-]{{{len(encode_id(bytes(DIGEST_SIZE)))}}}$"},
    "chunk_id": {"type": "string", "pattern": f"^[0-9a-f]{{{2 * DIGEST_SIZE}}}$"},
    "seq": {"type": "string", "pattern": "^[0-9]{1,18}$"},
}
"""What a segment of a path looks like; another is not found."""
_BASE64: Final = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_ALWAYS: Final = ("bad-request", "timeout", "rate-limited", "internal", "unavailable")
_DESCRIPTION: Final = """\
What a p2psync relay offers to devices: accounts, sealed chunks, sealed entries, and news of them.

Every body is JSON or, as Content-Type and Accept say, MessagePack; bytes in JSON are base64 (RFC 4648, section 4). In
paths and queries, bytes are base64url without padding, and device and folder IDs have their own text form. Every
refusal is a problem document (RFC 9457), of which clients read the type. Every answer carries Date; a device whose
signature was refused for its time signs again with that one.
"""


def make_document(routes: Iterable[Route], limits: Limits) -> Schema:
    """The document for these routes, as JSON values."""
    routes = tuple(routes)
    bodies = {kind for route in routes for kind in (route.body, route.answer, route.query) if isinstance(kind, type)}
    kinds = sorted(bodies, key=lambda kind: kind.__qualname__)
    references, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schemas = dict(zip(kinds, references, strict=True))
    for kind in inspect.multi_type_info(kinds):
        _describe_bytes(kind, {}, components)
    paths: dict[str, Schema] = {}
    for route in routes:
        operation = _Operation(route, schemas, components, limits).document()
        method = "x-websocket" if route.method == "WEBSOCKET" else route.method.lower()
        paths.setdefault(route.path, {})[method] = operation
    queries = {kind.__name__ for route in routes for kind in (route.query,) if kind is not None}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "p2psync relay",
            "version": p2psync.__version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in components.items() if name not in queries},
            "securitySchemes": _SECURITY,
        },
    }


class _Operation:
    """One route on its way into the document."""

    def __init__(
        self, route: Route, schemas: Mapping[Any, Schema], components: Mapping[str, Schema], limits: Limits
    ) -> None:
        self._route = route
        self._schemas = schemas
        self._components = components
        self._limits = limits

    def document(self) -> Schema:
        """The operation object."""
        route = self._route
        account, address = per_minute(self._limits, route.rate)
        made: Schema = {
            "operationId": _operation_id(route),
            "summary": route.summary,
            "tags": [_tag(route)],
            "security": _REQUIREMENTS[route.auth],
            "responses": self._responses(),
            "x-limits": {
                "rate": route.rate.value,
                "calls-per-minute": {"account": account, "network": address},
                "seconds": None if route.is_stream else route.deadline_s,
                "body-bytes": route.limit if route.body is not None else 0,
            },
        }
        if route.handler.__doc__:
            made["description"] = route.handler.__doc__
        if parameters := [*self._path_parameters(), *self._query_parameters()]:
            made["parameters"] = parameters
        if route.body is not None:
            made["requestBody"] = {"required": True, "content": self._content(route.body)}
        return made

    def _path_parameters(self) -> list[Schema]:
        names = _PARAMETER.findall(self._route.path)
        return [{"name": name, "in": "path", "required": True, "schema": _PATH_PARAMETERS[name]} for name in names]

    def _query_parameters(self) -> list[Schema]:
        if self._route.query is None:
            return []
        schema = self._components[self._route.query.__name__]
        required = schema.get("required", ())
        return [
            {"name": name, "in": "query", "required": name in required, "schema": field}
            for name, field in schema["properties"].items()
        ]

    def _content(self, kind: type[msgspec.Struct] | Raw) -> Schema:
        if isinstance(kind, Raw):
            text = kind.media_type == "text/plain"
            return {kind.media_type: {"schema": {"type": "string"} if text else {}}}
        return {media_type: {"schema": self._schemas[kind]} for media_type in (JSON, MSGPACK)}

    def _responses(self) -> Schema:
        route = self._route
        success: Schema = {"description": "Done" if route.answer is None else "The answer"}
        if route.answer is not None and route.method != "HEAD":
            success["content"] = self._content(route.answer)
        if route.method == "WEBSOCKET":
            return {"101": {"description": "The WebSocket is open"}, **self._refusals()}
        return {**{str(status): success for status in (route.success, *route.also)}, **self._refusals()}

    def _refusals(self) -> Schema:
        by_status: dict[int, list[str]] = {}
        for code in sorted(_codes(self._route)):
            by_status.setdefault(PROBLEMS[code].status, []).append(code)
        return {
            str(status): _refusal(codes, has_body=self._route.method != "HEAD")
            for status, codes in sorted(by_status.items())
        }


def _describe_bytes(kind: inspect.Type, schema: Schema, components: Mapping[str, Schema]) -> None:
    """Say what base64 is: `contentEncoding` alone binds nobody."""
    match kind:
        case inspect.StructType(cls=struct, fields=fields):
            for field in fields:
                _describe_bytes(field.type, components[struct.__name__]["properties"][field.encode_name], components)
        case inspect.ListType(item_type=item):
            _describe_bytes(item, schema.get("items", {}), components)
        case inspect.Metadata(type=inner):
            _describe_bytes(inner, schema, components)
        case inspect.BytesType(min_length=least, max_length=most):
            schema["pattern"] = _base64_of(most) if most and least == most else _BASE64


def _base64_of(size: int) -> str:
    characters, padding = (size * 4 + 2) // 3, "=" * (-size % 3)
    return f"^[A-Za-z0-9+/]{{{characters}}}{padding}$"


def _codes(route: Route) -> set[str]:
    """Every problem that a call of this route may end in."""
    codes = {*_ALWAYS, *route.problems}
    if route.auth is not Auth.NONE:
        codes.add("unauthorized")
    if "{" in route.path:
        codes.add("not-found")
    codes.add("too-large")
    if route.body is not None and route.auth is not Auth.NONE:
        codes.add("digest-mismatch")
    if isinstance(route.body, type):
        codes.add("unsupported-media-type")
    return codes


def _refusal(codes: list[str], *, has_body: bool) -> Schema:
    fields: Schema = {
        "type": {"type": "string", "enum": [TYPE_PREFIX + code for code in codes]},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    }
    schema = {"type": "object", "properties": fields, "required": ["type", "title", "status"]}
    refusal: Schema = {"description": "; ".join(PROBLEMS[code].title for code in codes)}
    if has_body:
        refusal["content"] = {errors.CONTENT_TYPE: {"schema": schema}}
    if "rate-limited" in codes:
        seconds = {"description": "Seconds until it is worth trying again", "schema": {"type": "integer"}}
        refusal["headers"] = {"Retry-After": seconds}
    return refusal


def _operation_id(route: Route) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", route.path.removeprefix("/api/v1").lower()).strip("_")
    return f"{route.method.lower()}_{words}"


def _tag(route: Route) -> str:
    return route.path.removeprefix("/api/v1").strip("/").partition("/")[0]


_SECURITY: Final[Schema] = {
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "Signature",
        "description": "HTTP Message Signature (RFC 9421) by the device's Ed25519 key; see docs/protocol.md.",
    },
    "session": {"type": "http", "scheme": "bearer", "description": "An access token, bound to the device that signs."},
}
_REQUIREMENTS: Final[Mapping[Auth, list[Schema]]] = {
    Auth.NONE: [],
    Auth.SIGNED: [{"signature": []}],
    Auth.SESSION: [{"signature": [], "session": []}],
}


def document_route(routes: Iterable[Route]) -> Route:
    """The route that serves the document of `routes` and of itself."""
    listed = tuple(routes)
    made: dict[Limits, bytes] = {}

    async def show(call: Call) -> Response:
        """What the relay offers, in the form of OpenAPI 3.1."""
        limits = call.services.config.limits
        if limits not in made:
            made[limits] = msgspec.json.encode(make_document((*listed, route), limits))
        return Response(made[limits], media_type=JSON)

    route = Route("GET", "/api/v1/openapi.json", show, "This document", auth=Auth.NONE, answer=Raw(JSON))
    return route
