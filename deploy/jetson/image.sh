#!/bin/sh
# Puts the agent into the root file system that NVIDIA's flash tools write to a Jetson (Linux_for_Tegra),
# so that every device is flashed with it. No identity goes into an image: each device enrols itself.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

if [ $# -lt 2 ] || [ ! -d "$1" ] || [ ! -d "$2" ]; then
	echo "usage: image.sh Linux_for_Tegra/rootfs WHEELHOUSE [options of install.sh]" >&2
	exit 2
fi
rootfs=$(CDPATH='' cd -- "$1" && pwd)
wheelhouse=$2
shift 2

if [ "$(id -u)" != 0 ]; then
	echo "image.sh: run it as root: it enters the root file system" >&2
	exit 1
fi
for file in bin/sh etc/os-release usr/bin/python3; do
	if [ ! -e "$rootfs/$file" ]; then
		echo "image.sh: $rootfs has no $file: unpack the sample root file system and run apply_binaries.sh first" >&2
		exit 1
	fi
done
# Its programs are aarch64's: another machine runs them by qemu-user-static and binfmt_misc.
if ! chroot "$rootfs" /bin/sh -c true 2>/dev/null; then
	echo "image.sh: cannot run its programs: apt-get install qemu-user-static binfmt-support" >&2
	exit 1
fi

unmount() {
	umount "$rootfs/proc" 2>/dev/null || true
}
trap unmount EXIT
mount -t proc proc "$rootfs/proc"
"$here/install.sh" --root "$rootfs" --wheelhouse "$wheelhouse" "$@"
if [ -e "$rootfs/var/lib/neural-bridge/identity/identity.json" ]; then
	echo "image.sh: the image holds an identity: remove it, or all devices share it" >&2
	exit 1
fi
echo "image.sh: done. Flash it: sudo ./l4t_initrd_flash.sh BOARD nvme0n1p1"
