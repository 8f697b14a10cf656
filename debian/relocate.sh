#!/bin/sh
# relocate.sh STAGE VENV    makes the virtual environment STAGE/VENV work as /VENV, and leaves in it nothing that tells
# where or when it was built, nor what only pip needs.
set -eu

cd "$1/$2"
find bin -mindepth 1 ! -name 'python*' ! -name dlr-buffer -delete
sed -i "1s,.*,#!/$2/bin/python3," bin/dlr-buffer
sed -i '/^command = /d' pyvenv.cfg
rm -rf include
# pip's own notes: where a wheel lay, and the hashes of files as they were before.
find lib -path '*.dist-info/*' \( -name RECORD -o -name INSTALLER -o -name REQUESTED -o -name direct_url.json \) -delete
find lib -name __pycache__ -type d -prune -exec rm -rf {} +
# Sources of what is compiled, and type stubs, are of no use to a program.
find lib \( -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' -o -name '*.pyi' \) -delete
# Modules are no programs: some bring a first line and a mode as if they were. Line numbers stay.
find lib -name '*.py' -exec chmod a-x {} + -exec sed -i '1s,^#!.*,,' {} +
if grep -rlF "$OLDPWD" . >&2; then
	echo "the files above still name $OLDPWD, where they were built" >&2
	exit 1
fi
