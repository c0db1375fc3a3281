"""A real NFS server: the kernel's, in a machine of the tests' own. Only ever in there."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# What a machine needs to serve and to mount, as root of its file systems.
PREPARE = """
ip link set lo up
for module in ipv6 nfsd nfsv3 nfsv4 veth; do /run/modprobe -d /run/modules $module; done
mount -t tmpfs tmpfs /var/lib/nfs
mkdir -p /var/lib/nfs/v4recovery /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/nfsdcltrack /run/rpcbind /exports
chmod 777 /var/lib/nfs/sm /var/lib/nfs/sm.bak
mount -t tmpfs tmpfs /exports
mount -t nfsd nfsd /proc/fs/nfsd
echo nameserver 127.0.0.1 > /etc/resolv.conf
printf '127.0.0.1 localhost nas\\n::1 nas6\\n' > /etc/hosts
grep -q ^_rpc: /etc/passwd || echo '_rpc:x:993:65534::/run/rpcbind:/usr/sbin/nologin' >> /etc/passwd
grep -q ^statd: /etc/passwd || echo 'statd:x:992:65534::/var/lib/nfs:/usr/sbin/nologin' >> /etc/passwd
: > /etc/exports
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
printf '[exports]\nrootdir=/exports\n' > /etc/nfs.conf  # the machine's own root cannot be exported
rpcbind -w
rpc.statd --no-notify
rpc.mountd
"""


class Nas:
    """The server of this machine; `nas` is its name, `nas6` with IPv6. What it exports as `/x` is `/exports/x`."""

    directory = Path("/exports")

    def __init__(self) -> None:
        assert "User Mode Linux" in Path("/proc/cpuinfo").read_text(), "only in a machine of the tests' own"

    def start(self, *options: str) -> None:
        subprocess.run(["rpc.nfsd", "-G", "10", "-L", "10", *options, "8"], check=True)
        Path("/proc/fs/nfsd/v4_end_grace").write_text("Y")

    def stop(self) -> None:
        subprocess.run(["rpc.nfsd", "0"], check=True)

    def export(self, name: str, clients: str = "*", options: str = "rw,no_root_squash") -> Path:
        """Export a new directory as `/name`; returns where it is."""
        path = self.directory / name
        path.mkdir()
        fsid = 100 + len(list(self.directory.iterdir()))  # a tmpfs has none of its own
        command = ["exportfs", "-o", f"insecure,no_subtree_check,fsid={fsid},{options}", f"{clients}:/{name}"]
        subprocess.run(command, check=True)
        return path


@contextlib.contextmanager
def started_nas() -> Iterator[Nas]:
    server = Nas()
    server.start()
    yield server
    server.stop()


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


class Relay:
    """A port that leads to the server, until it falls silent: then nothing passes, and nothing is closed."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.port = port

    def fall_silent(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def speak_again(self) -> None:
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def relay() -> Iterator[Relay]:
    """A relay to the NFS server of this machine."""
    with subprocess.Popen([sys.executable, "-m", "lab.nas"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield Relay(process, int(process.stdout.readline()))
        finally:
            process.kill()


def _relay() -> None:
    waiting = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", 0))
    waiting.register(listener, selectors.EVENT_READ)
    print(listener.getsockname()[1], flush=True)
    while True:
        for key, _ in waiting.select():
            source = key.fileobj
            assert isinstance(source, socket.socket)
            if source is listener:
                near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", 2049))
                waiting.register(near, selectors.EVENT_READ, far)
                waiting.register(far, selectors.EVENT_READ, near)
            else:
                _pass_on(waiting, source, key.data)


def _pass_on(waiting: selectors.DefaultSelector, source: socket.socket, target: socket.socket) -> None:
    data = b""
    with contextlib.suppress(OSError):
        data = source.recv(1 << 16)
        target.sendall(data)
    if not data:
        for end in (source, target):
            with contextlib.suppress(KeyError, ValueError):  # ended by the other end a moment ago
                waiting.unregister(end)
            end.close()


if __name__ == "__main__":
    _relay()
