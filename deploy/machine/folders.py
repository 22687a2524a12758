"""The data folder, and the folders in it that servers with a user of their own must reach.

The data folder may belong to root alone (mode 0700, below /root). PostgreSQL refuses to run as root, so its user must
reach its files elsewhere: they are stored below /var/lib/mailgroup, and the data folder has a link to them. The link is
authoritative: a data folder that was deleted and created again gets new, empty folders, never old data under a new key.

A server's sockets are stored among its files, unless their paths would be longer than the kernel allows.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploy.machine.programs import identity
from shared.errors import Permanent

_ELSEWHERE = Path("/var/lib/mailgroup")
_SOCKET_NAME_OCTETS = 107
"""Limits the path of a socket: octets (unix(7): 108 with the NUL at its end)."""


def make_data_folder(data: Path) -> Path:
    """Create the data folder if it is missing, and return its absolute path. An existing one keeps its owner and mode.

    :raises Permanent: it cannot be created or written.
    """
    data = data.absolute()
    try:
        data.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise Permanent(f"{data}: cannot be made: {error.strerror}") from error
    if not data.is_dir() or not os.access(data, os.W_OK | os.X_OK):
        raise Permanent(f"{data}: is no folder that we may write to")
    return data


def place(data: Path, name: str, users: Sequence[str]) -> Path:
    """Create a server's folder if it is missing, and return it: ``data/name``, or the target of the link of that name.

    :param users: must be able to reach it. :raises Permanent: the folder belongs to another user, whose system would
        not start any more if root took it.
    """
    link = data / name
    if os.geteuid() == 0 and link.exists():
        _leave_to_its_owner(link, users)
    if link.is_symlink():
        link.resolve().mkdir(parents=True, exist_ok=True)
        return link.resolve()
    if all(_may_enter(data, user) for user in users):
        link.mkdir(mode=0o755, exist_ok=True)
        return link
    home = _ELSEWHERE / secrets.token_hex(4)
    home.mkdir(mode=0o755, parents=True)
    (home / "README").write_text(
        f"Files of the mailgroup in {data}, which the user {users[0]} cannot enter.\nDelete this with that folder.\n",
        encoding="utf-8",
    )
    folder = home / name
    if link.exists():  # created while that user could still enter the data folder
        subprocess.run(["cp", "-a", str(link), str(folder)], check=True)
        shutil.rmtree(link)
    else:
        folder.mkdir(mode=0o755)
    link.symlink_to(folder)
    return folder


def _leave_to_its_owner(folder: Path, users: Sequence[str]) -> None:
    try:
        owner = folder.owner()
    except KeyError:  # no user of this machine: the folder was copied from another one
        return
    if owner not in ("root", *users):
        raise Permanent(
            f"{folder}: belongs to the user {owner}, whose system this is; do this as that user: "
            f"runuser -u {owner} -- mailgroup ..."
        )


def make_sockets(home: Path, user: str, longest: str) -> Path:
    """Create a new folder for the sockets of a server, which only its user and root may enter.

    If a path in its home is too long, or has a comma (which separates hosts for libpq), the folder is below /tmp, with
    an unpredictable name. The server's user creates it, so root follows no link in a folder that others may write to.

    :param home: the server's folder, which belongs to its user. :param longest: the longest name of its sockets.
    """
    folder = home / "sockets"
    if len(os.fsencode(folder / longest)) > _SOCKET_NAME_OCTETS or "," in str(folder):
        return Path(_run(user, "mktemp", "--directory", "/tmp/mailgroup-XXXXXXXX"))
    remove_sockets(folder, user)
    _run(user, "mkdir", "--mode=0700", str(folder))
    return folder


def remove_sockets(folder: Path, user: str) -> None:
    """Remove the folder that ``make_sockets`` created, after the server has ended."""
    _run(user, "rm", "-rf", str(folder))


def _run(user: str, *command: str) -> str:
    """Run a command as this user and return its output. :raises Permanent: it failed."""
    done = subprocess.run(["setpriv", *identity(user), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Permanent(done.stderr.strip())
    return done.stdout.strip()


def _may_enter(folder: Path, user: str) -> bool:
    arguments = identity(user)
    if not arguments:
        return True
    return subprocess.run(["setpriv", *arguments, "test", "-x", str(folder)], check=False).returncode == 0
