"""A machine of the tests' own, with a kernel of its own: user-mode Linux, a process like any other.

It sees this machine's files, with those of the packages in `prerequisites.MACHINE` added, and whatever it writes
goes to its memory: only the directory OUT is ours as well. It boots in two seconds, has one processor, a loopback,
and kernel modules for NFS, overlays and network namespaces, and needs nothing of the kernel below.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from lab import prerequisites
from lab.directories import temporary_directory

OUT = "/out"  # as the machine sees it
MEMORY = "2048M"

_HERE = Path(__file__).parent
# Where the newer registers were hidden from this kernel (uml_start.py) it does not keep them for each thread, so
# nobody may use them.
_WITHOUT_VECTORS = "export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX_Fast_Unaligned_Load"
_INIT = f"""#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
{_WITHOUT_VECTORS}
end() {{ echo "the machine: $1"; /bin/busybox halt -f; }}
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/modules/lib /mnt/packages /mnt/upper /mnt/work /mnt/root
ln -s @MACHINE@/usr/lib/uml/modules /mnt/modules/lib/modules
ln -s @MACHINE@/usr/bin/kmod /mnt/modprobe
export LD_LIBRARY_PATH=@MACHINE@/usr/lib/x86_64-linux-gnu
/mnt/modprobe -d /mnt/modules overlay || end "no overlays"
unset LD_LIBRARY_PATH
mount -t hostfs none /mnt/packages -o @MACHINE@ || end "no packages"
layers=lowerdir=/mnt/packages:/,upperdir=/mnt/upper,workdir=/mnt/work
mount -t overlay overlay -o $layers /mnt/root || end "no root"
cd /mnt/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t devtmpfs dev dev
mount -t tmpfs tmpfs run
mkdir -p .{OUT} run/modules/lib
ln -s /usr/lib/uml/modules run/modules/lib/modules
mount -t hostfs none .{OUT} -o @OUT@ || end "nowhere to write to"
ln -s /usr/bin/kmod run/modprobe
pivot_root . mnt || end "no new root"  # chroot would not do: who enters a namespace is at the root of its mounts
cd /
umount -l mnt
/bin/sh -e {OUT}/main
end "exit $?"
"""


class Machine:
    """One boot, which runs the shell script `script` and ends. What it printed is in `console` afterwards."""

    def __init__(self, script: str) -> None:
        self._script = script
        self.console = ""

    @contextlib.contextmanager
    def ran(self, timeout_s: float) -> Iterator[Path]:
        """Run it; yields OUT as it is on this side. A machine that does not end in time is ended."""
        with temporary_directory() as out:
            (out / "main").write_text(self._script)
            init = out / "init"
            packages = os.path.realpath(prerequisites.MACHINE)
            init.write_text(_INIT.replace("@MACHINE@", packages).replace("@OUT@", str(out)))
            init.chmod(0o755)
            try:
                done = subprocess.run(
                    _command(packages, init),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=timeout_s,
                    check=False,  # it says by what it wrote how it went
                    env={**os.environ, "TMPDIR": "/dev/shm"},
                )
                self.console = done.stdout.decode(errors="replace")
            except subprocess.TimeoutExpired as late:
                self.console = f"{(late.stdout or b'').decode(errors='replace')}\nnot ended within {timeout_s} s"
            yield out


def _command(packages: str, init: Path) -> list[str]:
    kernel = [f"{packages}/usr/bin/linux.uml", f"mem={MEMORY}", "con=null", "con0=null,fd:1", "quiet"]
    files = ["root=/dev/root", "rootfstype=hostfs", "ro", f"init={init}"]
    return [sys.executable, str(_HERE / "uml_start.py"), *kernel, *files]
