"""Brokers of other packages: the example of docs, installed by hand, in the library, the sidecar and the driver.

Nothing is mounted for this broker, so its volumes are tokens: what holds for them holds for buckets.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lab.packages import EXAMPLE, install, install_example
from lab.plugin_host import PluginHost, plugin_host, sidecar_on
from lab.sidecar import self_sidecar
from lab.task import Identity, Task, ask
from lab.volume_driver import driver_on
from storage.brokers import factory
from storage.brokers.broker import Broker
from storage.mountinfo import Mount
from storage.testing import TRAITS, Backend, BrokerSuite, Traits

DOCS = Path(__file__).parents[2] / "docs"
A = "a" * 64


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of packages that every process started by the test can import."""
    directory = tmp_path / "packages"
    install_example(directory)
    monkeypatch.setenv("PYTHONPATH", str(directory), prepend=os.pathsep)
    return directory


# The library


def python(code: str) -> tuple[str, str]:
    """What a new process writes to its standard output and error."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


GET = "from storage.brokers.factory import *; import sys; "


def test_installed_broker_is_found_when_it_is_asked_for(packages: Path) -> None:
    asked = "print(type(get_broker('sqlite')).__name__, *get_broker_types())"
    assert python(GET + asked) == ("SqliteBroker host nfs s3 sqlite", "")
    asked = "get_broker('host'); print('sqlite_broker' in sys.modules)"
    assert python(GET + asked) == ("False", ""), "it is imported although nobody needs it"


def test_package_that_cannot_be_used_is_told_of_and_hinders_no_other(packages: Path) -> None:
    example = EXAMPLE.read_text()
    install(packages, "absent", "import no_such_module", {"a": "Broker"})
    install(packages, "broken", "def oops(", {"b": "Broker"})
    install(packages, "empty", "", {"c": "Broker"})
    install(packages, "no_broker", "class Broker: pass", {"d": "Broker"})
    install(packages, "needy", example.replace("(self) -> None", "(self, url) -> None"), {"e": "SqliteBroker"})
    install(packages, "other_name", example, {"f": "SqliteBroker"})
    install(packages, "abstract", "from storage.brokers.broker import Broker", {"g": "Broker"})
    told, said = python(GET + "print(*get_broker_types()); get_broker_types()")
    assert told == "host nfs s3 sqlite"
    lines = {line.split("'")[1]: line for line in said.splitlines()}
    assert len(lines) == len(said.splitlines()) == 7
    assert "absent:Broker of absent: ModuleNotFoundError: No module named 'no_such_module'" in lines["a"]
    assert "SyntaxError" in lines["b"]
    assert "AttributeError" in lines["c"]
    assert "a broker type is a subclass" in lines["d"]
    assert "cannot be made without arguments" in lines["e"]
    assert "calls itself 'sqlite'" in lines["f"]
    assert "cannot be made without arguments" in lines["g"]


def test_our_own_types_cannot_be_replaced_by_a_package(packages: Path) -> None:
    install(packages, "thief", EXAMPLE.read_text().replace("sqlite", "host"), {"host": "SqliteBroker"})
    told, said = python(GET + "get_broker_types(); print(type(get_broker('host')).__name__)")
    assert told == "HostBroker"
    assert said == "broker type 'host' is registered already; thief:SqliteBroker of thief is ignored"


def test_a_package_may_ask_for_types_while_it_is_imported(packages: Path) -> None:
    asking = "\nfrom storage.brokers.factory import get_broker_types\nget_broker_types()\n"
    source = EXAMPLE.read_text().replace('"sqlite"', '"curious"') + asking
    install(packages, "curious", source, {"curious": "SqliteBroker"})
    assert python(GET + "print(*get_broker_types())")[0] == "curious host nfs s3 sqlite"


@pytest.mark.parametrize("wrong", [object, "sqlite", None, Broker])
def test_what_is_no_broker_class_is_not_added(wrong: Any) -> None:
    before = factory.get_broker_types()
    with pytest.raises(TypeError, match=r"(?i)broker"):
        factory.add_broker_type(wrong)
    assert factory.get_broker_types() == before


def test_docs_name_the_example() -> None:
    assert 'sqlite = "sqlite_broker:SqliteBroker"' in (DOCS / "brokers.md").read_text()


class SqliteBackend(Backend):
    """The example's database, read by other means."""

    wrong_values: ClassVar = {"database": [None, 1, "", "relative.sqlite", "/a\0"]}
    unreachable: ClassVar = {"database": "/no/such/directory/x.sqlite"}
    many_files = 1_000
    large_file_bytes = (20 << 20) + 3

    def __init__(self, directory: Path) -> None:
        self.database, neighbour = directory / "files.sqlite", directory / "files.sqlite-2"
        neighbour.write_bytes(b"secret")
        configuration = {"type": "sqlite", "database": str(self.database)}
        traits = Traits(
            download_is_link=False,
            has_volume=False,
            has_directories=False,
            has_modes=False,
            has_links=False,
            has_file_system_paths=False,
            keeps_holes=False,
        )
        super().__init__(directory, configuration, traits)
        assert self.listed() == {}

    def _query(self, statement: str, *values: object) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.database)) as database, database:
            return database.execute(statement, values).fetchall()

    def put(self, path: str, content: bytes = b"content") -> None:
        self._query("INSERT OR REPLACE INTO file VALUES (?, ?)", path, content)

    def read(self, path: str) -> bytes | None:
        rows = self._query("SELECT content FROM file WHERE path = ?", path)
        return rows[0][0] if rows else None

    def remove(self, path: str) -> None:
        self._query("DELETE FROM file WHERE path = ?", path)

    def stored(self) -> dict[str, object]:
        found = {f"workspace/{path}": content for path, content in self._query("SELECT * FROM file")}
        return {**found, "files.sqlite-2": (self.directory / "files.sqlite-2").read_bytes()}


def _example() -> Any:
    spec = importlib.util.spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SqliteBroker


# The sidecar in its own view


def test_sidecar_serves_it_in_its_own_view(packages: Path, short_dir: Path) -> None:
    broker = {"type": "sqlite", "database": str(short_dir / "scenes.sqlite")}
    workspaces = {"scenes": {"broker": broker}, "frozen": {"broker": broker, "read_only": True}}
    source, copy = short_dir / "in", short_dir / "out"
    source.write_text("hello")
    with self_sidecar(short_dir, workspaces) as sidecar:

        def post(path: str, *files: object) -> Any:
            return ask(sidecar.socket_path, "POST", f"/v1/workspaces/{path}", {"files": files}).json

        upload = {"local_path": str(source), "file_path": "2026/a"}
        assert post("frozen/upload", upload)["code"] == "read-only"
        assert post("scenes/upload", upload)["done"] == 1
        assert post("scenes/move", {"file_path": "2026/a", "new_path": "b"})["done"] == 1
        assert post("frozen/download", {"file_path": "b", "local_path": str(copy)})["done"] == 1
        assert copy.read_text() == "hello"
        assert not copy.is_symlink()
        assert post("scenes/paths", {"file_path": "b"}) == {"paths": None}
        listed = ask(sidecar.socket_path, "GET", "/v1/workspaces/scenes/files").json["files"]
        assert listed == [{"file": "b", "size": 5}]
        found = ask(sidecar.socket_path, "GET", "/v1/workspaces/scenes").json
        assert (found["broker_type"], found["volume_path"], found["volume"]) == ("sqlite", None, None)
        assert post("scenes/delete", {"file_path": "b"})["done"] == 1
        for asked, status in ((broker, 200), ({**broker, "x": 1}, 200), ({"type": "sqlite"}, 422)):
            assert ask(sidecar.socket_path, "POST", "/v1/validate", {"broker": asked}).status == status
        assert "Traceback" not in sidecar.log()


# The driver, and the sidecar in the view of its callers

USER = Identity(uid=1000, gid=1000)
WS = "/v1/workspaces/scenes"


class Plugin(PluginHost):
    """A host whose volumes are databases of the example."""

    @property
    def database(self) -> str:
        return f"{self.host.directory}/scenes.sqlite"

    def create(self, name: str, **options: str) -> None:
        super().create(name, **{"type": "sqlite", "database": self.database, **options})

    def token(self, name: str = "scenes") -> Mount:
        return super().token(name)


@pytest.fixture
def plugin(packages: Path, short_dir: Path) -> Iterator[Plugin]:
    with plugin_host(short_dir) as found:
        plugin = Plugin(found.host, found.driver, found.sidecar)
        plugin.create("scenes")
        yield plugin


def outcomes(task: Task, workspace: str = WS) -> dict[str, str]:
    """What each operation answers to a task: `ok`, or a code."""
    done = {}
    for verb, item in (
        ("upload", {"local_path": "/tmp/in", "file_path": "f"}),
        ("list", None),
        ("download", {"file_path": "f", "local_path": "/tmp/out"}),
        ("paths", {"file_path": "f"}),
        ("move", {"file_path": "f", "new_path": "f"}),
        ("delete", {"file_path": "gone"}),
        ("catalog", None),
    ):
        path = f"{workspace}/{'files' if verb == 'list' else verb}"
        answer = task.post(path, {"files": [item]}) if item else task.get(path)
        done[verb] = "ok" if answer.status == 200 else answer.json["code"]
    return done


ALL = dict.fromkeys(("upload", "list", "download", "paths", "move", "delete", "catalog"), "ok")
READING = ALL | dict.fromkeys(("upload", "move", "delete"), "read-only")


@pytest.mark.root
def test_driver_defines_mounts_and_forgets_it(plugin: Plugin) -> None:
    status = plugin.driver.done("Get", Name="scenes").json["Volume"]["Status"]
    assert status == {"type": "sqlite", "database": plugin.database, "read_only": "false", "references": 0}
    place = plugin.driver.mount("scenes", A)
    assert os.listdir(place) == []
    with pytest.raises(OSError, match="Read-only"):
        (place / "x").touch()
    (mount,) = plugin.driver.mounts()
    assert (mount.fs_type, mount.is_read_only, mount.is_mounted_read_only) == ("tmpfs", True, False)
    plugin.driver.done("Mount", Name="scenes", ID="b" * 64)
    plugin.driver.done("Unmount", Name="scenes", ID=A)
    assert plugin.driver.mounts() == [mount]
    plugin.driver.done("Unmount", Name="scenes", ID="b" * 64)
    assert plugin.driver.mounts() == []
    plugin.driver.done("Remove", Name="scenes")
    assert os.listdir(plugin.host.files / "root/volumes") == []


@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"database": "relative"}, "the sqlite broker refuses the options: database is 'relative'; accepted is"),
        ({"databse": "/x"}, "an option is not accepted: 'databse' is not a key of an sqlite broker"),
        ({"read_only": "maybe"}, "option read_only='maybe' is not accepted"),
        (
            {"type": "tape"},
            "option type='tape' is not accepted: this version serves host, nfs, s3, sidecar and sqlite",
        ),
    ],
)
def test_driver_refuses_its_wrong_options_with_a_sentence(
    plugin: Plugin, options: dict[str, str], said: str
) -> None:
    given = {"type": "sqlite", "database": "/x.sqlite", **options}
    assert said in plugin.driver.error(400, "Create", Name="x", Opts=given)


@pytest.mark.root
def test_mount_decides_what_a_task_may_do(plugin: Plugin) -> None:
    plugin.mount("scenes")
    for identity in (None, USER):
        with plugin.task(("scenes", "/data", "rw"), identity=identity) as task:
            assert outcomes(task) == ALL
            (found,) = task.workspaces()
            assert found == {
                "name": "scenes",
                "broker_type": "sqlite",
                "volume_path": "/data",
                "read_only": False,
                "volume": None,
            }
            owner = (plugin.host.files / task.root.name / "tmp/out").stat().st_uid
            assert owner == (identity or Identity()).uid
        with plugin.task(("scenes", "/data", "ro"), identity=identity) as task:
            assert outcomes(task) == READING
            assert [found["read_only"] for found in task.workspaces()] == [True]
        with plugin.task(identity=identity) as task:
            assert set(outcomes(task).values()) == {"unknown-workspace"}
            assert task.workspaces() == []


@pytest.mark.root
def test_writable_mount_beside_a_read_only_one_counts(plugin: Plugin) -> None:
    plugin.mount("scenes")
    with plugin.task(("scenes", "/ro", "ro"), ("scenes", "/rw", "rw")) as task:
        assert outcomes(task) == ALL


@pytest.mark.root
def test_read_only_volume_is_read_only_however_it_is_mounted(plugin: Plugin) -> None:
    plugin.create("frozen", read_only="true")
    plugin.mount("frozen")
    assert plugin.token("frozen").is_mounted_read_only
    with plugin.task(("frozen", "/data", "rw")) as task:
        plugin.host.run(
            "nsenter", "-t", str(task.pid), "-m", "mount", "-o", "remount,bind,rw", f"{task.root}/data"
        )
        plugin.mount("scenes")
        assert outcomes(task, "/v1/workspaces/frozen") == READING | {"download": "missing-file"}


@pytest.mark.root
def test_each_volume_has_a_token_of_its_own(plugin: Plugin) -> None:
    plugin.create("others", database=f"{plugin.host.directory}/others.sqlite")
    plugin.mount("scenes")
    plugin.mount("others")
    with plugin.task(("others", "/data", "rw")) as task:
        assert [found["name"] for found in task.workspaces()] == ["others"]
        assert set(outcomes(task).values()) == {"unknown-workspace"}
        assert outcomes(task, "/v1/workspaces/others") == ALL


@pytest.mark.root
def test_another_file_system_is_no_token(plugin: Plugin) -> None:
    """Also one with the token's type, flags and name."""
    plugin.mount("scenes")
    with plugin.task() as task:
        source = plugin.token().source
        task.mount_tmpfs("/tmp")
        plugin.host.run(
            *("nsenter", "-t", str(task.pid), "-m", "mount", "-t", "tmpfs", "-o", "ro,mode=555"),
            *(source, f"{task.root}/dev"),
        )
        assert task.workspaces() == []


@pytest.mark.root
def test_token_that_the_user_cannot_reach_is_not_held(plugin: Plugin) -> None:
    plugin.mount("scenes")
    volume = ("scenes", "/closed/data", "rw")
    for identity, expected in ((USER, "permission-denied"), (None, "ok")):
        with plugin.task(volume, identity=identity) as task:
            (plugin.host.files / task.root.name / "closed").chmod(0o700)
            assert set(outcomes(task).values()) == {expected}


@pytest.mark.root
def test_user_of_the_host_sees_tokens_and_holds_none(plugin: Plugin) -> None:
    """A process that has the host's mounts, or a container with the host's root, sees every volume's mount."""
    plugin.mount("scenes")
    with Task(plugin.host.directory, [plugin.socket], USER, plugin.host) as task:
        assert set(outcomes(task).values()) == {"permission-denied"}


@pytest.mark.root
def test_token_is_right_over_crashes_of_both_processes(plugin: Plugin) -> None:
    mount_id = plugin.mount("scenes")
    token = plugin.token()
    with plugin.task(("scenes", "/data", "rw")) as writer, plugin.task(("scenes", "/data", "ro")) as reader:
        plugin.driver.process.kill()
        plugin.sidecar.kill()
        with driver_on(plugin.host) as driver, sidecar_on(plugin.host):
            assert plugin.token() == token
            assert driver.references("scenes") == 1
            assert outcomes(writer) == ALL
            assert outcomes(reader) == READING
            driver.done("Unmount", Name="scenes", ID=mount_id)
            assert driver.mounts() == []
            assert set(outcomes(writer).values()) == {"unknown-workspace"}


@pytest.mark.root
def test_volume_in_a_task_is_not_removed(plugin: Plugin) -> None:
    plugin.mount("scenes")
    with plugin.task(("scenes", "/data", "ro")):
        assert "in use" in plugin.driver.error(409, "Remove", Name="scenes")
    plugin.driver.done("Remove", Name="scenes")
    assert plugin.driver.mounts() == []


@pytest.mark.root
def test_volume_whose_package_is_gone_stays_known_and_hides_no_other(plugin: Plugin, packages: Path) -> None:
    plugin.driver.process.terminate()
    plugin.sidecar.terminate()
    install_example(packages / "kept")
    (packages / "sqlite_broker-1.0.dist-info/entry_points.txt").unlink()
    (plugin.host.files / "srv").mkdir()
    with driver_on(plugin.host) as driver, sidecar_on(plugin.host):
        driver.create("plain", "/srv")
        assert driver.done("Get", Name="scenes").json["Volume"]["Status"]["type"] == "sqlite"
        assert "stored options are not usable" in driver.error(400, "Mount", Name="scenes", ID=A)
        plugin.mount("plain")
        with plugin.task(("plain", "/data", "rw")) as task:
            assert [found["name"] for found in task.workspaces()] == ["plain"]
        driver.done("Remove", Name="scenes")


# The suite that ships in the package


class TestExample(BrokerSuite):
    """Every ability, of the example of docs."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Iterator[Backend]:
        factory.add_broker_type(_example())
        directory = tmp_path / "b"
        directory.mkdir()
        yield SqliteBackend(directory)
        factory._BROKERS.pop("sqlite")
        assert sorted(TRAITS) == factory.get_broker_types()
