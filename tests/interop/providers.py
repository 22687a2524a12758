"""Private servers of other vendors: GNU Mailutils and Courier for POP3, Exim for SMTP.

Debian does not install two mail servers at once, nor some pairs of POP3 servers. So Courier and Exim are not installed:
their packages are unpacked over the machine's files in an overlay file system, which ends with the process and is the
root of the server. That needs root, as the demo provider does.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.machine import ports
from deploy.machine.programs import PATH, Process, Program, give
from tests.interop.programs import Failed, run
from tests.interop.stand import Tls
from tests.system import PASSWORD

_START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Provider:
    """A running server."""

    name: str
    version: str
    pop3: Mapping[Tls, int]  # ports by TLS mode; empty: no POP3
    smtp: Mapping[Tls, int]  # ports by TLS mode; empty: no SMTP
    box: Callable[[str], Path]  # from an address to the Maildir of its mailbox

    def put(self, address: str, mail: bytes) -> None:
        """Put a mail into a mailbox, byte for byte."""
        name = f"{time.time_ns()}.{secrets.token_hex(4)}.interop"
        file = self.box(address) / "new" / name
        file.write_bytes(mail)
        give(self.box(address), _USER)

    def mail_of(self, address: str) -> list[bytes]:
        """Return the mails of a mailbox."""
        return [file.read_bytes() for name in ("new", "cur") for file in (self.box(address) / name).glob("*")]


_USER = "mail"
_MAIL_ID = 8
"""Numeric id of the user and of its group, the same on every Debian."""


def _make_boxes(folder: Path, addresses: Sequence[str], inside: str = "") -> None:
    for address in addresses:
        for name in ("tmp", "new", "cur"):
            (folder / address / inside / name).mkdir(parents=True)
    give(folder, _USER)


@contextmanager
def mailutils(folder: Path, certificate: Path, addresses: Sequence[str]) -> Iterator[Provider]:
    """Run pop3d of GNU Mailutils for the block. :param certificate: PEM file with certificate and key."""
    clear, tls = ports.choose(2, str(folder), ports.PROVIDER)
    _make_boxes(folder / "mail", addresses, "INBOX")
    (folder / "passwd").mkdir()
    hashed = run(["openssl", "passwd", "-1", PASSWORD], folder).decode().strip()
    for address in addresses:
        local, _, domain = address.partition("@")
        with (folder / "passwd" / domain).open("a") as file:
            file.write(f"{local}:{hashed}:{_MAIL_ID}:{_MAIL_ID}:{local}:{folder}/mail/{address}:/bin/sh\n")
    configuration = folder / "pop3d.conf"
    configuration.write_text(
        f"""\
logging {{ syslog no; }};
auth {{ authorization virtdomain; authentication generic; }};
virtdomain {{ passwd-dir {folder}/passwd; }};
mailbox {{ mailbox-type maildir; }};
locking {{ type null; }};
mandatory-locking {{ enable no; }};
tls {{ ssl-certificate-file {certificate}; ssl-key-file {certificate}; }};
tcp-wrappers {{ enable no; }};
mode daemon;
foreground yes;
pidfile {folder}/pid;
server 127.0.0.1:{clear} {{ tls-mode ondemand; }};
server 127.0.0.1:{tls} {{ tls-mode connection; }};
"""
    )
    with _running("pop3d", ["pop3d", f"--config-file={configuration}"], folder, {clear: b"+OK"}):
        yield Provider(
            "GNU Mailutils",
            version_of("mailutils-pop3d"),
            {"none": clear, "starttls": clear, "implicit": tls},
            {},
            lambda address: folder / "mail" / address / "INBOX",
        )


_COURIER = ("courier-pop", "courier-authlib-userdb")


@contextmanager
def courier(folder: Path, certificate: Path, addresses: Sequence[str]) -> Iterator[Provider]:
    """Run Courier's POP3 server and its authentication daemon for the block, in their own root."""
    clear, tls = ports.choose(2, str(folder), ports.PROVIDER)
    _make_boxes(folder / "mail", addresses)
    lines = [
        f"{address}\tuid={_MAIL_ID}|gid={_MAIL_ID}|home={folder}/mail/{address}|mail={folder}/mail/{address}"
        f"|systempw=$(openssl passwd -1 {PASSWORD})"
        for address in addresses
    ]
    users = "\n".join(lines)
    script = f"""\
id courier >/dev/null 2>&1 || {{
  echo 'courier:x:{_MAIL_ID}:{_MAIL_ID}::/:/bin/false' >>/etc/passwd
  echo 'courier:x:{_MAIL_ID}:' >>/etc/group
}}
mkdir -p /run/courier/authdaemon
cat >/etc/courier/authdaemonrc <<'END'
authmodulelist="authuserdb"
authmodulelistorig="authuserdb"
daemons=2
authdaemonvar=/run/courier/authdaemon
DEBUG_LOGIN=0
DEFAULTOPTIONS=""
LOGGEROPTS=""
END
(umask 077; cat >/etc/courier/userdb <<END
{users}
END
)
makeuserdb
install -m 644 {certificate} /etc/courier/server.pem
/usr/lib/courier/courier-authlib/authdaemond &
set -a
. /etc/courier/pop3d
. /etc/courier/pop3d-ssl
unset TLS_DHPARAMS TLS_CACHEFILE TLS_TRUSTCERTS
TLS_CERTFILE=/etc/courier/server.pem MAXPERIP=40 POP3AUTH=LOGIN POP3AUTH_TLS="LOGIN PLAIN"
login=/usr/lib/courier/courier/courierpop3login serve=/usr/lib/courier/courier/courierpop3d
POP3_TLS=1 POP3_STARTTLS=NO couriertcpd -address=127.0.0.1 $TCPDOPTS {tls} \\
  /usr/bin/couriertls -server -tcpd $login $serve Maildir &
POP3_STARTTLS=YES couriertcpd -address=127.0.0.1 $TCPDOPTS {clear} $login $serve Maildir &
wait
"""
    packages = _downloaded(folder, _COURIER)
    with _running("courier", _in_root(folder, packages, script), folder, {clear: b"+OK"}):
        yield Provider(
            "Courier",
            _version_in(packages, "courier-pop"),
            {"none": clear, "starttls": clear, "implicit": tls},
            {},
            lambda address: folder / "mail" / address,
        )


_EXIM = ("exim4-daemon-light",)


@contextmanager
def exim(folder: Path, certificate: Path, addresses: Sequence[str]) -> Iterator[Provider]:
    """Run Exim for the block, in its own root: it accepts mail only after AUTH, and delivers all mail locally."""
    clear, tls = ports.choose(2, str(folder), ports.PROVIDER)
    _make_boxes(folder / "mail", addresses)
    script = f"""\
echo 'Debian-exim:x:{_MAIL_ID}:{_MAIL_ID}::/:/bin/false' >>/etc/passwd
echo 'Debian-exim:x:{_MAIL_ID}:' >>/etc/group
mkdir -p /etc/exim4 /var/spool/exim4 /var/log/exim4
cp {certificate} /etc/exim4/server.pem
chown -R mail:mail /var/spool/exim4 /var/log/exim4 /etc/exim4/server.pem
cat >/etc/exim4/exim4.conf <<'END'
primary_hostname = mx.exim.example
local_interfaces = 127.0.0.1
daemon_smtp_ports = {clear} : {tls}
tls_on_connect_ports = {tls}
tls_advertise_hosts = *
tls_certificate = /etc/exim4/server.pem
tls_privatekey = /etc/exim4/server.pem
auth_advertise_hosts = *
message_size_limit = 100M
acl_smtp_rcpt = with_password
acl_smtp_data = accept
host_lookup =
rfc1413_query_timeout = 0s
smtp_accept_max = 100
keep_environment =
log_file_path = /var/log/exim4/%slog

begin acl
with_password:
  accept authenticated = *
  deny message = authentication required

begin routers
everything:
  driver = accept
  transport = boxes

begin transports
boxes:
  driver = appendfile
  maildir_format
  message_suffix =
  directory = {folder}/mail/${{lookup{{$local_part@$domain}}dsearch,filter=dir{{{folder}/mail}}}}
  create_directory = false
  user = {_USER}
  group = {_USER}

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if eq{{$auth3}}{{{PASSWORD}}}}}
  server_set_id = $auth2
END
exim4 -bdf -oX {clear}:{tls} -oP /run/exim.pid &
wait
"""
    packages = _downloaded(folder, _EXIM)
    with _running("exim", _in_root(folder, packages, script), folder, {clear: b"220"}):
        yield Provider(
            "Exim",
            _version_in(packages, "exim4-daemon-light"),
            {},
            {"none": clear, "starttls": clear, "implicit": tls},
            lambda address: folder / "mail" / address,
        )


# ---------------------------------------------------------------------------------------------- roots of their own


def _downloaded(folder: Path, packages: Sequence[str]) -> Path:
    """Download Debian packages and their missing dependencies, which apt determines. Return the folder of the files.

    :raises Failed: the download failed.
    """
    place = folder / "packages"
    place.mkdir()
    planned = run(["apt-get", "-q", "--simulate", "--no-install-recommends", "install", *packages], place).decode()
    lacking = [line.split()[1] for line in planned.splitlines() if line.startswith("Inst ")]
    run(["apt-get", "-q", "download", *{*packages, *lacking}], place)
    return place


def _in_root(folder: Path, packages: Path, script: str) -> list[str]:
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


# -------------------------------------------------------------------------------------------------------- processes


@contextmanager
def _running(name: str, command: list[str], folder: Path, greetings: Mapping[int, bytes]) -> Iterator[None]:
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


def _version_in(packages: Path, package: str) -> str:
    [file] = packages.glob(f"{package}_*.deb")
    return run(["dpkg-deb", "--field", str(file), "Version"], packages).decode().strip()
