#!/usr/bin/env bash
# Runs every fuzz target of the packages given (all, without any) for the time
# given, one after another.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-60s}
packages=("${@:2}")
[ "${#packages[@]}" -gt 0 ] || packages=(./...)
for pkg in $(go list "${packages[@]}"); do
  for target in $(go test -list '^Fuzz' "$pkg" | grep '^Fuzz' || true); do
    echo "== $pkg $target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg"
  done
done
