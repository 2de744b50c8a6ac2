# Names, addresses and folders of the test cluster; sourced by cluster.sh and node.sh.
# shellcheck shell=bash disable=SC2034

# Binaries and images that are expensive to build. Never deleted by a script.
cache=${BERTH_K8S_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/berth-k8s}
# Everything of the running cluster; `down` deletes it.
state=${BERTH_K8S_STATE:-${TMPDIR:-/tmp}/berth-k8s}
bin=$cache/bin
marker=berth-test-cluster # a file that shows that the folder is ours to delete

node=berth-node
interface=berthk8s0 # the host's end of the link to the node
cgroup=berth-k8s

host_ip=10.250.0.1
node_ip=10.250.0.2
pods_net=10.244.0.0/16
node_pods_net=10.244.0.0/22
services_net=10.96.0.0/16
api_ip=10.96.0.1
dns_ip=10.96.0.10 # also in dns.yaml

# The kubelet's usual limit. For more pods the node has too little CPU: each can request little, and limits of CPU are
# not enforced then.
max_pods=${BERTH_K8S_PODS:-110}

pki=$state/pki
logs=$state/log
containerd_socket=/run/containerd/containerd.sock # inside the node

say() { printf 'cluster: %s\n' "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

# wait_until SECONDS COMMAND...: runs the command ten times a second until it succeeds.
wait_until() {
  local tenths=$(($1 * 10))
  shift
  until "$@" >/dev/null 2>&1; do
    ((tenths-- > 0)) || return 1
    sleep 0.1
  done
}
