#!/bin/sh
# Creates the Secrets of a deployment with new random values, in the namespace mailgroup. An existing Secret is never
# replaced: the script names it, creates those that are missing, and ends with status 1.
#   deploy/k8s/secrets.sh small         all: keys, database, broker, a self-signed certificate
#   deploy/k8s/secrets.sh production    keys only; the operators create the others
# Needs kubectl and openssl. The names in the certificate are MAILGROUP_MAIL_HOST (mail.local), MAILGROUP_IMAP_HOST and
# MAILGROUP_SMTP_HOST.
set -eu

case ${1-} in small | production) overlay=$1 ;; *) sed -n '2,7s/^# *//p' "$0" >&2; exit 2 ;; esac

refused=

word() { openssl rand -hex 24; }

secret() { # NAME; reads the fields of stringData from standard input
  found=$(kubectl --namespace mailgroup get secret "$1" --ignore-not-found --output name)
  if [ -n "$found" ]; then
    echo "the Secret $1 exists in the namespace mailgroup; it is not replaced" >&2
    refused="$refused $1"
    return
  fi
  { printf 'apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: mailgroup}\nstringData:\n' "$1" && sed 's/^/  /'; } |
    kubectl create --filename -
}

secret mailgroup-app <<FIELDS
secret.key: $(openssl rand -base64 32 | tr '+/' '-_')
admin.password: $(word)
FIELDS

if [ "$overlay" = small ]; then
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
    -addext "subjectAltName=DNS:$host,DNS:${MAILGROUP_IMAP_HOST:-$host},DNS:${MAILGROUP_SMTP_HOST:-$host}" \
    -keyout "$folder/key" -out "$folder/certificate" 2>/dev/null
  secret mailgroup-tls <<FIELDS
tls.crt: |
$(sed 's/^/  /' "$folder/certificate")
tls.key: |
$(sed 's/^/  /' "$folder/key")
FIELDS
fi

if [ -n "$refused" ]; then
  echo "To make one anew, delete it first. What was sealed or created with the old value is lost or locked: the" >&2
  echo "providers' passwords (mailgroup-app), the database's role (mailgroup-database-app). Not replaced:$refused" >&2
  exit 1
fi
