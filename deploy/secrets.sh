#!/bin/sh
# Creates the secrets of a deployment with containers on its first start, and keeps existing ones. Each folder is a volume;
# a container mounts those that it may read: PostgreSQL and RabbitMQ their own passwords, a service the URLs and keys that
# it needs.
#   make-secrets             creates what is missing
#   make-secrets key         reads the keys from standard input, as before a restore on another machine
#   make-secrets new-key     puts a new key before the old one
#   make-secrets drop-keys   keeps the first key only, after `mailgroup rotate-key`
set -eu

key=/secrets/key/secret.key

# write FILE MODE TEXT: writes a file atomically.
write() {
  printf '%s\n' "$3" >"$1.part"
  chmod "$2" "$1.part"
  sync "$1.part"
  mv "$1.part" "$1"
}

# keep FILE MODE TEXT: writes the file, unless it exists.
keep() {
  if [ ! -s "$1" ]; then
    write "$@"
    echo "made $1"
  fi
}

word() { od -An -v -tx1 -N24 /dev/urandom | tr -d ' \n'; }

# new_key: prints a Fernet key: 32 octets in URL-safe base64.
new_key() { head -c 32 /dev/urandom | base64 | tr '+/' '-_'; }

# set_keys TEXT: replaces the keys, which are separated by lines or commas. The old file stays as secret.key.before.
set_keys() {
  keys=$(printf '%s\n' "$1" | tr -s ', ' '\n')
  if printf '%s\n' "$keys" | grep -qvE '^[A-Za-z0-9_-]{43}=$'; then
    echo "make-secrets: not a key (32 octets of URL-safe base64, one key a line); nothing is changed" >&2
    exit 1
  fi
  if [ -s "$key" ]; then
    write "$key.before" 0400 "$(cat "$key")"
  fi
  write "$key" 0400 "$keys"
  echo "$key: $(printf '%s\n' "$keys" | wc -l) written; restart fetcher, sender and admin"
}

case ${1-} in
  '') ;;
  key) set_keys "$(cat)"; exit ;;
  new-key) set_keys "$(new_key; cat "$key")"; exit ;;
  drop-keys) set_keys "$(head -n 1 "$key")"; exit ;;
  *) sed -n '5,8s/^# *//p' "$0" >&2; exit 2 ;;
esac

# The user ids of the servers are unknown here; no other user is in their containers.
keep /secrets/postgres/password 0444 "$(word)"
keep /secrets/postgres/admin.password 0444 "$(word)"
keep /secrets/rabbitmq/password 0444 "$(word)"
keep /secrets/grafana/password 0444 "$(word)"
broker=$(cat /secrets/rabbitmq/password)
write /secrets/rabbitmq/rabbitmq.conf 0444 "default_user = mailgroup
default_pass = $broker"

write /secrets/database/database.url 0400 \
  "postgresql://mailgroup:$(cat /secrets/postgres/password)@postgres:5432/mailgroup"
write /secrets/broker/broker.url 0400 "amqp://mailgroup:$broker@rabbitmq:5672/%2F"
keep "$key" 0400 "$(new_key)"
keep /secrets/console/admin.password 0400 "$(word)"
