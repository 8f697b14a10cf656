#!/bin/sh
# Removes what install.sh made, but for the queue, the configuration and the user that owns them. `make uninstall` runs
# it, as root, with PREFIX set as for `make install`.
set -eu

VENV=$PREFIX/venv
MARK=$VENV/.made-by-make-install
LINK=/usr/local/bin/dlr-buffer
UNIT=/etc/systemd/system/dlr-buffer.service

if [ "$(id -u)" != 0 ]; then
	echo "Removing a service takes root: sudo make uninstall" >&2
	exit 1
fi
if [ -e "$UNIT" ]; then
	echo "stopping the service and removing $UNIT"
	if [ -d /run/systemd/system ]; then
		systemctl --quiet disable --now dlr-buffer
	fi
	rm -f "$UNIT" /etc/systemd/system/multi-user.target.wants/dlr-buffer.service
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
	fi
fi
if [ "$(readlink "$LINK")" = "$VENV/bin/dlr-buffer" ]; then
	echo "removing $LINK"
	rm "$LINK"
fi
if [ -e "$MARK" ]; then
	echo "removing $VENV"
	rm -rf "$VENV"
	rmdir --ignore-fail-on-non-empty "$PREFIX"
fi
echo "Left as they are: the queue in /var/lib/dlr-buffer, /etc/dlr-buffer, the user and the group dlr-buffer."
