#!/usr/bin/env bash
# Builds one container image and writes it as an archive that container engines can load.
#
#   archive.sh ARCHIVE NAME:TAG [buildah options...] CONTEXT
#
# buildah keeps nothing behind: its storage is a temporary folder. Times are 0, so that the same input
# gives the same image.
set -euo pipefail

archive=$1 name=$2
shift 2
storage=$(mktemp -d)
trap 'rm -rf "$storage"' EXIT

with_storage() { buildah --root "$storage/root" --runroot "$storage/run" --storage-driver vfs "$@"; }

mkdir -p "$(dirname "$archive")"
with_storage build --isolation chroot --timestamp 0 --quiet --tag "$name" "$@" >/dev/null
rm -f "$archive"
with_storage push --quiet "$name" "oci-archive:$archive:$name" >/dev/null
