"""`brokervol doctor` and `brokervol logs` beside a real engine with the real plugin.

More faults are planted in tests/conformance/test_doctor.py, and more of the log is in tests/unit/test_logs.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from docker.models.plugins import Plugin

import build
from lab import doctor, images
from lab.directories import temporary_directory
from lab.doctor import Diagnosis
from lab.engine import Engine
from lab.stage import PLUGIN


def diagnose(engine: Engine) -> Diagnosis:
    return doctor.diagnose(prefix=engine.entering, docker_host=engine.url)


def test_on_a_healthy_host_nothing_is_found(engine: Engine, plugin: Plugin) -> None:
    state = engine.path(engine.directory / f"data/plugins/{plugin.id}/propagated-mount/.state")
    for left in (path for path in state.iterdir() if ".damaged-" in path.name or ".differs-" in path.name):
        left.unlink()  # by tests that damage the state
    with temporary_directory() as directory:
        engine.client.volumes.create("data", driver=PLUGIN, driver_opts={"host_path": str(directory)})
        with engine.running(images.TINY, "sleep", "100", volumes=["data:/data"]):
            found = diagnose(engine)
    assert found.bad() == []
    assert found.exit_code == 0, "and nothing could not be looked at"
    assert found.of("plugin").finding == f"plugin {plugin.name} is enabled"
    assert "1 of them mounted" in found.of("volumes").finding
    assert found.of("mounts").result == "ok"
    assert f"plugins/{plugin.id}/propagated-mount/sidecar/broker.sock" in found.of("sidecar").finding
    assert {told.check for told in found.findings if told.result == "skipped"} == {
        *("nfs-client", "nfs-server", "nfs-exports", "s3-credentials", "s3-bucket", "s3-clock")
    }


def test_the_log_tells_what_became_of_a_volume(engine: Engine, plugin: Plugin) -> None:
    with temporary_directory() as directory:
        engine.client.volumes.create("logged", driver=PLUGIN, driver_opts={"host_path": str(directory)})
        assert engine.run(images.TINY, "true", volumes=["logged:/data"]).exit_code == 0
        command = [sys.executable, "-m", "brokervol", "logs", "--volume", "logged", "--json"]
        environment = {**os.environ, "DOCKER_HOST": engine.url}
        told = subprocess.run([*engine.entering, *command], env=environment, capture_output=True, check=True)
    found = [json.loads(line) for line in told.stdout.splitlines()]
    assert [one["event"] for one in found] == ["volume created", "volume mounted", "volume unmounted"]
    assert {one["process"] for one in found} == {"driver"}


@pytest.fixture(scope="module")
def disabled(shared_engine: Engine) -> Iterator[Plugin]:
    """The plugin, disabled for the last tests here; its settings are as they were in the end."""
    found: Plugin = shared_engine.client.plugins.get(PLUGIN)  # type: ignore[no-untyped-call]
    kept = shared_engine.client.volumes.create("kept", driver=PLUGIN, driver_opts={"type": "sidecar"})
    found.disable(force=True)  # which volumes would refuse
    yield found
    found.configure({"NFS_PROBE_S": "30"})
    found.enable(timeout=60)
    kept.remove()


def test_plugin_that_is_disabled(shared_engine: Engine, disabled: Plugin) -> None:
    found = diagnose(shared_engine)
    assert found.bad() == ["plugin"]
    told = found.fault("plugin")
    assert told.finding == f"plugin {disabled.name} is disabled: no volume of it can be used"
    assert told.cure.startswith("`docker plugin enable brokervol`")
    assert found.of("driver").finding == "the plugin is disabled"
    assert [told.result for told in found.findings if told.check == "definitions"] == ["ok", "ok"], "seen on disk"


def test_wrong_setting(shared_engine: Engine, disabled: Plugin) -> None:
    disabled.configure({"NFS_PROBE_S": "often"})
    found = diagnose(shared_engine)
    told = found.fault("settings")
    assert told.subject == "NFS_PROBE_S"
    assert "NFS_PROBE_S (--nfs-probe-s) is 'often'; accepted is a whole number from 1 to 3600" in told.finding
    assert "`docker plugin set brokervol NFS_PROBE_S=30`" in told.cure


def test_a_disabled_plugin_that_has_volumes_is_not_replaced(shared_engine: Engine, disabled: Plugin) -> None:
    """By `make install`: the engine lists no volumes of a driver that it cannot ask."""
    script = "import sys, build; e = build.connect(sys.argv[1]); build.remove(e, build.existing(e, sys.argv[2]))"
    line = [*shared_engine.entering, sys.executable, "-c", script, shared_engine.url, PLUGIN]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert "its volumes (kept) would be lost" in done.stderr
    disabled.configure({"NFS_PROBE_S": "45"})
    disabled.reload()
    assert build.changed_settings(disabled) == {"NFS_PROBE_S": "45"}
