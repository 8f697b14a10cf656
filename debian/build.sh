#!/bin/sh
# Builds dist/dlr-buffer_VERSION_ARCH.deb. `make deb` runs it, in the project's folder; it takes no root. The work tree
# is copied first, so that nothing but dist/ is written to.
set -eu
umask 022

fail() {
	echo "$*" >&2
	exit 1
}

for tool in dpkg-buildpackage dh dh_installsysusers; do
	command -v "$tool" >/dev/null ||
		fail "$tool is not there. A Debian package is built on Debian or Ubuntu: apt install debhelper dpkg-dev python3-venv"
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir "$work/dlr-buffer"
tar --create --exclude-vcs --exclude=./.venv --exclude=./dist --exclude='./.*_cache' --exclude=./.hypothesis \
	--exclude=__pycache__ --exclude=./debian/.build . | tar --extract --no-same-owner --directory="$work/dlr-buffer"
# A clone's own umask must not reach the package.
chmod -R u=rwX,go=rX "$work/dlr-buffer"
# dh gives the build a home folder of its own: pip's settings and what it fetched before are in the caller's.
export PIP_CACHE_DIR="${PIP_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/pip}"
if [ -z "${PIP_CONFIG_FILE:-}" ] && [ -e "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" ]; then
	export PIP_CONFIG_FILE="${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf"
fi
echo "building the Debian package"
(cd "$work/dlr-buffer" && dpkg-buildpackage --build=binary --no-sign) >"$work/log" 2>&1 || {
	tail -n 30 "$work/log" >&2
	fail "Building the package failed; its last lines are above."
}
mkdir -p dist
for package in "$work"/*.deb; do
	mv "$package" dist/
	echo "dist/${package##*/}"
done
