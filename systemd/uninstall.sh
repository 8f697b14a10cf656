#!/bin/sh
# Removes what install.sh made. The queue, the configuration and the user that owns them stay, unless PURGE is "yes".
# `make uninstall` runs it, as root, with PREFIX set as for `make install`.
set -eu

VENV=$PREFIX/venv
MARK=.made-by-make-install
LIST=$PREFIX/installed-files
LINK=/usr/local/bin/dlr-buffer
UNITS=/usr/local/lib/systemd/system
QUEUE=/var/lib/dlr-buffer
ETC=/etc/dlr-buffer

fail() {
	echo "$*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || fail "Removing a service takes root: sudo make uninstall"
case ${PURGE:-no} in
yes | no) ;;
*) fail "PURGE is yes (the queue, the configuration, the user and the groups go too) or no, not $PURGE" ;;
esac
if [ -e /var/lib/dpkg/info/dlr-buffer.prerm ]; then
	fail "The Debian package dlr-buffer is installed. Remove that with apt: apt remove dlr-buffer, or apt purge dlr-buffer"
fi

# Half of it would go, and the rest be left to nobody.
installed=$(readlink "$LINK" || true)
case $installed in
"$VENV/bin/dlr-buffer") ;;
*/venv/bin/dlr-buffer)
	fail "The program is not in $PREFIX. Name where it is: sudo make uninstall PREFIX=${installed%/venv/bin/dlr-buffer}" ;;
esac

# 0.1.0 had its one unit there.
if [ -e "$UNITS/dlr-buffer.service" ] || [ -e /etc/systemd/system/dlr-buffer.service ]; then
	echo "stopping the service and removing its units"
	units=dlr-buffer.service
	for file in "$UNITS"/dlr-buffer*.socket; do
		[ ! -e "$file" ] || units="$units ${file##*/}"
	done
	if [ -d /run/systemd/system ]; then
		# shellcheck disable=SC2086 # names of units, one a word
		systemctl --quiet disable --now $units
	fi
	rm -f "$UNITS"/dlr-buffer*.service "$UNITS"/dlr-buffer*.socket /etc/systemd/system/dlr-buffer.service \
		/etc/systemd/system/*.target.wants/dlr-buffer.service /etc/systemd/system/*.target.wants/dlr-buffer-*.socket
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
	fi
fi
rm -rf /run/dlr-buffer
if [ -e "$LIST" ]; then
	echo "removing the manual pages, the completion and the entries for systemd"
	while read -r file; do
		rm -f "$file"
	done <"$LIST"
	rm "$LIST"
fi
if [ "$installed" = "$VENV/bin/dlr-buffer" ]; then
	echo "removing $LINK"
	rm "$LINK"
fi
for made in "$VENV" "$VENV".[0-9]*; do # the first is a link to one of the others, or of a time before there were others
	if [ -e "$made/$MARK" ]; then
		echo "removing $made"
		rm -rf "$made"
		rmdir "$PREFIX" 2>/dev/null || true # unless it holds something else, or is a mount point
	fi
done
if [ "${PURGE:-no}" = no ]; then
	echo "Left as they are: the queue in $QUEUE, $ETC, the user dlr-buffer and the groups dlr-buffer, dlr-buffer-client,"
	echo "dlr-buffer-admin. sudo make uninstall PURGE=yes removes these too, with all messages that still wait."
	exit
fi
echo "removing the queue in $QUEUE, and $ETC"
for folder in "$QUEUE" "$ETC"; do
	if mountpoint --quiet --nofollow "$folder"; then
		find "$folder" -mindepth 1 -delete
		echo "$folder is a mount point, and stays, empty"
	else
		rm -rf "$folder"
	fi
done
echo "removing the user dlr-buffer and the groups dlr-buffer, dlr-buffer-client and dlr-buffer-admin"
if getent passwd dlr-buffer >/dev/null; then
	userdel dlr-buffer
fi
for group in dlr-buffer dlr-buffer-client dlr-buffer-admin; do # userdel takes the first along, on most systems
	if getent group $group >/dev/null; then
		groupdel $group
	fi
done
