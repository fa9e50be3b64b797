#!/bin/sh
# What compose.yaml runs before the service's first start: `secrets`, then PostgreSQL, then `identities`.
# Nothing is made twice.
set -eu
umask 077
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# A new random secret in a file that the containers of its volume may read.
secret() { # file
	[ ! -s "$1" ] || return 0
	python3 -c 'import secrets; print(secrets.token_urlsafe(24), end="")' >"$1.new"
	chmod 0444 "$1.new"
	mv "$1.new" "$1"
	echo "made $1"
}

# Write a file that everyone may read, whole.
shared() { # file, content from standard input
	cat >"$1.new"
	chmod 0444 "$1.new"
	mv "$1.new" "$1"
}

case ${1:-} in
secrets)
	secret /shared/postgresql/password
	secret /shared/grafana/password
	printf 'postgresql:5432:bridge:bridge:%s' "$(cat /shared/postgresql/password)" >/keys/pgpass
	;;
identities)
	model=/models/large
	if [ ! -f "$model/config.json" ]; then
		reference=$(python3 -c 'import reference; print(reference.__path__[0])' 2>/dev/null) || {
			echo "no model: put a checkpoint into large/ and bundles into bundles/ of NEURAL_BRIDGE_MODELS" >&2
			exit 1
		}
		echo "/models/large has no model: takes the reference models"
		model=$reference/models/cloud
		set -- "$@" --bundles "$reference/bundles/edge-a-cloud"
	fi
	for bundle in /models/bundles/*/; do
		[ ! -f "$bundle/bundle.json" ] || set -- "$@" --bundles "$bundle"
	done
	shift
	"$here/first-start.sh" --directory /srv/bridge --keys /keys --model "$model" --name service \
		--name "${NEURAL_BRIDGE_NAME:-localhost}" --database postgresql://bridge@postgresql/bridge "$@"
	shared /shared/prometheus/metrics-key </keys/metrics
	shared /shared/prometheus/roots.pem </srv/bridge/authority/roots.pem
	mkdir -p /shared/prometheus/targets
	chmod 0755 /shared/prometheus/targets
	printf -- '- targets: ["service:9464"]\n  labels: {__scheme__: https}\n' | shared /shared/prometheus/targets/service.yaml
	printf -- '- targets: ["alertmanager:9093"]\n' | shared /shared/prometheus/targets/alertmanager.yaml
	printf -- '- targets: ["localhost:9090", "alertmanager:9093"]\n' | shared /shared/prometheus/targets/monitoring.yaml
	;;
camera) # a device of the demonstration
	if [ ! -d /state/identity ]; then
		cloud-server devices add camera-1 --tenant main >/dev/null 2>&1 || true
		code=$(cloud-server devices code camera-1 --tenant main --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["code"])')
		edge-agent enrol --state-dir /state --server service:50052 --code "$code" --force
	fi
	exec edge-agent run --state-dir /state --server service:50051 --output /dev/null \
		--model "$(python3 -c 'import reference; print(reference.__path__[0])')/models/edge-a" \
		--source 'yard://test?count=10000000' --question-mode hold --hold-every-s 5
	;;
*)
	echo "usage: compose-start.sh secrets | identities | camera" >&2
	exit 2
	;;
esac
