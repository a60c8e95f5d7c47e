#!/usr/bin/env bash
# Finds out which of the programs in requirements.txt are missing for the given purposes.
#
#   requirements.sh [--check] PURPOSE...        purposes: build demo test bench
#
# As root on Debian it installs what is missing; otherwise, or with --check, it names the missing
# programs and the command that installs them, and fails.
set -euo pipefail

install=yes
if [ "${1:-}" = --check ]; then
    install=no
    shift
fi
purposes=" $* "
PATH=$PATH:/usr/sbin:/sbin

if ! command -v cargo >/dev/null; then
    echo "missing: cargo. Install Rust with rustup; rust-toolchain.toml names the version." >&2
    exit 1
fi

present() {
    case $1 in
    /*) [ -e "$1" ] ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

# Prints one line for each missing program: the program, a blank, its package.
missing() {
    local program package needed_for purpose
    while read -r program package needed_for; do
        case $program in '' | '#'*) continue ;; esac
        for purpose in $needed_for; do
            [[ $purposes == *" $purpose "* ]] || continue
            present "$program" || echo "$program $package"
            break
        done
    done <"$(dirname "$0")/requirements.txt"
}

lacking=$(missing)
[ -n "$lacking" ] || exit 0
mapfile -t packages < <(cut -d' ' -f2 <<<"$lacking" | sort -u)

if [ $install = yes ] && [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ]; then
    echo "installing with apt-get: ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # A daemon that comes with a package is not to be started; 101 means "not allowed".
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    apt-get update -qq
    apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
    lacking=$(missing)
    [ -n "$lacking" ] || exit 0
fi

{
    echo "missing:"
    while read -r program package; do
        echo "  $program (Debian package $package)"
    done <<<"$lacking"
    echo "install with: sudo apt-get install --no-install-recommends ${packages[*]}"
} >&2
exit 1
