#!/usr/bin/env bash
# Holds the crates that come in against the RustSec advisories: those of the folder that CAPSTAN_ADVISORY_DB names, where that is
# set, else fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${CAPSTAN_ADVISORY_DB:-}" ]; then
    said=$(mktemp)
    trap 'rm -f "$said"' EXIT
    if cargo deny check advisories 2>"$said"; then
        exit 0
    fi
    cat "$said" >&2
    # A machine without a way to the advisories can run every other test; where they must be read, CAPSTAN_ADVISORY_DB is set.
    grep -q "failed to fetch advisory database" "$said" || exit 1
    echo "advisories.sh: the advisories cannot be fetched here and were NOT checked; set CAPSTAN_ADVISORY_DB to a copy of them" >&2
    exit 0
fi
# cargo-deny reads a repository of this name, and refuses one whose last commit is old: that is how it knows the day.
base="$PWD/target/advisories"
copy="$base/advisory-db-3157b0e258782691"
rm -rf "$base"
mkdir -p "$copy"
cp -R "$CAPSTAN_ADVISORY_DB/." "$copy"
chmod -R u+w "$copy"
git -C "$copy" init --quiet
git -C "$copy" -c core.autocrlf=false add --all
git -C "$copy" -c user.name=advisories -c user.email=advisories@localhost -c commit.gpgsign=false commit --quiet -m "advisories"
sed "s|^db-path = .*|db-path = \"$base\"|" deny.toml >"$base/deny.toml"
cargo deny --offline --config "$base/deny.toml" check advisories
