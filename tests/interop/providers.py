"""Private servers of other vendors: GNU Mailutils for POP3, Courier for both, Cyrus for IMAP, Exim for SMTP."""

from __future__ import annotations

import imaplib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from deploy.machine import ports
from deploy.machine.programs import give
from tests.interop.package_roots import downloaded, in_root, running, version_in, version_of
from tests.interop.programs import run
from tests.interop.stand import Tls
from tests.system import PASSWORD


class Boxes(Protocol):
    """The mailboxes of a provider, by address."""

    def put(self, address: str, mail: bytes) -> None:
        """Put a mail into a mailbox, byte for byte. :param mail: with LF line ends."""

    def mail_of(self, address: str) -> list[bytes]:
        """Return the mails of a mailbox."""


@dataclass(frozen=True, slots=True)
class Maildirs:
    """Mailboxes that are Maildirs."""

    folder: Callable[[str], Path]  # from an address

    def put(self, address: str, mail: bytes) -> None:
        """See ``Boxes.put``."""
        name = f"{time.time_ns()}.{secrets.token_hex(4)}.interop"
        file = self.folder(address) / "tmp" / name
        file.write_bytes(mail)
        give(file, _USER)
        file.rename(self.folder(address) / "new" / name)  # a server may have files of its own in the folder

    def mail_of(self, address: str) -> list[bytes]:
        """See ``Boxes.mail_of``."""
        return [file.read_bytes() for name in ("new", "cur") for file in (self.folder(address) / name).glob("*")]


@dataclass(frozen=True, slots=True)
class ImapBoxes:
    """Mailboxes that only their server knows: another client uses IMAP in clear."""

    port: int

    def put(self, address: str, mail: bytes) -> None:
        """See ``Boxes.put``."""
        with self._client(address) as client:
            status, said = client.append("INBOX", "", "", mail.replace(b"\n", b"\r\n"))
            assert status == "OK", said

    def mail_of(self, address: str) -> list[bytes]:
        """See ``Boxes.mail_of``."""
        with self._client(address) as client:
            client.select("INBOX", readonly=True)
            _, [found] = client.search(None, "ALL")
            mails = []
            for number in found.split():
                _, [data, *_] = client.fetch(number.decode(), "(BODY.PEEK[])")
                assert isinstance(data, tuple), data
                mails.append(data[1])
            return mails

    def _client(self, address: str) -> imaplib.IMAP4:
        client = imaplib.IMAP4("127.0.0.1", self.port)
        client.login(address, PASSWORD)
        return client


@dataclass(frozen=True, slots=True)
class Provider:
    """A running server."""

    name: str
    version: str
    boxes: Boxes
    # Ports by TLS mode; empty: the server does not know the protocol.
    pop3: Mapping[Tls, int] = field(default_factory=dict)
    imap: Mapping[Tls, int] = field(default_factory=dict)
    smtp: Mapping[Tls, int] = field(default_factory=dict)

    def fetching(self, protocol: Literal["pop3", "imap"]) -> Mapping[Tls, int]:
        """The ports of the protocol that mail is fetched by."""
        return self.pop3 if protocol == "pop3" else self.imap


_USER = "mail"
_MAIL_ID = 8
"""Numeric id of the user and of its group, the same on every Debian."""


def by_tls(clear: int, tls: int) -> dict[Tls, int]:
    """Return the ports by TLS mode of a server with STARTTLS (STLS) on its port in clear."""
    return {"none": clear, "starttls": clear, "implicit": tls}


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
    with running("pop3d", ["pop3d", f"--config-file={configuration}"], folder, {clear: b"+OK"}):
        yield Provider(
            "GNU Mailutils",
            version_of("mailutils-pop3d"),
            Maildirs(lambda address: folder / "mail" / address / "INBOX"),
            pop3=by_tls(clear, tls),
        )


_COURIER = ("courier-pop", "courier-imap", "courier-authlib-userdb")


@contextmanager
def courier(folder: Path, certificate: Path, addresses: Sequence[str]) -> Iterator[Provider]:
    """Run Courier's POP3 and IMAP servers and their authentication daemon for the block, in their own root."""
    clear, tls, imap_clear, imap_tls = ports.choose(4, str(folder), ports.PROVIDER)
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
. /etc/courier/imapd
. /etc/courier/imapd-ssl
unset TLS_DHPARAMS TLS_CACHEFILE TLS_TRUSTCERTS
TLS_CERTFILE=/etc/courier/server.pem MAXPERIP=40 POP3AUTH=LOGIN POP3AUTH_TLS="LOGIN PLAIN"
login=/usr/lib/courier/courier/courierpop3login serve=/usr/lib/courier/courier/courierpop3d
POP3_TLS=1 POP3_STARTTLS=NO couriertcpd -address=127.0.0.1 $TCPDOPTS {tls} \\
  /usr/bin/couriertls -server -tcpd $login $serve Maildir &
POP3_STARTTLS=YES couriertcpd -address=127.0.0.1 $TCPDOPTS {clear} $login $serve Maildir &
login=/usr/lib/courier/courier/imaplogin serve=/usr/bin/imapd
IMAP_TLS=1 IMAP_STARTTLS=NO couriertcpd -address=127.0.0.1 $TCPDOPTS {imap_tls} \\
  /usr/bin/couriertls -server -tcpd $login $serve Maildir &
IMAP_STARTTLS=YES couriertcpd -address=127.0.0.1 $TCPDOPTS {imap_clear} $login $serve Maildir &
wait
"""
    packages = downloaded(folder, _COURIER)
    greetings = {clear: b"+OK", imap_clear: b"* OK"}
    with running("courier", in_root(folder, packages, script), folder, greetings):
        yield Provider(
            "Courier",
            version_in(packages, "courier-pop"),
            Maildirs(lambda address: folder / "mail" / address),
            pop3=by_tls(clear, tls),
            imap=by_tls(imap_clear, imap_tls),
        )


_CYRUS = ("cyrus-imapd", "sasl2-bin", "libsasl2-modules")


@contextmanager
def cyrus(folder: Path, certificate: Path, addresses: Sequence[str]) -> Iterator[Provider]:
    """Run Cyrus' IMAP server for the block, in its own root; a mailbox is made at its first login.

    Folders of mailboxes are named after their users: the unique names that Cyrus makes for them repeat themselves here.
    """
    clear, tls = ports.choose(2, str(folder), ports.PROVIDER)
    users = "\n".join(
        "echo {} | saslpasswd2 -p -c -f $data/sasldb -u {} {}".format(PASSWORD, *reversed(address.split("@")))
        for address in addresses
    )
    script = f"""\
echo 'cyrus:x:{_MAIL_ID}:{_MAIL_ID}::/:/bin/false' >>/etc/passwd
data={folder}/cyrus
mkdir -p $data/spool /run/cyrus/proc /run/cyrus/lock /run/cyrus/socket
cp {certificate} $data/server.pem
cat >/etc/imapd.conf <<END
configdirectory: $data
partition-default: $data/spool
proc_path: /run/cyrus/proc
mboxname_lockpath: /run/cyrus/lock
idlesocket: /run/cyrus/socket/idle
virtdomains: userid
unixhierarchysep: yes
autocreate_quota: 0
mailbox_legacy_dirs: yes
allowplaintext: yes
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: $data/sasldb
sasl_mech_list: PLAIN LOGIN
tls_server_cert: $data/server.pem
tls_server_key: $data/server.pem
END
cat >/etc/cyrus.conf <<'END'
START {{
  recover cmd="/usr/lib/cyrus/bin/ctl_cyrusdb -r"
  idled cmd="/usr/lib/cyrus/bin/idled"
}}
SERVICES {{
  imap cmd="/usr/lib/cyrus/bin/imapd" listen="127.0.0.1:{clear}" prefork=1
  imaps cmd="/usr/lib/cyrus/bin/imapd -s" listen="127.0.0.1:{tls}" prefork=0
}}
EVENTS {{
}}
END
{users}
chown -R mail:mail $data /run/cyrus
exec /usr/lib/cyrus/bin/master -D
"""
    packages = downloaded(folder, _CYRUS)
    with running("cyrus", in_root(folder, packages, script), folder, {clear: b"* OK"}):
        yield Provider("Cyrus", version_in(packages, "cyrus-imapd"), ImapBoxes(clear), imap=by_tls(clear, tls))


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
    packages = downloaded(folder, _EXIM)
    with running("exim", in_root(folder, packages, script), folder, {clear: b"220"}):
        yield Provider(
            "Exim",
            version_in(packages, "exim4-daemon-light"),
            Maildirs(lambda address: folder / "mail" / address),
            smtp=by_tls(clear, tls),
        )
