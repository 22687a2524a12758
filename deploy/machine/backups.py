"""A backup in one file: PostgreSQL's own dump, and the key under which the upstream passwords are sealed.

The file is a tar archive of ``backup.json`` (format and time), ``secret.key`` and ``database.dump``, so that the parts
can be extracted without this program: ``pg_dump --format=custom`` writes the dump, ``pg_restore`` reads it. A plain
dump without the archive is read as well; it has no key.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from psycopg.conninfo import conninfo_to_dict

from deploy.machine.programs import PATH
from shared.errors import Permanent

_FORM = "mailgroup backup 1"
_ABOUT, _KEY, _DUMP = "backup.json", "secret.key", "database.dump"
_DUMP_MAGIC = b"PGDMP"
_INSTALLED = Path("/usr/lib/postgresql")
_PART_OCTETS = 256 * 1024
_CHECKOUT = Path(__file__).resolve().parents[2]
Progress = Callable[[int, int], None]
"""A function that is called with the octets that are copied, and with all octets; 0: unknown."""


@dataclass(frozen=True, slots=True)
class Backup:
    """An opened backup."""

    made_at: str  # ISO 8601, '' if the file has no time
    key: str | None
    dump: IO[bytes]
    octets: int  # of the dump


def _say_nothing(done: int, total: int) -> None:
    """Show no progress."""


def is_in_checkout(file: Path) -> bool:
    """Return whether the file would be in the program's own folder, which commits and images copy."""
    return file.resolve().is_relative_to(_CHECKOUT)


def write(file: Path, url: str, key: str | None, now: str, progress: Progress = _say_nothing) -> int:
    """Write a backup of this database atomically, readable by its owner only. The system may be running.

    :param progress: is called with the octets of the dump so far; their total is unknown.
    :return: octets of the file. :raises Permanent: pg_dump failed, with its message.
    """
    part = file.with_name(file.name + ".part")
    try:
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b") as out:
            os.fchmod(out.fileno(), 0o600)
            with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
                _add(archive, _ABOUT, json.dumps({"form": _FORM, "made_at": now}, indent=1) + "\n")
                if key is not None:
                    _add(archive, _KEY, key + "\n")
                _add_dump(archive, out, url, progress)
            out.flush()
            os.fsync(out.fileno())
        octets = part.stat().st_size
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return octets


def _member(name: str, octets: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = octets, 0o600, int(time.time())
    return member


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    octets = text.encode()
    archive.addfile(_member(name, len(octets)), io.BytesIO(octets))


def _add_dump(archive: tarfile.TarFile, out: IO[bytes], url: str, progress: Progress) -> None:
    """Copy pg_dump's output into the archive. The size is known at the end only: then the member's header is rewritten.

    A pipe is used because pg_dump from version 16 on opens its output file for appending, which would also apply to
    our writes.
    """
    head = out.tell()
    out.write(_member(_DUMP, 0).tobuf(tarfile.GNU_FORMAT))
    begin = out.tell()
    with tempfile.TemporaryFile() as messages:
        with subprocess.Popen(
            [_program("pg_dump"), "--format=custom", "--no-owner", "--no-privileges"],
            env=_environment(url), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages,
        ) as child:  # fmt: skip
            assert child.stdout is not None
            _copy(child.stdout, out, 0, progress)
        if child.returncode:
            messages.seek(0)
            raise Permanent(f"pg_dump: {messages.read().decode(errors='replace').strip()}")
    octets = out.tell() - begin
    out.seek(head)
    out.write(_member(_DUMP, octets).tobuf(tarfile.GNU_FORMAT))
    out.seek(0, os.SEEK_END)
    out.write(b"\0" * (-octets % tarfile.BLOCKSIZE))
    archive.offset = out.tell()  # where close() writes the end of the archive


@contextmanager
def opened(file: Path) -> Iterator[Backup]:
    """Open a backup for reading. :raises Permanent: the file is no backup."""
    with file.open("rb") as raw:
        if raw.read(len(_DUMP_MAGIC)) == _DUMP_MAGIC:
            raw.seek(0)
            yield Backup("", None, raw, file.stat().st_size)
            return
        raw.seek(0)
        try:
            with tarfile.open(fileobj=raw, mode="r:") as archive:
                names = archive.getnames()
                about = json.loads(_text(archive, _ABOUT)) if _ABOUT in names else {}
                dump = archive.extractfile(_DUMP) if _DUMP in names else None
                if about.get("form") != _FORM or dump is None:
                    raise Permanent(f"{file}: is no backup of mailgroup")
                key = _text(archive, _KEY).strip() if _KEY in names else None
                yield Backup(str(about.get("made_at", "")), key, dump, archive.getmember(_DUMP).size)
        except (tarfile.TarError, ValueError) as error:
            raise Permanent(f"{file}: is no backup of mailgroup, or a broken one: {error}") from error


def _text(archive: tarfile.TarFile, name: str) -> str:
    member = archive.extractfile(name)
    return member.read().decode() if member is not None else ""


def load(backup: Backup, url: str, progress: Progress = _say_nothing) -> None:
    """Restore the dump into this empty database.

    :param progress: is called with the octets that were read, and all octets.
    :raises Permanent: pg_restore failed, with its message.
    """
    child = subprocess.Popen(
        [_program("pg_restore"), "--exit-on-error", "--no-owner", "--no-privileges",
         "--dbname", str(conninfo_to_dict(url)["dbname"])],
        env=_environment(url), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None and child.stderr is not None
    try:
        _copy(backup.dump, child.stdin, backup.octets, progress)
        child.stdin.close()
    except BrokenPipeError:
        pass  # it has ended, and says why
    said = child.stderr.read().decode(errors="replace").strip()
    if child.wait():
        raise Permanent(f"pg_restore: {said}")


def _copy(source: IO[bytes], target: IO[bytes], total: int, progress: Progress) -> None:
    done = 0
    while part := source.read(_PART_OCTETS):
        target.write(part)
        progress(done := done + len(part), total)


def _program(name: str) -> str:
    """Return the newest installed version: an older one cannot read a newer server."""
    paths = [path for path in _INSTALLED.glob(f"*/bin/{name}") if re.fullmatch(r"\d+", path.parent.parent.name)]
    if paths:
        return str(max(paths, key=lambda path: int(path.parent.parent.name)))
    other = shutil.which(name)
    if other is None:
        raise Permanent(f"{name} is not installed; install the package postgresql-client")
    return other


def _environment(url: str) -> dict[str, str]:
    """Return the environment of libpq's programs, so that no command line contains the password."""
    names = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD", "dbname": "PGDATABASE"}
    names |= {"sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT"}
    given = {names[name]: str(value) for name, value in conninfo_to_dict(url).items() if name in names}
    return {"PATH": PATH, "LC_ALL": "C.UTF-8", **given}
