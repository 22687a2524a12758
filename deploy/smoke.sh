#!/bin/bash
# Tries the containers that run, from outside, by the ports that they publish: accounts, mail between two colleagues,
# passwords in clear, the status; then kills each service, and stops and starts everything, and looks what is left.
#   docker compose up -d --wait && deploy/smoke.sh
# Needs python3. Adds the accounts of smoke.example, and leaves them there.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

say() { printf '== %s\n' "$*"; }
fail() { printf 'smoke: %s\n' "$*" >&2; exit 1; }
mailgroup() { docker compose exec -T fetcher mailgroup "$@"; }

# mail COMMAND WORD...: a mail client; the program below.
mail() { python3 -I -c "$client" "$@"; }

client=$(cat <<'PYTHON'
import os, poplib, smtplib, ssl, sys, time
from email.message import EmailMessage

WHO, PASSWORD = "jim@smoke.example", "smoke"
anyone = ssl._create_unverified_context()  # the certificate is self-signed


def port(name, default):
    return int(os.environ.get(f"MAILGROUP_{name}_PORT", default))


def pop3(way):
    if way == "implicit":
        session = poplib.POP3_SSL("127.0.0.1", port("POP3S", 995), timeout=20, context=anyone)
    else:
        session = poplib.POP3("127.0.0.1", port("POP3", 110), timeout=20)
        session.stls(anyone)
    session.user(WHO)
    session.pass_(PASSWORD)
    return session


def smtp(way):
    if way == "SMTPS":
        return smtplib.SMTP_SSL("127.0.0.1", port(way, 465), timeout=20, context=anyone)
    session = smtplib.SMTP("127.0.0.1", port(way, {"SMTP": 25, "SUBMISSION": 587}[way]), timeout=20)
    session.starttls(context=anyone)
    return session


def subjects(session):
    try:
        count = session.stat()[0]
        lines = [line for number in range(1, count + 1) for line in session.top(number, 0)[1]]
    finally:
        session.quit()
    return [line[9:].decode() for line in lines if line.startswith(b"Subject: ")]


def send(way, subject):
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "alex@smoke.example", WHO, subject
    message.set_content("Coffee at four?\n")
    with smtp(way) as session:
        session.login("alex@smoke.example", PASSWORD)
        session.send_message(message)


def read(way, *expected):
    """Once each, within half a minute."""
    deadline = time.monotonic() + 30
    while True:
        found = subjects(pop3(way))
        if all(found.count(subject) == 1 for subject in expected):
            return
        if time.monotonic() > deadline:
            sys.exit(f"expected {expected} once each, found {found}")
        time.sleep(0.2)


def refused():
    """On the submission port no password is taken before TLS, whatever the settings."""
    with smtplib.SMTP("127.0.0.1", port("SUBMISSION", 587), timeout=20) as session:
        session.ehlo()
        if session.has_extn("auth"):
            sys.exit("AUTH is offered in clear on the submission port")


command, *words = sys.argv[1:]
{"send": send, "read": read, "refused": refused}[command](*words)
PYTHON
)

# restarts SERVICE: how often its container was started again.
restarts() { docker inspect -f '{{.RestartCount}}' "$(docker compose ps -q "$1")"; }

# until_well: `status` says that all is well, within a minute.
until_well() {
  local found
  for _ in $(seq 30); do
    if found=$(mailgroup status --json); then return; fi
    sleep 2
  done
  fail "status is not well: $found"
}

run=$(date +%s)

say 'accounts'
# The provider of a stand-in company is not there, so it is not enabled; mail between colleagues needs none.
mailgroup apply /dev/stdin <<'ACCOUNTS'
external_accounts:
  - {address: support@smoke.example, enabled: false, password: smoke,
     pop3: {host: pop3.smoke.example}, smtp: {host: smtp.smoke.example}}
local_accounts:
  - {address: alex@smoke.example, user_name: Alex, external: support@smoke.example, password: smoke}
  - {address: jim@smoke.example, user_name: Jim, external: support@smoke.example, password: smoke}
ACCOUNTS

say 'a mail on each SMTP port, read on each POP3 port'
for way in SMTP SUBMISSION SMTPS; do mail send $way "$run by $way"; done
mail read stls "$run by SMTP" "$run by SUBMISSION" "$run by SMTPS"
mail read implicit "$run by SMTP" "$run by SUBMISSION" "$run by SMTPS"
mail refused

say 'status'
until_well
mailgroup status

for service in fetcher router mailbox pop3_out smtp_in sender; do
  say "$service is killed and comes back"
  before=$(restarts $service)
  docker compose exec -T $service bash -c 'kill -KILL -1' || true # every process but the first one of the container
  for _ in $(seq 30); do [ "$(restarts $service)" = "$before" ] || break; sleep 1; done
  [ "$(restarts $service)" -gt "$before" ] || fail "$service was not started again"
  until_well
  mail send SUBMISSION "$run after $service"
  mail read stls "$run after $service"
done

say 'everything stops and starts; what was there is there'
docker compose down
docker compose up -d --wait --no-build
until_well
mail read implicit "$run by SMTP" "$run by SUBMISSION" "$run by SMTPS" "$run after fetcher" "$run after sender"
say 'all is well'
