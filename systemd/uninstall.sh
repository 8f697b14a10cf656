#!/bin/sh
# Removes what install.sh made, but for the queue, the configuration and the user that owns them. `make uninstall` runs
# it, as root, with PREFIX set as for `make install`.
set -eu

VENV=$PREFIX/venv
MARK=$VENV/.made-by-make-install
LINK=/usr/local/bin/dlr-buffer
UNITS=/usr/local/lib/systemd/system # not /etc: an admin masks and overrides there

if [ "$(id -u)" != 0 ]; then
	echo "Removing a service takes root: sudo make uninstall" >&2
	exit 1
fi
if [ -e "$UNITS/dlr-buffer.service" ]; then
	echo "stopping the service and removing its units"
	if [ -d /run/systemd/system ]; then
		systemctl --quiet disable --now dlr-buffer.service dlr-buffer-client.socket dlr-buffer-admin.socket
	fi
	rm -f "$UNITS"/dlr-buffer.service "$UNITS"/dlr-buffer-client.socket "$UNITS"/dlr-buffer-admin.socket \
		/etc/systemd/system/*.target.wants/dlr-buffer.service /etc/systemd/system/*.target.wants/dlr-buffer-*.socket \
		/etc/sysusers.d/dlr-buffer.conf /etc/tmpfiles.d/dlr-buffer.conf
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
echo "Left as they are: the queue in /var/lib/dlr-buffer, /etc/dlr-buffer, the user and the groups dlr-buffer, dlr-buffer-client, dlr-buffer-admin."
