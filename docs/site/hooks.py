"""What the site has besides docs/: the pages of the repository's root, and the API's reference, made of code."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "daemon"))
from sidecar.openapi import document  # noqa: E402
from sidecar.routes import ROUTES  # noqa: E402

FROM_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
REFERENCE = "api-reference.md"
SPECIFICATION = "openapi.json"

_INTRODUCTION = f"""\
# Every call of the HTTP API

Made of the specification that the sidecar shows at `GET /v1/openapi.json`, which is [here]({SPECIFICATION}), too.
What the calls do is told in [the HTTP API](api.md). Every `GET` is a `HEAD` as well.
"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what is not in docs/."""
    specification = json.loads(json.dumps(document(ROUTES)))
    contents = {page: (ROOT / name).read_text() for name, page in FROM_ROOT.items()}
    contents[SPECIFICATION] = json.dumps(specification, indent=1)
    contents[REFERENCE] = reference(specification)
    for name, content in contents.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Have links lead where those pages are in the site."""
    markdown = markdown.replace("](docs/", "](")
    for name, target in FROM_ROOT.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(name)}", f"]({target}", markdown)
    return markdown


def reference(specification: dict[str, Any]) -> str:
    """The calls of a specification, and the shapes that they speak of, as Markdown."""
    parts = [_INTRODUCTION]
    for path, operations in specification["paths"].items():
        parts += [
            _call(f"{method.upper()} {path}", call) for method, call in operations.items() if method != "head"
        ]
    parts.append("## Shapes\n")
    parts += [_shape(name, shape) for name, shape in specification["components"]["schemas"].items()]
    return "\n".join(parts)


def _call(title: str, call: dict[str, Any]) -> str:
    parameters = [
        [f"`{each['name']}`", each["in"], _type(each["schema"]), "yes" if each["required"] else ""]
        for each in call["parameters"]
    ]
    bodies = [
        [f"`{media}`", _type(of_it.get("schema", {}))]
        for media, of_it in call.get("requestBody", {}).get("content", {}).items()
    ]
    answers = [[status, answer["description"], _answered(answer)] for status, answer in call["responses"].items()]
    return "\n".join(
        [
            f"## `{title}`\n\n{call['summary']}\n",
            _table(["parameter", "in", "accepted", "required"], parameters),
            _table(["body", ""], bodies),
            _table(["status", "meaning", "body"], answers),
        ]
    )


def _answered(answer: dict[str, Any]) -> str:
    content = answer.get("content", {})
    return "<br>".join(f"`{media}`: {_type(of_it.get('schema', {}))}" for media, of_it in content.items())


def _shape(name: str, shape: dict[str, Any]) -> str:
    needed = shape.get("required", [])
    rows = [
        [f"`{field}`", _type(of_it), "yes" if field in needed else ""]
        for field, of_it in shape.get("properties", {}).items()
    ]
    told = shape.get("description", "" if rows else _type(shape))
    return f"### {name}\n\n{told}\n\n{_table(['field', 'accepted', 'always'], rows)}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if reference := schema.get("$ref"):
        name = reference.rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_type(one) for one in schema[several])
    if "allOf" in schema:  # a problem, with the codes that it may have
        return _type(schema["allOf"][0])
    if "enum" in schema:
        return _limited(", ".join(f"`{value}`" for value in schema["enum"]), schema)
    if schema.get("type") == "array":
        return f"a list of {_type(schema.get('items', {}))}"
    return _limited(schema.get("type", "bytes"), schema)


def _limited(kind: str, schema: dict[str, Any]) -> str:
    words = {
        "minimum": "from",
        "maximum": "to",
        "maxLength": "at most",
        "maxItems": "at most",
        "default": "default",
    }
    limits = [f"{word} `{json.dumps(schema[key])}`" for key, word in words.items() if key in schema]
    return ", ".join([kind, *limits])
