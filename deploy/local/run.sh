#!/usr/bin/env bash
# `make run`: all of Berth on this machine, end to end.
#
# Installs what is missing, builds, starts Redis, a sample catalog and the three services, creates a
# session, makes a token, runs a real PySpark query, then serves until Ctrl-C and stops all it started.
#
#   EXIT=1              stop after the query
#   BERTH_PROFILE=NAME  cargo profile: quick (default; least time to build), release or dev
#   BERTH_HOME=DIR      where setup.sh installs (default: .berth in the repository)
#   BERTH_STATE=DIR     where this Berth keeps its state (default: BERTH_HOME/local)
#   BERTH_PORT_OFFSET=N add N to every port (default: 0)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
home=${BERTH_HOME:-$repo/.berth}
offset=${BERTH_PORT_OFFSET:-0}
profile=${BERTH_PROFILE:-quick}
state=${BERTH_STATE:-$home/local}
logs=$state/log
org=local
user=you

say() { printf '\033[1mberth:\033[0m %s\n' "$*"; }
die() {
  printf 'berth: error: %s\n' "$*" >&2
  exit 1
}
port() { echo $(($1 + offset)); }

redis_port=$(port 6390)
sample_port=$(port 8090)
manager_port=$(port 8081)
internal_port=$(port 8082)
issuer_port=$(port 8083)
jwks_port=$(port 8084)
proxy_port=$(port 8085)
manager_admin=$(port 9081)
issuer_admin=$(port 9083)
proxy_admin=$(port 9085)

# ---- What was started is stopped, newest first, whatever happens -----------------------------

started=()
stop_all() {
  trap - EXIT INT TERM
  local i
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    kill -TERM "${started[i]}" 2>/dev/null || true
  done
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    for _ in $(seq 150); do
      kill -0 "${started[i]}" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "${started[i]}" 2>/dev/null || true
  done
}
trap stop_all EXIT
trap 'exit 130' INT TERM

# start NAME COMMAND…: in the background, deaf to the terminal's Ctrl-C, its output in a log.
start() {
  local name=$1
  shift
  setsid "$@" >>"$logs/$name.log" 2>&1 </dev/null &
  started+=($!)
}

# wait_for NAME SECONDS COMMAND…: until the command succeeds; fails at once when the newest start died.
wait_for() {
  local name=$1 limit=$2 pid=${started[-1]} tenths=0
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ! kill -0 "$pid" 2>/dev/null || ((tenths++ >= limit * 10)); then
      tail -n 20 "$logs/$name.log" >&2 || true
      die "$name did not become ready; its log is $logs/$name.log"
    fi
    sleep 0.1
  done
}

redis_answers() { [[ $(REDISCLI_AUTH=$(<"$state/redis.password") redis-cli -p "$redis_port" ping) == PONG ]]; }
answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
ready() {
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3
  local line
  read -r line <&3
  exec 3>&-
  [[ $line == *" 200 "* ]]
}
field() { "$python" -c 'import json,sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

# ---- Set up and build --------------------------------------------------------------------------

"$here/setup.sh" run
python=$home/venv-sail/bin/python
mkdir -p "$state" "$logs"
chmod 700 "$state"
: >"$logs/build.log"

for p in "$redis_port" "$sample_port" "$manager_port" "$internal_port" "$issuer_port" "$jwks_port" "$proxy_port" \
  "$manager_admin" "$issuer_admin" "$proxy_admin"; do
  ! answers "$p" || die "port $p is taken: stop what listens there, or choose others with BERTH_PORT_OFFSET=100"
done

target=${CARGO_TARGET_DIR:-$repo/target}
case $profile in
quick | release) bin=$target/$profile flags=(--profile "$profile") ;;
dev) bin=$target/debug flags=() ;;
*) die "BERTH_PROFILE must be quick, release or dev" ;;
esac
say "building ($profile); the first time takes some minutes"
(cd "$repo" && cargo build --locked "${flags[@]}" -p session-manager -p token-issuer -p spark-proxy -p compute -p cli)

# ---- Keys: made once, kept for this machine's user only --------------------------------------------

(
  umask 077
  [[ -s $state/signing.pem ]] || "$bin/berth" keys signing "$state/signing.pem" >/dev/null
  [[ -s $state/account.json ]] || "$bin/berth" --output json keys service-account >"$state/account.json"
  [[ -s $state/redis.password ]] || "$python" -c 'import secrets; print(secrets.token_hex(24))' >"$state/redis.password"
  # What holds a secret is a file or a variable: every user of this machine can read arguments.
  cat >"$state/redis.conf" <<CONF
bind 127.0.0.1
port $redis_port
dir "$state/redis"
requirepass $(<"$state/redis.password")
appendonly yes
save ""
daemonize no
CONF
  : >"$state/session-manager.toml"
)
key_sha256=$(field key_sha256 <"$state/account.json")
BERTH_KEY=$(field key <"$state/account.json")
export BERTH_KEY BERTH_MANAGER=http://127.0.0.1:$manager_port BERTH_ISSUER=http://127.0.0.1:$issuer_port

# ---- Configuration ---------------------------------------------------------------------------------

cat >"$state/session-manager.toml" <<TOML
listen.public.address = "127.0.0.1:$manager_port"
listen.internal.address = "127.0.0.1:$internal_port"
admin.address = "127.0.0.1:$manager_admin"
store.url = "redis://127.0.0.1:$redis_port"
store.password = "$(<"$state/redis.password")"
tokens.keys.location = "http://127.0.0.1:$jwks_port/.well-known/jwks.json"
compute.process.state_dir = "$state/compute"
telemetry.format = "text"

[[service_accounts]]
name = "$user"
org = "$org"
roles = ["member", "org-admin", "platform-admin"]
key_sha256 = "$key_sha256"

[[clusters]]
name = "local"
engine = "sail"
client_versions = ["pyspark-client 4.1"]
process.program = "$home/venv-sail/bin/sail"

[[catalogs]]
name = "sample"
org = "$org"
engine = "sail"
default_database = "default"
properties = { type = "iceberg-rest", uri = "http://127.0.0.1:$sample_port" }
TOML

cat >"$state/token-issuer.toml" <<TOML
listen.grpc.address = "127.0.0.1:$issuer_port"
listen.jwks.address = "127.0.0.1:$jwks_port"
admin.address = "127.0.0.1:$issuer_admin"
keys.signing = "$state/signing.pem"
public = { endpoint = "localhost:$proxy_port", tls = false }
manager.uri = "http://127.0.0.1:$internal_port"
telemetry.format = "text"
TOML

cat >"$state/spark-proxy.toml" <<TOML
listen.address = "127.0.0.1:$proxy_port"
listen.tls.mode = "off"
admin.address = "127.0.0.1:$proxy_admin"
tokens.keys.location = "http://127.0.0.1:$jwks_port/.well-known/jwks.json"
manager.uri = "http://127.0.0.1:$internal_port"
telemetry.format = "text"
TOML

# ---- Start -------------------------------------------------------------------------------------------

mkdir -p "$state/redis" "$state/sample"
say "starting Redis, the sample catalog and the services (logs in $logs)"
start redis redis-server "$state/redis.conf"
wait_for redis 20 redis_answers
start sample "$python" "$here/sample_catalog.py" --data "$state/sample" --port "$sample_port"
wait_for sample 60 answers "$sample_port"
start token-issuer "$bin/token-issuer" --config "$state/token-issuer.toml"
wait_for token-issuer 20 ready "$issuer_admin"
start session-manager "$bin/session-manager" --config "$state/session-manager.toml"
wait_for session-manager 20 ready "$manager_admin"
start spark-proxy "$bin/spark-proxy" --config "$state/spark-proxy.toml"
wait_for spark-proxy 20 ready "$proxy_admin"

# ---- The main job ------------------------------------------------------------------------------------

# Sessions of an earlier run lost their compute with it.
for old in $("$bin/berth" --output json list | "$python" -c 'import json,sys; print(*(s["id"] for s in json.load(sys.stdin)))'); do
  "$bin/berth" close "$old" >/dev/null
done
say "berth create --cluster local --catalog sample --wait"
session=$("$bin/berth" --output json create --cluster local --catalog sample --name quickstart --wait | field id)
say "berth token $session"
url=$("$bin/berth" --output json token "$session" --ttl 12h | field connection_url)
say "querying through the proxy with PySpark"
SPARK_REMOTE=$url "$python" "$here/hello.py"

if [[ -n ${EXIT:-} ]]; then
  "$bin/berth" close "$session" >/dev/null
  say "done; stopping"
  exit 0
fi

cat <<TEXT

Berth is serving. Connect from a notebook (pip install 'pyspark-client==4.1.3' 'pandas<3'):

  from pyspark.sql import SparkSession
  spark = SparkSession.builder.remote("$url").getOrCreate()
  spark.sql("SHOW TABLES").show()

More sessions and tokens from another terminal:

  export BERTH_KEY=\$(cat $state/account.json | $python -c 'import json,sys; print(json.load(sys.stdin)["key"])')
  export BERTH_MANAGER=$BERTH_MANAGER BERTH_ISSUER=$BERTH_ISSUER
  $bin/berth list
  $bin/berth --help

The token is good for 12 hours and for this session only. Ctrl-C stops everything.
TEXT

# A part that dies ends the run, so that nobody waits for a half-dead Berth.
while sleep 1; do
  for pid in "${started[@]}"; do
    kill -0 "$pid" 2>/dev/null || die "a part of Berth stopped by itself; its log is in $logs"
  done
done
