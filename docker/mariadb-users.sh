#!/bin/sh
# Runs once, when MariaDB's data directory is made.
set -eu
mariadb --user=root --password="$MARIADB_ROOT_PASSWORD" <<SQL
CREATE USER beds_dba@'%' IDENTIFIED BY '$DBA';
CREATE USER beds_broker@'%' IDENTIFIED BY '$BROKER';
GRANT ALL ON beds.* TO beds_dba@'%' WITH GRANT OPTION;
SQL
