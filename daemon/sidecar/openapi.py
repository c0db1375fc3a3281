"""The OpenAPI 3.1 document, made from the table of calls and the shapes that requests are checked against."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

import msgspec

from sidecar.errors import CODE_OF_REFUSED_HEAD, RETRIED, STATUS_OF_CODE
from sidecar.requests import WORKSPACE_PATH
from sidecar.routes import Answer, Lines, Route
from sidecar.wire import PROBLEM

_REF = "#/components/schemas/{name}"
_PATH_PARAMETERS: dict[str, dict[str, Any]] = {
    "ws": {"type": "string", "pattern": "^[^/]+$", "examples": ["data"]},
    "file_path": {"type": "string", **WORKSPACE_PATH},
}


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The specification of these calls."""
    routes = tuple(routes)
    shapes = list(dict.fromkeys(shape for route in routes for shape in _shapes(route)))
    schemas, components = msgspec.json.schema_components(shapes, ref_template=_REF)
    for shape in shapes:
        components.get(_name(shape), {}).update(getattr(shape, "SCHEMA", {}))
    schema_of = dict(zip(shapes, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operations = paths.setdefault(route.path, {})
        operation = _operation(route, schema_of, components)
        operations[route.method.lower()] = operation
        if route.method == "GET":
            operations["head"] = _head(operation)
    for shape in {shape for route in routes for shape in (route.query, route.headers) if shape is not None}:
        del components[_name(shape)]  # they are listed one by one as parameters
    code = {"enum": sorted(STATUS_OF_CODE), "description": "Every code of a problem."}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "brokervol sidecar",
            "version": "1",
            "description": "The broker operations over a Unix socket, done as the caller.",
        },
        "servers": [{"url": "/", "description": "The Unix socket; the host part of a URL is ignored."}],
        "paths": paths,
        "components": {"schemas": {**components, "Code": code}},
    }


def _shapes(route: Route) -> Iterator[Any]:
    """Every shape that the call speaks of and that is a type with a schema."""
    media = [*(route.body or {}).values(), *(shape for answer in route.good for shape in answer.media.values())]
    for shape in (*media, route.query, route.headers, route.problem):
        for one in shape.shapes if isinstance(shape, Lines) else (shape,):
            if one is not None and one is not bytes:
                yield one


def _name(shape: Any) -> str:
    return str(getattr(shape, "__name__", ""))


def _operation(route: Route, schema_of: Mapping[Any, Any], components: Mapping[str, Any]) -> dict[str, Any]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": _PATH_PARAMETERS[name]}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    found: dict[str, Any] = {
        "operationId": route.operation,
        "summary": route.summary,
        "parameters": [
            *in_path,
            *_parameters("query", components.get(_name(route.query), {})),
            *_parameters("header", components.get(_name(route.headers), {})),
        ],
        "responses": {
            **{str(answer.status): _answer(answer, schema_of) for answer in route.good},
            **_problems(route, schema_of[route.problem]),
        },
    }
    if route.body is not None:
        required = bytes not in route.body.values()  # no bytes are some, too
        found["requestBody"] = {"required": required, "content": _content(route.body, schema_of)}
    return found


def _parameters(place: str, schema: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, of_it in schema.get("properties", {}).items():
        # What may be None may be left out: there is no text for it.
        texts = [one for one in of_it.get("anyOf", ()) if one != {"type": "null"}]
        yield {"name": name, "in": place, "required": False, "schema": texts[0] if texts else of_it}


def _answer(answer: Answer, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        found["headers"] = {name: _header(text) for name, text in answer.headers.items()}
    if answer.media:
        found["content"] = _content(answer.media, schema_of)
    return found


def _header(text: str, *, is_required: bool = False) -> dict[str, Any]:
    return {"description": text, "required": is_required, "schema": {"type": "string"}}


def _content(media: Mapping[str, Any], schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: {"schema": _schema(shape, schema_of)} for name, shape in media.items()}


def _schema(shape: Any, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    if isinstance(shape, Lines):  # as in OpenAPI 3.2: all lines together are an array
        schemas = [_schema(one, schema_of) for one in shape.shapes]
        return {"type": "array", "items": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    if shape is bytes:
        return {"type": "string", "format": "binary"}
    found: dict[str, Any] = schema_of[shape]
    return found


def _problems(route: Route, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The answers of a call that fails, by status."""
    codes_of = {status: [code] for status, code in CODE_OF_REFUSED_HEAD.items()}
    for code in sorted(route.codes):
        codes_of.setdefault(STATUS_OF_CODE[code], []).append(code)
    found = {}
    for status, codes in sorted(codes_of.items()):
        exactly = {"properties": {"status": {"const": status}, "code": {"enum": codes}}}
        found[str(status)] = {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(codes)}",
            "content": {PROBLEM: {"schema": {"allOf": [schema, exactly]}}},
        }
        if any(code in RETRIED for code in codes):
            text = "Seconds after which to try again."
            required = all(code in RETRIED for code in codes)
            found[str(status)]["headers"] = {"Retry-After": _header(text, is_required=required)}
    return found


def _head(operation: Mapping[str, Any]) -> dict[str, Any]:
    """The same call without the bodies of its answers."""
    answers = {
        status: {key: value for key, value in answer.items() if key != "content"}
        for status, answer in operation["responses"].items()
    }
    return {**operation, "operationId": f"{operation['operationId']}Head", "responses": answers}
