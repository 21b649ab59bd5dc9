#!/usr/bin/env bash
# Installs what fournines needs and is not there yet. Quick when nothing is
# missing. See `scripts/setup.sh --help`.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/setup.sh [--test] [--lint] [--check]

Installs, when missing:
  * Debian packages of the servers (etcd, PostgreSQL 15, Patroni, Redis,
    Prometheus, Alertmanager, exporters), without starting or enabling them;
  * the account "fournines" that the servers run as when the stack runs as root;
  * the Milvus server from its Python package;
  * the Go modules.

  --test    also the Python environment of the client tests (.tools/venv)
  --lint    also golangci-lint (.tools/bin; compiling it takes minutes)
  --check   install nothing: print what is missing, exit 1 if anything is

Root is needed for the packages and the account only; the script says what for
before it asks.
TEXT
}

readonly MILVUS_VERSION=2.3.5
readonly MILVUS_SHA256=69515a0630ce29fd10e101fa442afea8ca1387b93a456cd9bd41fdf3deb93d04
readonly GOLANGCI_VERSION=v2.15.0
readonly ACCOUNT=fournines

readonly PACKAGES=(
  postgresql-15 patroni python3-psycopg2 etcd-server redis-server redis-tools
  prometheus prometheus-alertmanager prometheus-node-exporter
  prometheus-redis-exporter prometheus-postgres-exporter
  iproute2 curl jq ca-certificates python3-venv python3-pip gcc libc6-dev make
)

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repo
with_test='' with_lint='' check_only=''
for arg in "$@"; do
  case $arg in
    --test) with_test=1 ;;
    --lint) with_lint=1 ;;
    --check) check_only=1 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup: unknown option $arg" >&2; usage >&2; exit 2 ;;
  esac
done

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -- "$@"; fi
}

# --- what is missing ---------------------------------------------------------

missing_packages=()
if command -v dpkg-query >/dev/null; then
  installed=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "${PACKAGES[@]}" 2>/dev/null |
    sed -n 's/^ii *//p') || true
  for package in "${PACKAGES[@]}"; do
    grep -qxF -- "$package" <<<"$installed" || missing_packages+=("$package")
  done
fi

# Without root nothing runs under another account, so none is needed.
missing_account=''
if [ "$(id -u)" -eq 0 ] && ! id -u "$ACCOUNT" >/dev/null 2>&1; then
  missing_account=1
fi

milvus_parent=/opt/fournines
if [ "$(id -u)" -ne 0 ] && [ "$(cat "$milvus_parent/milvus/VERSION" 2>/dev/null)" != "$MILVUS_VERSION" ]; then
  milvus_parent=${HOME:?}/.local/share/fournines/tools
fi
readonly milvus_dir=$milvus_parent/milvus
missing_milvus=''
if [ "$(cat "$milvus_dir/VERSION" 2>/dev/null)" != "$MILVUS_VERSION" ]; then
  missing_milvus=1
fi

# Go modules count as there when they were fetched for this go.sum.
readonly modules_mark=$repo/.tools/modules.sum
missing_modules=''
if [ -f "$repo/go.sum" ] && ! cmp -s "$repo/go.sum" "$modules_mark"; then
  missing_modules=1
fi

readonly requirements=$repo/scripts/requirements-test.txt
readonly venv=$repo/.tools/venv
missing_venv=''
if [ -n "$with_test" ] && ! cmp -s "$requirements" "$venv/requirements-test.txt"; then
  missing_venv=1
fi

readonly golangci=$repo/.tools/bin/golangci-lint
missing_lint=''
if [ -n "$with_lint" ] && [ "$(cat "$golangci.version" 2>/dev/null)" != "$GOLANGCI_VERSION" ]; then
  missing_lint=1
fi

# --- say it ------------------------------------------------------------------

missing=()
[ "${#missing_packages[@]}" -eq 0 ] || missing+=("Debian packages: ${missing_packages[*]}")
[ -z "$missing_account" ] || missing+=("the account $ACCOUNT")
[ -z "$missing_milvus" ] || missing+=("Milvus $MILVUS_VERSION in $milvus_dir (60 MB to fetch, 250 MB on disk)")
[ -z "$missing_modules" ] || missing+=("Go modules")
[ -z "$missing_venv" ] || missing+=("Python packages of the client tests in $venv")
[ -z "$missing_lint" ] || missing+=("golangci-lint $GOLANGCI_VERSION in $golangci (takes minutes)")

if [ "${#missing[@]}" -gt 0 ]; then
  for line in "${missing[@]}"; do say "missing: $line"; done
fi
if [ -n "$check_only" ]; then
  [ "${#missing[@]}" -eq 0 ] || exit 1
  say "nothing is missing"
  exit 0
fi

command -v go >/dev/null || fail "Go is not installed; install Go $(sed -n 's/^go //p' "$repo/go.mod") or newer and put it into PATH"

# --- Debian packages and the account (root) ------------------------------------

distribution=$(sed -n 's/^ID=//p; s/^ID_LIKE=//p' /etc/os-release 2>/dev/null | tr -d '"' | tr '\n' ' ')
if [[ " $distribution " != *" debian "* ]]; then
  for tool in etcd patroni redis-server prometheus /usr/lib/postgresql/15/bin/postgres; do
    command -v "$tool" >/dev/null || fail "this is not Debian or one of its children, and $tool is missing. Install with your package manager: etcd 3.4 or newer, PostgreSQL 15 with contrib, Patroni 3 with etcd3 support, Redis 7, Prometheus, Alertmanager, node, redis and postgres exporters, iproute2, Python 3.11 with venv; then run this again"
  done
fi

if [ "$(id -u)" -ne 0 ] && [ "${#missing_packages[@]}" -gt 0 ]; then
  command -v sudo >/dev/null ||
    fail "installing packages needs root and sudo is not there; run as root: apt-get install --no-install-recommends ${missing_packages[*]}"
  say "asking for root (sudo) now, to install these Debian packages with apt-get; nothing else is changed as root"
fi

# Packages start their services when they are installed. A policy of ours says no
# for as long as that takes, without touching one that is there already.
install_packages() {
  local policy=/usr/sbin/policy-rc.d ours='' before after new
  local common=/etc/postgresql-common/createcluster.conf common_ours=''

  # Not a cleanup trap in the middle of nowhere: these two files are all that
  # must go away again whatever happens.
  restore() {
    if [ -n "$ours" ]; then as_root rm -f "$policy"; fi
    if [ -n "$common_ours" ]; then as_root rm -f "$common"; fi
  }
  trap restore EXIT

  if [ ! -e "$policy" ]; then
    ours=1
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 0755 "$policy"
  else
    say "there is a $policy already; it decides if new services start"
  fi
  # Otherwise the package makes and registers a cluster "main" on port 5432. If
  # postgresql-common is installed already its configuration is the owner's.
  if [ ! -e "$common" ] && ! dpkg-query -W postgresql-common >/dev/null 2>&1; then
    common_ours=1
    as_root mkdir -p "$(dirname "$common")"
    echo 'create_main_cluster = false' | as_root tee "$common" >/dev/null
  fi

  before=$(units_enabled)
  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq ||
    say "could not refresh the package lists; going on with those that are there"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "${missing_packages[@]}" >/dev/null ||
    fail "apt-get could not install the packages; its message is above"
  restore
  ours='' common_ours=''
  trap - EXIT

  # Services that this installation has enabled would start at the next boot and
  # take the ports. Those that were enabled before stay.
  after=$(units_enabled)
  new=$(comm -13 <(sort <<<"$before") <(sort <<<"$after") | grep -E '^(etcd|patroni|redis|postgresql|prometheus)' || true)
  if [ -n "$new" ]; then
    # shellcheck disable=SC2086 # one unit per word
    as_root systemctl disable --quiet $new || say "could not disable these services: ${new//$'\n'/ }"
  fi
}

units_enabled() {
  if command -v systemctl >/dev/null; then
    systemctl list-unit-files --type=service --state=enabled --no-legend 2>/dev/null | awk '{print $1}' || true
  fi
}

if [ "${#missing_packages[@]}" -gt 0 ]; then
  if ! command -v apt-get >/dev/null; then
    say "apt-get is not there; taking the servers that are installed as they are"
  else
    say "installing ${#missing_packages[@]} Debian packages, without starting their services"
    install_packages
  fi
fi

if [ -n "$missing_account" ]; then
  say "creating the system account $ACCOUNT, which the servers run as"
  as_root useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin "$ACCOUNT"
fi

# --- Milvus --------------------------------------------------------------------

if [ -n "$missing_milvus" ]; then
  say "fetching Milvus $MILVUS_VERSION into $milvus_dir"
  fetched=$(mktemp -d)
  trap 'rm -rf "$fetched"' EXIT
  /usr/bin/python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$fetched" "milvus==$MILVUS_VERSION" ||
    fail "could not fetch the Python package milvus $MILVUS_VERSION; check the network and pip's configuration"
  wheel=("$fetched"/milvus-*.whl)
  echo "$MILVUS_SHA256  ${wheel[0]}" | sha256sum --check --quiet ||
    fail "the fetched Milvus package is not the one this version was tested with; nothing was installed"
  /usr/bin/python3 "$repo/scripts/unpack-milvus.py" "${wheel[0]}" "$milvus_dir"
  rm -rf "$fetched"
  trap - EXIT
fi

# --- Go and Python ---------------------------------------------------------------

if [ -n "$missing_modules" ]; then
  say "fetching Go modules"
  (cd "$repo" && go mod download)
  mkdir -p "$repo/.tools"
  cp "$repo/go.sum" "$modules_mark"
fi

if [ -n "$missing_venv" ]; then
  say "installing the Python clients of the tests"
  [ -x "$venv/bin/python" ] || /usr/bin/python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
  cp "$requirements" "$venv/requirements-test.txt"
fi

if [ -n "$missing_lint" ]; then
  say "compiling golangci-lint $GOLANGCI_VERSION"
  GOBIN=$repo/.tools/bin GOFLAGS='' go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$GOLANGCI_VERSION"
  echo "$GOLANGCI_VERSION" >"$golangci.version"
fi

# --- what there is now -----------------------------------------------------------

if [ "${#missing[@]}" -eq 0 ]; then
  say "nothing is missing"
  exit 0
fi
version() { grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' <<<"$("$@" 2>&1 || true)" | head -n 1 || true; }
say "ready: Go $(version go version), PostgreSQL $(version /usr/lib/postgresql/15/bin/postgres --version)," \
  "Patroni $(version patroni --version), etcd $(version etcd --version), Redis $(version redis-server --version)," \
  "Milvus $(cat "$milvus_dir/VERSION"), Prometheus $(version prometheus --version)," \
  "Alertmanager $(version prometheus-alertmanager --version)"
