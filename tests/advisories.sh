#!/usr/bin/env bash
# Holds the crates that come in against the RustSec advisories: those of the folder that CAPSTAN_ADVISORY_DB names, where that is
# set, else fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${CAPSTAN_ADVISORY_DB:-}" ]; then
    exec cargo deny check advisories
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
