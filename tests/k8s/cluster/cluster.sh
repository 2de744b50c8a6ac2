#!/usr/bin/env bash
# A real Kubernetes cluster with one node, for tests, without a virtual machine or a registry.
#
#   cluster.sh build              builds what is missing in BERTH_K8S_CACHE (default: ~/.cache/berth-k8s)
#   cluster.sh is-built           succeeds if `build` has nothing to do
#   cluster.sh up                 builds and starts the node, waits until pods and cluster DNS work
#   cluster.sh env                prints the shell commands that set KUBECONFIG and PATH (kubectl, helm)
#   cluster.sh load ARCHIVE...    imports image archives
#   cluster.sh exec COMMAND...    runs a command on the node, with its network, mounts and processes
#   cluster.sh status             shows the node and its pods; fails if the cluster is down
#   cluster.sh down               stops the node and removes everything that it created
#
# The node is one tree of processes in namespaces of its own (node.sh). On the host there are only the
# folder BERTH_K8S_STATE (default: /tmp/berth-k8s), one network interface with two routes, and a cgroup
# in each hierarchy. The host reaches pods and services by their addresses. The node has no default
# route, so that no packet of a pod leaves the machine.
#
# Requires root, cgroup v1 and the packages that `deploy/local/setup.sh k8s` installs.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=settings.sh
source "$here/settings.sh"
# shellcheck source=build.sh
source "$here/build.sh"
# shellcheck source=pki.sh
source "$here/pki.sh"
export PATH=$bin:$PATH KUBECONFIG=$state/kubeconfig

# ---- The node's first process ------------------------------------------------------------------

# node_pid: the process id, on the host, of the node's first process; fails if it has ended. The
# process namespace is compared too, because the kernel assigns process ids again.
node_pid() {
  local pid namespace
  read -r pid namespace <"$state/node.pid" || return 1
  [[ $(stat -Lc %i "/proc/$pid/ns/pid") == "$namespace" ]] && echo "$pid"
} 2>/dev/null

inside() {
  local pid
  pid=$(node_pid) || die "the cluster is down"
  nsenter --target "$pid" --mount --net --pid --uts --ipc --cgroup -- "$@"
}

# ---- Control groups ----------------------------------------------------------------------------

# cgroup_folders: the folder of the node in each hierarchy, below the group of this process.
cgroup_folders() {
  local hierarchy path mount
  while IFS=: read -r _ hierarchy path; do
    mount=/sys/fs/cgroup/${hierarchy#name=}
    [[ -z $hierarchy || ! -d $mount$path ]] || echo "$mount${path%/}/$cgroup"
  done </proc/self/cgroup
}

# join_cgroups: moves this (sub)shell to the node's groups.
join_cgroups() {
  local folder setting
  while read -r folder; do
    mkdir -p "$folder"
    for setting in cpuset.cpus cpuset.mems; do # empty in a new group, which then accepts no process
      [[ ! -e $folder/$setting ]] || cat "$folder/../$setting" >"$folder/$setting"
    done
    echo "$BASHPID" >"$folder/cgroup.procs"
  done <"$state/cgroups"
}

remove_cgroups() {
  local folder
  while read -r folder; do
    # The kernel releases groups of dead processes some time after their end.
    wait_until 10 remove_cgroup "$folder" || die "cgroup is still in use: $folder"
  done <"$state/cgroups"
}

remove_cgroup() {
  [[ ! -d $1 ]] || find "$1" -depth -type d -exec rmdir {} +
}

# ---- Start -------------------------------------------------------------------------------------

up() {
  [[ $EUID == 0 ]] || die "root is required"
  [[ -d /sys/fs/cgroup/memory ]] || die "this machine has no cgroup v1 hierarchies, which the node needs"
  build_cluster
  mkdir "$state" 2>/dev/null || die "a cluster is up or was not taken down: $state exists; run: cluster.sh down"
  trap 'failed_start' EXIT
  local started=$SECONDS
  touch "$state/$marker"
  mkdir "$logs"
  make_pki
  cp "$pki/admin.conf" "$KUBECONFIG"
  start_node
  connect_node
  wait_for "Ready node" 120 node_is_ready
  load "$bin/coredns.tar"
  kubectl apply -f "$here/dns.yaml" >/dev/null
  wait_for "cluster DNS" 90 dns_is_ready
  trap - EXIT
  say "ready after $((SECONDS - started)) s; eval \"\$($0 env)\" selects it"
}

failed_start() {
  tail -n 15 "$logs"/*.log >&2 || true
  down
}

start_node() {
  cgroup_folders >"$state/cgroups"
  (
    join_cgroups
    umask 022 # file systems of images inherit it
    exec setsid unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child \
      bash "$here/node.sh" <&- >"$logs/node.log" 2>&1 8>&-
  ) &
  wait_until 10 test -s "$state/node.pid" || die "the node did not start"
}

# connect_node: a pair of interfaces between the host and the node.
connect_node() {
  ip link add "$interface" type veth peer name eth0 netns "$(node_pid)"
  ip addr add "$host_ip/30" dev "$interface"
  ip link set "$interface" up
  ip route add "$pods_net" via "$node_ip" dev "$interface"
  ip route add "$services_net" via "$node_ip" dev "$interface"
}

# wait_for WHAT SECONDS COMMAND...: fails at once when the node has ended.
wait_for() {
  local what=$1 limit=$2
  shift 2
  wait_until "$limit" node_ended_or "$@"
  "$@" >/dev/null 2>&1 || die "no $what (limit $limit s)"
}
node_ended_or() { ! node_pid || "$@"; }

node_is_ready() {
  [[ $(kubectl get node "$node" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}') == True ]] &&
    kubectl -n default get serviceaccount default
}
dns_is_ready() { kubectl -n kube-system rollout status deployment/coredns --timeout=1s; }

load() {
  local archive
  for archive; do
    inside ctr --address "$containerd_socket" --namespace k8s.io images import - <"$archive" >/dev/null
  done
}

# ---- Stop --------------------------------------------------------------------------------------

down() {
  trap - EXIT
  [[ -d $state ]] || return 0
  [[ -e $state/$marker ]] || die "$state is not the folder of a cluster"
  local pid
  if pid=$(node_pid); then
    kill -KILL "$pid" # with the first process of a namespace the kernel ends all others
    wait_until 30 test ! -d "/proc/$pid" || die "process $pid does not end"
  fi
  ip link delete "$interface" 2>/dev/null || true # its routes go with it
  [[ ! -e $state/cgroups ]] || remove_cgroups
  # The marker goes last, so that an interrupted `down` can be repeated.
  find "$state" -mindepth 1 -maxdepth 1 ! -name "$marker" -exec rm -rf {} +
  rm -rf "$state"
}

command=${1:-}
[[ $# == 0 ]] || shift
case $command in
build) build_cluster ;;
is-built) is_built ;;
up) up ;;
env) echo "export KUBECONFIG='$KUBECONFIG' PATH='$bin':\"\$PATH\"" ;;
load) load "$@" ;;
exec) inside "$@" ;;
status)
  node_pid >/dev/null || die "the cluster is down"
  kubectl get nodes,pods --all-namespaces -o wide
  ;;
down) down ;;
*)
  sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"
  exit 2
  ;;
esac
