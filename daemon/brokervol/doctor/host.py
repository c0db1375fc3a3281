"""Checks of this host: its kernel, what this process may do, the disk that the state is on."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from typing import NamedTuple

from brokervol.doctor.findings import AS_ROOT, Finding, fault, ok, skipped, unseen, warning
from brokervol.doctor.site import Site
from brokervol.status import Unreachable
from storage import linux
from volumedriver.options import NfsOptions, restore

_CAP_SYS_ADMIN = 21
_NEEDED = {
    "CAP_SYS_ADMIN": _CAP_SYS_ADMIN,
    "CAP_SYS_PTRACE": linux.CAP_SYS_PTRACE,
    "CAP_DAC_READ_SEARCH": linux.CAP_DAC_READ_SEARCH,
}
_FULL_BYTES, _LOW_BYTES = 1 << 20, 256 << 20
_LOW_FILES = 1000


class _Call(NamedTuple):
    """A system call, with a number that is the same on all machines of Linux, and the version that brought it."""

    name: str
    number: int
    since: str


# Each is made with arguments that it refuses whoever asks, so that nothing comes of it.
_CALLS = (
    _Call("openat2", 437, "5.6"),
    _Call("open_tree", 428, "5.2"),
    _Call("move_mount", 429, "5.2"),
    _Call("fsopen", 430, "5.2"),
    _Call("fsconfig", 431, "5.2"),
    _Call("fsmount", 432, "5.2"),
    _Call("mount_setattr", 442, "5.12"),
    _Call("pidfd_open", 434, "5.3"),
)


def check_calls(_: Site) -> Iterator[Finding]:
    """The system calls without which nothing is mounted."""
    kernel = f"this kernel ({os.uname().sysname} {os.uname().release})"
    if missing := [call for call in _CALLS if not _is_there(call)]:
        newest = max((call.since for call in missing), key=lambda since: int(since.split(".")[1]))
        named = ", ".join(call.name for call in missing)
        yield fault(
            f"{kernel} answers that it has no {named}: volumes cannot be mounted",
            f"run Linux 5.12 or newer (`uname -r`; {newest} has them); if it is that new, a seccomp filter hides"
            " them: do not run it in a container that has one (`--security-opt seccomp=unconfined`)",
        )
    else:
        yield ok(f"{kernel} has the system calls that mounting needs")


def _is_there(call: _Call) -> bool:
    nothing = ctypes.c_long(0)
    try:
        linux.syscall(call.number, ctypes.c_long(-1), *[nothing] * 5)
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def check_copying(_: Site) -> Iterator[Finding]:
    """copy_file_range(2), by which uploads are copied in the kernel, or by an NFS server."""
    try:
        os.copy_file_range(-1, -1, 0)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            yield warning(
                "this kernel has no copy_file_range: every upload is read and written",
                "run Linux 5.12 or newer, or allow the call in the seccomp filter",
            )
            return
    yield ok("copy_file_range is there: files are copied by the kernel, or by the NFS server that has both")


def check_file_systems(_: Site) -> Iterator[Finding]:
    """overlay, which the engine builds containers' roots of."""
    if _has_file_system("overlay", "overlay"):
        yield ok("the kernel has overlay, which the engine builds containers of", "overlay")
    else:
        yield warning(
            "the kernel has no overlay, which the engine builds containers of",
            "`modprobe overlay`, or install the kernel's modules",
            "overlay",
        )


def check_nfs_client(site: Site) -> Iterator[Finding]:
    """The kernel's NFS client, in the versions that volumes may ask for."""
    if isinstance(site.definitions, Exception):
        yield site.without_definitions()
    elif not any(isinstance(restore(definition.options), NfsOptions) for definition in site.definitions):
        yield skipped("no volume of type nfs is defined")
    elif _has_file_system("nfs4", "nfsv4") or _has_file_system("nfs", "nfs"):
        yield ok("the kernel has an NFS client")
    else:
        yield fault(
            "the kernel has no NFS client: no volume of type nfs can be mounted",
            "`modprobe nfs`; if there is no such module, install the kernel's modules (Debian: a"
            " linux-image without -cloud in its name)",
        )


def _has_file_system(name: str, module: str) -> bool:
    """Whether the kernel has it, or a module of it to load when it is asked for."""
    with open("/proc/filesystems", encoding="ascii") as file:
        if any(line.split()[-1] == name for line in file):
            return True
    directory = f"/lib/modules/{os.uname().release}"
    for listing in ("modules.builtin", "modules.dep"):
        with contextlib.suppress(OSError), open(f"{directory}/{listing}", encoding="utf-8") as file:
            if any(f"/{module}.ko" in line.partition(":")[0] for line in file):
                return True
    return False


def check_privileges(_: Site) -> Iterator[Finding]:
    """What doctor itself may look at."""
    effective = linux.capabilities()[0]
    if os.geteuid() != 0:
        yield unseen("this is not run as root: the driver, its state and its mounts are closed to it")
    elif not effective >> _CAP_SYS_ADMIN & 1:
        yield unseen(
            "this root has no CAP_SYS_ADMIN, as in a container: what it sees is not the host's",
            "run it on the host itself: `sudo brokervol doctor`",
        )
    else:
        yield ok("this is run as root, and sees all")


def check_driver_privileges(site: Site) -> Iterator[Finding]:
    """What the driver may do."""
    if isinstance(site.driver, Unreachable):
        yield skipped("no driver answers")
        return
    try:
        with open(f"/proc/{site.driver['pid']}/status", encoding="ascii", errors="replace") as file:
            effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        yield unseen("the driver's process is not to be seen from here", AS_ROOT if os.geteuid() else _ON_HOST)
        return
    if missing := [name for name, number in _NEEDED.items() if not effective >> number & 1]:
        yield fault(
            f"the driver lacks {', '.join(missing)}: it cannot mount what it is asked for",
            "install the plugin again with all that it asks for"
            " (`docker plugin install --grant-all-permissions`), or run `brokervol daemon` as root",
        )
    else:
        yield ok("the driver may mount, and look at who has what mounted")


_ON_HOST = "run it on the host itself, not in a container"


def check_disk(site: Site) -> Iterator[Finding]:
    """The file system that the state is on."""
    state = site.state
    if state is None:
        yield unseen("no state is to be seen", no_state_cure())
        return
    try:
        disk = os.statvfs(state)
    except PermissionError:
        yield unseen(f"{state} is closed to this user")
        return
    except OSError as error:
        yield fault(f"{state} cannot be looked at: {error.strerror}", f"`stat {state}`, and mount its disk", state)
        return
    room = disk.f_bavail * disk.f_frsize
    if disk.f_flag & os.ST_RDONLY:
        yield fault(
            f"the file system of {state} is read-only: nothing can be created or mounted",
            f"`dmesg | tail` tells why; then `mount -o remount,rw $(findmnt -nT {state} -o TARGET)`",
        )
    elif room < _FULL_BYTES or (disk.f_files and not disk.f_favail):
        what = f"{room >> 10} KiB are left" if room < _FULL_BYTES else "it can take no more files"
        yield fault(f"the disk of {state} is full ({what}): nothing can be created or mounted", _room_cure(state))
    elif room < _LOW_BYTES or (disk.f_files and disk.f_favail < _LOW_FILES):
        left = f"{room >> 20} MiB and {disk.f_favail} files" if disk.f_files else f"{room >> 20} MiB"
        yield warning(f"the disk of {state} is nearly full: {left} are left", _room_cure(state))
    else:
        yield ok(f"{room >> 20} MiB are left for the state in {state}")


def _room_cure(state: str) -> str:
    return f"make room: `df -h {state}` shows the disk, `docker system df` what the engine has of it"


def no_state_cure() -> str:
    """What to do where no state is found."""
    if os.geteuid():
        return AS_ROOT
    return "name the driver's directory: `brokervol doctor --root DIR`; a host without a driver has none"
