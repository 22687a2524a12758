#!/bin/sh
# Prints the Secrets of a deployment with new random values. Run it once, and keep the key of mailgroup-app with your
# backups: the providers' passwords are sealed under it.
#   deploy/k8s/secrets.sh small | kubectl apply -f -          all: keys, database, broker, a self-signed certificate
#   deploy/k8s/secrets.sh production | kubectl apply -f -     keys only; the operators create the others
# Needs openssl.
set -eu

case ${1-} in small | production) overlay=$1 ;; *) sed -n '2,6s/^# *//p' "$0" >&2; exit 2 ;; esac

word() { openssl rand -hex 24; }

secret() { # NAME; reads the fields of stringData from standard input
  printf -- '---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: mailgroup}\nstringData:\n' "$1"
  sed 's/^/  /'
}

secret mailgroup-app <<FIELDS
secret.key: $(openssl rand -base64 32 | tr '+/' '-_')
admin.password: $(word)
FIELDS
[ "$overlay" = small ] || exit 0

password=$(word)
secret mailgroup-database-app <<FIELDS
username: mailgroup
password: $password
uri: postgresql://mailgroup:$password@postgres:5432/mailgroup
FIELDS

secret mailgroup-database-admin <<FIELDS
password: $(word)
FIELDS

password=$(word)
secret mailgroup-broker-default-user <<FIELDS
username: mailgroup
password: $password
connection_string: amqp://mailgroup:$password@rabbitmq:5672/%2F
default_user.conf: |
  default_user = mailgroup
  default_pass = $password
FIELDS

host=${MAILGROUP_MAIL_HOST:-mail.local}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 825 -subj "/CN=$host" \
  -addext "subjectAltName=DNS:$host" -keyout "$folder/key" -out "$folder/certificate" 2>/dev/null
secret mailgroup-tls <<FIELDS
tls.crt: |
$(sed 's/^/  /' "$folder/certificate")
tls.key: |
$(sed 's/^/  /' "$folder/key")
FIELDS
