#!/bin/sh
# Installs the Neural Bridge agent on a Jetson, or on another Linux machine with systemd.
# Run it again at any time: it changes only what differs. It never overwrites a configuration or an
# identity.
set -eu
unset PYTHONPATH PYTHONHOME

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
extra=edge
root=''
wheelhouse=''
model=''
python=''
action=install
purge=no
dry=no
start=yes
upgrade=no
unit=neural-bridge-edge

usage() {
	cat <<'TEXT'
usage: install.sh [options]

  --wheelhouse DIR  take all wheels from DIR; nothing is downloaded
  --model DIR       copy this edge export to the device
  --extra NAME      edge (default) or edge,video (FFmpeg, for machines without GStreamer)
  --python FILE     the Python to use (default: python3; 3.10 or later)
  --upgrade         install again, beside what runs, and switch to it when it is whole
  --no-start        do not enable and start the agent
  --root DIR        install into the root file system under DIR (an image)
  --dry-run         say what would be done, and do nothing
  --uninstall       remove the agent; configuration, identity and frames stay
  --purge           with --uninstall: remove these too, and the user
TEXT
}

# shellcheck source-path=SCRIPTDIR source=installing.sh
. "$here/installing.sh"

while [ $# -gt 0 ]; do
	case $1 in
	--wheelhouse) value "$@" && wheelhouse=$2 && shift ;;
	--model) value "$@" && model=$2 && shift ;;
	--extra) value "$@" && extra=$2 && shift ;;
	--python) value "$@" && python=$2 && shift ;;
	--root) value "$@" && root=${2%/} && shift ;;
	--upgrade) upgrade=yes ;;
	--no-start) start=no ;;
	--dry-run) dry=yes ;;
	--uninstall) action=uninstall ;;
	--purge) purge=yes ;;
	-h | --help)
		usage
		exit 0
		;;
	*) fail "unknown option $1 (see --help)" ;;
	esac
	shift
done

[ "$purge" = no ] || [ "$action" = uninstall ] || fail "--purge goes with --uninstall"
for given in "$wheelhouse" "$model" "$root"; do
	[ -z "$given" ] || [ -d "$given" ] || fail "$given: no such directory"
done
if [ -n "$model" ] && [ ! -f "$model/export.json" ]; then
	fail "$model is no edge export (it has no export.json): projector export-edge CHECKPOINT $model"
fi
if [ -n "$root" ]; then
	root=$(CDPATH='' cd -- "$root" && pwd)
	[ "$root" != / ] || fail "--root / is this machine: leave it out"
	start=no
fi
if [ -z "$root" ] && [ "$dry" = no ] && [ "$(id -u)" != 0 ]; then
	fail "run it as root (sudo $0), or with --dry-run"
fi

opt=$root/opt/neural-bridge
etc=$root/etc/neural-bridge
state=$root/var/lib/neural-bridge
cache=$root/var/cache/neural-bridge
units=$root/etc/systemd/system
rules=$root/etc/udev/rules.d/70-neural-bridge-cameras.rules
sysusers=$root/usr/lib/sysusers.d/neural-bridge.conf
link=$root/usr/local/bin/edge-agent

uninstall() {
	if live; then
		for each in $unit.service $unit-slot.timer $unit-update.path; do
			do_it systemctl disable --now "$each" 2>/dev/null || true
		done
	fi
	# Only the link that this script made.
	if [ -L "$link" ] && [ "$(readlink "$link")" = /opt/neural-bridge/current/agent/bin/edge-agent ]; then
		drop "$link"
	fi
	drop "$units/multi-user.target.wants/$unit.service" "$units/timers.target.wants/$unit-slot.timer"
	drop "$units/multi-user.target.wants/$unit-update.path"
	drop "$units/$unit.service" "$units/$unit.service.d/backoff.conf" "$units/$unit.service.d/csi.conf"
	drop "$units/$unit-slot.service" "$units/$unit-slot.timer" "$rules" "$opt" "$cache"
	drop "$units/$unit-update.service" "$units/$unit-update.path"
	# What an operator put there stays.
	[ ! -d "$units/$unit.service.d" ] || do_it rmdir "$units/$unit.service.d" 2>/dev/null || true
	if [ "$purge" = yes ]; then
		drop "$etc" "$state" "$sysusers"
		if [ -z "$root" ] && id neural-bridge >/dev/null 2>&1; then
			do_it userdel neural-bridge
		fi
	else
		say "$etc and $state stay (remove them with --uninstall --purge)"
	fi
	if live; then
		do_it systemctl daemon-reload
		do_it udevadm control --reload || true
	fi
	say "done"
}

check_machine() {
	release=$root/etc/nv_tegra_release
	if [ -r "$release" ]; then
		major=$(sed -n 's/^# R\([0-9]*\).*/\1/p' "$release" | head -n 1)
		case $major in
		36) say "JetPack 6 (L4T R36)" ;;
		38 | 39) say "JetPack 7 (L4T R$major)" ;;
		*) fail "L4T R${major:-?} is neither JetPack 6 (R36) nor 7 (R38): flash one of them" ;;
		esac
	else
		say "no Jetson ($release is missing): installs for the CPU"
	fi
	check_python
	check_room "$opt" 1024
	say "Python $version, $free MiB free"
}

add_user() {
	if [ -n "$root" ] && [ ! -x "$root/bin/sh" ]; then
		return 0 # a bare folder has no users; systemd-sysusers adds it at the first start
	fi
	if inside id neural-bridge >/dev/null 2>&1 && [ "$dry" = no ]; then
		return 0
	fi
	say "adds the user neural-bridge"
	for group in video render; do
		inside getent group "$group" >/dev/null || inside groupadd --system "$group"
	done
	inside useradd --system --user-group --groups video,render --no-create-home \
		--home-dir /var/lib/neural-bridge --shell /usr/sbin/nologin neural-bridge
}

# A new environment, in a folder that nothing uses before it is whole.
install_agent() {
	if [ "$upgrade" = no ] && [ -x "$opt/current/agent/bin/edge-agent" ]; then
		say "the agent is installed (--upgrade installs it again)"
		[ -z "$model" ] || say "--model $model is not taken: it goes with --upgrade"
		return 0
	fi
	number=1
	while [ -e "$opt/parts/installed-$number" ]; do number=$((number + 1)); done
	part=$opt/parts/installed-$number
	# A script in an environment names its own place, so it is made under its lasting name.
	home=$part
	if [ -n "$root" ] && [ -x "$root/bin/sh" ]; then home=/opt/neural-bridge/parts/installed-$number; fi
	say "installs neural-bridge[$extra] into $part"
	do_it mkdir -p "$opt/parts" "$opt/slots"
	made=$part
	inside "$python" -m venv "$home"
	set -- --quiet --disable-pip-version-check --no-input --no-cache-dir --only-binary=:all:
	if [ -n "$wheelhouse" ]; then
		wheels=$(CDPATH='' cd -- "$wheelhouse" && pwd)
		if [ "$home" != "$part" ]; then # inside an image the wheels are beside the environment
			do_it cp -r "$wheels" "$part/wheelhouse"
			wheels=$home/wheelhouse
		fi
		set -- "$@" --no-index --find-links "$wheels"
	fi
	inside "$home/bin/python" -m pip install "$@" "neural-bridge[$extra]"
	drop "$part/wheelhouse"
	inside "$home/bin/edge-agent" --version
	made=''
	code=$(find "$part/lib" -path '*/edge_agent/update/boot.py' 2>/dev/null | head -n 1)
	[ "$dry" = yes ] || [ -n "$code" ] || fail "the wheel has no edge_agent/update/boot.py: it is too old"
	put 0644 "${code:-edge_agent/update/boot.py}" "$opt/boot.py"
	do_it "$python" -I "$opt/boot.py" --root "$opt" install --agent "installed-$number" \
		${model:+--model "$model"}
}

# What an installation left that broke off.
clean_up() {
	status=$?
	if [ -n "${made:-}" ] && [ -d "$made" ] && [ "$dry" = no ]; then
		rm -rf "$made"
		say "failed: removed what was begun; run it again" >&2
	fi
	exit "$status"
}

install_files() {
	put 0644 "$here/neural-bridge.sysusers.conf" "$sysusers"
	put 0644 "$here/$unit.service" "$units/$unit.service"
	put 0644 "$here/$unit-slot.service" "$units/$unit-slot.service"
	put 0644 "$here/$unit-slot.timer" "$units/$unit-slot.timer"
	put 0644 "$here/$unit-update.service" "$units/$unit-update.service"
	put 0644 "$here/$unit-update.path" "$units/$unit-update.path"
	put 0644 "$here/70-neural-bridge-cameras.rules" "$rules"
	running=$( (inside systemctl --version || systemctl --version) 2>/dev/null |
		sed -n 's/^systemd \([0-9]*\).*/\1/p' | head -n 1)
	if [ "${running:-0}" -ge 254 ]; then
		put 0644 "$here/backoff.conf" "$units/$unit.service.d/backoff.conf"
	fi
	for each in etc lib usr/lib; do
		if [ -e "$root/$each/systemd/system/nvargus-daemon.service" ]; then
			put 0644 "$here/csi.conf" "$units/$unit.service.d/csi.conf"
			break
		fi
	done
	if [ -e "$etc/edge.toml" ]; then
		say "keeps $etc/edge.toml"
	else
		put 0644 "$here/edge.toml" "$etc/edge.toml"
	fi
	if [ ! -L "$link" ] && [ ! -e "$link" ]; then
		say "writes $link"
		do_it mkdir -p "$(dirname "$link")"
		do_it ln -s /opt/neural-bridge/current/agent/bin/edge-agent "$link"
	fi
	# As `systemctl enable` does, also where no systemd runs (an image).
	if [ -n "$root" ]; then
		for each in "multi-user.target.wants/$unit.service" "timers.target.wants/$unit-slot.timer" \
			"multi-user.target.wants/$unit-update.path"; do
			[ ! -L "$units/$each" ] || continue
			do_it mkdir -p "$(dirname "$units/$each")"
			do_it ln -s "../${each#*/}" "$units/$each"
		done
	fi
}

start_agent() {
	live || return 0
	do_it systemctl daemon-reload
	do_it udevadm control --reload || true
	do_it udevadm trigger --subsystem-match=video4linux || true
	[ "$start" = yes ] || return 0
	do_it systemctl enable --now $unit-slot.timer $unit-update.path
	do_it systemctl enable $unit.service
	if grep -Eq '^[[:space:]]*source[[:space:]]*=' "$etc/edge.toml" 2>/dev/null; then
		do_it systemctl restart $unit.service
	fi
}

if [ "$action" = uninstall ]; then
	uninstall
	exit 0
fi
trap clean_up EXIT
trap 'exit 130' INT TERM HUP
check_machine
add_user
install_agent
install_files
start_agent
say "done. Next: edit $etc/edge.toml, then enrol and start:"
say "  sudo -u neural-bridge edge-agent enrol --state-dir /var/lib/neural-bridge --server HOST:50052 --code CODE"
say "  sudo systemctl restart $unit"
