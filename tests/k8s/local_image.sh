#!/usr/bin/env bash
# An image for the test cluster from what this machine has; nothing is pulled.
#
#   local_image.sh sail|spark|redis    prints the archive, whose image is berth.test/NAME:test
#
# Programs and libraries are unpacked packages of Debian 12, the Python environments are those of
# `deploy/local/setup.sh`. A pod finds in the images of engines what it finds in deploy/images/sail and
# deploy/images/spark, except for a shell and package managers. Archives are in BERTH_K8S_CACHE.
set -euo pipefail

name=${1:-}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$here/../.." && pwd)
# shellcheck source=cluster/settings.sh
source "$here/cluster/settings.sh"

common_packages=(libc6 libgcc-s1 liblzma5 libssl3 libstdc++6 tzdata)
python_packages=(python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libbz2-1.0 libcrypt1 libexpat1
  libffi8 libncursesw6 libreadline8 libsqlite3-0 libtinfo6 libuuid1 zlib1g)
# Spark deletes folders with the program rm.
java_packages=(openjdk-17-jre-headless coreutils libacl1 libattr1 libbrotli1 libfontconfig1 libfreetype6
  libglib2.0-0 libgmp10 libgraphite2-3 libharfbuzz0b libjpeg62-turbo liblcms2-2 libpcre2-8-0 libpng16-16 libselinux1)
redis_packages=(redis-server redis-tools libatomic1 libcap2 libgcrypt20 libgpg-error0 libjemalloc2 liblz4-1
  liblzf1 libsystemd0 libzstd1)

packages=("${common_packages[@]}")
environment=
case $name in
sail) packages+=("${python_packages[@]}") environment=venv-sail ;;
spark) packages+=("${python_packages[@]}" "${java_packages[@]}") environment=venv-spark ;;
redis) packages+=("${redis_packages[@]}") ;;
*) die "usage: local_image.sh sail|spark|redis" ;;
esac
[[ -z $environment ]] || environment=${BERTH_HOME:-$repo/.berth}/$environment
[[ -z $environment || -e $environment/berth-stamp ]] || die "there is no $environment: run deploy/local/setup.sh"

# The key tells what is in the image; it is written last.
archive=$cache/$name.tar
key=$(cat "${BASH_SOURCE[0]}" "$here/local.Containerfile" ${environment:+"$environment/berth-stamp"} | sha256sum | cut -c1-16)
if [[ -e $archive && $(cat "$archive.key" 2>/dev/null) == "$key" ]]; then
  echo "$archive"
  exit
fi

root=$(mktemp -d)
debs=$(mktemp -d)
trap 'rm -rf "$root" "$debs"' EXIT
chmod 755 "$root"

unpack_packages() {
  chmod 777 "$debs" # apt drops its rights to download
  (cd "$debs" && { apt-get download -qq "${packages[@]}" || { apt-get update -qq && apt-get download -qq "${packages[@]}"; }; })
  local deb
  for deb in "$debs"/*.deb; do dpkg-deb --extract "$deb" "$root"; done
  rm -rf "$root"/usr/share/{doc,man,locale,lintian}
}

copy_python_environment() {
  site=$root/usr/local/lib/python3.11/dist-packages
  mkdir -p "$site" "$root/usr/local/bin"
  ln -sfn python3.11 "$root/usr/bin/python3"
  cp -a "$environment"/lib/python3.11/site-packages/. "$site/"
  rm -rf "$site"/{pip,setuptools,pkg_resources,_distutils_hack,distutils-precedence.pth,pyarrow/tests,pyarrow/include,pandas/tests,numpy/tests}
  find "$site" -name __pycache__ -prune -exec rm -rf {} +
  # As in deploy/images. Without the times of files, which archive.sh sets to 0.
  python3.11 -m compileall -q -j 0 -s "$root" --invalidation-mode unchecked-hash -x '/(tests?|lib2to3)/' "$root/usr/lib/python3.11" "$site"
}

add_system_files() {
  mkdir -p "$root"/{tmp,etc/ssl/certs}
  chmod 1777 "$root/tmp"
  ln -sfn /usr/share/zoneinfo/Etc/UTC "$root/etc/localtime" # without it Sail fails every session
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  printf 'root:x:0:0::/:/sbin/nologin\nberth:x:65532:65532::/tmp:/sbin/nologin\n' >"$root/etc/passwd"
  printf 'root:x:0:\nberth:x:65532:\n' >"$root/etc/group"
}

add_sail() {
  copy_python_environment
  printf '#!/usr/bin/python3\nimport sys\nfrom pysail.cli import main\nsys.exit(main())\n' >"$root/usr/local/bin/sail"
  chmod 755 "$root/usr/local/bin/sail"
}

add_spark() {
  copy_python_environment
  mkdir -p "$root/opt"
  ln -s /usr/local/lib/python3.11/dist-packages/pyspark "$root/opt/spark"
  ln -s /usr/lib/jvm/java-17-openjdk-amd64 "$root/opt/java"
  ln -s /opt/java/bin/java "$root/usr/local/bin/java"
  rm -rf "$site/pyspark/jars/connect-repl"
}

add_redis() { :; } # the packages are enough

say "building the image of $name"
unpack_packages
add_system_files
"add_$name"
mkdir -p "$cache"
"$repo/deploy/images/archive.sh" "$archive.new" "berth.test/$name:test" --file "$here/local.Containerfile" --target "$name" "$root"
mv "$archive.new" "$archive"
echo "$key" >"$archive.key"
echo "$archive"
