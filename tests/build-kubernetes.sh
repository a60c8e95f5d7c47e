#!/usr/bin/env bash
# Builds kube-apiserver, kube-controller-manager and kubelet 1.20 from Debian's source package, for the
# tests that run against a real Kubernetes (`make test-kubernetes`). Debian has no binary package of them.
# As root on Debian 12; takes about ten minutes of one core and 3 GB, of which 300 MB stay.
# usage: tests/build-kubernetes.sh DIRECTORY   leaves the programs in DIRECTORY
set -euo pipefail

VERSION=1.20.2
PROGRAMS="kube-apiserver kube-controller-manager kubelet"
# The last release of Debian that carries this source.
SUITE=bullseye

target=$(readlink -m "${1:?usage: build-kubernetes.sh DIRECTORY}")
# shellcheck disable=SC2086
if (cd "$target" 2>/dev/null && ls $PROGRAMS >/dev/null 2>&1); then
    exit 0
fi
work=$target/work
mkdir -p "$work/lists/partial" "$work/go/src/k8s.io"

apt-get install -y -q --no-install-recommends golang-1.19-go rsync jq make >/dev/null

# The mirror that this machine uses already; its lists and sources stay as they are.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
    awk '$2 == "bookworm" { print $1; exit }')
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg check-valid-until=no]" \
    "$mirror $SUITE main" >"$work/sources.list"
cat >"$work/apt.conf" <<CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$work/lists";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
CONF
source=$work/go/src/k8s.io/kubernetes
if [ ! -d "$source" ]; then
    cd "$work"
    APT_CONFIG=$work/apt.conf apt-get update -q
    # Debian's own changes are not needed, and a mirror may have dropped them: the original is enough.
    APT_CONFIG=$work/apt.conf apt-get source -q --download-only kubernetes || true
    tar xf kubernetes_*.orig.tar.gz
    mv "kubernetes-$VERSION" "$source"
fi

cd "$source"
export PATH=/usr/lib/go-1.19/bin:$PATH GOCACHE=$work/cache CGO_ENABLED=0
if [ ! -s pkg/generated/openapi/zz_generated.openapi.go ]; then
    KUBE_GIT_VERSION=v$VERSION KUBE_GIT_COMMIT=none KUBE_GIT_TREE_STATE=clean \
        KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20 make generated_files
fi
export GOPATH=$work/go GO111MODULE=off
flags="-s -w"
for package in component-base/version client-go/pkg/version; do
    path=k8s.io/kubernetes/vendor/k8s.io/$package
    flags+=" -X $path.gitVersion=v$VERSION -X $path.gitMajor=1 -X $path.gitMinor=20"
done
for program in $PROGRAMS; do
    go build -ldflags "$flags" -o "$work/bin/" "./cmd/$program"
done
mv "$work"/bin/* "$target"
chmod -R u+w "$work" && rm -rf "$work"
ls -l "$target"
