# shellcheck shell=sh disable=SC2034,SC2154
# What the installers of deploy/jetson and deploy/cloud do alike; each reads this file.
# They set: root (the root file system under which they install, or empty), dry (yes or no), python.

say() { printf 'install: %s\n' "$*"; }
fail() {
	printf 'install: %s\n' "$*" >&2
	exit 1
}
# Run a command, or only print it.
do_it() {
	if [ "$dry" = yes ]; then
		printf 'would run:'
		printf ' %s' "$@"
		printf '\n'
	else
		"$@"
	fi
}
# A command of the target: where DIR is a whole system (an image), inside it.
inside() {
	if [ -n "$root" ] && [ -x "$root/bin/sh" ]; then
		do_it chroot "$root" "$@"
	else
		do_it "$@"
	fi
}
value() { [ $# -ge 2 ] && [ -n "$2" ] || fail "$1 needs a value (see --help)"; }

# systemd runs on this machine, and this machine is the target.
live() { [ -z "$root" ] && [ -d /run/systemd/system ]; }

# Copy a file if its content differs.
put() { # mode source target
	if [ -f "$3" ] && cmp -s "$2" "$3"; then
		return 0
	fi
	say "writes $3"
	do_it mkdir -p "$(dirname "$3")"
	do_it install -m "$1" "$2" "$3.new"
	do_it mv -f "$3.new" "$3"
}

drop() {
	for path in "$@"; do
		if [ -e "$path" ] || [ -L "$path" ]; then
			say "removes $path"
			do_it rm -rf "$path"
		fi
	done
}

# The Python to install with: $python, else python3. Sets python and version.
check_python() {
	python=${python:-python3}
	command -v "$python" >/dev/null 2>&1 || fail "no $python: apt-get install python3 python3-venv"
	version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
		fail "$python does not run"
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
		fail "$python is Python $version, 3.10 or later is needed: give --python"
	"$python" -c 'import ensurepip, venv' 2>/dev/null ||
		fail "Python $version has no venv module: apt-get install python3-venv"
}

# Is there room under a folder? Sets free.
check_room() { # folder MiB
	near=$1
	while [ ! -d "$near" ]; do near=$(dirname "$near"); done
	free=$(df -Pk "$near" | awk 'NR == 2 { print int($4 / 1024) }')
	[ "$free" -ge "$2" ] || fail "$near has $free MiB free, $2 are needed"
}
