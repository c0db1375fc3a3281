"""The system calls that confinement and identity need and Python's `os` lacks.

Thin and stateless: numbers and structures follow the kernel's UAPI headers (`linux/openat2.h`,
`linux/capability.h`); every failure is an `OSError` with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import signal
import socket
import struct
from collections.abc import Sequence

AT_EMPTY_PATH = 0x1000

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# Generic numbers, shared by x86-64 and arm64 for every call added since Linux 5.0.
_SYS_OPENAT2 = 437

# openat2 answers EAGAIN when a rename raced with the resolution of `..`: the manual asks for a retry.
_OPENAT2_ATTEMPTS = 64

# How engines name a container's control group, whichever the driver: `/docker/ID`, `docker-ID.scope`.
_CONTAINER_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def syscall(number: int, *arguments: object, path: str | bytes | None = None) -> int:
    """Make a raw system call on this thread; `path` only names the object in an error.

    Raises:
        OSError: with the kernel's errno.
    """
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


def openat2(dir_fd: int, path: str, flags: int, resolve: int, mode: int = 0) -> int:
    """Open `path` below `dir_fd` under the kernel's resolution limits (`RESOLVE_*`); see openat2(2).

    Returns:
        A new descriptor, close-on-exec.

    Raises:
        OSError: EXDEV where the path would leave the limits, ELOOP where a link is not allowed.
    """
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise OSError(errno.EINVAL, "a path cannot hold a NUL byte", path)
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_OPENAT2_ATTEMPTS):
        try:
            return syscall(
                _SYS_OPENAT2,
                ctypes.c_int(dir_fd),
                ctypes.c_char_p(encoded),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
                path=path,
            )
        except BlockingIOError:
            continue
    raise OSError(errno.EXDEV, "the path kept changing while it was resolved", path)


_SYS_STATX = {"x86_64": 332, "aarch64": 291}.get(os.uname().machine, -1)
_STATX_MNT_ID = 0x1000
_OFFSET_OF_MNT_ID = 144  # struct statx of linux/stat.h


def mount_id(fd: int) -> int:
    """The id of the mount that `fd` was opened through, as mountinfo's first field shows it."""
    buffer = ctypes.create_string_buffer(256)
    syscall(
        _SYS_STATX,
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(AT_EMPTY_PATH),
        ctypes.c_uint(_STATX_MNT_ID),
        buffer,
    )
    mask = ctypes.c_uint32.from_buffer(buffer).value
    if not mask & _STATX_MNT_ID:
        raise OSError(errno.ENOTSUP, "the kernel does not tell mount ids (Linux 5.8 does)")
    return int(ctypes.c_uint64.from_buffer(buffer, _OFFSET_OF_MNT_ID).value)


_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC_STATS = 0x7FF


def check_known(fd: int) -> None:
    """See to it that the server of a network file system knows the file of `fd`, which may be O_PATH; no cache.

    Raises:
        OSError: ESTALE where it does not any more.
    """
    flags, mask = ctypes.c_int(AT_EMPTY_PATH | _AT_STATX_FORCE_SYNC), ctypes.c_uint(_STATX_BASIC_STATS)
    here, buffer = ctypes.c_char_p(b""), ctypes.create_string_buffer(256)
    syscall(_SYS_STATX, ctypes.c_int(fd), here, flags, mask, buffer)


class _OwnProcess:
    """/proc/self, held open: a thread with a caller's identity may not be able to walk there from `/`.

    (In a managed plugin it cannot: the engine makes the root directory of plugins with mode 0700.)
    """

    def __init__(self) -> None:
        self.fd = -1
        self.open()
        os.register_at_fork(after_in_child=self.open)  # it is the process that opened it

    def open(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)


_own_process = _OwnProcess()


def umask() -> int:
    """The process's umask; os.umask() could only tell it by changing it for a moment."""
    with open(os.open("status", os.O_RDONLY, dir_fd=_own_process.fd), encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    raise OSError(errno.ENOTSUP, "the kernel does not tell the umask (Linux 4.7 does)")


def reopen(fd: int, flags: int) -> int:
    """A new descriptor, with `flags`, of the very file that `fd` (which may be O_PATH) is of.

    Raises:
        OSError: EACCES where this thread's identity may not open the file so.
    """
    return os.open(f"fd/{fd}", flags, dir_fd=_own_process.fd)


def path_of(fd: int) -> str:
    """Where the file of `fd` is in the mount namespace that it was opened in."""
    return os.readlink(f"fd/{fd}", dir_fd=_own_process.fd)


def link(fd: int, name: str, *, dir_fd: int) -> None:
    """Give the file of `fd`, which may have none, the new name `name` in `dir_fd`."""
    os.link(f"fd/{fd}", name, src_dir_fd=_own_process.fd, dst_dir_fd=dir_fd, follow_symlinks=True)


def change_mode(fd: int, mode: int) -> None:
    """fchmod(2) that also takes an O_PATH descriptor."""
    os.chmod(f"fd/{fd}", mode, dir_fd=_own_process.fd)


def file_system_type(fd: int) -> int:
    """The magic number (linux/magic.h) of the file system that `fd` is on."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs begins with f_type, a long
    if _libc.fstatfs(ctypes.c_int(fd), buffer) != 0:
        _raise_errno("fstatfs")
    return int(ctypes.c_long.from_buffer(buffer).value)


def rename_no_replace(old: str, new: str, *, old_dir_fd: int, new_dir_fd: int) -> None:
    """Rename, failing with EEXIST instead of replacing what is at the destination; see renameat2(2).

    Where the file system lacks this (NFS), a hard link and an unlink do the same for files. If the server answers
    the unlink with an error that leaves open what it did, both names stay: the new one may be the only one.
    """
    result = _libc.renameat2(
        ctypes.c_int(old_dir_fd),
        ctypes.c_char_p(os.fsencode(old)),
        ctypes.c_int(new_dir_fd),
        ctypes.c_char_p(os.fsencode(new)),
        ctypes.c_uint(1),
    )
    if result == 0:
        return
    code = ctypes.get_errno()
    if code != errno.EINVAL:
        raise OSError(code, os.strerror(code), new)
    os.link(old, new, src_dir_fd=old_dir_fd, dst_dir_fd=new_dir_fd, follow_symlinks=False)
    try:
        os.unlink(old, dir_fd=old_dir_fd)
    except FileNotFoundError:
        pass  # a repeated request, whose first answer was lost
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            os.unlink(new, dir_fd=new_dir_fd)
        raise


_SYNC_FILE_RANGE_WRITE = 2


def start_write_back(fd: int) -> None:
    """Have the kernel begin to write the file to the disk, without waiting: a later fsync finds less to do.

    Only advice: what goes wrong, fsync will tell.
    """
    whole = ctypes.c_int64(0)
    _libc.sync_file_range(ctypes.c_int(fd), whole, whole, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_LINUX_CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 1, 2, 3
CAP_SETGID, CAP_SETUID, CAP_SETPCAP, CAP_SYS_PTRACE = 6, 7, 8, 19

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38


def capabilities() -> tuple[int, int, int]:
    """This thread's (effective, permitted, inheritable) capabilities as bit masks."""
    data = (_CapData * 2)()
    header = _CapHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    if _libc.capget(ctypes.byref(header), data) != 0:
        _raise_errno("capget")
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """Set this thread's capabilities, and only this thread's."""
    data = (_CapData * 2)()
    for index, shift in enumerate((0, 32)):
        data[index].effective = effective >> shift & 0xFFFFFFFF
        data[index].permitted = permitted >> shift & 0xFFFFFFFF
        data[index].inheritable = inheritable >> shift & 0xFFFFFFFF
    header = _CapHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    if _libc.capset(ctypes.byref(header), data) != 0:
        _raise_errno("capset")


def mask(*capabilities: int) -> int:
    """The bit mask of capabilities."""
    return sum(1 << capability for capability in capabilities)


def keep_capabilities(kept: int) -> None:
    """Give up for good every capability that is not in the mask `kept`: from every set of this thread.

    From the bounding set only if it may be changed (CAP_SETPCAP); with no new privileges, what is in that set
    alone cannot be had again.
    """
    _, permitted, _ = capabilities()
    if permitted >> CAP_SETPCAP & 1:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as last:
            every = range(int(last.read()) + 1)
        for capability in every:
            if not kept >> capability & 1:
                _prctl(_PR_CAPBSET_DROP, capability)
    set_capabilities(permitted & kept, permitted & kept, 0)  # with the inheritable ones go the ambient ones


def forbid_dumps() -> None:
    """Have no core of this process written, and let none trace it or read its memory but CAP_SYS_PTRACE.

    A limit of one byte, since programs that take cores by a pipe are given them with a limit of none too. Both are
    needed: the kernel sets the second anew, to fs.suid_dumpable, when a thread takes another file-system user.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    _prctl(_PR_SET_DUMPABLE, 0)


def set_no_new_privileges() -> None:
    """No exec of this process or its children can ever gain a privilege (set-user-id, file capabilities)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_supervisor(supervisor: str | None) -> None:
    """Have the kernel send SIGTERM to this process when the thread that started it ends.

    Args:
        supervisor: the pid that started this process and that it belongs to; None or empty for none.
    """
    if supervisor:
        die_with_parent(int(supervisor), signal.SIGTERM)


def die_with_parent(parent: int, signal_number: int) -> None:
    """Have the kernel send a signal to this process when the thread of `parent` that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), signal_number)


def set_fs_ids(uid: int, gid: int) -> None:
    """Set this thread's file-system user and group.

    The calls report no error, so the result is read back.

    Raises:
        OSError: EPERM where the ids did not take effect.
    """
    no_change = ctypes.c_uint32(0xFFFFFFFF)
    _libc.setfsgid(ctypes.c_uint32(gid))
    _libc.setfsuid(ctypes.c_uint32(uid))
    seen = (_libc.setfsuid(no_change) & 0xFFFFFFFF, _libc.setfsgid(no_change) & 0xFFFFFFFF)
    if seen != (uid, gid):
        raise OSError(errno.EPERM, f"the thread's file-system ids are {seen}, not {(uid, gid)}")


# glibc's setgroups() changes every thread of the process; the bare call changes only this one.
_SYS_SETGROUPS = {"x86_64": 116, "aarch64": 159}.get(os.uname().machine)


def set_thread_groups(groups: Sequence[int]) -> None:
    """Set this thread's supplementary groups, and only this thread's."""
    if _SYS_SETGROUPS is None:
        raise OSError(errno.ENOSYS, f"setgroups has no known number on {os.uname().machine}")
    array = (ctypes.c_uint32 * len(groups))(*groups)
    syscall(_SYS_SETGROUPS, ctypes.c_size_t(len(groups)), array)


_SO_PEERGROUPS = 59  # asm-generic/socket.h
_MOST_GROUPS = 65536  # NGROUPS_MAX
_MANY_GROUPS = 256


def containers_of(process: str) -> list[str]:
    """The ids of the containers that a process is in, by its control groups, the outermost first.

    Only the outermost is the engine's word: what is below a container's own group is for it to name.

    Args:
        process: `/proc/<pid>`, or a path of a descriptor of that.

    Raises:
        OSError: the process is gone.
    """
    with open(f"{process}/cgroup", encoding="utf-8", errors="replace") as groups:
        return _CONTAINER_ID.findall(groups.read())


def peer_credentials(connected: socket.socket) -> tuple[int, int, int]:
    """The process, user and group at the other end of a Unix socket, as they were when it connected."""
    pid, uid, gid = struct.unpack("iII", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid


def peer_groups(socket_fd: int) -> tuple[int, ...]:
    """The supplementary groups of the process at the other end of a connected Unix socket.

    `socket.getsockopt` would do, but takes no answer above 1024 bytes: 256 groups.
    """
    level, option = ctypes.c_int(socket.SOL_SOCKET), ctypes.c_int(_SO_PEERGROUPS)
    most = _MANY_GROUPS
    while True:
        buffer = (ctypes.c_uint32 * most)()
        length = ctypes.c_uint32(ctypes.sizeof(buffer))
        if _libc.getsockopt(ctypes.c_int(socket_fd), level, option, buffer, ctypes.byref(length)) == 0:
            return tuple(buffer[: length.value // ctypes.sizeof(ctypes.c_uint32)])
        if ctypes.get_errno() != errno.ERANGE or most == _MOST_GROUPS:
            _raise_errno("getsockopt SO_PEERGROUPS")
        most = _MOST_GROUPS


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero) != 0:
        _raise_errno("prctl")


def _raise_errno(call: str) -> None:
    code = ctypes.get_errno()
    raise OSError(code, f"{call}: {os.strerror(code)}")
