#!/bin/bash
# Creates the role of the services and its database when the cluster is created. The role is no superuser.
set -eu
psql --no-psqlrc --set ON_ERROR_STOP=1 --set password="$(cat "${PASSWORD_FILE:-/secrets/password}")" <<'SQL'
create role mailgroup login password :'password';
create database mailgroup owner mailgroup;
SQL
