#!/usr/bin/env bash
# Runs tests on the kernel of Debian, in an emulated machine: for what the kernel of this one lacks.
#
#   other-kernel.sh [ARGUMENTS OF CARGO TEST...] [-- ARGUMENTS OF THE TESTS...]
#   other-kernel.sh -p cni-plugin --lib -- vlan
#
# The machine sees the files of this one and cannot change them: what it writes stays in its memory.
# It needs no root and no virtualisation, and is some ten times slower for that. The kernel is taken
# from the mirror that apt is configured with, and kept below target/kernel.
#
#   KERNEL=DIRECTORY    an unpacked package of another kernel
#   MEMORY=3072         of the machine, in MiB
#   TIME=1800           seconds after which it is ended
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
kernel=${KERNEL:-$here/target/kernel}
PATH=$PATH:/usr/sbin:/sbin

for program in qemu-system-x86_64:qemu-system-x86 busybox:busybox-static modprobe:kmod cpio:cpio; do
    command -v "${program%:*}" >/dev/null || lacking+=" ${program#*:}"
done
if [ -n "${lacking:-}" ]; then
    echo "missing; install with: sudo apt-get install --no-install-recommends$lacking" >&2
    exit 1
fi

if [ ! -d "$kernel" ]; then
    package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p' | head -1)
    mkdir -p "$kernel.new"
    (cd "$kernel.new" && apt-get download -qq "$package" && dpkg -x ./*.deb . && rm ./*.deb)
    mv "$kernel.new" "$kernel"
fi
release=$(ls "$kernel/lib/modules")
[ -e "$kernel/lib/modules/$release/modules.dep" ] || depmod -b "$kernel" "$release"

tests=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    tests+=("$1")
    shift
done
[ $# -eq 0 ] || shift
cd "$here"
cargo build --workspace
programs=$(cargo test --no-run "${tests[@]}" 2>&1 | tee /dev/stderr | sed -n 's/^ *Executable .*(\(.*\))$/\1/p')

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/initrd/{bin,proc,dev,lower,upper,root} "$work/job"

# Only what leads to the files of this machine is loaded from the first root.
modules=()
for module in virtio_pci 9pnet_virtio 9p overlay; do
    while read -r insmod file _; do
        [ "$insmod" = insmod ] && modules+=("$(basename "$file")") && cp "$file" "$work/initrd"
    done < <(modprobe -d "$kernel" -S "$release" --show-depends "$module")
done
cp "$(command -v busybox)" "$work/initrd/bin/busybox"
{
    echo '#!/bin/busybox sh'
    echo '/bin/busybox --install -s /bin'
    for module in "${modules[@]}"; do
        # Several depend on the same ones.
        echo "insmod /$module 2>/dev/null"
    done
    cat <<'INIT'
mount -t proc proc /proc
mount -t devtmpfs dev /dev
share=trans=virtio,version=9p2000.L,ro,msize=262144
mount -t 9p -o $share,cache=loose files /lower || poweroff -f
mount -t tmpfs upper /upper
mkdir /upper/new /upper/work /job
mount -t overlay -o lowerdir=/lower,upperdir=/upper/new,workdir=/upper/work overlay /root
mkdir -p /root/job
mount -t 9p -o $share job /root/job
mount --move /proc /root/proc
mount --move /dev /root/dev
exec switch_root /root /bin/bash /job/start
INIT
} >"$work/initrd/init"
chmod 755 "$work/initrd/init"
(cd "$work/initrd" && find . | cpio --quiet -o -H newc) >"$work/initrd.img"

{
    echo "mount -t sysfs sys /sys; mount -t tmpfs run /run"
    echo "mkdir -p /dev/shm /lib/modules/$release; mount -t tmpfs shm /dev/shm"
    printf 'mount --bind %q /lib/modules/%s\n' "$kernel/lib/modules/$release" "$release"
    # What is not loaded for those who are root in a sandbox only.
    echo "modprobe -a tun br_netfilter ip{,6}table_{nat,filter,mangle,raw}"
    echo "chmod 666 /dev/net/tun; ip link set lo up"
    declare -p PATH HOME | sed 's/^declare [^ ]*/export/'
    printf 'cd %q; uname -sr; status=0\n' "$here"
    for program in $programs; do
        printf '%q ' "$program" "$@"
        echo '</dev/null || status=1'
    done
    echo 'echo "status $status"; echo o >/proc/sysrq-trigger; sleep 60'
} >"$work/job/start"

timeout "${TIME:-1800}" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp "$(nproc)" \
    -m "${MEMORY:-3072}" -nodefaults -nographic -no-reboot -serial stdio \
    -virtfs "local,path=/,mount_tag=files,security_model=none,readonly=on,multidevs=remap" \
    -virtfs "local,path=$work/job,mount_tag=job,security_model=none,readonly=on" \
    -kernel "$kernel/boot/vmlinuz-$release" -initrd "$work/initrd.img" \
    -append "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off" </dev/null 2>&1 |
    sed -u 's/\r//g' | tee "$work/output" || true
grep -qx 'status 0' "$work/output"
