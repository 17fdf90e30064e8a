#!/usr/bin/env bash
# Passes all tests on a fresh Debian machine with Rust; installs what is missing, by package name.
#   ./test.sh         everything that CI runs
#   ./test.sh fast    the inner loop: formats, lints, and the pure tests
#   ./test.sh full    that, and what takes long: a million fuzzed inputs, thousands of seeds, hundreds of kills, power cuts
set -euo pipefail
cd "$(dirname "$0")"

install() { # command package
    command -v "$1" >/dev/null && return
    package "$2"
}
package() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get install -y --no-install-recommends "$1" >/dev/null || { apt-get update >/dev/null && apt-get install -y --no-install-recommends "$1" >/dev/null; }
    else
        echo "test.sh: install the package $1" >&2
        exit 1
    fi
}
tools/setup
install curl curl
install git git
install mount mount
install fusermount3 fuse3
install ip iproute2
install prometheus prometheus
install npm npm
install pip3 python3-pip
python3 -c "import ensurepip, venv" 2>/dev/null || package python3-venv
install etcd etcd-server
install etcdctl etcd-client

pure=(-p capstan-common -p capstan-clock -p capstan-scheduler-core -p capstan-worker-core)
run() {
    if command -v cargo-nextest >/dev/null; then cargo nextest run --no-fail-fast "$@"; else cargo test --no-fail-fast "$@"; fi
}

cargo fmt --all --check
if [ "${1:-}" = fast ]; then
    cargo clippy "${pure[@]}" --all-targets -- -D warnings
    run "${pure[@]}"
    exit
fi
if [ "${1:-}" = full ]; then
    # How much of each; an ordinary run has defaults that fit it.
    export CAPSTAN_FUZZ_INPUTS=${CAPSTAN_FUZZ_INPUTS:-1000000} CAPSTAN_FUZZ=${CAPSTAN_FUZZ:-400}
    export CAPSTAN_POWER_CUTS=${CAPSTAN_POWER_CUTS:-10000} CAPSTAN_FUSE_CUTS=${CAPSTAN_FUSE_CUTS:-50}
    export CAPSTAN_KILLS=${CAPSTAN_KILLS:-100} CAPSTAN_CONTRACT_S=${CAPSTAN_CONTRACT_S:-600}
fi

cargo clippy --workspace --all-targets --all-features -- -D warnings
command -v cargo-deny >/dev/null || cargo install --locked --quiet cargo-deny@0.20.2
cargo deny check bans licenses sources
tests/advisories.sh
npm ci --prefix tests/kubernetes --ignore-scripts --no-audit --no-fund --silent
tests/kubernetes/helm.sh
target/helm/helm lint --quiet --strict deploy/kubernetes/chart --set auth.secret=tokens
target/helm/helm template capstan deploy/kubernetes/chart --set auth.secret=tokens --set scheduler.keda.enabled=true >target/helm/rendered.yaml
node tests/kubernetes/check.mjs deploy/kubernetes/*.yaml target/helm/rendered.yaml
cargo build --workspace
tests/clients/check.sh
run --workspace
# The checker is checked: every planted fault must be found.
run -p capstan-tests --features mutants --test sim
