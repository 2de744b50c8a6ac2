#!/usr/bin/env bash
# Starts deploy/compose.yaml with Podman, as deploy/compose/README.md describes it, runs a PySpark query, and ends all of it.
#
#   compose.sh ARCHIVES LOCAL_ARCHIVES    folders: images of Berth; images of Sail and Redis (local_image.sh)
#
# It runs in mount, network and process namespaces of its own, so that nothing is left when it ends, and the addresses and
# ports are free. Every image is local. Podman gets no control groups, because crun does not know this machine's mix of both
# versions, and limits that a root without CAP_SYS_RESOURCE may set.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
home=${BERTH_HOME:-$repo/.berth}
python=$home/venv-sail/bin/python
owner=1000 # as compose.yaml expects
START_LIMIT=${START_LIMIT:-60}

if [[ ${1:-} != --inside ]]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  unshare --net --mount --pid --fork --kill-child --mount-proc bash "${BASH_SOURCE[0]}" --inside "$work" "$@"
  exit
fi
work=$2 images=$3 local_images=$4

mount --make-rprivate /
mount -t tmpfs tmpfs /run
umount --recursive --lazy /sys/fs/cgroup
mount -t tmpfs tmpfs /sys/fs/cgroup
ip link set lo up
cat >"$work/containers.conf" <<TOML
[containers]
cgroups = "disabled"
log_driver = "k8s-file"
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[network]
network_backend = "netavark"
network_config_dir = "$work/networks"
TOML
cat >"$work/storage.conf" <<TOML
[storage]
driver = "overlay"
graphroot = "$work/images"
runroot = "/run/podman-storage"
TOML
export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf TMPDIR=$work

load_images() {
  local version name file id
  version=$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
  for file in "$images"/*.tar; do
    name=$(basename "$file" .tar)
    podman load --quiet --input "$file" >/dev/null
    podman tag "berth.test/berth/$name:test" "berth/$name:$version"
  done
  podman load --quiet --input "$local_images/sail.tar" >/dev/null
  podman tag berth.test/sail:test "$(image_of sail)"
  # The official image has a folder for data, and no fixed program.
  podman load --quiet --input "$local_images/redis.tar" >/dev/null
  id=$(podman create berth.test/redis:test)
  podman commit --quiet --change 'ENTRYPOINT []' --change 'WORKDIR /data' "$id" "$(image_of redis)" >/dev/null
  podman rm "$id" >/dev/null
}
image_of() { sed -n "/^  $1:/,/^\$/s/^    image: //p" "$repo/deploy/compose.yaml"; }

berth() {
  podman run --rm --network host --user "$owner:$owner" --volume "$work/deploy/compose/secrets:/secrets" \
    --env BERTH_KEY --env BERTH_MANAGER --env BERTH_ISSUER berth/berth:0.1.0 "$@"
}
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" | head -n 1; }

make_secrets() {
  mkdir -m 700 "$work/deploy/compose/secrets"
  chown "$owner:$owner" "$work/deploy/compose/secrets"
  berth keys signing /secrets/signing.pem >/dev/null
  berth keys rotate /secrets/cookie-keys >/dev/null
  berth --output json keys service-account >"$work/account.json"
  cat >"$work/deploy/compose/secrets/accounts.toml" <<TOML
[[service_accounts]]
name = "you"
org = "local"
roles = ["member", "org-admin", "platform-admin"]
key_sha256 = "$(field key_sha256 <"$work/account.json")"
TOML
}

# attempt ARGUMENT...: the JSON of a command, as soon as the services answer; at most START_LIMIT seconds.
attempt() {
  local deadline=$((SECONDS + START_LIMIT))
  until timeout 30 podman run --rm --network host --env BERTH_KEY --env BERTH_MANAGER --env BERTH_ISSUER berth/berth:0.1.0 \
    --output json "$@" 2>"$work/problem"; do
    ((SECONDS < deadline)) || { cat "$work/problem" >&2 && return 1; }
    sleep 0.5
  done
}

compose() { (cd "$work/deploy" && PYTHONPATH=$home/client-compose "$python" -m podman_compose --file compose.yaml --file test.yaml "$@"); }

logs() {
  local name
  podman ps --all
  for name in $(podman ps --all --format '{{.Names}}'); do echo "== $name" && podman logs --tail 20 "$name"; done
}

load_images
cp -r "$repo/deploy" "$work/deploy"
# Debian's Redis accepts loopback only unless it is told otherwise; the official image is built without that.
cat >"$work/deploy/test.yaml" <<'YAML'
services:
  redis: {command: [redis-server, --appendonly, "yes", --maxmemory-policy, noeviction, --protected-mode, "no"]}
YAML
make_secrets
set -E
trap 'logs >&2' ERR
started=$SECONDS
compose up --detach --no-build
BERTH_KEY=$(field key <"$work/account.json")
export BERTH_KEY BERTH_MANAGER=http://127.0.0.1:8081 BERTH_ISSUER=http://127.0.0.1:8083
session=$(attempt create --cluster local --wait | field id)
url=$(berth --output json token "$session" | field connection_url)
sum=$("$python" -c "
import faulthandler, sys
faulthandler.dump_traceback_later(60, exit=True)
from pyspark.sql import SparkSession
spark = SparkSession.builder.remote(sys.argv[1]).getOrCreate()
print(spark.sql('SELECT sum(id) FROM range(1000)').collect()[0][0])
spark.stop()
" "$url")
echo "sum $sum after $((SECONDS - started)) s"
"$python" - "$session" <<'PYTHON'
import json, os, sys, urllib.request
def ask(path):
    headers = {"authorization": f"Bearer {os.environ['BERTH_KEY']}"}
    return urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:8080{path}", headers=headers), timeout=30)
page = ask("/").read().decode()
assert "<script" in page, page[:500]
print("console:", json.load(ask(f"/api/v1/sessions/{sys.argv[1]}"))["status"])
PYTHON
# What compose.yaml promises: Sail reaches neither Redis nor the internal ports, and state survives `down`.
podman exec berth_sail_1 python3 -c "
import socket
for address in (('172.31.85.2', 6379), ('172.31.85.3', 8082), ('172.31.85.4', 8084)):
    try: socket.create_connection(address, timeout=2)
    except OSError: continue
    raise SystemExit(f'Sail reaches {address}')
"
compose down
compose up --detach --no-build
status=$(attempt show "$session" | field status)
echo "after down and up: $status"
compose down --volumes
[[ -z $(podman ps --all --quiet)$(podman volume ls --quiet) ]] # nothing is left
