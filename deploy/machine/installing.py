"""Installs mailgroup as a systemd service: program in /opt/mailgroup, a user of its own, started after every boot.

    /opt/mailgroup/VERSION-DIGEST/    a release: the program, and its Python packages in .venv
    /opt/mailgroup/current            link to the release that runs; ``upgrade`` changes it and keeps the one before
    /etc/systemd/system/mailgroup.service
    /etc/mailgroup.env                settings (MAILGROUP_...), kept as the administrator wrote them
    /usr/local/bin/mailgroup          the command

A release is a copy, because the service's user cannot read a checkout that belongs to root alone, and because the
running program must not change while the checkout is updated.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.data_folder import require_unused
from shared.errors import Permanent

USER = "mailgroup"
CHECKOUT = Path(__file__).resolve().parents[2]
_PROGRAM = (
    "mailgroup",
    "pyproject.toml",
    "requirements.lock",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "shared",
    "services",
    "deploy",
    "docs",
)
_SETTINGS = """\
# Settings of the service mailgroup, NAME=VALUE, see docs/operating.md. After a change: systemctl restart mailgroup
#MAILGROUP_BIND=192.168.1.1
#MAILGROUP_MAIL_HOST=mail.example.com
#MAILGROUP_TLS_CERT_FILE=/etc/ssl/mail.pem
#MAILGROUP_ALERT_TO=admin@example.com
"""

Run = Callable[[Sequence[str]], None]


def run(command: Sequence[str]) -> None:
    """Run a program. :raises Permanent: it failed, with its last lines of output."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Permanent(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        output = (done.stderr or done.stdout).strip().splitlines()
        raise Permanent(f"{' '.join(command)}: {' | '.join(output[-5:]) or f'exit status {done.returncode}'}")


@dataclass(frozen=True, slots=True)
class Machine:
    """The paths of an installation."""

    root: Path = Path("/")  # another folder in tests
    run: Run = run  # runs a program

    @property
    def releases(self) -> Path:
        """Folder of the releases and of the link to the current one."""
        return self.root / "opt/mailgroup"

    @property
    def unit(self) -> Path:
        """The service's unit file."""
        return self.root / "etc/systemd/system/mailgroup.service"

    @property
    def settings(self) -> Path:
        """The service's environment file."""
        return self.root / "etc/mailgroup.env"

    @property
    def command(self) -> Path:
        """The command on the PATH."""
        return self.root / "usr/local/bin/mailgroup"

    @property
    def has_systemd(self) -> bool:
        """Whether systemd runs here."""
        return (self.root / "run/systemd/system").is_dir()


def unit(data: Path, lan: bool) -> str:
    """Return the unit file of the service. :param data: absolute. :param lan: serve the LAN, not only this machine."""
    options = " --lan" if lan else ""
    return f"""\
# Made by: mailgroup install-service
[Unit]
Description=mailgroup, a mail gateway for a shared mailbox
Documentation=file:///opt/mailgroup/current/README.md
Wants=network-online.target
After=network-online.target

[Service]
User={USER}
Group={USER}
Environment=MAILGROUP_DATA={data} HOME={data}
EnvironmentFile=-/etc/mailgroup.env
ExecStart=/opt/mailgroup/current/mailgroup up{options}
Restart=always
RestartSec=5
# `up` finishes the mail in progress and stops within a minute.
TimeoutStopSec=90
KillMode=mixed
LimitNOFILE=65536
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
PrivateDevices=yes
PrivateTmp=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=strict
ReadWritePaths={data}
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictSUIDSGID=yes

[Install]
WantedBy=multi-user.target
"""


def install(data: Path, lan: bool, machine: Machine, say: Callable[[str], None]) -> None:
    """Install this checkout as the service, and start it where systemd runs.

    :param data: the data folder; the service's user becomes its owner. :raises Permanent: a step failed.
    """
    if any(character.isspace() or character in '%"\\' for character in str(data)):
        raise Permanent(f"--data: {data}: a service's data folder may have no space, quote, percent sign or backslash")
    if machine.unit.exists():
        raise Permanent(f"{machine.unit}: the service is installed; a new version is brought in by 'mailgroup upgrade'")
    require_unused(data)
    _make_user(data, machine)
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    machine.run(["chown", "--recursive", f"{USER}:{USER}", str(data)])
    _switch(machine, make_release(machine, say))
    if not machine.settings.exists():
        machine.settings.parent.mkdir(parents=True, exist_ok=True)
        machine.settings.write_text(_SETTINGS, encoding="utf-8")
        machine.settings.chmod(0o600)
    machine.unit.parent.mkdir(parents=True, exist_ok=True)
    machine.unit.write_text(unit(data, lan), encoding="utf-8")
    machine.command.parent.mkdir(parents=True, exist_ok=True)
    machine.command.unlink(missing_ok=True)
    machine.command.symlink_to("/opt/mailgroup/current/mailgroup")
    machine.run(["systemctl", "enable", "mailgroup.service"])
    if machine.has_systemd:
        machine.run(["systemctl", "daemon-reload"])
        machine.run(["systemctl", "restart", "mailgroup.service"])
        say("mailgroup runs, and starts after every boot; its log: journalctl -u mailgroup")
    else:
        say("mailgroup is installed, and starts at the next boot (systemd does not run now)")


def upgrade(machine: Machine, backup: Callable[[Path], Path], say: Callable[[str], None]) -> None:
    """Upgrade the service to this checkout: backup, new release, restart (``up`` migrates the database).

    :param backup: makes a backup of a data folder, and returns its file.
    :raises Permanent: the service is not installed, or a step failed; then the release before still runs.
    """
    data = installed_data(machine)
    before = (machine.releases / "current").resolve()
    release = make_release(machine, say)
    if release == before:
        say(f"{release.name} is already running")
        return
    file = backup(data)
    say(f"Backup: {file}")
    _switch(machine, release)
    if machine.has_systemd:
        machine.run(["systemctl", "restart", "mailgroup.service"])
    say(
        f"{release.name} runs instead of {before.name}. The way back: systemctl stop mailgroup; "
        f"ln -sfn {before} {machine.releases}/current; "
        f"runuser -u {USER} -- {machine.releases}/current/mailgroup restore {file} --replace --data {data}; "
        "systemctl start mailgroup"
    )
    for old in machine.releases.iterdir():
        if old.is_dir() and not old.is_symlink() and old not in (release, before):
            shutil.rmtree(old)


def installed_data(machine: Machine) -> Path:
    """The data folder of the installed service. :raises Permanent: there is none."""
    try:
        lines = machine.unit.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise Permanent(
            f"{machine.unit}: no service is installed (install-service makes one); where 'up' runs by itself, "
            "make a backup, stop it, and start the new version: it migrates the database"
        ) from error
    for line in lines:
        if line.startswith("Environment=MAILGROUP_DATA="):
            return Path(line.removeprefix("Environment=MAILGROUP_DATA=").split()[0])
    raise Permanent(f"{machine.unit}: no line Environment=MAILGROUP_DATA=; delete the file and run install-service")


def make_release(machine: Machine, say: Callable[[str], None]) -> Path:
    """Copy this checkout's program, install its Python packages, and return the release's folder.

    The same program gives the same folder, so a second try continues where the first one ended.
    """
    folder = machine.releases / f"{_version()}-{_digest()}"
    if not (folder / "complete").exists():
        say(f"Copying the program to {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o755, parents=True)
        for name in _PROGRAM:
            source = CHECKOUT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / name)
        machine.run([str(folder / "mailgroup"), "up", "--help"])  # makes .venv
        machine.run(["chmod", "--recursive", "go=u,go-w", str(folder)])
        (folder / "complete").touch()
    return folder


def _switch(machine: Machine, release: Path) -> None:
    """Change the link to the current release atomically."""
    draft = machine.releases / "next"
    draft.unlink(missing_ok=True)
    draft.symlink_to(release.name)
    draft.replace(machine.releases / "current")


def _make_user(data: Path, machine: Machine) -> None:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        shell = "/usr/sbin/nologin"
        machine.run(["useradd", "--system", "--user-group", "--home-dir", str(data), "--shell", shell, USER])


def _version() -> str:
    return str(tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def _digest() -> str:
    """Return the digest of all files of a release."""
    digest = hashlib.sha256()
    for name in _PROGRAM:
        source = CHECKOUT / name
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(os.fsencode(file.relative_to(CHECKOUT)) + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
