#!/bin/sh
# Prints the path of the Python to build on: 3.12 or 3.11, from the system first, else one that uv can fetch.
# Usage: find_python.sh UV FOLDER; PYTHON in the environment names an interpreter to try before all others.
set -eu
uv=$1 folder=$2
supported='import sys; print(sys.executable); sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))'
for candidate in ${PYTHON:-} python3.12 python3.11 python3 "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[12].*/bin/python; do
	if found=$("$candidate" -c "$supported" 2>/dev/null); then
		echo "$found"
		exit
	fi
done
export UV_PYTHON_INSTALL_DIR="$folder" UV_PYTHON_DOWNLOADS=automatic
echo "setup: Python 3.12, for this machine has neither 3.11 nor 3.12" >&2
if "$uv" python install --quiet --no-bin 3.12 2>/dev/null; then
	exec "$uv" python find --managed-python 3.12
fi
echo "setup: no Python 3.11 or 3.12 on PATH, and none can be downloaded: install python3.12 or python3.11" >&2
exit 1
