"""The nine mistakes of this library's ancestor, each a test.

Six of them any broker could make again: those are `storage.testing.Mistakes`, and run here over every type.

1. Retries that never raise: an upload "succeeds", a move deletes its source although every copy failed. (With a
   server that goes on failing: tests/faults/test_s3.py.)
2. A broker without `list_files`, which nothing noticed.
3. No containment: `../../etc/passwd` is joined and followed.
4. A mount looked up by a common beginning of its path: `/mnt/a` "contains" `/mnt/ab`.
5. Brokers that are copies of each other, and shell out.
6. A listing that outlives its client.
7. Tests that patch `os.path.exists` and assert a list of calls: they restate the code.
8. Writes in place: a crash leaves half a file under the final name. (Crashes themselves: tests/faults.)
9. Credentials in the database in clear text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.brokers.broker import Broker
from storage.brokers.host_broker import HostBroker
from storage.brokers.nfs_broker import NfsBroker
from storage.definitions import mountpoint
from storage.mountinfo import mount_at, parse_mounts
from storage.testing import Mistakes

ROOT = Path(__file__).parents[2]

MOUNTS = b"""22 1 254:1 / / rw - ext4 /dev/vda1 rw
40 22 254:1 /srv/ab /mnt/ab rw - ext4 /dev/vda1 rw
41 22 254:1 /srv/a /mnt/b rw - ext4 /dev/vda1 rw
"""

CALL_LISTS = {
    *("assert_called", "assert_called_once", "assert_called_with", "assert_called_once_with", "assert_any_call"),
    *("assert_has_calls", "assert_not_called", "call_args", "call_args_list", "mock_calls"),
}


@pytest.mark.parametrize("backend", ["host", "nfs", "s3-seaweedfs-obstore"], indirect=True)
class TestMistakes(Mistakes):
    """1, 2, 3, 6, 8 and 9, of every type; test_broker.py has them for each S3 server and SDK."""


def test_mistake_4_mounts_are_found_by_their_exact_path_and_compared_by_identity() -> None:
    root, ab, a = parse_mounts(MOUNTS.splitlines())
    assert mount_at([root, ab, a], "/mnt/a") is None
    assert mount_at([root, ab, a], "/mnt/ab") is ab
    assert not ab.shows_same_as(a)
    # Nor is the place of one volume the beginning of another's, whatever their names.
    assert not mountpoint("/root", "data2").startswith(mountpoint("/root", "data"))


def test_mistake_5_brokers_share_their_code_and_run_no_programs() -> None:
    for operation in Broker.__abstractmethods__ - {"load_configuration", "validate_configuration"}:
        assert getattr(HostBroker, operation) is getattr(NfsBroker, operation), operation
    for path in sorted(ROOT.glob("daemon/storage/**/*.py")):
        for node in nodes(path):
            imported = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            assert "subprocess" not in imported, path
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("system", "popen", "execv", "execvp", "posix_spawn", "fork"), path


def test_mistake_7_no_test_restates_the_code() -> None:
    for path in sorted([*ROOT.glob("tests/**/*.py"), *ROOT.glob("daemon/storage/testing/*.py")]):
        for node in nodes(path):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [name.name for name in node.names] + [getattr(node, "module", None) or ""]
                assert not [name for name in names if "mock" in name.split(".")], path
            elif isinstance(node, ast.Attribute):
                assert node.attr not in CALL_LISTS, path
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("setattr", "patch"):
                assert "exists" not in [text.rpartition(".")[2] for text in _texts(node)], path


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def _texts(call: ast.Call) -> list[str]:
    return [value.value for value in call.args if isinstance(value, ast.Constant) and isinstance(value.value, str)]
