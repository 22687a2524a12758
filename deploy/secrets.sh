#!/bin/sh
# Creates the secrets of a deployment with containers on its first start, and keeps existing ones. Each folder is a volume;
# a container mounts those that it may read: PostgreSQL and RabbitMQ their own passwords, a service the URLs and keys that
# it needs.
set -eu

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
# A Fernet key: 32 octets in URL-safe base64.
keep /secrets/key/secret.key 0400 "$(head -c 32 /dev/urandom | base64 | tr '+/' '-_')"
keep /secrets/console/admin.password 0400 "$(word)"
