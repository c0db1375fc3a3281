"""The specification: whole, and what the running sidecar does with all that it allows and does not allow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from flask import Flask
from schemathesis.config import SchemathesisConfig

from lab.s3 import Place, S3Server
from lab.specification import Case, Site, site
from lab.task import ask
from sidecar.errors import STATUS_OF_CODE
from sidecar.openapi import document
from sidecar.routes import ROUTES, add_routes

DOCUMENT = json.loads(json.dumps(document(ROUTES)))
API_PAGE = Path(__file__).parents[2] / "docs/api.md"

# Told of what is not in the specification, which no call in it can answer.
NEVER_OF_A_CALL = {"not-found", "method-not-allowed"}

# What is refused because of how the files are, and what is wrong in a configuration, no specification can say.
STATE = ["304", "400", "403", "404", "409", "412", "416", "501", "503", "507"]
DELIBERATE = ["501", "503", "507"]
CONFIG = SchemathesisConfig.from_dict(
    {
        "request-timeout": 60,
        "generation": {"deterministic": True, "max-examples": 40},
        "checks": {
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", *DELIBERATE]},
            "positive_data_acceptance": {"expected-statuses": ["2xx", *STATE]},
            "negative_data_rejection": {"expected-statuses": ["4xx"]},
        },
        "operations": [
            {
                "include-operation-id": "validate",
                "checks": {"positive_data_acceptance": {"expected-statuses": ["200", "422"]}},
            },
        ],
    }
)
schema = schemathesis.openapi.from_dict(DOCUMENT, config=CONFIG)


@pytest.fixture(scope="module")
def running(seaweedfs: S3Server, seaweedfs_place: tuple[S3Server, Place]) -> Iterator[Site]:
    with site(*seaweedfs_place) as found:
        yield found


@schema.parametrize()
@hypothesis.settings(deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_the_sidecar_does_what_the_specification_says(case: Case, running: Site) -> None:
    running.send(case)


def test_the_sidecar_shows_this_specification(running: Site) -> None:
    assert ask(running.process.socket_path, "GET", "/v1/openapi.json").json == DOCUMENT


def test_it_is_openapi_and_all_its_schemas_are_json_schemas() -> None:
    assert DOCUMENT["openapi"] == "3.1.0"
    schema.validate()
    for name, of_it in DOCUMENT["components"]["schemas"].items():
        assert re.fullmatch(r"[A-Za-z]+", name), "a name that tools make a class of"
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **of_it})


def test_it_has_every_rule_of_the_server_and_no_other() -> None:
    app = Flask("rules", static_folder=None)
    add_routes(app)
    rules = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }
    assert rules == {(path, method) for path, operations in DOCUMENT["paths"].items() for method in operations}


def test_every_code_is_in_it_and_on_the_page() -> None:
    calls = [call for operations in DOCUMENT["paths"].values() for call in operations.values()]
    told = {code for call in calls for answer in call["responses"].values() for code in codes(answer)}
    assert told | NEVER_OF_A_CALL == set(STATUS_OF_CODE) == set(DOCUMENT["components"]["schemas"]["Code"]["enum"])
    page = API_PAGE.read_text()
    for code, status in STATUS_OF_CODE.items():
        assert f"| `{code}` | {status} |" in page


def codes(answer: dict[str, Any]) -> list[str]:
    of_it = answer.get("content", {}).get("application/problem+json", {}).get("schema", {})
    return of_it["allOf"][1]["properties"]["code"]["enum"] if of_it else []


def test_every_call_and_parameter_is_on_the_page() -> None:
    page = API_PAGE.read_text()
    for path, operations in DOCUMENT["paths"].items():
        assert path in page
        for call in operations.values():
            for parameter in call["parameters"]:
                assert parameter["name"] in page
