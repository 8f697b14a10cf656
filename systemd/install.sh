#!/bin/sh
# Installs dlr-buffer as a service of this machine. `make install` runs it, as root, in the project's folder, with PYTHON
# and PREFIX set. What is already as it should be is left alone, so an upgrade is the same again.
set -eu
umask 022 # whatever root's own is: the service's user has to read the program

VENV=$PREFIX/venv
MARK=$VENV/.made-by-make-install # only an environment with this is ever made anew, or removed by uninstall.sh
LINK=/usr/local/bin/dlr-buffer
ETC=/etc/dlr-buffer
UNITS=/usr/local/lib/systemd/system # not /etc: an admin masks and overrides there

fail() {
	echo "$*" >&2
	exit 1
}

# Fails where ProtectHome= of the unit would hide $1 from the daemon.
outside_homes() {
	case $1/ in
	/home/* | /root/* | /run/user/*)
		fail "$1 is below a home folder, which the service can't see. $2" ;;
	esac
}

[ "$(id -u)" = 0 ] || fail "Installing a service takes root: sudo make install"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
	fail "$PYTHON is not Python 3.11 or newer. Name one that is: sudo make install PYTHON=/usr/bin/python3.12"
outside_homes "$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')" \
	"Name another Python: sudo make install PYTHON=/usr/bin/python3"
case $PREFIX in
/*) outside_homes "$PREFIX" "Name another place: sudo make install PREFIX=/opt/dlr-buffer" ;;
*) fail "PREFIX is an absolute path, such as /opt/dlr-buffer, not $PREFIX" ;;
esac
[ ! -e "$VENV" ] || [ -e "$MARK" ] ||
	fail "$VENV is there already, and was not made by make install. Move it away, or name another PREFIX."
[ ! -e "$LINK" ] || [ -L "$LINK" ] ||
	fail "$LINK is there already, and is no link made by make install. Move it away."

version() {
	"$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}
if [ "$(version "$VENV/bin/python")" != "$(version "$PYTHON")" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
	echo "making the virtual environment $VENV (Python $(version "$PYTHON"))"
	mkdir -p "$PREFIX"
	"$PYTHON" -m venv --clear "$VENV" || {
		rm -rf "$VENV"
		fail "$PYTHON could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv"
	}
	touch "$MARK"
fi
pip_install() {
	"$VENV/bin/python" -m pip --disable-pip-version-check --no-input install --quiet "$@" ||
		fail "Installing failed; pip says above why. Nothing else was changed: mend it and run make install again."
}
echo "installing what dlr-buffer needs into it, each file checked against its hash"
pip_install --require-hashes --requirement requirements.txt
echo "installing dlr-buffer into it"
pip_install --no-deps --force-reinstall .

echo "linking $LINK"
mkdir -p "$(dirname "$LINK")"
ln -sfn "$VENV/bin/dlr-buffer" "$LINK"

echo "making the user dlr-buffer and the groups dlr-buffer, dlr-buffer-client and dlr-buffer-admin, unless they are there"
install -D -m 0644 systemd/sysusers.d/dlr-buffer.conf /etc/sysusers.d/dlr-buffer.conf
systemd-sysusers dlr-buffer.conf

# keep_or_put SOURCE FILE: what an admin wrote is never overwritten.
keep_or_put() {
	if [ -e "$2" ]; then
		echo "keeping $2"
	else
		echo "writing $2"
		install -m 0640 -o root -g dlr-buffer "$1" "$2"
	fi
}
[ -d "$ETC" ] || install -d -m 0755 "$ETC"
keep_or_put config/config.toml "$ETC/config.toml"
keep_or_put /dev/null "$ETC/default.password"

for unit in dlr-buffer.service dlr-buffer-client.socket dlr-buffer-admin.socket; do
	echo "writing $UNITS/$unit"
	install -D -m 0644 "systemd/$unit" "$UNITS/$unit"
done
install -D -m 0644 systemd/tmpfiles.d/dlr-buffer.conf /etc/tmpfiles.d/dlr-buffer.conf
if [ -d /run/systemd/system ]; then
	systemd-tmpfiles --create dlr-buffer.conf
	systemctl daemon-reload
	if systemctl --quiet is-active dlr-buffer; then
		echo "Installed. The daemon still runs as it was; now: sudo systemctl restart dlr-buffer"
		exit
	fi
fi
cat <<END
Installed. Next:
  1. sudo editor $ETC/config.toml        url and login
  2. sudo editor $ETC/default.password   the password alone; then: sudo dlr-buffer check-config
  3. sudo systemctl enable --now dlr-buffer
END
