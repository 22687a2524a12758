"""The forms of the texts about sessions with providers (``stored_forms.py`` has the rules)."""

from __future__ import annotations

from typing import Final

from shared.languages.translation import marked

FETCHES: Final = (
    marked("the server ended the connection"),
    marked("the server took no octets for %(seconds)s s"),
    marked("no answer within %(seconds)s s"),
    marked("the session took longer than %(seconds)s s"),
    marked("the reply is slower than %(octets)s octets a second"),
    marked("a reply line of more than %(octets)s octets"),
    marked("a list of more than %(octets)s octets"),
    marked("the reply does not end; aborted after %(octets)s octets"),
    marked("a text of %(octets)s octets"),
    marked("a string of %(octets)s octets"),
    marked("more than %(count)s literals in a response"),
    marked("more than %(count)s untagged responses"),
    marked("the mail has not the octets that were announced"),
    marked("name or password contain a line break or NUL; set them again"),
    marked(
        "the server logs in without TLS (PREAUTH), so STARTTLS is impossible: this may be an attack; set tls to "
        "implicit (port 993)"
    ),
    marked(
        "the server refuses STARTTLS, and nothing is sent in clear text; set tls to implicit (port %(port)s), or to "
        "none if you accept that: %(text)s"
    ),
    marked(
        "the server offers no STARTTLS, and nothing is sent in clear text; set tls to implicit (port %(port)s), or to "
        "none if you accept that"
    ),
    marked("the server sent octets between STARTTLS and TLS: this may be an attack"),
    marked("the server allows no login without TLS; set tls to starttls or implicit: %(text)s"),
    marked(
        "the server allows no login without TLS (LOGINDISABLED); set tls to starttls (port %(port)s) or implicit (port "
        "%(other)s)"
    ),
    marked("this port wants TLS from the start; choose SSL/TLS (implicit) for %(port)s"),
    marked("the server has no IDLE"),
    marked("the server does not stay in it: %(text)s"),
    marked("the server lists no mails: %(text)s"),
    marked("the server lists no mails now: %(text)s"),
    marked("the server announces unique ids (UIDL) and does not list them: %(text)s"),
    marked("no count of mails in the reply: %(text)s"),
    marked("another reply; a mail before it may be cut short at a line that is a lone dot (RFC 1939 section 3)"),
    marked("another reply"),
    marked("UIDL, LIST and STAT have other replies each time, so a mail that is cut short cannot be detected"),
    marked("the list of mails is incomplete, so the mails from before the first contact are unknown"),
)
"""Errors of sessions that fetch: shared/provider, services/fetcher."""

FOLDERS: Final = (
    marked("there is no folder %(quoted)s"),
    marked("the folder %(quoted)s is not fetched: the provider marks it as %(mark)s, %(why)s"),
    marked("it shows the mails of other folders again"),
    marked("it has sent mail"),
    marked("it has drafts"),
    marked("it has deleted mail"),
    marked("the folder %(quoted)s cannot be opened: %(text)s"),
    marked("the mails in the folder %(quoted)s have no lasting numbers (UIDVALIDITY)"),
    marked("the folder %(quoted)s was renumbered meanwhile"),
    marked("the folder %(quoted)s is read-only"),
    marked("the folder %(quoted)s has %(count)s mails, %(listed)s are listed"),
    marked("there is no folder %(quoted)s for sent mail"),
    marked("the provider marks no folder as \\Sent"),
    marked("%(problem)s; name the folder in imap.sent"),
    marked(
        "the server has no UIDPLUS (RFC 4315), and without it other mail could be deleted, too; let the account delete "
        "nothing at the provider"
    ),
)
"""Errors of folders at a provider: shared/provider/imap_folders.py, imap_filing.py, imap_deletion.py."""

SENDS: Final = (
    marked("the server ended the connection after the login"),
    marked("the server did not answer within %(seconds)s s"),
    marked("the server answered %(code)s"),
    marked("the connection ended before the login was done"),
    marked("the reply is not an SMTP reply; check host, port and tls"),
    marked("the reply is not an SMTP reply"),
    marked("the server does not offer STARTTLS; the login and the mail are not sent without; check port and tls"),
    marked("the server wants a login (%(text)s); set auth to true"),
    marked("the server wants a login (%(text)s); check auth, login and password"),
    marked("%(address)s is not accepted as the sender (%(text)s)"),
    marked("the login was refused (%(text)s); check login and password"),
    marked("the login was refused (%(text)s); check login, password and tls"),
    marked("the server takes no login here (none of %(list)s); check port and tls, or set auth to false"),
    marked("the login does not work now (%(text)s)"),
    marked("a command with a control character in it was not sent"),
    marked("a reply %(code)s came before the end of the mail"),
    marked("RSET was answered %(code)s"),
    marked("no reply within %(seconds)s s after the mail was sent"),
    marked("%(problem)s while the mail was sent"),
    marked("%(problem)s after the mail was sent, before the reply"),
    marked("no answer"),
    marked("the connection was lost"),
    marked("the connection was closed"),
    marked("the server answered DATA with %(text)s"),
    marked("the server ended the connection: %(text)s"),
    marked("the bytes of blob %(id)s are gone"),
    marked("the provider does not let this login send as the account's address; correct one of them (%(text)s)"),
    marked("the provider's limit for sending is reached (%(text)s)"),
    marked("the provider slows us down (%(text)s)"),
)
"""Errors of sessions that send: shared/provider/smtp_connect.py, smtp_login.py, smtp_client.py, services/sender."""

TOKENS: Final = (
    marked("the account has no oauth settings; set oauth.issuer and oauth.client_id"),
    marked("has no access tokens; set %(field)s of %(address)s again"),
    marked("has other servers than %(address)s, whose access tokens it uses"),
    marked("nobody has authorized it"),
    marked(
        "%(problem)s; correct the application at the provider, or oauth with: mailgroup external set %(address)s; no "
        "person has to authorize it"
    ),
    marked("%(problem)s; run: mailgroup external authorize %(address)s"),
    marked("no token is given (%(text)s)"),
    marked("no token now (%(text)s)"),
    marked("no code was given (%(text)s)"),
    marked("this provider has no device flow for mail"),
    marked("this provider has no authorization page"),
    marked("HTTP status %(code)s"),
    marked("the person, or the provider, said no"),
    marked("the code was not used in time"),
    marked("the provider does not know this client id, or the client's secret or key is wrong"),
    marked("the authorization has ended, or was revoked at the provider"),
    marked("the provider does not give this application access to mail"),
    marked("this application may not use this flow; see its settings at the provider"),
    marked("a person has to consent again on the provider's page"),
    marked("a person has to consent on the provider's page"),
    marked("an administrator at the provider has not allowed this application to read and send mail"),
    marked(
        "the provider does not accept the signed request: the login is no mailbox there, the key is no longer valid, "
        "or a clock is wrong"
    ),
    marked("an administrator at the provider has not allowed this application to use the mailbox"),
    marked("an https URL is needed, without blanks and letters beyond ASCII"),
    marked("a public host is reached by https only"),
    marked("the provider did not agree (%(text)s)"),
    marked("the provider gave no refresh token; its application has to be allowed offline access"),
    marked("the account was changed meanwhile; authorize it again"),
    marked("this is not the answer to this request; authorize the account again"),
    marked("this address is not the answer to any waiting authorization; authorize the account again"),
)
"""Errors of access tokens: shared/provider/oauth.py, credentials.py, shared/net/http_client.py."""

AT: Final = (
    marked("greeting: %(problem)s"),
    marked("%(verb)s of mail %(number)s: %(problem)s"),
    marked("%(verb)s behind mail %(number)s: %(problem)s"),
    marked("%(verb)s of one mail: %(problem)s"),
    marked("%(problem)s; paused: retried once an hour, and at once when the account is changed or tested"),
)
"""The command at which a session failed, and what stands behind an error."""
