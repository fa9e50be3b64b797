#!/bin/sh
# Runs the whole stack on this machine, without containers: PostgreSQL, the service with its live page,
# Prometheus, Alertmanager; Grafana and an OpenTelemetry collector where they are installed.
# Run it again at any time: it starts what does not run, and makes nothing twice.
set -eu
umask 077

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
top=$(CDPATH='' cd -- "$here/../.." && pwd)
monitoring=$top/deploy/monitoring

usage() {
	cat <<'TEXT'
usage: run-native.sh [start | stop | status] [options]

  --demo             serve the reference models, and watch a rendered yard with an agent
  --model PATH       the large model (without --demo)
  --bundles PATH     a bundle, repeatable
  --directory DIR    where everything is kept (root: /var/lib/neural-bridge-stack,
                     others: ~/.local/share/neural-bridge-stack)
  --name HOST        name or address that devices and people use, repeatable
  --host ADDRESS     address that the service listens on (default: 0.0.0.0)
  --ports N          take the ports N to N+9 in place of the usual ones
  --user NAME        root: the user that everything runs as (default: neural-bridge)
  --wheels DIR       install from the wheels in DIR (default: those beside this archive, else the
                     source tree)
  --environment DIR  use this Python environment; nothing is installed into it
  --torch-index URL  where torch comes from on machines without a GPU; '' for pip's own index
  --no-install       root: fail where a Debian package is missing, instead of installing it

stop ends everything; data, keys and identities stay. Logs are in DIR/logs.
TEXT
}

say() { printf 'run-native: %s\n' "$*"; }
fail() {
	printf 'run-native: %s\n' "$*" >&2
	exit 1
}
value() { [ $# -ge 2 ] || fail "$1 needs a value (see --help)"; }

action=start
demo=no
dir=''
host=''
ports=''
user=neural-bridge
wheels=''
environment=''
torch_index=https://download.pytorch.org/whl/cpu
install=yes
model=''
bundles=''
names=''
# Lists are lines.
line='
'
case ${1:-} in
start | stop | status)
	action=$1
	shift
	;;
esac
while [ $# -gt 0 ]; do
	case $1 in
	--demo) demo=yes ;;
	--model) value "$@" && model=$2 && shift ;;
	--bundles) value "$@" && bundles=$bundles$2$line && shift ;;
	--directory) value "$@" && dir=$2 && shift ;;
	--name) value "$@" && names=$names$2$line && shift ;;
	--host) value "$@" && host=$2 && shift ;;
	--ports) value "$@" && ports=$2 && shift ;;
	--user) value "$@" && user=$2 && shift ;;
	--wheels) value "$@" && wheels=$2 && shift ;;
	--environment) value "$@" && environment=$2 && shift ;;
	--torch-index) value "$@" && torch_index=$2 && shift ;;
	--no-install) install=no ;;
	-h | --help)
		usage
		exit 0
		;;
	*) fail "unknown option $1 (see --help)" ;;
	esac
	shift
done
case $ports in
*[!0-9]*) fail "--ports $ports: expected a number" ;;
esac
if [ -z "$dir" ]; then
	if [ "$(id -u)" = 0 ]; then
		dir=/var/lib/neural-bridge-stack
	else
		dir=${XDG_DATA_HOME:-$HOME/.local/share}/neural-bridge-stack
	fi
fi
case $dir in
/*) ;;
*) dir=$PWD/$dir ;;
esac
case $dir in
*[!A-Za-z0-9/._-]*) fail "--directory $dir: letters, digits, '.', '_' and '-' only, because it becomes part of URLs" ;;
esac
# A Unix socket's path has at most 107 bytes.
[ "${#dir}" -le 80 ] || fail "--directory $dir: longer than 80 characters"

run=$dir/run
logs=$dir/logs
keys=$dir/keys
data=$dir/postgresql
service=$dir/service
python=${environment:-$dir/environment}/bin/python3

# --- processes ---------------------------------------------------------------------------------

# A process's start time, so that another one with its number is not taken for it; nothing for one that ended.
started() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'; }
pid_of() { cut -d' ' -f1 "$run/$1.pid" 2>/dev/null; }
runs() {
	[ -s "$run/$1.pid" ] || return 1
	read -r pid since <"$run/$1.pid"
	[ -n "$since" ] && [ "$(started "$pid")" = "$since" ]
}

launch() { # name command…
	name=$1
	shift
	if runs "$name"; then
		say "$name runs already"
		return 0
	fi
	[ ! -f "$logs/$name.log" ] || mv -f "$logs/$name.log" "$logs/$name.log.1"
	# In a session of its own, so that Ctrl-C in this terminal does not end it.
	setsid "$@" >"$logs/$name.log" 2>&1 </dev/null &
	printf '%s %s\n' "$!" "$(started $!)" >"$run/$name.pid"
	say "$name starts"
}

end() { # name
	runs "$1" || { rm -f "$run/$1.pid" && return 0; }
	pid=$(pid_of "$1")
	kill -TERM "$pid" 2>/dev/null || true
	waited=0
	while runs "$1"; do
		if [ "$waited" -ge 600 ]; then
			say "$1 did not end in a minute: killed"
			kill -KILL "$pid" 2>/dev/null || true
		fi
		sleep 0.1
		waited=$((waited + 1))
	done
	rm -f "$run/$1.pid"
	say "$1 has ended"
}

# Wait until a command succeeds; the named process must live meanwhile.
wait_for() { # name seconds command…
	name=$1
	longest=$2
	shift 2
	began=$(date +%s)
	told=$began
	until "$@" >/dev/null 2>&1; do
		now=$(date +%s)
		if ! runs "$name"; then
			tail -n 15 "$logs/$name.log" >&2
			fail "$name ended; its log is $logs/$name.log"
		fi
		[ $((now - began)) -lt "$longest" ] || fail "$name is not ready after $longest s; its log is $logs/$name.log"
		if [ $((now - told)) -ge 5 ]; then
			say "waits for $name: $((now - began)) s, at most $longest s"
			told=$now
		fi
		sleep 0.2
	done
}

# Install packages, and tell every ten seconds how much is there.
pip_install() { # options and packages…
	set -- "$python" -m pip --quiet --disable-pip-version-check --no-cache-dir install --no-compile "$@"
	"$@" &
	child=$!
	trap 'kill "$child" 2>/dev/null; exit 130' INT TERM HUP
	seconds=0
	while kill -0 "$child" 2>/dev/null; do
		sleep 0.5
		seconds=$((seconds + 1))
		[ $((seconds % 20)) != 0 ] || say "installs: $(du -sm "$dir/environment" | cut -f1) MB are there (about 1300 in the end, 4000 for a GPU)"
	done
	trap - INT TERM HUP
	wait "$child"
}

answers() { # URL
	"$python" -c 'import sys, urllib.request as r
r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=2)' "$1"
}

# Does the service hold a scene of camera-1, so that one can ask?
scene_held() {
	"$python" -c 'import json, ssl, sys, urllib.request as r
root, port, key = sys.argv[1:]
trust = r.HTTPSHandler(context=ssl.create_default_context(cafile=root))
url = f"https://localhost:{port}/v1/scenes?tenant=main&device=camera-1"
asked = r.Request(url, headers={"Authorization": "Bearer " + open(key).read()})
answer = json.load(r.build_opener(r.ProxyHandler({}), trust).open(asked, timeout=5))
sys.exit(not answer["data"])' "$service/authority/roots.pem" "$api_port" "$keys/owner"
}

port() { # place usual
	if [ -n "$ports" ]; then echo $((ports + $1)); else echo "$2"; fi
}

postgres_programs() {
	found=$(find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null | sort -V | tail -n 1)
	if [ -n "$found" ]; then dirname "$found"; else dirname "$(command -v initdb || echo /initdb)"; fi
}

postgres_runs() { [ -d "$data" ] && "$(postgres_programs)/pg_ctl" -D "$data" status >/dev/null 2>&1; }

# Put the wheels into $dir/wheels, unless an environment is given: those of --wheels, of this archive,
# or made from the source tree.
find_wheels() {
	[ -z "$environment" ] || return 0
	if [ -z "$wheels" ]; then
		if ls "$top"/wheels/*.whl >/dev/null 2>&1; then
			wheels=$top/wheels
		elif [ "$top" = "$dir" ]; then
			wheels=$dir/wheels
		else
			[ -f "$top/pyproject.toml" ] || fail "no wheels beside $top/deploy: give --wheels"
			say "makes wheels of $top"
			rm -rf "$dir/wheels.new" "$dir/build"
			python3 -m venv "$dir/build"
			"$dir/build/bin/python3" -m pip --quiet --disable-pip-version-check --no-cache-dir wheel --no-deps --wheel-dir "$dir/wheels.new" "$top" "$top/reference"
			rm -rf "$dir/build" "$dir/wheels"
			mv "$dir/wheels.new" "$dir/wheels"
			wheels=$dir/wheels
		fi
	fi
	ls "$wheels"/neural_bridge-*.whl >/dev/null 2>&1 || fail "$wheels has no neural_bridge-….whl"
	if [ "$wheels" != "$dir/wheels" ]; then
		rm -rf "$dir/wheels"
		mkdir -p "$dir/wheels"
		cp "$wheels"/neural_bridge*.whl "$dir/wheels/"
		wheels=$dir/wheels
	fi
}

# --- the user ----------------------------------------------------------------------------------

# Root installs what is missing and makes the user; the rest is done as that user.
if [ "$(id -u)" = 0 ]; then
	if [ "$action" = start ]; then
		missing=''
		python3 -c 'import ensurepip, venv' 2>/dev/null || [ -n "$environment" ] || missing="$missing python3-venv"
		[ -x "$(postgres_programs)/initdb" ] || missing="$missing postgresql"
		command -v prometheus >/dev/null || missing="$missing prometheus"
		command -v prometheus-alertmanager >/dev/null || command -v alertmanager >/dev/null || missing="$missing prometheus-alertmanager"
		if [ -n "$missing" ]; then
			if [ "$install" = no ] || ! command -v apt-get >/dev/null; then fail "not installed:$missing"; fi
			say "apt-get install$missing"
			# Debian starts a service when it installs it; this stack runs its own.
			policy=/usr/sbin/policy-rc.d
			if [ ! -e $policy ]; then
				printf '#!/bin/sh\nexit 101\n' >$policy
				chmod 755 $policy
				trap 'rm -f $policy' EXIT
				trap 'exit 130' INT TERM HUP
			fi
			(
				umask 022
				apt-get update -qq
				# shellcheck disable=SC2086 # a list of words
				DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
			) || fail "apt-get failed: install$missing yourself"
			[ "$(cat $policy)" != "$(printf '#!/bin/sh\nexit 101')" ] || rm -f $policy
			trap - EXIT INT TERM HUP
			if [ -d /run/systemd/system ]; then
				for each in $missing; do
					systemctl disable --quiet "$each" 2>/dev/null || true
				done
			fi
		fi
		if ! id "$user" >/dev/null 2>&1; then
			say "adds the user $user"
			useradd --system --user-group --no-create-home --home-dir "$dir" --shell /usr/sbin/nologin "$user"
		fi
		# Where the user may read it, wherever this archive lies.
		mkdir -p "$dir"
		rm -rf "$dir/deploy.new"
		mkdir "$dir/deploy.new"
		cp -r "$here" "$monitoring" "$dir/deploy.new/"
		rm -rf "$dir/deploy"
		mv "$dir/deploy.new" "$dir/deploy"
		find_wheels
		chown -R "$user:$(id -gn "$user")" "$dir/deploy" ${wheels:+"$dir/wheels"}
		chown "$user:$(id -gn "$user")" "$dir"
	fi
	id "$user" >/dev/null 2>&1 || fail "there is no user $user, so nothing runs"
	set -- "$action" --directory "$dir" --host "$host" --ports "$ports" --environment "$environment" \
		--torch-index "$torch_index" --model "$model"
	[ -z "$wheels" ] || set -- "$@" --wheels "$wheels"
	[ "$demo" = no ] || set -- "$@" --demo
	IFS=$line
	for each in $bundles; do set -- "$@" --bundles "$each"; done
	for each in $names; do set -- "$@" --name "$each"; done
	unset IFS
	script=$dir/deploy/cloud/run-native.sh
	[ -x "$script" ] || script=$here/run-native.sh
	export HOME="$dir"
	cd /
	exec setpriv --reuid="$user" --regid="$(id -gn "$user")" --init-groups "$script" "$@"
fi
[ -n "$environment" ] || unset PYTHONPATH PYTHONHOME

# --- stop and status ---------------------------------------------------------------------------

processes='prometheus alertmanager grafana collector camera-1 service'
if [ "$action" = stop ]; then
	for each in camera-1 service grafana prometheus alertmanager collector; do end "$each"; done
	if postgres_runs; then
		"$(postgres_programs)/pg_ctl" -D "$data" -m fast -w -s stop
		say "postgresql has ended"
	fi
	say "stopped; $dir stays"
	exit 0
fi
if [ "$action" = status ]; then
	code=0
	if postgres_runs; then echo "postgresql    runs"; else echo "postgresql    does not run" && code=1; fi
	for each in $processes; do
		if runs "$each"; then
			printf '%-13s runs, process %s\n' "$each" "$(pid_of "$each")"
		elif [ -f "$run/$each.pid" ]; then
			printf '%-13s has ended by itself: %s\n' "$each" "$logs/$each.log"
			code=1
		fi
	done
	runs service || code=1
	exit $code
fi

# --- start -------------------------------------------------------------------------------------

[ -x "$(postgres_programs)/initdb" ] || fail "no PostgreSQL server: apt-get install postgresql"
alertmanager=$(command -v prometheus-alertmanager || command -v alertmanager) || fail "no Alertmanager: apt-get install prometheus-alertmanager"
command -v prometheus >/dev/null || fail "no Prometheus: apt-get install prometheus"
whole_began=$(date +%s)
mkdir -p "$dir" "$run" "$logs" "$keys"

# Two starts at once would start everything twice.
exec 9>"$run/lock"
flock -n 9 || fail "another run-native.sh starts this stack"

find_wheels
if [ -z "$environment" ]; then
	listed=$(cd "$dir/wheels" && echo ./*.whl)
	if [ "$(cat "$dir/environment/.installed" 2>/dev/null)" != "$listed" ]; then
		! runs service || fail "other wheels than those that run: run-native.sh stop, then start"
		rm -rf "$dir/environment"
		say "installs $(echo "$dir"/wheels/neural_bridge-*.whl | sed 's|.*/||') and what it needs (some 500 MB to download)"
		python3 -m venv "$dir/environment"
		# Without a GPU the CUDA libraries (3 GB) are of no use.
		if [ -n "$torch_index" ] && [ "$(uname -m)" = x86_64 ] && [ ! -e /dev/nvidiactl ]; then
			pip_install --index-url "$torch_index" torch || say "no torch from $torch_index: takes it from pip's index"
		fi
		pip_install "$(echo "$dir"/wheels/neural_bridge-*.whl)[cloud,edge,otlp,postgresql]"
		if ls "$dir"/wheels/neural_bridge_reference-*.whl >/dev/null 2>&1; then
			pip_install "$(echo "$dir"/wheels/neural_bridge_reference-*.whl)"
		fi
		echo "$listed" >"$dir/environment/.installed"
	fi
fi
PATH=$(dirname "$python"):$PATH
export PATH
cloud-server --version >/dev/null || fail "${environment:-$dir/environment} has no cloud-server"

# PostgreSQL: a Unix socket in a folder of this user alone, and no password.
if [ ! -f "$data/PG_VERSION" ]; then
	say "makes a PostgreSQL database in $data"
	rm -rf "$data"
	"$(postgres_programs)/initdb" -D "$data.new" --auth-local=peer --auth-host=reject --encoding=UTF8 --locale=C.UTF-8 >"$logs/initdb.log" 2>&1 ||
		{ cat "$logs/initdb.log" >&2 && fail "initdb failed"; }
	printf "listen_addresses = ''\nunix_socket_directories = '%s'\n" "$run" >>"$data.new/postgresql.conf"
	mv "$data.new" "$data"
fi
if postgres_runs; then
	say "postgresql runs already"
else
	"$(postgres_programs)/pg_ctl" -D "$data" -w -s -l "$logs/postgresql.log" start 9>&- || fail "PostgreSQL does not start; its log is $logs/postgresql.log"
	say "postgresql starts"
fi
me=$(id -un)
if [ "$("$(postgres_programs)/psql" -h "$run" -d postgres -Atc "select 1 from pg_database where datname = 'bridge'")" != 1 ]; then
	"$(postgres_programs)/createdb" -h "$run" bridge
fi

# The service and its identities.
if [ "$demo" = yes ] && [ ! -f "$service/settings.toml" ]; then
	reference=$("$python" -c 'import reference; print(reference.__path__[0])') || fail "--demo needs the wheel neural_bridge_reference"
	model=$reference/models/cloud
	bundles=$reference/bundles/edge-a-cloud
fi
if [ ! -f "$service/settings.toml" ]; then
	[ -n "$model" ] && [ -n "$bundles" ] || fail "the first start needs --demo, or --model and --bundles"
fi
set -- --directory "$service" --keys "$keys" --database "postgresql://$me@/bridge?host=$run" --model "$model"
IFS=$line
for each in $bundles; do set -- "$@" --bundles "$each"; done
for each in $names; do set -- "$@" --name "$each"; done
unset IFS
first=no
[ -f "$service/settings.toml" ] || first=yes
"$here/first-start.sh" "$@" 9>&-

device_port=$(port 0 50051)
open_port=$(port 1 50052)
api_port=$(port 2 8443)
metrics_port=$(port 3 9464)
prometheus_port=$(port 4 9490)
alertmanager_port=$(port 5 9493)
grafana_port=$(port 6 3000)
traces_port=$(port 7 4318)

collector=$(command -v otelcol-contrib || command -v otelcol || true)
export NEURAL_BRIDGE_CLOUD_DIRECTORY="$service"
set -- --port "$device_port" --open-port "$open_port" --api-port "$api_port" --metrics-port "$metrics_port" --ready-file "$run/ready"
[ -z "$host" ] || set -- "$@" --host "$host" --api-host "$host"
[ -z "$collector" ] || set -- "$@" --otlp-endpoint "http://127.0.0.1:$traces_port"
runs service || rm -f "$run/ready"
launch service cloud-server serve "$@" 9>&-

# Prometheus and Alertmanager, by the files of deploy/monitoring.
mkdir -p "$dir/prometheus/data" "$dir/alertmanager"
cp -r "$monitoring/prometheus/." "$dir/prometheus/"
[ -f "$dir/alertmanager/alertmanager.yml" ] || cp -r "$monitoring/alertmanager/." "$dir/alertmanager/"
cp "$service/authority/roots.pem" "$dir/prometheus/roots.pem"
cp "$keys/metrics" "$dir/prometheus/metrics-key"
mkdir -p "$dir/prometheus/targets"
printf -- '- targets: ["127.0.0.1:%s"]\n' "$metrics_port" >"$dir/prometheus/targets/service.yaml"
printf -- '- targets: ["127.0.0.1:%s"]\n' "$alertmanager_port" >"$dir/prometheus/targets/alertmanager.yaml"
printf -- '- targets: ["127.0.0.1:%s", "127.0.0.1:%s"]\n' "$prometheus_port" "$alertmanager_port" >"$dir/prometheus/targets/monitoring.yaml"
launch alertmanager "$alertmanager" --config.file="$dir/alertmanager/alertmanager.yml" --storage.path="$dir/alertmanager/data" \
	--web.listen-address="127.0.0.1:$alertmanager_port" --cluster.listen-address= 9>&-
launch prometheus prometheus --config.file="$dir/prometheus/prometheus.yml" --storage.tsdb.path="$dir/prometheus/data" \
	--storage.tsdb.retention.time=30d --storage.tsdb.retention.size=8GB --web.listen-address="127.0.0.1:$prometheus_port" 9>&-
if [ -n "$collector" ]; then
	mkdir -p "$dir/traces"
	launch collector env COLLECTOR_HOST=127.0.0.1 HTTP_PORT="$traces_port" GRPC_PORT="$(port 8 4317)" \
		HEALTH_PORT="$(port 9 13133)" TRACES="$dir/traces" "$collector" --config "$monitoring/otel/collector.yaml" 9>&-
fi
grafana=$(command -v grafana-server || true)
if [ -n "$grafana" ]; then
	[ -s "$keys/grafana" ] || "$python" -c 'import secrets; print(secrets.token_urlsafe(24), end="")' >"$keys/grafana"
	mkdir -p "$dir/grafana"
	export PROMETHEUS_URL="http://127.0.0.1:$prometheus_port" DASHBOARDS="$monitoring/grafana/dashboards"
	export GF_SECURITY_ADMIN_PASSWORD__FILE="$keys/grafana" GF_PATHS_DATA="$dir/grafana" GF_PATHS_LOGS="$logs" \
		GF_PATHS_PROVISIONING="$monitoring/grafana/provisioning" GF_SERVER_HTTP_ADDR=127.0.0.1 GF_SERVER_HTTP_PORT="$grafana_port"
	launch grafana "$grafana" --homepath "${GF_HOMEPATH:-/usr/share/grafana}" 9>&-
fi
wait_for alertmanager 60 answers "http://127.0.0.1:$alertmanager_port/-/ready"
wait_for prometheus 60 answers "http://127.0.0.1:$prometheus_port/-/ready"
wait_for service 600 test -s "$run/ready"

# The demonstration's device: a camera whose pictures are rendered.
camera=$dir/camera-1
if [ "$demo" = yes ] && [ ! -d "$camera/identity" ]; then
	cloud-server devices add camera-1 --tenant main >/dev/null 2>&1 || true
	code=$(cloud-server devices code camera-1 --tenant main --json | "$python" -c 'import json, sys; print(json.load(sys.stdin)["code"])')
	edge-agent enrol --state-dir "$camera" --server "127.0.0.1:$open_port" --code "$code" --force >"$logs/enrol.log" 2>&1 ||
		{ cat "$logs/enrol.log" >&2 && fail "camera-1 could not enrol"; }
fi
if [ -d "$camera/identity" ]; then
	reference=$("$python" -c 'import reference; print(reference.__path__[0])')
	launch camera-1 edge-agent run --state-dir "$camera" --model "$reference/models/edge-a" --server "127.0.0.1:$device_port" \
		--source 'yard://test?count=10000000' --question-mode hold --hold-every-s 5 --output /dev/null 9>&-
	wait_for camera-1 300 scene_held
fi

name=$(printf '%s' "$names" | head -n 1)
say "ready after $(($(date +%s) - whole_began)) s"
echo "  live page     https://${name:-$(uname -n)}:$api_port/live"
if [ "$first" = yes ]; then
	echo "  your key      $(cat "$keys/owner")"
fi
echo "                it is in $keys/owner"
echo "  Prometheus    http://127.0.0.1:$prometheus_port"
echo "  Alertmanager  http://127.0.0.1:$alertmanager_port"
[ -z "$grafana" ] || echo "  Grafana       http://127.0.0.1:$grafana_port, user admin, password in $keys/grafana"
[ ! -f "$service/authority/root-key.pem" ] || echo "  Move $service/authority/root-key.pem offline: every device trusts it."
