#!/usr/bin/env bash
# Builds the container image out of static programs, without a daemon and without root.
#
#   image.sh DIRECTORY ARCHIVE
#
# DIRECTORY holds flanneld and flannel, of any one architecture. ARCHIVE is an OCI archive:
# podman load -i ARCHIVE, ctr images import ARCHIVE, skopeo copy oci-archive:ARCHIVE docker://…
# IMAGE is its name; PODMAN may be a podman with options, or buildah.
set -euo pipefail
programs=$1 archive=$2
here=$(cd "$(dirname "$0")" && pwd)
image=${IMAGE:-localhost/flannel:latest}

scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT
read -ra podman <<<"${PODMAN:-podman --root $scratch/storage --runroot $scratch/run --storage-driver vfs}"

# e_machine of the ELF header.
case $(od -An -tu2 -j18 -N2 "$programs/flanneld") in
*62) architecture=amd64 ;;
*183) architecture=arm64 ;;
*) echo "$programs/flanneld is no program for x86_64 or aarch64" >&2 && exit 1 ;;
esac
for program in flanneld flannel; do
    if readelf -lW "$programs/$program" | grep -q INTERP; then
        echo "$programs/$program needs libraries, which are not in the image: make build" >&2
        exit 1
    fi
done

# What flannel's manifests call is where its own images have it: /opt/bin/flanneld and
# /opt/bin/install-conf, /flannel of the image for the plugin, and cp. The empty directories are
# where the manifests mount something, so that a runtime has nothing to make in a read-only root.
root=$scratch/context/root
mkdir -p "$root"/{bin,opt/bin,opt/cni/bin,run/flannel,etc/cni/net.d,etc/kube-flannel}
install -m 755 "$programs/flanneld" "$root/opt/bin/"
install -m 755 "$programs/flannel" "$root/"
ln -s flanneld "$root/opt/bin/install-conf"
ln -s ../opt/bin/flanneld "$root/bin/cp"
ln -s ../../flannel "$root/opt/bin/flannel"

rm -f "$archive"
"${podman[@]}" build --quiet --platform "linux/$architecture" --timestamp 0 --format oci \
    --tag "$image" --file "$here/Containerfile" "$scratch/context" >/dev/null
"${podman[@]}" push --quiet "$image" "oci-archive:$archive:$image"
