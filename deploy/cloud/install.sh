#!/bin/sh
# Installs the service on a Linux machine with systemd, as one unit. Run it again at any time: it changes only
# what differs, and makes no identity twice. run-native.sh is for trying the whole stack, this is for staying.
set -eu
unset PYTHONPATH PYTHONHOME

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
extra=cloud,otlp,postgresql
root=''
wheels=''
python=''
model=''
bundles=''
names=''
database=''
torch_index=''
action=install
purge=no
dry=no
start=yes
upgrade=no
unit=neural-bridge-cloud
line='
'
# shellcheck source-path=SCRIPTDIR source=../jetson/installing.sh
. "$here/../jetson/installing.sh"

usage() {
	cat <<'TEXT'
usage: install.sh [options]

  --wheels DIR       take all wheels from DIR; nothing is downloaded
  --model PATH       the large model
  --bundles PATH     a bundle, repeatable
  --name HOST        name or address that devices and people use, repeatable
  --database URL     postgresql://… (default: SQLite)
  --extra NAMES      extras to install (default: cloud,otlp,postgresql; with tensorrt for NVIDIA GPUs)
  --torch-index URL  take torch from here first, such as https://download.pytorch.org/whl/cpu
  --python FILE      the Python to use (default: python3; 3.10 or later)
  --upgrade          install again, beside what runs, and switch to it when it is whole
  --no-start         do not enable and start the service
  --root DIR         install into the root file system under DIR (an image)
  --dry-run          say what would be done, and do nothing
  --uninstall        remove the service; settings, identities and data stay
  --purge            with --uninstall: remove these too, and the user
TEXT
}

while [ $# -gt 0 ]; do
	case $1 in
	--wheels) value "$@" && wheels=$2 && shift ;;
	--model) value "$@" && model=$2 && shift ;;
	--bundles) value "$@" && bundles=$bundles$2$line && shift ;;
	--name) value "$@" && names=$names$2$line && shift ;;
	--database) value "$@" && database=$2 && shift ;;
	--extra) value "$@" && extra=$2 && shift ;;
	--torch-index) value "$@" && torch_index=$2 && shift ;;
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
for given in "$wheels" "$root"; do
	[ -z "$given" ] || [ -d "$given" ] || fail "$given: no such directory"
done
if [ -n "$root" ]; then
	root=$(CDPATH='' cd -- "$root" && pwd)
	[ "$root" != / ] || fail "--root / is this machine: leave it out"
	start=no
fi
if [ -z "$root" ] && [ "$dry" = no ] && [ "$(id -u)" != 0 ]; then
	fail "run it as root (sudo $0), or with --dry-run"
fi

opt=$root/opt/neural-bridge-cloud
etc=$root/etc/neural-bridge-cloud
state=$root/var/lib/neural-bridge-cloud
cache=$root/var/cache/neural-bridge-cloud
units=$root/etc/systemd/system
sysusers=$root/usr/lib/sysusers.d/$unit.conf
link=$root/usr/local/bin/cloud-server

if [ "$action" = uninstall ]; then
	if live; then do_it systemctl disable --now $unit.service 2>/dev/null || true; fi
	if [ -L "$link" ] && [ "$(readlink "$link")" = /opt/neural-bridge-cloud/current/bin/cloud-server ]; then
		drop "$link"
	fi
	drop "$units/multi-user.target.wants/$unit.service" "$units/$unit.service" "$opt" "$cache"
	if [ "$purge" = yes ]; then
		drop "$etc" "$state" "$sysusers"
		if [ -z "$root" ] && id $unit >/dev/null 2>&1; then do_it userdel $unit; fi
	else
		say "$etc and $state stay (remove them with --uninstall --purge)"
	fi
	if live; then do_it systemctl daemon-reload; fi
	say "done"
	exit 0
fi

add_user() {
	if [ -n "$root" ] && [ ! -x "$root/bin/sh" ]; then
		return 0 # a bare folder has no users; systemd-sysusers adds it at the first start
	fi
	if inside id $unit >/dev/null 2>&1 && [ "$dry" = no ]; then return 0; fi
	say "adds the user $unit"
	for group in video render; do
		inside getent group "$group" >/dev/null || inside groupadd --system "$group"
	done
	inside useradd --system --user-group --groups video,render --no-create-home \
		--home-dir /var/lib/neural-bridge-cloud --shell /usr/sbin/nologin $unit
}

# A new environment in a folder that nothing uses before it is whole, then the link.
install_service() {
	if [ "$upgrade" = no ] && [ -x "$opt/current/bin/cloud-server" ]; then
		say "the service is installed (--upgrade installs it again)"
		return 0
	fi
	number=1
	while [ -e "$opt/installed-$number" ]; do number=$((number + 1)); done
	made=$opt/installed-$number
	# A script in an environment names its own place, so it is made under its lasting name.
	home=$made
	if [ -n "$root" ] && [ -x "$root/bin/sh" ]; then home=/opt/neural-bridge-cloud/installed-$number; fi
	say "installs neural-bridge[$extra] into $made"
	do_it mkdir -p "$opt"
	inside "$python" -m venv "$home"
	if [ -n "$torch_index" ]; then
		inside "$home/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-cache-dir \
			--only-binary=:all: --index-url "$torch_index" torch
	fi
	set -- --quiet --disable-pip-version-check --no-input --no-cache-dir --only-binary=:all:
	if [ -n "$wheels" ]; then
		from=$(CDPATH='' cd -- "$wheels" && pwd)
		if [ "$home" != "$made" ]; then
			do_it cp -r "$from" "$made/wheelhouse"
			from=$home/wheelhouse
		fi
		set -- "$@" --no-index --find-links "$from"
	fi
	inside "$home/bin/python" -m pip install "$@" "neural-bridge[$extra]"
	drop "$made/wheelhouse"
	inside "$home/bin/cloud-server" --version
	do_it ln -sfn "installed-$number" "$opt/current.new"
	do_it mv -Tf "$opt/current.new" "$opt/current"
	made=''
	# The one before stays, to go back to: ln -sfn installed-N /opt/neural-bridge-cloud/current
	for old in "$opt"/installed-*; do
		case $old in
		*/installed-$number | */installed-$((number - 1))) ;;
		*) drop "$old" ;;
		esac
	done
}

install_files() {
	put 0644 "$here/$unit.sysusers.conf" "$sysusers"
	put 0644 "$here/$unit.service" "$units/$unit.service"
	if [ ! -L "$link" ] && [ ! -e "$link" ]; then
		say "writes $link"
		do_it mkdir -p "$(dirname "$link")"
		do_it ln -s /opt/neural-bridge-cloud/current/bin/cloud-server "$link"
	fi
	if [ -n "$root" ] && [ ! -L "$units/multi-user.target.wants/$unit.service" ]; then
		do_it mkdir -p "$units/multi-user.target.wants"
		do_it ln -s "../$unit.service" "$units/multi-user.target.wants/$unit.service"
	fi
}

# Directory, authority, database and keys, as the service's user. An image gets none: each machine has its own.
first_start() {
	[ -z "$root" ] || return 0
	do_it install -d -o $unit -g $unit -m 0700 "$state"
	set -- --directory "$state/service" --keys "$state/keys" --database "$database" --model "$model"
	IFS=$line
	for each in $bundles; do set -- "$@" --bundles "$each"; done
	for each in $names; do set -- "$@" --name "$each"; done
	unset IFS
	do_it env PATH="$opt/current/bin:$PATH" HOME="$state" setpriv --reuid=$unit --regid=$unit --init-groups \
		"$opt/first-start.sh" "$@"
}

clean_up() {
	status=$?
	if [ -n "${made:-}" ] && [ -d "$made" ] && [ "$dry" = no ]; then
		rm -rf "$made"
		say "failed: removed what was begun; run it again" >&2
	fi
	exit "$status"
}

trap clean_up EXIT
trap 'exit 130' INT TERM HUP
check_python
check_room "$opt" 6144
say "Python $version, $free MiB free"
add_user
install_service
put 0755 "$here/first-start.sh" "$opt/first-start.sh"
install_files
first_start
if live; then
	do_it systemctl daemon-reload
	if [ "$start" = yes ]; then
		do_it systemctl enable $unit.service
		do_it systemctl restart $unit.service
	fi
fi
say "done. The owner's key for https://$(uname -n):8443/live is in $state/keys/owner"
say "  journalctl -u $unit -f     its log"
say "  sudo -u $unit cloud-server devices add NAME --directory $state/service"
