#!/bin/sh
# Makes what a service needs before its first start, and nothing twice: directory, authority,
# certificate, database, one tenant, keys. `cloud-server` must be on the path.
set -eu
umask 077

usage() {
	cat <<'TEXT'
usage: first-start.sh --directory DIR --keys DIR [options]

  --directory DIR  the service's directory; made if it is not there
  --keys DIR       folder for the keys: metrics (Prometheus), owner (a person)
  --tenant NAME    the first tenant (default: main)
  --database URL   postgresql://… (default: SQLite in the directory)
  --name HOST      name or address that devices and people use, repeatable
  --model PATH     the large model
  --bundles PATH   a bundle, repeatable
TEXT
}

say() { printf 'first start: %s\n' "$*"; }
fail() {
	printf 'first start: %s\n' "$*" >&2
	exit 2
}

directory=''
keys=''
tenant=main
count=$#
# Options for `cloud-server init` are put behind the others, in their order.
while [ "$count" -gt 0 ]; do
	case $1 in
	-h | --help)
		usage
		exit 0
		;;
	--directory | --keys | --tenant | --database | --name | --model | --bundles) ;;
	*) fail "unknown option $1 (see --help)" ;;
	esac
	[ "$count" -ge 2 ] || fail "$1 needs a value (see --help)"
	case $1 in
	--directory) directory=$2 ;;
	--keys) keys=$2 ;;
	--tenant) tenant=$2 ;;
	*) [ -z "$2" ] || set -- "$@" "$1" "$2" ;;
	esac
	shift 2
	count=$((count - 2))
done
[ -n "$directory" ] && [ -n "$keys" ] || fail "--directory and --keys are needed (see --help)"

if [ -f "$directory/settings.toml" ]; then
	say "$directory is there"
else
	cloud-server init "$directory" "$@"
fi
export NEURAL_BRIDGE_CLOUD_DIRECTORY="$directory"

# $1 tells whether the list in $2's commands has an entry named $3.
has() { # command name
	cloud-server "$1" list --json | python3 -c '
import json, sys
rows = json.load(sys.stdin)
rows = next(iter(rows.values())) if isinstance(rows, dict) else rows
sys.exit(sys.argv[1] not in {row["name"] for row in rows})' "$2"
}

if ! has tenants "$tenant"; then
	cloud-server tenants add "$tenant"
fi

# A key whose file is gone is replaced, because the service holds only its hash.
key() { # file name options…
	file=$keys/$1
	name=$2
	shift 2
	[ ! -s "$file" ] || return 0
	mkdir -p "$keys"
	cloud-server keys remove "$name" --tenant service --yes >/dev/null 2>&1 || true
	cloud-server keys add "$name" --tenant service --kind operator --json "$@" |
		python3 -c 'import json, sys; sys.stdout.write(json.load(sys.stdin)["key"])' >"$file.new"
	mv "$file.new" "$file"
	say "wrote $file"
}
key metrics prometheus --scope read
key owner owner --scope ask --scope read --scope manage
