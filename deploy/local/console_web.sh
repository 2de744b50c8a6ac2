#!/usr/bin/env bash
# Builds the console's pages into crates/console/web/dist, unless their sources are unchanged, and compresses them with
# Brotli. `cargo build` embeds them (crates/console/build.rs). `setup.sh console` installs what this needs.
set -euo pipefail

web=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../crates/console/web" && pwd)
cd "$web"
want=$(find . -name node_modules -prune -o -name dist -prune -o -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
[[ $(cat dist/.stamp 2>/dev/null) == "$want" ]] && exit
[[ -d node_modules ]] || {
  echo "console: error: the Node packages are missing: run deploy/local/setup.sh console (make console-web does)" >&2
  exit 1
}
npm run --silent build >&2
node - <<'JS'
const { readdirSync, readFileSync, writeFileSync } = require("node:fs");
const { brotliCompressSync } = require("node:zlib");
for (const entry of readdirSync("dist", { recursive: true, withFileTypes: true })) {
  const path = `${entry.parentPath ?? entry.path}/${entry.name}`;
  if (entry.isFile() && !/\.(br|gz)$/.test(path)) writeFileSync(`${path}.br`, brotliCompressSync(readFileSync(path)));
}
JS
printf '%s\n' "$want" >dist/.stamp
echo "console: built the pages ($(du -ch dist/assets/*.br | tail -n 1 | cut -f1) compressed)" >&2
