"""Runs servers of Debian packages that are not installed: each has a root file system of its own.

Debian does not install two mail servers at once, nor some pairs of POP3 servers. So their packages are unpacked over
the machine's files in an overlay file system, which ends with the process and is the root of the server. That needs
root, as the demo provider does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.machine import ports
from deploy.machine.programs import PATH, Process, Program
from tests.interop.programs import Failed, run

_START_SECONDS = 20.0


def downloaded(folder: Path, packages: Sequence[str]) -> Path:
    """Download Debian packages and their missing dependencies, which apt determines. Return the folder of the files.

    :raises Failed: the download failed.
    """
    place = folder / "packages"
    place.mkdir()
    planned = run(["apt-get", "-q", "--simulate", "--no-install-recommends", "install", *packages], place).decode()
    lacking = [line.split()[1] for line in planned.splitlines() if line.startswith("Inst ")]
    run(["apt-get", "-q", "download", *{*packages, *lacking}], place)
    return place


def in_root(folder: Path, packages: Path, script: str) -> list[str]:
    """Return the command that runs a shell script in a new root file system with these packages."""
    root = folder / "root"
    root.mkdir()
    (folder / "inside.sh").write_text(script)
    (folder / "around.sh").write_text(
        f"""\
set -e
mount -t tmpfs none {root}
cd {root}
mkdir package upper work root
for each in {packages}/*.deb; do dpkg-deb -x "$each" package; done
# On this machine /lib is a symbolic link.
if [ -d package/lib ]; then mkdir -p package/usr/lib; cp -a package/lib/. package/usr/lib/; rm -r package/lib; fi
mount -t overlay none -o lowerdir=package:/,upperdir=upper,workdir=work root
for each in proc dev tmp; do mount --rbind /$each root/$each; done
mount -t tmpfs none root/run
exec chroot root sh {folder}/inside.sh
"""
    )
    # In a PID namespace, all processes that the script has started end with it.
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", str(folder / "around.sh")]


@contextmanager
def running(name: str, command: list[str], folder: Path, greetings: Mapping[int, bytes]) -> Iterator[None]:
    """Run a server for the block, and wait for its greetings. :raises Failed: a greeting does not come."""
    program = Program(name, tuple(command), {"PATH": PATH, "LC_ALL": "C.UTF-8"}, folder, 1, stop_seconds=10)
    process = program.start(folder / f"{name}.log")
    try:
        _wait(process, greetings)
        yield
    finally:
        process.stop()


def _wait(process: Process, greetings: Mapping[int, bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    for port, greeting in greetings.items():
        while not ports.greets(port, greeting):
            if process.child.poll() is not None or time.monotonic() > deadline:
                said = process.log.read_text(errors="replace")[-400:]
                raise Failed(f"{process.program.name} does not greet: {said}")
            time.sleep(0.1)


def version_of(package: str) -> str:
    """Return the version of an installed Debian package."""
    return run(["dpkg-query", "--show", "--showformat=${Version}", package], Path("/")).decode()


def version_in(packages: Path, package: str) -> str:
    [file] = packages.glob(f"{package}_*.deb")
    return run(["dpkg-deb", "--field", str(file), "Version"], packages).decode().strip()


def candidate(package: str) -> str:
    """Return the version of a Debian package that apt would download."""
    shown = run(["apt-cache", "policy", package], Path("/")).decode()
    return shown.partition("Candidate:")[2].split()[0]
