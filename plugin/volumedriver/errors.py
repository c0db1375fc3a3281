"""What can go wrong, one exception a kind, and the HTTP status each kind has on the wire.

An exception's text is the sentence that a user of `docker` reads: it says the object, the fact and what to do.
"""

from __future__ import annotations

_LONGEST_QUOTE = 40


class DriverError(Exception):
    """A refusal or failure that the caller is told of, as it stands."""


class InvalidRequest(DriverError):
    """The body of a call is missing or not what the protocol says."""


class InvalidVolume(DriverError):
    """A name or an option is not accepted, or names a directory that cannot be a volume."""


class HostPathRefused(DriverError):
    """The host path exists or could, but this host does not give it out."""


class NfsServerRefused(DriverError):
    """This host does not mount from the server, or not this export of it."""


class NfsUnavailable(DriverError):
    """The NFS server could not be reached, or did not answer in time."""


class VolumeNotFound(DriverError):
    """No volume of this name is defined."""


class VolumeConflict(DriverError):
    """The volume is defined already, with other options."""


class VolumeInUse(DriverError):
    """A running container still holds the volume."""


class VolumeBusy(DriverError):
    """An earlier call for the same volume has not ended."""


class MountFailed(DriverError):
    """The kernel did not mount or unmount."""


class StateUnavailable(DriverError):
    """The driver's own state cannot be read or written."""


class StateDamaged(StateUnavailable):
    """A file of the state does not hold what was written to it."""


STATUS: dict[type[DriverError], int] = {
    InvalidRequest: 400,
    InvalidVolume: 400,
    HostPathRefused: 403,
    NfsServerRefused: 403,
    VolumeNotFound: 404,
    VolumeConflict: 409,
    VolumeInUse: 409,
    MountFailed: 500,
    StateUnavailable: 500,
    StateDamaged: 500,
    NfsUnavailable: 503,
    VolumeBusy: 503,
}


def quoted(text: str) -> str:
    """`text` in quotes for a message: at most 40 of its characters, control characters escaped."""
    if len(text) <= _LONGEST_QUOTE:
        return repr(text)
    return f"{text[:_LONGEST_QUOTE]!r}... ({len(text)} characters)"


def shown(path: str) -> str:
    """`path` for a message: as it is, unless something in it would not print."""
    return path if path.isprintable() else repr(path)


def reason(error: OSError) -> str:
    """What the kernel said, without Python's brackets."""
    return error.strerror or str(error)
