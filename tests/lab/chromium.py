"""A real headless Chromium: what a page becomes in it, and a picture of that. It asks for nothing but the page."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from lab.prerequisites import missing, search_path

_TIMEOUT_S = 60
_PROGRAMS = ("chromium-headless-shell", "chromium")
_OPTIONS = (
    "--headless",
    "--no-sandbox",  # whose set-user-id helper root does not need
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--enable-logging=stderr",
    "--hide-scrollbars",
)


def absence() -> str:
    """Why there is none here, in a few words; empty where there is."""
    if missing({program: program for program in _PROGRAMS}) == [*_PROGRAMS]:
        return f"needs {_PROGRAMS[0]}: `make lab` installs it on Debian"
    return ""


def document(url: str) -> str:
    """The page's document, once it is loaded.

    Raises:
        AssertionError: the browser refused a part of the page, and said so in its console.
    """
    done = _run("--dump-dom", url)
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints, complaints
    return done.stdout


def picture(url: str, file: Path, width: int = 1100, height: int = 800, *, is_dark: bool = False) -> None:
    """Write a PNG of the page."""
    scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    _run(scheme, f"--window-size={width},{height}", f"--screenshot={file}", url)
    assert file.read_bytes().startswith(b"\x89PNG")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        program = next(program for program in _PROGRAMS if not missing({program: program}))
        return subprocess.run(
            [program, *_OPTIONS, f"--user-data-dir={profile}", *arguments],
            env={"PATH": search_path(), "HOME": profile},
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT_S,
        )
