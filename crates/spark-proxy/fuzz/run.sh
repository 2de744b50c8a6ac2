#!/usr/bin/env bash
# Runs each fuzz target for SECONDS_EACH seconds (default 60). Works with the
# stable compiler: the flags are those that cargo-fuzz uses, without a sanitizer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
each=${SECONDS_EACH:-60}
target=$(uname -m)-unknown-linux-gnu
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
cargo build --locked --release --target "$target" --bins
for program in identity; do
  mkdir -p "corpus/$program"
  echo "fuzz: $program for $each s"
  log=target/$program.log
  if ! "target/$target/release/$program" "corpus/$program" "seeds/$program" \
    -max_total_time="$each" -max_len=4096 -print_final_stats=1 -artifact_prefix="target/$program-" >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "fuzz: $program failed; the input is beside $PWD/$log" >&2
    exit 1
  fi
  grep -E 'number_of_executed_units|new_units_added' "$log"
done
