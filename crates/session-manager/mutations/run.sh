#!/usr/bin/env bash
# Breaks the code on purpose, one mutation at a time, in a copy of the tree, and
# demands that the simulation notices within SEEDS seeds. What is expected to be
# harmless must go unnoticed.
#
#   run.sh            every mutation, after the code as it is
#   run.sh NAME...    these only
#   run.sh --apply    only: do all of them still apply?
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$root/target/mutants
seeds=${SEEDS:-1000}
harmless_seeds=${HARMLESS_SEEDS:-300}
longest=1800

names() {
    if (($#)); then
        printf '%s\n' "$@"
    else
        find "$here" -name '*.patch' -printf '%f\n' | sed 's/\.patch$//' | sort
    fi
}

field() { sed -n "s/^$2: //p" "$here/$1.patch"; }

files_of() { sed -n 's|^+++ b/||p' "$here"/*.patch | sort -u; }

# Exactly, or not at all.
fits() { patch --strip=1 --fuzz=0 --force --reject-file=- --silent "$@"; }

if [[ ${1:-} == --apply ]]; then
    cd "$root"
    bad=0
    for name in $(names); do
        [[ -n $(field "$name" What) && $(field "$name" Expect) =~ ^(caught|harmless)$ ]] ||
            { echo "mutation $name says not what it is"; bad=1; }
        fits --dry-run <"$here/$name.patch" ||
            { echo "mutation $name no longer applies: write it anew for the code as it is"; bad=1; }
    done
    exit $bad
fi

export CARGO_TARGET_DIR=$work/build RUST_BACKTRACE=0
rm -rf "$work/tree"
mkdir -p "$work/tree"
tar --create --directory "$root" --exclude=./target --exclude=./.berth --exclude=./.git . |
    tar --extract --directory "$work/tree"
cd "$work/tree"
# A run that was broken off may have left newer builds of other text.
files_of | xargs touch

build() {
    cargo test --locked --quiet -p session-manager --lib --no-run >"$work/$1.build" 2>&1
}

# Prints what was noticed, empty if nothing, and how many seeds that took.
simulate() {
    local log=$work/$1.log
    SEEDS=$2 FAILURES=1 timeout "$longest" \
        cargo test --locked --quiet -p session-manager --lib simulation::lives -- --nocapture \
        >"$log" 2>&1 && { echo "|$2"; return; }
    grep -q 'seeds broke something' "$log" || { echo "?|see $log"; return; }
    local what took
    what=$(sed -n '/^seed /{n;s/^ *"\(.*\)",\{0,1\}$/\1/p;q}' "$log" | tr '|' '/')
    took=$(sed -n 's/.* of \([0-9]*\) seeds broke something.*/\1/p' "$log" | head -1)
    echo "$what|$took"
}

table=$work/table.md
failed=0
row() { printf '| %s | %s | %s | %s |\n' "$@" | tee -a "$table"; }
: >"$table"
row mutation 'what is broken' 'seeds' 'the first thing noticed'
row --- --- --- ---

if ! (($#)); then
    build none || { cat "$work/none.build"; exit 1; }
    IFS='|' read -r what took < <(simulate none "$harmless_seeds")
    row none 'The code as it is.' "$took" "${what:-nothing}"
    [[ -z $what ]] || failed=1
fi
for name in $(names "$@"); do
    fits <"$here/$name.patch"
    expect=$(field "$name" Expect)
    if build "$name"; then
        limit=$seeds
        [[ $expect == harmless ]] && limit=$harmless_seeds
        IFS='|' read -r what took < <(simulate "$name" "$limit")
    else
        what='? it does not build' took="see $work/$name.build"
    fi
    case $expect:$what in
        harmless: | caught:[!?]*) ;;
        *) failed=1; what="${what:-nothing} - **but it is to be $expect**" ;;
    esac
    row "\`$name\`" "$(field "$name" What)" "$took" "${what:-nothing: it is harmless}"
    fits --reverse <"$here/$name.patch"
done
exit $failed
