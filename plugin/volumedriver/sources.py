"""What a volume shows: a directory, checked anew each time it is asked for; an export; or a token."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from volumedriver.errors import InvalidVolume, MountFailed, reason
from volumedriver.hostpaths import HostDirectories
from volumedriver.mounter import Source
from volumedriver.nfs import NfsSource
from volumedriver.nfs_policy import NfsServerPolicy
from volumedriver.options import NfsOptions, SidecarOptions, UnusableOptions, VolumeOptions
from volumedriver.policy import HostPathPolicy


class Sources:
    """Opens sources. `root` is the driver's own directory; the sidecar has its place in it."""

    def __init__(
        self, hosts: HostDirectories, policy: HostPathPolicy, root: str, nfs: NfsServerPolicy | None = None
    ) -> None:
        self._hosts = hosts
        self._policy = policy
        self._nfs = nfs or NfsServerPolicy()
        self._sidecar_directory = os.path.join(root, "sidecar")

    @contextlib.contextmanager
    def opened(self, options: VolumeOptions, deadline: float | None = None) -> Iterator[Source]:
        """An O_PATH descriptor of the directory to mount; None for a workspace that is in no directory.

        What was made for it goes if the body fails. Of an NFS export only the policy is asked here; who mounts it
        asks the server, before `deadline` (of time.monotonic()).

        Raises:
            InvalidVolume, HostPathRefused, NfsServerRefused, MountFailed: there is none, or it is not given out.
        """
        if isinstance(options, UnusableOptions):
            raise InvalidVolume(f"the volume's stored options are not usable: {options.problem}")
        if isinstance(options, SidecarOptions):
            fd = self._sidecar()
            try:
                yield fd
            finally:
                os.close(fd)
        elif isinstance(options, NfsOptions):
            place = options.place
            yield NfsSource(options, self._nfs.networks(place), deadline, self._nfs.prefix(place))
        elif options.host_path is None:
            yield None
        else:
            self._policy.check(options.host_path)
            with self._hosts.opened(options.host_path, options.creation) as fd:
                yield fd

    def _sidecar(self) -> int:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._sidecar_directory, 0o755)
            return os.open(self._sidecar_directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise MountFailed(
                f"the sidecar's directory {self._sidecar_directory} cannot be opened: {reason(error)}"
            ) from error
