"""Every command of the README and of docs/ is run, as it stands, at a terminal: on the real engine and plugin.

The engine is this module's own, with a network of its own, so that it may be a swarm's; the plugin is installed on
it by the README's own command. No registry is asked: the images that the pages name are the tests', under these
names. /srv is, for the engine and the terminal, a directory of the tests.

`docker compose` is a plugin of the docker client that Debian 12 has not got; it has the program that came before,
which reads the same file and has the same words. So `docker compose` means that one here.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker.errors import APIError
from docker.models.plugins import Plugin

import build
from lab import images
from lab.directories import remove_tree, temporary_directory
from lab.documents import PAGES, ROOT, Block, commands
from lab.engine import Engine, wait_until
from lab.stage import PLUGIN
from lab.terminal import CommandFailed, Terminal

NAMES = ("python:3.11", "buildpack-deps:curl", "node:20")
PROGRAMS = ("node", "jq")
IN_CHECKOUT = ("README.md", "tutorial.md")

COMPOSE = """\
#!/bin/sh
case $1 in
docker-cli-plugin-metadata) echo '{"SchemaVersion": "0.1.0", "Vendor": "Debian", "Version": "1.29"}' ;;
*) shift; exec docker-compose "$@" ;;
esac
"""


class Desk:
    """An engine, and what a person at a terminal beside it has: a home, and /srv."""

    def __init__(self, engine: Engine, home: Path, srv: Path) -> None:
        self.engine = engine
        self.srv = srv
        plugins = home / ".docker/cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-compose").write_text(COMPOSE)
        (plugins / "docker-compose").chmod(0o755)
        self._environment = {
            **os.environ,
            "DOCKER_HOST": engine.url,
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        engine.execute("mount", "--bind", str(srv), "/srv")

    @contextlib.contextmanager
    def terminal(self, page: Path) -> Iterator[Terminal]:
        """A terminal in a checkout, where the page says that the reader is in one, or else at home."""
        with Terminal(self.engine.entering, self._environment) as terminal:
            terminal.type(f"cd {ROOT}" if page.name in IN_CHECKOUT else "cd")
            yield terminal

    def tidy(self) -> None:
        """Remove what a page has left: containers, volumes, files."""
        client = self.engine.client
        for container in client.containers.list(all=True, ignore_removed=True):
            with contextlib.suppress(APIError):  # `--rm` is removing it
                container.remove(force=True)
        wait_until("the containers are gone", lambda: not client.containers.list(all=True, ignore_removed=True))
        for volume in client.volumes.list(filters={"driver": f"{PLUGIN}:latest"}):
            volume.remove()
        for left in self.srv.iterdir():
            remove_tree(left)


def make_images(engine: Engine) -> None:
    """Make the images that the pages name: the tests' own, with two programs of this machine."""
    images.load_task(engine)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", dereference=True) as tar:
        for program in PROGRAMS:
            _pack(tar, program)
    container = engine.client.containers.create(images.TASK, "true")
    try:
        container.put_archive("/usr/local", packed.getvalue())
        image = container.commit()
        for name in NAMES:
            image.tag(*name.split(":"))
    finally:
        container.remove()


def _pack(tar: tarfile.TarFile, program: str) -> None:
    """Add a program and the libraries that it is linked to, and in `bin` what starts it with them."""
    path = shutil.which(program)
    assert path, f"there is no {program}: `make lab` installs it on Debian"
    linked = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    for file in (path, *re.findall(r"(/\S+) \(", linked)):
        tar.add(file, f"lib/{program}/{Path(file).name}")
    start = f'#!/bin/sh\nLD_LIBRARY_PATH=/usr/local/lib/{program} exec /usr/local/lib/{program}/{program} "$@"\n'
    entry = tarfile.TarInfo(f"bin/{program}")
    entry.size, entry.mode = len(start), 0o755
    tar.addfile(entry, io.BytesIO(start.encode()))


def _settings(plugin: Plugin) -> dict[str, str]:
    assert plugin.settings is not None
    return dict(line.split("=", maxsplit=1) for line in plugin.settings["Env"])


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    with temporary_directory() as home, temporary_directory() as srv, Engine(has_network=True) as engine:
        make_images(engine)
        yield Desk(engine, home, srv)


@pytest.fixture
def tidied(desk: Desk) -> Iterator[Desk]:
    """The desk, of which a page's containers, volumes and files go at the end."""
    yield desk
    desk.tidy()


@pytest.fixture
def installed(desk: Desk) -> Iterator[Desk]:
    """The desk with the plugin and its settings as they are at first, and tidied at the end."""
    archive = build.build(desk.engine.client)
    plugin = build.create(desk.engine.client, PLUGIN, archive)
    build.enable(plugin, {})
    before = _settings(plugin)
    yield desk
    desk.tidy()  # a plugin whose volumes are there is in use
    plugin.reload()
    changed = _settings(plugin)
    if changed != before:
        build.enable(plugin, {name: text for name, text in before.items() if changed[name] != text})


def run(page: Path, terminal: Terminal) -> None:
    """Type all that a page has to be run, and see that it prints what the page says."""
    for block in commands(page):
        if not block.excuse:
            printed = _typed(page, block, terminal)
            assert _lines(block.output) in _lines(printed), f"{page.name}:{block.line} printed:\n{printed}"


def _typed(page: Path, block: Block, terminal: Terminal) -> str:
    try:
        for line in block.first:
            terminal.type(line)
        return terminal.type(block.text)
    except CommandFailed as failure:
        raise CommandFailed(f"{page.name}:{block.line}: {failure}") from None


def _lines(text: str) -> str:
    """The text without blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in text.splitlines())


@pytest.mark.timeout(600)  # the plugin may have to be built
def test_the_commands_of_the_readme(tidied: Desk) -> None:
    """First of all: with them the plugin is installed."""
    with tidied.terminal(PAGES[0]) as terminal:
        run(PAGES[0], terminal)


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_the_commands_of_a_page(installed: Desk, page: Path) -> None:
    with installed.terminal(page) as terminal:
        run(page, terminal)
