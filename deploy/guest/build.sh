#!/bin/bash
# build.sh OUTDIR: build the guest image set OUTDIR/{vmlinuz,initrd.img,root.img,manifest.json}.
#
# Everything comes from Debian packages through this machine's own apt sources; no package is installed here and no
# script of a package is run. Must be root (chroot, file owners). Exits at once when OUTDIR was made from the same
# inputs; remove OUTDIR to take up newer packages.
set -euo pipefail
umask 022

# The cloud kernel has ext4 built in and boots faster under emulation than the general one; reference BLAS loads faster
# than OpenBLAS (30 MB) and adds in one order only, so results do not depend on the number of CPUs.
PACKAGES=(libc6 zlib1g libexpat1 libffi8 libgcc-s1 libstdc++6 libgfortran5 libquadmath0 libblas3 liblapack3
    libpython3.11-minimal libpython3.11-stdlib python3.11-minimal python3-numpy busybox-static)
KERNEL=linux-image-cloud-amd64
MODULES=(virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console
    pvpanic pvpanic-mmio)  # a panic is told to the host

here=$(cd "$(dirname "$0")" && pwd)
[ $# = 1 ] || { echo "usage: $0 OUTDIR" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "$0: must be root" >&2; exit 1; }
out=$(realpath -m "$1")
inputs=$(cd "$here" && sha256sum build.sh init gpupool_guest.py train.py | sha256sum | cut -d' ' -f1)
if grep -qs "\"inputs\": \"$inputs\"" "$out/manifest.json"; then
    echo "guest image in $out is up to date"
    exit 0
fi

mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$out.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
debs=$work/debs root=$work/root initrd=$work/initrd new=$work/new
mkdir -p "$debs" "$root" "$initrd"/{bin,dev,proc,sys,root,modules} "$new"

fetch() {
    kernel=$(apt-cache depends --important "$KERNEL" | awk '/Depends: linux-image-/ { print $2; exit }')
    [ -n "$kernel" ] && (cd "$debs" && apt-get -qq -o APT::Sandbox::User=root download "$kernel" "${PACKAGES[@]}")
}
fetch || { apt-get -qq update && fetch; }

# --- root file system
for deb in "$debs"/*.deb; do
    case $deb in */linux-image-*) dpkg-deb -x "$deb" "$work/kernel" ;; *) dpkg-deb -x "$deb" "$root" ;; esac
done
libs=usr/lib/x86_64-linux-gnu
ln -s blas/libblas.so.3 "$root/$libs/libblas.so.3"      # what update-alternatives would do
ln -s lapack/liblapack.so.3 "$root/$libs/liblapack.so.3"
ln -s python3.11 "$root/usr/bin/python3"
mkdir -p "$root"/{dev,proc,sys,run,tmp,mnt,root,opt/gpupool}
for applet in $("$root/bin/busybox" --list); do
    [ -e "$root/usr/bin/$applet" ] || [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
done
printf 'root:x:0:0:root:/root:/bin/sh\n' > "$root/etc/passwd"
printf 'root:x:0:\n' > "$root/etc/group"
printf '127.0.0.1 localhost\n' > "$root/etc/hosts"
install -m 0644 "$here/gpupool_guest.py" "$here/train.py" "$root/opt/gpupool/"
rm -rf "$root"/usr/share/{doc,man,lintian,info,applications,pixmaps,bug} "$root/$libs/gconv"
python=$root/usr/lib/python3.11 numpy=$root/usr/lib/python3/dist-packages/numpy
rm -rf "$python"/{lib2to3,test,distutils,pydoc_data,idlelib,ensurepip,turtledemo} "$numpy"/{f2py,distutils,doc}
find "$root/usr" -type d -name tests -prune -exec rm -rf {} +
find "$root" -name '*.a' -delete
# with the guest's own interpreter, so that the files' magic number is right
chroot "$root" /usr/bin/python3.11 -I -m compileall -q /usr/lib/python3.11 /usr/lib/python3/dist-packages /opt/gpupool
mv "$root"/opt/gpupool/__pycache__/gpupool_guest.cpython-311.pyc "$root/opt/gpupool/gpupool_guest.pyc"
size_kib=$(($(du -sk "$root" | cut -f1) * 115 / 100 + 4096))
mke2fs -q -t ext4 -O ^has_journal,^metadata_csum -m 0 -L gpupool-root -d "$root" "$new/root.img" "${size_kib}k"

# --- kernel and initrd (not compressed: the emulated CPU would have to unpack it)
release=$(ls "$work/kernel/lib/modules")
cp "$work/kernel/boot/vmlinuz-$release" "$new/vmlinuz"
cp "$root/bin/busybox" "$initrd/bin/busybox"
for module in "${MODULES[@]}"; do
    find "$work/kernel/lib/modules/$release" -name "$module.ko" -exec cp {} "$initrd/modules/" \;
    [ -e "$initrd/modules/$module.ko" ] || { echo "$0: kernel $release has no module $module" >&2; exit 1; }
    echo "$module" >> "$initrd/modules/order"
done
install -m 0755 "$here/init" "$initrd/init"
(cd "$initrd" && find . | LC_ALL=C sort | cpio -o -H newc --quiet) > "$new/initrd.img"

# --- manifest, then everything at once under its final name
{
    printf '{\n  "inputs": "%s",\n  "kernel": "%s",\n  "files": {\n' "$inputs" "$release"
    (cd "$new" && sha256sum initrd.img root.img vmlinuz) | sed -E 's/^(\S+)\s+(.*)$/    "\2": "\1",/; $ s/,$//'
    printf '  },\n  "packages": {\n'
    for deb in "$debs"/*.deb; do dpkg-deb -W --showformat='    "${Package}": "${Version}",\n' "$deb"; done | sed '$ s/,$//'
    printf '  }\n}\n'
} > "$work/manifest.json"
mv "$work/manifest.json" "$new/manifest.json"
chmod 0755 "$new"
chmod 0444 "$new"/*
rm -rf "$out.old"
if [ -e "$out" ]; then mv "$out" "$out.old"; fi
mv "$new" "$out"
rm -rf "$out.old"
echo "guest image built in $out (kernel $release)"
