"""The configuration of the stand-in provider's Dovecot and Postfix."""

from __future__ import annotations

import pwd
from pathlib import Path

from deploy.machine.dovecot import USER, DovecotServer


def dovecot_server(folder: Path, run: Path, pop3: tuple[int, int], imap: tuple[int, int], user: str) -> DovecotServer:
    """Return the provider's Dovecot. Postfix verifies AUTH through its socket ``run/auth-client``.

    :param pop3, imap: ports: plain with STARTTLS, and implicit TLS.
    """
    return DovecotServer(
        run=run,
        log=folder / "dovecot.log",
        port=pop3[0],
        tls_port=pop3[1],
        imap_port=imap[0],
        imaps_port=imap[1],
        certificate=folder / "tls" / "server.pem",
        passwords=f"{folder}/etc/users/{USER}",
        home=f"{folder}/mail/{USER}",
        maildir=f"{folder}/mail/{USER}",
        mail_user=user,
        connections=1000,
        mechanisms="plain login",
        limits={"anvil": {"client_limit": 2000}, "auth": {"client_limit": 4000}},
        settings=(
            "namespace inbox {",
            "  inbox = yes",
            "  separator = /",
            *(
                f'  mailbox {name} {{\n    special_use = "\\\\{name}"\n  }}'
                for name in ("Drafts", "Junk", "Sent", "Trash")
            ),
            "}",
        ),
        connections_a_process={"pop3-login": None, "imap-login": None},
    )


def postfix_configuration(folder: Path, run: Path, user: pwd.struct_passwd, database_type: str) -> str:
    """Return main.cf: every domain is virtual and delivered into Dovecot's Maildirs; headers stay unchanged."""
    return f"""\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/state
maillog_file = {folder}/postfix.log
maillog_file_prefixes = {folder}
mail_owner = postfix
setgid_group = postdrop
myhostname = mx.provider.test
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks =
disable_dns_lookups = yes
smtpd_peername_lookup = no
biff = no

virtual_mailbox_domains = static:all
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = {database_type}:{folder}/etc/mailboxes
virtual_uid_maps = static:{user.pw_uid}
virtual_gid_maps = static:{user.pw_gid}
virtual_minimum_uid = 1
virtual_mailbox_limit = 0
mailbox_size_limit = 0
message_size_limit = 102400000
queue_minfree = 0
# A delivery that a stop of the server interrupts may be deferred: it is retried soon, not in five minutes.
queue_run_delay = 2s
minimal_backoff_time = 2s
maximal_backoff_time = 10s
transport_retry_time = 2s
recipient_delimiter = +

local_header_rewrite_clients =
append_dot_mydomain = no
disable_mime_input_processing = yes
disable_mime_output_conversion = yes
header_size_limit = 8388608
smtputf8_enable = yes

smtpd_relay_restrictions = permit_sasl_authenticated, reject_unauth_destination
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = {run}/auth-client
smtpd_sasl_security_options = noanonymous
smtpd_tls_auth_only = no
smtpd_tls_security_level = may
smtpd_tls_chain_files = {folder}/tls/server.pem
smtp_tls_security_level = none
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_error_sleep_time = 0
"""


POSTFIX_PROGRAMS = """\
pickup     unix  n  -  n  60    1  pickup
cleanup    unix  n  -  n  -     0  cleanup
qmgr       unix  n  -  n  300   1  qmgr
tlsmgr     unix  -  -  n  1000? 1  tlsmgr
rewrite    unix  -  -  n  -     -  trivial-rewrite
bounce     unix  -  -  n  -     0  bounce
defer      unix  -  -  n  -     0  bounce
trace      unix  -  -  n  -     0  bounce
verify     unix  -  -  n  -     1  verify
flush      unix  n  -  n  1000? 0  flush
proxymap   unix  -  -  n  -     -  proxymap
proxywrite unix  -  -  n  -     1  proxymap
smtp       unix  -  -  n  -     -  smtp
relay      unix  -  -  n  -     -  smtp
showq      unix  n  -  n  -     -  showq
error      unix  -  -  n  -     -  error
retry      unix  -  -  n  -     -  error
discard    unix  -  -  n  -     -  discard
local      unix  -  n  n  -     -  local
virtual    unix  -  n  n  -     -  virtual
lmtp       unix  -  -  n  -     -  lmtp
anvil      unix  -  -  n  -     1  anvil
scache     unix  -  -  n  -     1  scache
postlog    unix-dgram n - n -   1  postlogd
"""
"""The programs behind Postfix's listeners, none of them in a chroot."""


def postfix_services(smtp_port: int, smtps_port: int) -> str:
    """Return master.cf: two listeners and the programs that they need."""
    return f"""\
127.0.0.1:{smtp_port} inet n - n - - smtpd
127.0.0.1:{smtps_port} inet n - n - - smtpd
  -o smtpd_tls_wrappermode=yes
{POSTFIX_PROGRAMS}"""
