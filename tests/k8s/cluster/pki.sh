# Certificates and kubeconfigs of one cluster; sourced by cluster.sh.
# shellcheck shell=bash disable=SC2154

# make_pki: a new authority, all certificates and kubeconfigs, in $pki.
make_pki() (
  umask 077
  mkdir -p "$pki"
  cd "$pki" || return
  openssl ecparam -name prime256v1 -genkey -noout -out ca.key
  openssl req -x509 -new -key ca.key -subj /CN=berth-test-cluster -days 30 -sha256 -out ca.crt \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
  openssl genrsa -out service-accounts.key 2048 2>/dev/null
  openssl rsa -in service-accounts.key -pubout -out service-accounts.pub 2>/dev/null

  server_certificate kube-apiserver /CN=kube-apiserver \
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost,IP:127.0.0.1,IP:$node_ip,IP:$api_ip"
  server_certificate kubelet-server "/O=system:nodes/CN=system:node:$node" "DNS:$node,IP:$node_ip"
  client_certificate kube-apiserver-kubelet /O=system:masters/CN=kube-apiserver-kubelet-client

  client_certificate admin /O=system:masters/CN=admin
  client_certificate kubelet "/O=system:nodes/CN=system:node:$node"
  client_certificate kube-controller-manager /CN=system:kube-controller-manager
  client_certificate kube-scheduler /CN=system:kube-scheduler
  client_certificate kube-proxy /CN=system:kube-proxy
  local client
  for client in admin kubelet kube-controller-manager kube-scheduler kube-proxy; do kubeconfig "$client"; done
)

# server_certificate NAME SUBJECT ALTERNATIVE_NAMES
server_certificate() { certificate "$1" "$2" serverAuth "subjectAltName=$3"; }

# client_certificate NAME SUBJECT
client_certificate() { certificate "$1" "$2" clientAuth; }

certificate() {
  local name=$1 subject=$2 usage=$3
  shift 3
  openssl ecparam -name prime256v1 -genkey -noout -out "$name.key"
  openssl req -new -key "$name.key" -subj "$subject" -out "$name.csr"
  printf '%s\n' basicConstraints=CA:FALSE keyUsage=digitalSignature "extendedKeyUsage=$usage" "$@" >"$name.ext"
  openssl x509 -req -in "$name.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -sha256 \
    -extfile "$name.ext" -out "$name.crt" 2>/dev/null
  rm "$name.csr" "$name.ext"
}

# kubeconfig NAME: NAME.conf, with the certificate of NAME inside.
kubeconfig() {
  cat >"$1.conf" <<YAML
apiVersion: v1
kind: Config
current-context: berth
clusters:
  - name: berth
    cluster: {server: "https://$node_ip:6443", certificate-authority-data: $(base64 -w0 ca.crt)}
users:
  - name: $1
    user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}
contexts:
  - name: berth
    context: {cluster: berth, user: $1}
YAML
}
