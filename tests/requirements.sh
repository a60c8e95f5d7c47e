#!/usr/bin/env bash
# Finds out which of the programs in requirements.txt are missing for the given purposes.
#
#   requirements.sh [--check] PURPOSE...        purposes: build image demo test bench aarch64
#
# As root on Debian it installs what is missing; otherwise, or with --check, it names the missing
# programs and the command that installs them, and fails.
# Programs of another suite of Debian are never installed: they are unpacked into target/suites.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
suites=$here/../target/suites

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
    */*) [ -e "$suites/$1" ] ;;
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
    done <"$here/requirements.txt"
}

# Unpacks PACKAGE/SUITE into target/suites/SUITE. It comes from the mirror that this system uses
# already, by lists of its own, so that nothing changes for apt.
unpack() {
    local package=${1%/*} suite=${1#*/} release mirror apt
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v release="$release" '$1 == release && $2 == "main" { print $3; exit }')
    if [ -z "$mirror" ]; then
        echo "no mirror of Debian in the configuration of apt to take $1 from" >&2
        return 1
    fi
    apt=$suites/$suite/.apt
    mkdir -p "$apt/lists/partial"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$apt/lists";
Dir::State::status "/dev/null";
Dir::Cache "$apt";
APT::Sandbox::User "";
CONF
    (
        export APT_CONFIG=$apt/apt.conf
        cd "$apt"
        [ -e updated ] || { apt-get update -qq && touch updated; }
        apt-get download -qq "$package"
        dpkg -x "${package}"_*.deb ..
    )
}

lacking=$(missing)
[ -n "$lacking" ] || exit 0

if [ $install = yes ] && [ -e /etc/debian_version ]; then
    for package in $(cut -d' ' -f2 <<<"$lacking" | grep / | sort -u); do
        echo "unpacking $package into target/suites"
        unpack "$package"
    done
    lacking=$(missing)
    [ -n "$lacking" ] || exit 0
fi
mapfile -t packages < <(cut -d' ' -f2 <<<"$lacking" | grep -v / | sort -u)

if [ $install = yes ] && [ "$(id -u)" = 0 ] && [ -e /etc/debian_version ] && [ ${#packages[@]} -gt 0 ]; then
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
    # Nor when the machine boots.
    if command -v systemctl >/dev/null; then
        mapfile -t services < <(dpkg -L "${packages[@]}" | sed -n 's|^.*/systemd/system/\([^/@]*\.service\)$|\1|p')
        [ ${#services[@]} -eq 0 ] || systemctl disable --quiet "${services[@]}"
    fi
    lacking=$(missing)
    [ -n "$lacking" ] || exit 0
fi

{
    echo "missing:"
    while read -r program package; do
        echo "  $program (Debian package $package)"
    done <<<"$lacking"
    if [ ${#packages[@]} -gt 0 ]; then
        echo "install with: sudo apt-get install --no-install-recommends ${packages[*]}"
    fi
    if grep -q ' [^ ]*/[^ ]*$' <<<"$lacking"; then
        echo "unpack those with a suite in their name with: tests/requirements.sh $*"
    fi
} >&2
exit 1
