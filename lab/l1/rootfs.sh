#!/bin/bash
# rootfs.sh OUTDIR: OUTDIR/{root,kernel}, the host's root file system and its kernel package, from Debian trixie. Its QEMU
# also runs the host itself: that must be 9 or later (igb) and before 11 (disable-acs). Must be root.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
mkdir -p "$out/kernel"

# The mirror that this machine's own apt uses.
mirror=$(apt-get indextargets --format '$(SITE) $(COMPONENT) $(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
    awk '$2 == "main" && /\/debian\/? *$/ { print $1; exit }')
[ -n "$mirror" ] || { echo "rootfs.sh: apt's sources name no Debian mirror" >&2; exit 1; }
keys=/usr/share/keyrings/debian-archive-keyring.gpg

# shellcheck disable=SC2016 # the hook's variables are mmdebstrap's
mmdebstrap --quiet --variant=minbase --mode=root --skip=check/empty,cleanup/apt/lists \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --include="$(grep -v '^#' "$here/packages" | paste -sd,)" \
    trixie "$out/root" "deb [signed-by=$keys] $mirror trixie main"

# The kernel is not installed: of its modules the host gets few, and no initramfs tool.
chroot=(-o "Dir=$out/root" -o "Dir::State::status=$out/root/var/lib/dpkg/status" -o APT::Sandbox::User=root)
kernel=$(apt-cache "${chroot[@]}" depends --important linux-image-amd64 |
    awk '/Depends: linux-image-/ { print $2; exit }')
(cd "$out" && apt-get -qq "${chroot[@]}" download "$kernel")
dpkg-deb -x "$out/$kernel"_*.deb "$out/kernel"
rm -rf "$out/$kernel"_*.deb "$out"/root/var/lib/apt/lists/* "$out"/root/var/cache/apt/*
