#!/bin/sh
# Installs packages of Debian or Ubuntu: those that are named, or else what the tests start and is not there.
# Fails where it may not: without apt-get, or without root and without sudo.
set -u

missing() {
    grep -v '^#' requirements/debian.txt | while read -r package command; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$command" > /dev/null || echo "$package"
    done
}

packages=${*:-$(missing)}
[ -n "$packages" ] || exit 0
command -v apt-get > /dev/null || { echo "without apt-get, not installed:" $packages; exit 1; }
as_root=
if [ "$(id -u)" -ne 0 ]; then
    # A password is asked for only where somebody can type one.
    if sudo -n true 2> /dev/null || { [ -t 0 ] && command -v sudo > /dev/null; }; then
        as_root=sudo
    else
        echo "without root or sudo, not installed:" $packages
        exit 1
    fi
fi
echo "installing from Debian${as_root:+ with sudo}:" $packages
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
{ $as_root apt-get update --quiet &&
    $as_root apt-get install --yes --quiet --no-install-recommends $packages; } > "$log" 2>&1 ||
    { tail -n 5 "$log"; rm -f "$log"; exit 1; }
rm -f "$log"
