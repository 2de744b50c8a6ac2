#!/usr/bin/env bash
# `make test-k8s`: Berth on a real cluster. Builds the cluster and the images, starts the cluster, loads
# the images, runs the tests in tests/ and takes the cluster down, whatever happens.
#
#   ARGS="-k chart -x"   arguments of pytest
#   TESTS="NAME..."      files in tests/ (default: all)
#   BERTH_PROFILE=NAME   cargo profile of the programs in the images (default: quick)
#   BERTH_CHART=DIR      another chart than helm/berth
#   SPARK=1              also load the image of Apache Spark, for tests that need it
#   BENCH=NAME           `make bench-k8s`: tests/bench_NAME.py (sessions, claims) in place of the tests
#   BERTH_SERVICES=DIR   the programs that run on this machine (default: those of the images)
#
# Exit code 75: the cluster could not be built or started, so that no test ran.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
home=${BERTH_HOME:-$repo/.berth}
cluster=$here/cluster/cluster.sh
python=$home/venv-sail/bin/python
target=${CARGO_TARGET_DIR:-$repo/target}
images=$target/images-k8s
profile=${BERTH_PROFILE:-quick}

cluster_is_up=
end() {
  local code=$?
  trap - EXIT
  [[ -z $cluster_is_up ]] || "$cluster" down
  [[ -n $cluster_is_up || $code == 0 || $code == 130 ]] || code=75
  exit "$code"
}
trap end EXIT
trap 'exit 130' INT TERM

"$repo/deploy/local/setup.sh" k8s
"$cluster" build
FOLDER=$images BERTH_PROFILE=$profile IMAGE_PREFIX=berth.test/berth IMAGE_TAG=test "$repo/deploy/images/build.sh"
archives=("$images"/*.tar)
for name in redis sail ${SPARK:+spark}; do archives+=("$("$here/local_image.sh" "$name")"); done
# Tests that run the services on this machine use the programs of the images.
BERTH_PROGRAMS=${BERTH_SERVICES:-$target/$(rustc -vV | sed -n 's/^host: //p')/$profile}
# The test of compose.yaml uses the images without the cluster.
BERTH_IMAGES=$images
BERTH_LOCAL_IMAGES=$(dirname "${archives[-1]}")
export BERTH_PROGRAMS BERTH_IMAGES BERTH_LOCAL_IMAGES

if [[ -n ${BENCH:-} ]]; then
  TESTS=bench_$BENCH.py
  archives+=("${BERTH_K8S_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/berth-k8s}/bin/engine.tar")
  [[ $BENCH != claims ]] || export BERTH_K8S_PODS=400
fi
"$cluster" up # a failed start takes itself down, and a cluster of somebody else stays up
cluster_is_up=1
"$cluster" load "${archives[@]}"
eval "$("$cluster" env)"
tests=()
for name in ${TESTS:-.}; do tests+=("$here/tests/$name"); done
# A failed test has printed its own facts; these are those of the cluster.
# shellcheck disable=SC2086
PYTHONPATH=$home/client-pytest PYTHONDONTWRITEBYTECODE=1 "$python" -m pytest -p no:cacheprovider -rA --durations=0 --tb=short "${tests[@]}" ${ARGS:-} || {
  code=$?
  kubectl get pods,events --all-namespaces -o wide >&2 || true
  exit "$code"
}
