#!/usr/bin/env bash
# What CI runs of `make test-k8s`: as much as fits into the time that is left, and on a machine that can run it.
#
#   ci.sh SECONDS    the time that is left
#
# It says loudly what it leaves out. It fails if a test fails. It does not fail when the time is over, which ends the
# tests, or when this machine cannot build or start the cluster.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
left=$1
# Seconds on two cores, with a reserve: docs/testing.md has the measured parts.
BUILD_CLUSTER=900
BUILD_IMAGES=420
FEW_TESTS=300 few="test_images.py test_apply.py test_chart.py"
MORE_TESTS=600 more="$few test_cluster.py"
ALL_TESTS=1800

leave_out() {
  printf '\n==== NOT RUN: %s: %s ====\n\n' "$1" "$2" >&2
}
[[ $EUID == 0 ]] || { leave_out "test-k8s" "root is required" && exit; }
[[ -d /sys/fs/cgroup/memory ]] || { leave_out "test-k8s" "there are no cgroup v1 hierarchies" && exit; }
unshare --net --mount --pid --fork true 2>/dev/null || { leave_out "test-k8s" "this root may not create namespaces" && exit; }
command -v go >/dev/null || { leave_out "test-k8s" "Go is required" && exit; }

needed=$BUILD_IMAGES
"$here/cluster/cluster.sh" is-built || needed=$((needed + BUILD_CLUSTER))
for_tests=$((left - needed))
((for_tests >= FEW_TESTS)) || { leave_out "test-k8s" "it needs $((needed + FEW_TESTS)) s, and $left s are left" && exit; }
if ((for_tests < MORE_TESTS)); then
  export TESTS=$few
elif ((for_tests < ALL_TESTS)); then
  export TESTS=$more
fi
[[ -z ${TESTS:-} ]] || leave_out "test-k8s but for $TESTS" "too little time: $for_tests s"

code=0
timeout --signal=INT --kill-after=60 "$left" "$here/run.sh" || code=$?
if [[ $code == 124 || $code == 137 ]]; then
  "$here/cluster/cluster.sh" down
  leave_out "the rest of test-k8s" "the time is over after $left s"
  exit 0
fi
if [[ $code == 75 ]]; then
  leave_out "test-k8s" "the cluster could not be built or started on this machine; the output above says why"
  exit 0
fi
exit "$code"
