"""What the documentation shows is there, and what is there is documented: pages, pictures, examples, names.

Metrics, settings and their variables, and the sidecar's calls are compared with the pages where they are tested.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from brokervol.__main__ import PROCESSES, TOOLS
from brokervol.commands import OPTIONS, VERBS
from lab.documents import COMMANDS, INDENTED, OUTPUT, PAGES, ROOT, Block, blocks, commands
from sidecar.errors import STATUS_OF_CODE
from storage import exceptions
from volumedriver import nfs_options
from volumedriver.errors import InvalidVolume
from volumedriver.options import parse

DOCS = ROOT / "docs"
LANGUAGES = {COMMANDS, OUTPUT, "bash", "console", "ini", "javascript", "json", "python", "toml", "yaml"}
ALL_BLOCKS = [
    pytest.param(page, block, id=f"{page.name}:{block.line}") for page in PAGES for block in blocks(page)
]
ALL_COMMANDS = [pytest.param(block, id=f"{page.name}:{block.line}") for page in PAGES for block in commands(page)]

# Which file of docs/examples a page shows whole.
SHOWN = [
    ("README.md", "compose.yaml"),
    *[("docs/tutorial.md", name) for name in ("task.py", "task.sh", "task.mjs", "stack.yaml")],
]

VOLUMES = {
    "host": {"host_path": "/srv/x"},
    "nfs": {"nfs_path": "nas:/x"},
    "s3": {"type": "s3", "bucket_name": "imagery"},
    "sidecar": {"type": "sidecar"},
}


def first_cells(text: str) -> set[str]:
    """The names in the first cells of the tables of a text, heads and what is no name left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {name for line in lines for name in re.findall(r"`([^`]+)`", line.split(" | ")[0])}


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next of the same level."""
    level = heading.split(" ", maxsplit=1)[0]
    text = (DOCS / page).read_text()
    assert f"\n{heading}\n" in text
    return re.split(rf"\n{level} ", text.partition(f"\n{heading}\n")[2])[0]


# Pages


@pytest.mark.parametrize(("page", "block"), ALL_BLOCKS)
def test_every_block_says_what_it_is(page: Path, block: Block) -> None:
    """So that no command hides in a block that is not run."""
    assert block.language != INDENTED, f"{page.name}:{block.line}: fence it, as `sh` if it is of commands"
    assert block.language in LANGUAGES
    if block.language == OUTPUT:
        assert not re.match(r"(\$ |sudo |docker |curl |brokervol |make |pip)", block.text)


@pytest.mark.parametrize("block", ALL_COMMANDS)
def test_commands_that_are_not_run_name_what_is(block: Block) -> None:
    if block.excuse:
        reason, named = re.fullmatch(r"(.+); (tests/\S+\.py) .+", block.excuse).groups()  # type: ignore[union-attr]
        assert reason
        assert (ROOT / named).is_file()


def test_few_commands_are_not_run() -> None:
    """And which they are is seen when there is one more."""
    excused = [f"{page.name}:{block.line}" for page in PAGES for block in commands(page) if block.excuse]
    run = [block for page in PAGES for block in commands(page) if not block.excuse]
    assert len(excused) <= 14, excused
    assert len(run) > 40


@pytest.mark.parametrize(("page", "name"), SHOWN)
def test_pages_show_the_examples_as_they_are(page: str, name: str) -> None:
    example = (DOCS / "examples" / name).read_text().rstrip("\n")
    assert example in [block.text for block in blocks(ROOT / page)]


def test_every_example_is_on_a_page() -> None:
    text = "".join(page.read_text() for page in PAGES)
    for example in (DOCS / "examples").iterdir():
        assert example.is_dir() or example.name in text


def test_the_readme_is_a_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 80


def test_every_target_of_make_that_is_told_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    told = {name for page in pages for name in re.findall(r"`make ([a-z-]+)", page.read_text())}
    told |= {
        name
        for page in PAGES
        for block in commands(page)
        for name in re.findall(r"^make ([a-z-]+)", block.text, re.M)
    }
    assert told <= targets
    assert "docs" in told


# Pictures


def test_drawn_pictures_are_of_their_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "pictures"))
    from draw import drawn  # type: ignore[import-not-found]

    sources = sorted((DOCS / "pictures").glob("*.toml"))
    assert len(sources) == 3
    for source in sources:
        made = drawn(tomllib.loads(source.read_text()))
        assert source.with_suffix(".svg").read_text() == made, "draw it anew: python docs/pictures/draw.py"


def test_every_picture_is_on_a_page_and_the_other_way_round() -> None:
    text = "".join(page.read_text() for page in PAGES)
    shown = {Path(name).name for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)}
    there = {path.name for path in (DOCS / "pictures").iterdir() if path.suffix in (".svg", ".png")}
    assert shown == there


# Options of volumes


def accepted_keys(kind: str) -> set[str]:
    """What the driver says that it accepts."""
    with pytest.raises(InvalidVolume) as refused:
        parse({**VOLUMES[kind], "color": "red"})
    return set(re.search(r"has the options ([a-z_, ]+)", str(refused.value))[1].split(", "))  # type: ignore[index]


def test_the_options_of_volumes_are_those_of_the_page() -> None:
    in_code = set.union(*map(accepted_keys, VOLUMES))
    assert first_cells(section("options.md", "## Options")) == in_code


def test_the_types_of_volumes_are_those_of_the_page() -> None:
    assert first_cells(section("options.md", "## Types")) - {"type"} == set(VOLUMES)


def test_the_options_of_nfs_are_those_of_the_page() -> None:
    assert first_cells(section("nfs.md", "## Options").partition("### mount_options")[0]) == accepted_keys("nfs")
    listed = first_cells(section("nfs.md", "### mount_options").partition("\n`addr`")[0])
    assert listed == {*nfs_options.OPTIONS, "nfsvers"}


# Errors


def test_the_codes_of_the_api_are_those_of_the_page() -> None:
    assert first_cells(section("api.md", "## Errors")) == set(STATUS_OF_CODE)


def test_the_errors_of_the_library_are_those_of_the_page() -> None:
    names = {
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, exceptions.StorageError)
    }
    assert first_cells(section("brokers.md", "## Errors")) == names - {"StorageError"}


# Commands


def test_the_commands_are_those_of_the_page() -> None:
    text = (DOCS / "command-line.md").read_text()
    told = set(re.findall(r"^#+ `brokervol ([a-z]+)", text, re.MULTILINE))
    told |= set(re.findall(r"^\| `brokervol ([a-z]+)", text, re.MULTILINE))
    assert told == {*VERBS, *PROCESSES, *TOOLS}


def test_the_options_of_verbs_are_those_of_the_page() -> None:
    table = first_cells(section("command-line.md", "## Options"))
    told = {option for cell in table for option in re.findall(r"(?:^|\s)(--[a-z0-9-]+)", cell)}
    spelled = {name for names, _, _ in OPTIONS.values() for name in names if name.startswith("--")}
    assert spelled | {"--help", "--version", "--socket"} == told


# The site


def test_the_site_asks_for_nothing_from_elsewhere() -> None:
    """No font, script or style of another host: Material would take its own from a network."""
    configuration = (ROOT / "mkdocs.yml").read_text()
    assert re.search(r"^  font: false", configuration, re.MULTILINE)
    assert not re.search(r"https?://", configuration)
