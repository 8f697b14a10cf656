#!/bin/bash
# init.sh FOLDER NAME    becomes a systemd as PID 1 of a machine NAME that is a throwaway copy of this one.
# init.sh FOLDER --probe only tries the mounts that this takes, and fails with what the kernel said.
#
# Runs as root in fresh mount, pid, uts, ipc and cgroup namespaces (`machine.py` makes them). The machine's root is an
# overlay: what is written goes to a tmpfs, and vanishes with the namespaces. FOLDER/share is its /share. It has the
# network of the host, for pip; therefore nothing that this host has enabled is started in it.
set -euo pipefail
umask 022
FOLDER=$1
NAME=$2
LAYERS=$FOLDER/layers
ROOT=$LAYERS/root

mkdir -p "$LAYERS"
mount -t tmpfs -o mode=755,size=2g tmpfs "$LAYERS"
mkdir "$LAYERS"/{upper,work,root}
mount -t overlay -o "lowerdir=/,upperdir=$LAYERS/upper,workdir=$LAYERS/work,xino=off" overlay "$ROOT"
mount -t proc -o nosuid,nodev,noexec proc "$ROOT/proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$ROOT/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$ROOT/sys/fs/cgroup"
[ -x "$ROOT/lib/systemd/systemd" ] || { echo "/lib/systemd/systemd is on another file system than /" >&2; exit 1; }
[ "$NAME" != --probe ] || exit 0

# Sysctls are the host's own: let nothing in here change them.
mount --bind "$ROOT/proc/sys" "$ROOT/proc/sys"
mount -o remount,bind,ro "$ROOT/proc/sys"
mount -t tmpfs -o mode=755,nosuid tmpfs "$ROOT/dev"
for device in null zero full random urandom tty; do
	touch "$ROOT/dev/$device"
	mount --bind "/dev/$device" "$ROOT/dev/$device"
done
mkdir "$ROOT"/dev/{pts,shm}
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$ROOT/dev/pts"
ln -s pts/ptmx "$ROOT/dev/ptmx"
ln -s /proc/self/fd "$ROOT/dev/fd"
ln -s fd/0 "$ROOT/dev/stdin"
ln -s fd/1 "$ROOT/dev/stdout"
ln -s fd/2 "$ROOT/dev/stderr"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/dev/shm"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$ROOT/run"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/tmp"
mkdir -p "$ROOT/run/lock" "$ROOT/share"
mount --bind "$FOLDER/share" "$ROOT/share"

# An empty machine-id: systemd makes one up, and does not take this for a first boot.
: >"$ROOT/etc/machine-id"
: >"$ROOT/etc/fstab"
hostname "$NAME"

# Nothing that was enabled or is generated on the host, no old init script, and of systemd's own units only what a
# service needs: the journal and the bus.
UNITS=$ROOT/etc/systemd/system
mkdir -p "$UNITS" "$ROOT/etc/systemd/system-generators"
rm -rf "$UNITS"/*.wants "$UNITS"/*.requires "$ROOT"/etc/rc?.d
for generator in "$ROOT"/lib/systemd/system-generators/*; do
	ln -sf /dev/null "$ROOT/etc/systemd/system-generators/${generator##*/}"
done
for unit in getty.target systemd-{logind,networkd,resolved,timesyncd,udevd,update-utmp,firstboot}.service \
	systemd-{networkd,udevd-kernel,udevd-control}.socket dev-hugepages.mount sys-kernel-{debug,tracing}.mount \
	sys-fs-fuse-connections.mount; do
	ln -sf /dev/null "$UNITS/$unit"
done
# The kernel is the host's: no sysctl, module or audit setting of it is this machine's business.
for unit in systemd-{sysctl,binfmt,modules-load}.service systemd-journald-audit.socket; do
	ln -sf /dev/null "$UNITS/$unit"
done
mkdir -p "$ROOT/etc/systemd/journald.conf.d"
printf '[Journal]\nAudit=\nReadKMsg=no\n' >"$ROOT/etc/systemd/journald.conf.d/host-kernel.conf"
# What the host itself has installed of the service that is to be tested.
rm -rf "$UNITS"/dlr-buffer* "$ROOT"/usr/{local/,}lib/systemd/system/dlr-buffer* "$ROOT"/{etc,opt,var/lib}/dlr-buffer \
	"$ROOT/usr/local/bin/dlr-buffer" "$ROOT"/{etc,usr/lib}/{sysusers,tmpfiles}.d/dlr-buffer.conf

cd "$ROOT"
mkdir -p .old
pivot_root . .old
# Without shared propagation the credentials that systemd hands to a service are silently empty.
exec env -i container=dlr-buffer-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM=dumb \
	/bin/bash -c 'cd / && umount -l /.old && rmdir /.old && mount --make-rshared / &&
		exec /lib/systemd/systemd --unit=multi-user.target --log-target=journal systemd.default_timeout_start_sec=30' </dev/null
