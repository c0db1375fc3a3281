"""The life of a driver as Hypothesis plays it: any order of calls, crashes and losses, against a model.

The model knows what Docker was told, what containers hold, and what the driver may forget and when. How the driver
comes to its decisions is not in it.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lab.memory_driver import Machine, is_same_volume
from lab.memory_mounter import MemoryMounter
from storage.definitions import backup_path, definitions_path
from storage.volume_records import from_json
from volumedriver.engines import NOBODY, Engine
from volumedriver.errors import DriverError, MountFailed, VolumeConflict, VolumeInUse, VolumeNotFound
from volumedriver.holders import Hold
from volumedriver.holds import Holds
from volumedriver.mounter import KernelMounter, Mounter
from volumedriver.reconcile import GRACE_S, LIVING_ENGINE_GRACE_S
from volumedriver.recovery import LOST_ID
from volumedriver.volume import Shown
from volumedriver.workers import Workers

KINDS = {
    "directory": {"host_path": "/srv/data"},
    "read-only": {"host_path": "/srv/data", "read_only": "true"},
    "bucket": {"bucket_name": "imagery"},
    "export": {"nfs_path": "nas:/data"},
}
NAMES = st.sampled_from(["data", "data2"])
DISASTERS = (
    "driver_is_killed",
    "engine_is_killed",
    "engine_with_live_restore_is_killed",
    "plugin_is_disabled_by_force_and_enabled",
    "machine_reboots",
    "definitions_are_lost",
    "references_are_lost",
    "nfs_server_comes_back_with_other_files",
)
LOSSES = (b"", b"damaged" * 1000, b"SQLite format 3\0" + b"x" * 5000, None)
FASTEST = "/dev/shm"  # what is synced there is not waited for


@dataclass
class Reference:
    """One Mount ID's hold as the model has it. Before `safe_until` the driver must not drop it of itself."""

    count: int
    engine: Engine
    safe_until: float


@dataclass
class Container:
    """A running container; `shown` is what is mounted in it.

    Where references were lost, its volume can be removed under it and another one made of the name, and a token
    that was not mounted just then is known to nobody: what the container has `is_unknown` to the driver.
    """

    volume: str
    mount_id: str
    shown: Shown
    is_unknown: bool = False


@dataclass
class Model:
    kinds: dict[str, str] = field(default_factory=dict)
    references: dict[str, dict[str, Reference]] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    pending: list[tuple[str, str]] = field(default_factory=list)  # mounted for, and not started
    ended: list[tuple[str, str]] = field(
        default_factory=list
    )  # by an engine that was killed; may be started again
    disturbed: set[str] = field(default_factory=set)  # the kernel's mounts are wrong until somebody looks

    def held(self, name: str) -> dict[str, Reference]:
        return self.references.get(name, {})


class InMemory:
    """What happens to mounts behind the driver's back, on the mounter without a kernel."""

    def __init__(self) -> None:
        self.machine: Machine

    def mounter(self) -> Mounter | None:
        return None

    def kind(self, wanted: str) -> str:
        """The kind of volume to make: the kernel has no NFS server here."""
        return wanted

    def forget_exports(self) -> None:
        self._mounter.forget_exports()

    @property
    def _mounter(self) -> MemoryMounter:
        return self.machine.mounter

    def detach_all(self) -> None:
        self._mounter.detach_all()

    def vanish(self, mountpoint: str) -> None:
        self._mounter.entries.pop(mountpoint, None)

    def cover(self, mountpoint: str) -> None:
        self._mounter.foreign[mountpoint] = Shown("9:9", "/else", "other")


class NoHolds(Holds):
    """The containers have no processes whose tokens could be had."""

    def adopt(self, hold: Hold, target_fd: int, *, read_only: bool) -> None:
        del hold, target_fd, read_only
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))


class InKernel(InMemory):
    """The same with real mounts, in a mount namespace of the test's own."""

    def mounter(self) -> Mounter:
        return KernelMounter(holds=NoHolds(Workers()))

    def kind(self, wanted: str) -> str:
        return "directory" if wanted == "export" else wanted

    def forget_exports(self) -> None:
        pass

    def detach_all(self) -> None:
        for mountpoint in self.machine.parts.mounter.mountpoints(str(self.machine.root / "volumes")):
            self.vanish(mountpoint)

    def vanish(self, mountpoint: str) -> None:
        while self.machine.parts.mounter.is_mounted(mountpoint):
            subprocess.run(["umount", "-l", mountpoint], check=True)

    def cover(self, mountpoint: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "other", mountpoint], check=True)


class DriverLife(RuleBasedStateMachine):
    """See the head of this module. `steps` counts rules over all examples."""

    world: Callable[[], InMemory] = InMemory
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.directory = TemporaryDirectory(dir=FASTEST)
        self.behind = type(self).world()
        self.machine = Machine(Path(self.directory.name), self.behind.mounter())
        self.behind.machine = self.machine
        (self.machine.hostfs / "srv/data/file").write_text("content")
        self.model = Model()
        self.count = 0

    def teardown(self) -> None:
        self.behind.detach_all()
        self.machine.stop()
        assert (self.machine.hostfs / "srv/data/file").read_text() == "content", "a file of the workspace is gone"
        self.directory.cleanup()
        assert len(os.listdir("/proc/self/fd")) == self.descriptors

    # What users and the engine do

    @initialize(kinds=st.tuples(st.sampled_from([*KINDS]), st.sampled_from([*KINDS])), running=st.integers(0, 3))
    def begin(self, kinds: tuple[str, str], running: int) -> None:
        for number, (name, kind) in enumerate(zip(("data", "data2"), kinds, strict=True)):
            self.create(name, kind)
            if running & (1 << number):
                self.run(name, kind)

    @rule(name=NAMES, kind=st.sampled_from([*KINDS]))
    def create(self, name: str, kind: str) -> None:
        kind = self.behind.kind(kind)
        before = self.model.kinds.get(name, kind)
        self._fails(before != kind, VolumeConflict, lambda: self.machine.driver.create(name, KINDS[kind]))
        self.model.kinds.setdefault(name, kind)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        model = self.model
        if name not in model.kinds:
            self._fails(True, VolumeNotFound, lambda: self.machine.driver.remove(name))
            return
        is_in_use = bool(model.held(name)) and self._is_held(name)
        self._fails(is_in_use, VolumeInUse, lambda: self.machine.driver.remove(name))
        if not is_in_use:
            model.references.pop(name, None)
            del model.kinds[name]
            model.disturbed.discard(name)
            for container in model.containers.values():
                container.is_unknown |= container.volume == name

    @rule(name=NAMES, fails=st.booleans())
    def mount(self, name: str, fails: bool) -> None:
        """For a container that is to be started."""
        self.count += 1
        mount_id = f"id{self.count}"
        if name not in self.model.kinds:
            self._fails(True, VolumeNotFound, lambda: self.machine.driver.mount(name, mount_id))
        elif fails and type(self.behind) is InMemory and self._needs_mount(name):
            self.machine.mounter.before_mount = _no_mount
            self._fails(True, MountFailed, lambda: self.machine.driver.mount(name, mount_id, self.machine.engine))
            self.machine.mounter.before_mount = lambda _: None
        else:
            self._mount(name, mount_id)
            self.model.pending.append((name, mount_id))

    @precondition(lambda self: self.model.pending)
    @rule(which=st.integers(0, 99))
    def start(self, which: int) -> None:
        """The container starts: what is mounted is in its mount namespace from now on."""
        name, mount_id = self.model.pending.pop(which % len(self.model.pending))
        if mount_id not in self.model.held(name) or name in self.model.disturbed:
            return  # the engine finds nothing there, and the start fails
        shown = self.machine.parts.mounter.shown(self.machine.driver.get(name).mountpoint)[-1]
        self.model.containers[mount_id] = Container(name, mount_id, shown)
        self.machine.containers.running[mount_id] = shown

    @precondition(lambda self: self.model.pending or self.model.containers)
    @rule(which=st.integers(0, 99), is_lost=st.booleans())
    def unmount(self, which: int, is_lost: bool) -> None:
        """A container ends, or is not started after all. The Unmount may get lost."""
        if self.model.pending:
            name, mount_id = self.model.pending.pop(which % len(self.model.pending))
        else:
            container = self._end_container(which)
            name, mount_id = container.volume, container.mount_id
        if not is_lost:
            self._unmount(name, mount_id)
        self.machine.driver.unmount(name, "unknown")

    @precondition(lambda self: self.model.ended)
    @rule()
    def start_again(self) -> None:
        """A container of an engine that was killed, which still has its Mount ID."""
        name, mount_id = self.model.ended.pop()
        if name in self.model.kinds:
            self._mount(name, mount_id)
            self.model.pending.append((name, mount_id))

    @precondition(lambda self: self.model.containers)
    @rule(which=st.integers(0, 99), is_cut=st.booleans())
    def copy(self, which: int, is_cut: bool) -> None:
        """`docker cp` mounts with the container's own ID. It may never come to its end."""
        container = self._container(which)
        if container.volume not in self.model.kinds:
            return
        self._mount(container.volume, container.mount_id)
        if not is_cut:
            self._unmount(container.volume, container.mount_id)

    @rule(name=NAMES, kind=st.sampled_from([*KINDS]))
    def run(self, name: str, kind: str) -> None:
        """`docker run`: create, mount, start."""
        self.create(name, self.model.kinds.get(name, kind))
        self.mount(name, fails=False)
        self.start(-1)

    # What goes wrong: one rule, or nothing would ever last

    @rule(what=st.sampled_from(DISASTERS), choice=st.integers(0, 3))
    def disaster(self, what: str, choice: int) -> None:
        getattr(self, f"_{what}")(choice)

    def _driver_is_killed(self, _: int) -> None:
        self._restart()

    def _engine_is_killed(self, choice: int) -> None:
        """It sends no Unmount, and comes back. It has detached all, and ends containers, sooner or later."""
        self._engine_comes_back()
        self.model.ended = [(each.volume, each.mount_id) for each in self.model.containers.values()]
        ends_first = choice > 1
        if ends_first:
            self._end_containers(len(self.model.containers))
        self.behind.detach_all()
        self._restart()
        self._end_containers(len(self.model.containers))

    def _engine_with_live_restore_is_killed(self, choice: int) -> None:
        """Nothing happens to the plugin or to containers, but some may end meanwhile."""
        self._engine_comes_back()
        self._end_containers(choice)

    def _plugin_is_disabled_by_force_and_enabled(self, _: int) -> None:
        self.behind.detach_all()
        self._restart()

    def _machine_reboots(self, _: int) -> None:
        self._end_containers(len(self.model.containers))
        self._engine_comes_back()
        self.machine.boot_id += "."
        self.behind.detach_all()
        self.machine.start()
        self.model.references.clear()
        self.model.disturbed.clear()

    def _definitions_are_lost(self, choice: int) -> None:
        self._lose("definitions.sqlite", LOSSES[choice])
        self._restart()

    def _references_are_lost(self, choice: int) -> None:
        """What containers hold is kept, under one ID in the place of all that there were."""
        self._lose("mounts.sqlite", LOSSES[choice])
        mounter, model = self.machine.parts.mounter, self.model
        kept = {}
        for name in model.kinds:
            layers = mounter.shown(self.machine.driver.get(name).mountpoint)
            if layers and self._is_in_container(layers[-1]):
                kept[name] = {LOST_ID: Reference(1, NOBODY, self.machine.now + GRACE_S)}
        for container in model.containers.values():
            container.is_unknown |= model.kinds.get(container.volume) == "bucket" and container.volume not in kept
        self.machine.start()
        model.references = kept
        model.disturbed &= kept.keys()

    def _nfs_server_comes_back_with_other_files(self, _: int) -> None:
        """A Mount gives the new ones; who has the old ones is told."""
        self.behind.forget_exports()

    @rule(name=NAMES, covers=st.booleans())
    def somebody_meddles(self, name: str, covers: bool) -> None:
        """Unmounts what we have mounted, or mounts something on top."""
        if not self.model.held(name) or name in self.model.disturbed:
            return
        (self.behind.cover if covers else self.behind.vanish)(self.machine.driver.get(name).mountpoint)
        self.model.disturbed.add(name)

    # Time

    @rule(seconds=st.sampled_from([0.0, 1.0, GRACE_S - 1, GRACE_S, LIVING_ENGINE_GRACE_S]))
    def time_passes(self, seconds: float) -> None:
        """The timer looks: everything is in order then, and nothing was dropped too early."""
        self.machine.reconciler.step()
        self.machine.now += seconds
        self.machine.reconciler.step()
        for name, counts in list(self.model.references.items()):
            left = self.machine.driver.get(name).references
            for mount_id, reference in list(counts.items()):
                if mount_id not in left:
                    assert not self._is_held(name), "dropped what a container holds"
                    assert self.machine.now >= reference.safe_until, "dropped too early"
                    del counts[mount_id]
        self.model.references = {name: counts for name, counts in self.model.references.items() if counts}
        self.model.disturbed.clear()
        for container in self.model.containers.values():
            self._is_published(container)
        for name in self.model.kinds:
            assert bool(self.machine.driver.get(name).stale) == self._is_held_stale(name)
        for name in self.model.references:
            assert seconds < LIVING_ENGINE_GRACE_S or self._is_held(name), "kept for nobody"

    # What holds at any time

    @invariant()
    def no_volume_is_forgotten(self) -> None:
        type(self).steps += 1
        kinds = self.model.kinds
        volumes = {volume.name: volume.options for volume in self.machine.driver.list()}
        assert volumes.keys() == kinds.keys()
        for name, options in volumes.items():
            assert KINDS[kinds[name]].items() <= options.effective.items()
        definitions = self.machine.definitions.load()
        assert {definition.name for definition in definitions} == kinds.keys()
        if definitions:
            backup = Path(backup_path(definitions_path(str(self.machine.root)))).read_text()
            assert from_json(backup) == definitions

    @invariant()
    def references_are_those_of_the_model(self) -> None:
        expected = {
            name: {mount_id: reference.count for mount_id, reference in counts.items()}
            for name, counts in self.model.references.items()
        }
        driver = self.machine.driver
        assert {volume.name: volume.references for volume in driver.list() if volume.references} == expected
        assert self.machine.references.load() == expected
        assert self.machine.references.intents() == []

    @invariant()
    def mounted_if_and_only_if_referenced(self) -> None:
        driver, directory = self.machine.driver, self.machine.root / "volumes"
        wrong = {driver.get(name).mountpoint for name in self.model.disturbed}
        expected = {volume.mountpoint: [volume.shown] for volume in driver.list() if volume.references}
        mounted = self.machine.parts.mounter.mountpoints(str(directory))
        assert {path: shown for path, shown in mounted.items() if path not in wrong} == {
            path: shown for path, shown in expected.items() if path not in wrong
        }
        assert {str(path) for path in directory.iterdir()} - wrong == expected.keys() - wrong

    # How the model follows

    def _fails(self, fails: bool, kind: type[DriverError], act: Callable[[], object]) -> None:
        try:
            act()
        except kind:
            assert fails
        else:
            assert not fails, f"{kind.__name__} was expected"

    def _is_held(self, name: str) -> bool:
        shown = self.machine.driver.get(name).shown
        return shown is not None and self._is_in_container(shown)

    def _is_in_container(self, shown: Shown) -> bool:
        return any(is_same_volume(found, shown) for found in self.machine.containers.running.values())

    def _is_stale(self, shown: Shown) -> bool:
        return bool(self.machine.mounter.stale([Hold(0, "", 0, shown.device)]))

    def _is_held_stale(self, name: str) -> bool:
        """Whether the driver can know that somebody has what an NFS server does not know any more."""
        shown = self.machine.driver.get(name).shown
        if shown is None or not self.model.held(name):
            return False
        running = self.machine.containers.running.values()
        return any(is_same_volume(found, shown) and self._is_stale(found) for found in running)

    def _needs_mount(self, name: str) -> bool:
        return not self.model.held(name) or name in self.model.disturbed

    def _mount(self, name: str, mount_id: str) -> None:
        machine = self.machine
        machine.driver.mount(name, mount_id, machine.engine)
        shown = machine.driver.get(name).shown
        assert shown is not None
        assert not self._is_stale(shown)
        counts = self.model.references.setdefault(name, {})
        if mount_id in counts and counts[mount_id].engine not in machine.living_engines:
            former = counts.pop(mount_id)
            former.count += counts[f"former {mount_id}"].count if f"former {mount_id}" in counts else 0
            counts[f"former {mount_id}"] = former
        before = counts[mount_id].count if mount_id in counts else 0
        counts[mount_id] = Reference(before + 1, machine.engine, machine.now + LIVING_ENGINE_GRACE_S)
        self.model.disturbed.discard(name)

    def _unmount(self, name: str, mount_id: str) -> None:
        self.machine.driver.unmount(name, mount_id)
        counts = self.model.held(name)
        if mount_id not in counts:
            mount_id = f"former {mount_id}"
        if mount_id in counts:
            counts[mount_id].count -= 1
            if not counts[mount_id].count:
                del counts[mount_id]
            if not counts:
                del self.model.references[name]
                self.model.disturbed.discard(name)

    def _container(self, which: int) -> Container:
        return [*self.model.containers.values()][which % len(self.model.containers)]

    def _end_container(self, which: int) -> Container:
        container = self._container(which)
        del self.model.containers[container.mount_id]
        del self.machine.containers.running[container.mount_id]
        return container

    def _end_containers(self, count: int) -> None:
        for _ in range(min(count, len(self.model.containers))):
            self._end_container(0)

    def _engine_comes_back(self) -> None:
        self.model.pending.clear()
        self.machine.engine = Engine(self.machine.engine.pid + 1, 1)
        self.machine.living_engines = {self.machine.engine}
        for counts in self.model.references.values():
            for reference in counts.values():
                reference.safe_until = min(reference.safe_until, self.machine.now + GRACE_S)

    def _restart(self) -> None:
        """What is mounted, or in a container, keeps its references."""
        driver, model = self.machine.driver, self.model
        for name in list(model.references):
            is_mounted = self.machine.parts.mounter.is_mounted(driver.get(name).mountpoint)
            if not is_mounted and not self._is_held(name):
                del model.references[name]
                model.disturbed.discard(name)
            elif not is_mounted:
                model.disturbed.add(name)
        self.machine.start()

    def _lose(self, file: str, content: bytes | None) -> None:
        self.machine.stop()
        path = self.machine.root / ".state" / file
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    def _is_published(self, container: Container) -> None:
        """The sidecar knows a container by it: it sees what we have mounted. A token is had from its holder then.

        Not so if that is stale; and a token that was made anew, since nobody had it just then, is another.
        """
        if container.is_unknown:
            return
        name = container.volume
        is_other = type(self.behind) is InKernel and self.model.kinds[name] == "bucket"
        if container.mount_id in self.model.held(name) and not is_other and not self._is_stale(container.shown):
            mountpoint = self.machine.driver.get(name).mountpoint
            assert self.machine.parts.mounter.shown(mountpoint) == [container.shown]


def _no_mount(mountpoint: str) -> None:
    raise MountFailed(f"cannot mount at {mountpoint}: so the test wants it")
