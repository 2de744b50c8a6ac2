#!/usr/bin/env bash
# The first process of the node; cluster.sh starts it in new namespaces.
#
# It prepares mounts and network, writes the configuration, starts every component and then reaps
# orphans. All that it changes is in its namespaces and in the folder of the cluster.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=settings.sh
source "$here/settings.sh"
components=$bin/components

# /proc is still the host's here, and a redirection is opened by this process itself.
announce() {
  local pid
  read -r pid _ </proc/self/stat
  echo "$pid $(stat -Lc %i /proc/self/ns/pid)" >"$state/node.pid.new"
  mv "$state/node.pid.new" "$state/node.pid"
}

# ---- Mounts ------------------------------------------------------------------------------------

prepare_mounts() {
  mount --make-rprivate /
  mount --make-rshared / # mount propagation between the kubelet and containers
  local hierarchies
  hierarchies=$(awk -F: '$2 != "" { print $2 }' /proc/self/cgroup)
  umount --lazy /proc
  mount -t proc proc /proc
  umount --recursive --lazy /sys
  mount -t sysfs sysfs /sys
  mount_cgroups "$hierarchies"
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/containerd /run/netns /run/sysctl
  mkdir -p "$state"/var/{lib/kubelet,lib/containerd,lib/etcd,log,tmp}
  ln -sfn /run "$state/var/run"
  mount --bind "$state/var" /var
}

# The cgroup namespace shows only the subtree of the node. The hierarchy name=systemd has no
# controller, but without it containerd cannot load the group of a container and reports no OOM kill.
mount_cgroups() {
  local hierarchy options
  mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  for hierarchy in $1; do
    options=$hierarchy
    [[ $hierarchy != name=* ]] || options=none,$hierarchy
    mkdir "/sys/fs/cgroup/${hierarchy#name=}"
    mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/${hierarchy#name=}"
  done
}

# The kubelet refuses to start unless some settings of the kernel have its values. They belong to the
# whole machine, so the node gets files of its own in their place and the machine keeps its settings.
prepare_sysctls() {
  local setting value file
  while read -r setting value; do
    [[ $(<"/proc/sys/$setting") != "$value" ]] || continue
    file=/run/sysctl/${setting//\//_}
    echo "$value" >"$file"
    mount --bind "$file" "/proc/sys/$setting"
  done <<'SYSCTLS'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTLS
}

# ---- Network -----------------------------------------------------------------------------------

prepare_network() {
  hostname "$node"
  ip link set lo up
  wait_until 10 ip link show eth0 || die "the host did not connect the node"
  ip addr add "$node_ip/30" dev eth0
  ip link set eth0 up
  # Packets to services need a route before the rules of kube-proxy can redirect them.
  ip route add "$services_net" dev eth0
  ip route add unreachable default metric 999
  echo 1 >/proc/sys/net/ipv4/ip_forward
}

# ---- Configuration -----------------------------------------------------------------------------

write_configuration() {
  mkdir -p "$state/cni"
  : >"$state/resolv.conf" # no name server outside the cluster
  cat >"$state/cni/10-berth.conflist" <<JSON
{
  "cniVersion": "1.0.0",
  "name": "berth",
  "plugins": [{
    "type": "ptp",
    "ipMasq": false,
    "ipam": {
      "type": "host-local",
      "dataDir": "/run/cni-addresses",
      "ranges": [[{"subnet": "$node_pods_net"}]],
      "routes": [{"dst": "0.0.0.0/0"}]
    }
  }]
}
JSON
  cat >"$state/containerd.toml" <<TOML
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "$containerd_socket"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "berth.test/pause:1"
enable_unprivileged_ports = true
# Root without CAP_SYS_RESOURCE cannot lower the score of a process.
restrict_oom_score_adj = true

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "$state/cni"
TOML
  cat >"$state/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://$containerd_socket
failCgroupV1: false
cgroupDriver: cgroupfs
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $pki/kubelet-server.crt
tlsPrivateKeyFile: $pki/kubelet-server.key
clusterDNS: [$dns_ip]
clusterDomain: cluster.local
resolvConf: $state/resolv.conf
volumePluginDir: /var/lib/kubelet/volume-plugins
# The machine is shared: pods must not be evicted, nor images deleted, for what others use.
evictionHard: {memory.available: 64Mi, nodefs.available: 1%, imagefs.available: 1%}
imageGCHighThresholdPercent: 100
failSwapOn: false
maxPods: $max_pods
cpuCFSQuota: $( ((max_pods > 110)) && echo false || echo true)
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
YAML
  cat >"$state/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: $node
clusterCIDR: $pods_net
clientConnection: {kubeconfig: $pki/kube-proxy.conf}
# Zero leaves the kernel's limits, which belong to the whole machine, as they are.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
nftables: {minSyncPeriod: 0s, syncPeriod: 30s}
metricsBindAddress: 127.0.0.1:10249
YAML
}

# ---- Components --------------------------------------------------------------------------------

# start NAME COMMAND...: in the background, with a log of its own, started again whenever it ends.
start() {
  local name=$1
  shift
  while :; do
    "$@" || say "exit code $?"
    say "$name ended and is started again"
    sleep 1
  done >>"$logs/$name.log" 2>&1 <&- &
}

start_storage() {
  start etcd "$components" etcd --data-dir=/var/lib/etcd --unsafe-no-fsync --log-level=warn \
    --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
    --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
    --initial-cluster=default=http://127.0.0.1:2380
}

start_api_server() {
  start kube-apiserver "$components" kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
    --advertise-address="$node_ip" --bind-address=0.0.0.0 --secure-port=6443 \
    --service-cluster-ip-range="$services_net" --allow-privileged=true --event-ttl=1h \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --client-ca-file="$pki/ca.crt" \
    --tls-cert-file="$pki/kube-apiserver.crt" --tls-private-key-file="$pki/kube-apiserver.key" \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$pki/service-accounts.pub" \
    --service-account-signing-key-file="$pki/service-accounts.key" \
    --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --kubelet-client-certificate="$pki/kube-apiserver-kubelet.crt" \
    --kubelet-client-key="$pki/kube-apiserver-kubelet.key"
}

start_controllers() {
  local config=$pki/kube-controller-manager.conf
  start kube-controller-manager "$components" kube-controller-manager --kubeconfig="$config" \
    --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" \
    --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/service-accounts.key" \
    --use-service-account-credentials=true --leader-elect=false --bind-address=127.0.0.1 \
    --allocate-node-cidrs=true --cluster-cidr="$pods_net" --node-cidr-mask-size=22 --service-cluster-ip-range="$services_net" \
    --flex-volume-plugin-dir=/var/lib/kubelet/volume-plugins
  config=$pki/kube-scheduler.conf
  start kube-scheduler "$components" kube-scheduler --kubeconfig="$config" \
    --authentication-kubeconfig="$config" --authorization-kubeconfig="$config" \
    --leader-elect=false --bind-address=127.0.0.1
}

start_node_agents() {
  start kubelet "$components" kubelet --config="$state/kubelet.yaml" --kubeconfig="$pki/kubelet.conf" \
    --hostname-override="$node" --node-ip="$node_ip"
  start kube-proxy "$components" kube-proxy --config="$state/kube-proxy.yaml"
  start network-policy-enforcer "$components" network-policy-enforcer --kubeconfig="$pki/admin.conf"
}

announce
prepare_mounts
prepare_sysctls
prepare_network
write_configuration
cd "$state"
start_storage
start containerd containerd --config "$state/containerd.toml"
start_api_server
wait_until 30 test -S "$containerd_socket" || die "containerd did not start"
ctr --address "$containerd_socket" --namespace k8s.io images import - <"$bin/pause.tar"
wait_until 90 kubectl --kubeconfig "$pki/admin.conf" get --raw /readyz || die "the API server did not become ready"
start_controllers
start_node_agents
wait # for ever; meanwhile the shell reaps the orphans that the first process of a namespace inherits
