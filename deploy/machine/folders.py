"""The data folder, and the folders in it that servers with a user of their own must reach.

The data folder may belong to root alone (mode 0700, below /root). PostgreSQL refuses to run as root, so its user has to
get to its files by another way: they are then kept below /var/lib/mailgroup, and the data folder holds a link to them.
The link decides: a data folder that is deleted and made anew gets new, empty folders, never old data under a new key.

A server's sockets lie among its files, too, unless their names would be longer there than the kernel takes.
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
"""Of a path to a socket (unix(7): 108 with the NUL behind it)."""


def make_data_folder(data: Path) -> Path:
    """The data folder as an absolute path, made if missing; one that exists keeps its owner and mode.

    :raises Permanent: it cannot be made or written to.
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
    """The folder of a server, made if missing: ``data/name``, or what the link of that name leads to.

    :param users: who must reach it. :raises Permanent: root is about to take it away from another user, whose system
    would not start any more.
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
    if link.exists():  # made while the data folder was still open to that user
        subprocess.run(["cp", "-a", str(link), str(folder)], check=True)
        shutil.rmtree(link)
    else:
        folder.mkdir(mode=0o755)
    link.symlink_to(folder)
    return folder


def _leave_to_its_owner(folder: Path, users: Sequence[str]) -> None:
    try:
        owner = folder.owner()
    except KeyError:  # nobody on this machine: it was copied from another one
        return
    if owner not in ("root", *users):
        raise Permanent(
            f"{folder}: belongs to the user {owner}, whose system this is; do this as that user: "
            f"runuser -u {owner} -- mailgroup ..."
        )


def make_sockets(home: Path, user: str, longest: str) -> Path:
    """A new folder for the sockets of a server, which nobody may enter but its user and root.

    Where a path in its home is too long, or has a comma, which separates hosts to libpq, it is below /tmp, under a name
    that nobody knows beforehand. Its user makes it, so root follows no link in a folder that others may write to.

    :param home: the server's folder, which belongs to its user. :param longest: of the names of its sockets.
    """
    folder = home / "sockets"
    if len(os.fsencode(folder / longest)) > _SOCKET_NAME_OCTETS or "," in str(folder):
        return Path(_run(user, "mktemp", "--directory", "/tmp/mailgroup-XXXXXXXX"))
    remove_sockets(folder, user)
    _run(user, "mkdir", "--mode=0700", str(folder))
    return folder


def remove_sockets(folder: Path, user: str) -> None:
    """Remove what ``make_sockets`` made. Nobody listens there any more."""
    _run(user, "rm", "-rf", str(folder))


def _run(user: str, *command: str) -> str:
    """What a command says that is run as this user. :raises Permanent: it fails."""
    done = subprocess.run(["setpriv", *identity(user), *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Permanent(done.stderr.strip())
    return done.stdout.strip()


def _may_enter(folder: Path, user: str) -> bool:
    arguments = identity(user)
    if not arguments:
        return True
    return subprocess.run(["setpriv", *arguments, "test", "-x", str(folder)], check=False).returncode == 0
