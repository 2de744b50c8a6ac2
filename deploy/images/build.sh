#!/usr/bin/env bash
# `make image`: static programs, and an image of each as an archive, which every container engine loads.
#
#   FOLDER=DIR           where the archives go (default: images in the target folder)
#   BERTH_PROFILE=NAME   cargo profile: dist (default; what is shipped), release or quick
#   IMAGE_PREFIX=NAME    registry and folder of the names (default: berth)
#   IMAGE_TAG=TAG        default: the version of the workspace
#
# Prints name and size of each archive: the layers in it are compressed, as in a registry.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
target=${CARGO_TARGET_DIR:-$repo/target}
folder=${FOLDER:-$target/images}
profile=${BERTH_PROFILE:-dist}
prefix=${IMAGE_PREFIX:-berth}
tag=${IMAGE_TAG:-$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' "$repo/Cargo.toml")}
declare -A packages=([session-manager]=session-manager [token-issuer]=token-issuer [spark-proxy]=spark-proxy [console]=console [berth]=cli)

die() {
  printf 'image: error: %s\n' "$*" >&2
  exit 1
}
command -v buildah >/dev/null || die "buildah is required (Debian package buildah)"

# The console embeds its pages.
"$repo/deploy/local/setup.sh" console
"$repo/deploy/local/console_web.sh"

# With --target, flags for the programs do not apply to build scripts and procedural macros, which
# cannot be static.
triple=$(rustc -vV | sed -n 's/^host: //p')
cd "$repo"
RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile "$profile" --target "$triple" --bins "${packages[@]/#/--package=}"

context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
install -m 644 LICENSE /etc/ssl/certs/ca-certificates.crt "$context/"
for program in "${!packages[@]}"; do
  binary=$target/$triple/$profile/$program
  # A dynamic program would need an interpreter, which the image does not have.
  [[ $(readelf --program-headers "$binary") != *INTERP* ]] || die "$binary is not static"
  install -m 755 "$binary" "$context/"
  python3 deploy/images/sbom.py "${packages[$program]}" "$triple" >"$context/$program.cdx.json"
done

for program in "${!packages[@]}"; do
  archive=$folder/$program.tar
  "$here/archive.sh" "$archive" "$prefix/$program:$tag" --file "$here/Containerfile" --target "$program" "$context"
  printf '%s/%s:%s  %s  %s KiB\n' "$prefix" "$program" "$tag" "$archive" "$(($(stat -c %s "$archive") / 1024))"
done
