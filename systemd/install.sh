#!/bin/sh
# Installs dlr-buffer as a service of this machine. `make install` runs it, as root, in the project's folder, with PYTHON
# and PREFIX set. What is already as it should be is left alone, so an upgrade is the same again.
set -eu
umask 022 # whatever root's own is: the service's user has to read the program

VENV=$PREFIX/venv # a link to the environment in use: venv.1 or another number, whose scripts hold its own name
MARK=.made-by-make-install   # only an environment with this in it is ever removed, here or by uninstall.sh
LIST=$PREFIX/installed-files # what lies outside of PREFIX, for uninstall.sh and for the next upgrade
LINK=/usr/local/bin/dlr-buffer
SHARE=/usr/local/share
UNITS=/usr/local/lib/systemd/system # not /etc: an admin masks and overrides there
ETC=/etc/dlr-buffer

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
command -v systemd-sysusers >/dev/null ||
	fail "systemd-sysusers is not here, which makes users and groups. On Debian and Ubuntu: apt install systemd"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
	fail "$PYTHON is not Python 3.11 or newer. Name one that is: sudo make install PYTHON=/usr/bin/python3.12"
outside_homes "$("$PYTHON" -c 'import os, sys; print(os.path.realpath(sys.base_prefix))')" \
	"Name another Python: sudo make install PYTHON=/usr/bin/python3"
case $PREFIX in
/*) outside_homes "$PREFIX" "Name another place: sudo make install PREFIX=/opt/dlr-buffer" ;;
*) fail "PREFIX is an absolute path, such as /opt/dlr-buffer, not $PREFIX" ;;
esac
[ ! -e "$VENV" ] || [ -e "$VENV/$MARK" ] ||
	fail "$VENV is there already, and was not made by make install. Move it away, or name another PREFIX."
[ ! -e "$LINK" ] || [ -L "$LINK" ] ||
	fail "$LINK is there already, and is no link made by make install. Move it away."
[ ! -e /var/lib/dpkg/info/dlr-buffer.prerm ] ||
	fail "The Debian package dlr-buffer is installed. Upgrade that (make deb), or remove it first: apt remove dlr-buffer"

# Each installation makes an environment of its own, and all goes over to it at the end: one that breaks off changes
# nothing, and a daemon that imports something late finds what belongs to the rest of it.
number=1
while [ -e "$VENV.$number" ]; do number=$((number + 1)); done
NEW=$VENV.$number
# What only the installation needs goes where it is gone afterwards, and is pinned and checked like all else: left to
# itself, pip would fetch a build backend of its own choice.
work=$(mktemp -d)
unfinished=$NEW
trap 'rm -rf "$work" ${unfinished:+"$unfinished"}' EXIT
trap 'exit 1' INT TERM

pip_install() {
	"$NEW/bin/python" -m pip --disable-pip-version-check --no-input install --quiet "$@" ||
		fail "Installing failed; pip says above why. Nothing was changed: mend it and run make install again."
}
echo "making the virtual environment $NEW (Python $("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])'))"
mkdir -p "$NEW"
touch "$NEW/$MARK"
"$PYTHON" -m venv "$NEW" ||
	fail "$PYTHON could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv"
echo "installing what dlr-buffer needs into it, each file checked against its hash"
pip_install --require-hashes --only-binary :all: --requirement requirements.txt
pip_install --require-hashes --only-binary :all: --requirement requirements-build.txt --no-compile --target "$work/tools"
echo "installing dlr-buffer into it"
export PYTHONPATH="$work/tools"
pip_install --no-deps --no-build-isolation .
"$NEW/bin/python" -B -m share "$work/share" ||
	fail "Making the manual pages failed; above it says why. Nothing was changed."
unset PYTHONPATH

echo "going over to it: $VENV"
before=$(readlink "$VENV" || true)
ln -sfn "${NEW##*/}" "$VENV.next"
if [ -d "$VENV" ] && [ ! -L "$VENV" ]; then
	# Made before it was a link. The daemon that runs from it finds the new program under its path until it is
	# restarted, as it did after every upgrade of that time.
	before=venv.0
	mv -T "$VENV" "$PREFIX/$before"
fi
mv -T "$VENV.next" "$VENV"
unfinished=""
# The one before stays for the daemon, which runs from it until it is restarted. Older ones go, and what was left of an
# installation that was killed, unless something runs from them even now.
for made in "$VENV".[0-9]*; do
	case ${made##*/} in "${NEW##*/}" | "$before") continue ;; esac
	[ ! -e "$made/$MARK" ] || grep -qsF "$made/" /proc/[0-9]*/maps || rm -rf "$made"
done

echo "linking $LINK"
mkdir -p "$(dirname "$LINK")"
ln -sfn "$VENV/bin/dlr-buffer" "$LINK"

# put SOURCE FILE: install one file outside of PREFIX, and note it.
put() {
	install -D -m 0644 "$1" "$2"
	echo "$2" >>"$work/list"
}
echo "writing the manual pages and the completion for bash, zsh and fish to $SHARE"
for file in $(cd "$work/share" && find . -type f); do
	put "$work/share/$file" "$SHARE/${file#./}"
done

echo "making the user dlr-buffer and the groups dlr-buffer, dlr-buffer-client and dlr-buffer-admin, unless they are there"
for file in systemd/sysusers.d/*.conf; do
	put "$file" "/etc/sysusers.d/${file##*/}"
done
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

sockets_changed=""
for file in systemd/*.service systemd/*.socket; do
	echo "writing $UNITS/${file##*/}"
	case $file in
	*.socket) [ ! -e "$UNITS/${file##*/}" ] || cmp -s "$file" "$UNITS/${file##*/}" || sockets_changed=yes ;;
	esac
	put "$file" "$UNITS/${file##*/}"
done
[ ! -e /etc/systemd/system/dlr-buffer.service ] ||
	echo "/etc/systemd/system/dlr-buffer.service is there and takes the place of the unit that was installed now"
for file in systemd/tmpfiles.d/*.conf; do
	put "$file" "/etc/tmpfiles.d/${file##*/}"
done

# What an earlier version had brought, and this one has not.
if [ -e "$LIST" ]; then
	while read -r file; do
		grep -qxF "$file" "$work/list" || rm -f "$file"
	done <"$LIST"
fi
install -m 0644 "$work/list" "$LIST"

if [ -d /run/systemd/system ]; then
	systemd-tmpfiles --create dlr-buffer.conf
	systemctl daemon-reload
	if systemctl --quiet is-active dlr-buffer; then
		echo "Installed. The daemon still runs as it was; now: sudo systemctl restart dlr-buffer"
		[ -z "$sockets_changed" ] ||
			echo "The socket units have changed; they hold after: sudo systemctl stop dlr-buffer; sudo systemctl start dlr-buffer"
		exit
	fi
fi
cat <<END
Installed. Next:
  1. sudo editor $ETC/config.toml        url and login
  2. sudo editor $ETC/default.password   the password alone; then: sudo dlr-buffer check-config
  3. sudo systemctl enable --now dlr-buffer
END
