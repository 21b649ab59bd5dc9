#!/usr/bin/env bash
# Runs every test, and fails when the tests leave a process, a network
# namespace, a link or a file behind.
set -euo pipefail
cd "$(dirname "$0")/.."

# What a test may leave behind by mistake. Servers of a running stack that was
# there before are not the tests' doing, so only the difference counts.
leftovers() {
  if command -v ip >/dev/null; then
    ip netns list 2>/dev/null | awk '{print "namespace " $1}'
    ip -o link show 2>/dev/null | awk -F': ' '{sub(/@.*/, "", $2); print "link " $2}' | grep -E '^link (fn|xz)' || true
  fi
  ls -d /tmp/fournines-test-* 2>/dev/null | sed 's/^/file /' || true
  # The kernel lists a process by its command line; every server that a test
  # starts works in a folder of this name.
  for cmdline in /proc/[0-9]*/cmdline; do
    if tr '\0' ' ' 2>/dev/null <"$cmdline" | grep -q 'fournines-test-'; then
      pid=${cmdline#/proc/}
      pid=${pid%/cmdline}
      [ "$pid" = "$$" ] || echo "process $pid $(tr '\0' ' ' <"$cmdline" 2>/dev/null | cut -c1-120)"
    fi
  done
  true
}

before=$(mktemp)
after=$(mktemp)
trap 'rm -f "$before" "$after"' EXIT
leftovers | sort >"$before"

# Race detection needs cgo; the machine's compiler is enough. Packages run one
# after another, because each starts servers of its own and two cores are soon busy.
go test -race -p 1 -timeout 20m $(go list ./... | grep -vE '^fournines/(bench/overload|test/(lifecycle|stack|gatewaydrill|postgresdrill))$')
# What measures time comes last and without the race detector's slowness, the
# whole stack among it: start time and outages.
# -count=1: these tests build the binary themselves, so the go command cannot
# know that an earlier result no longer holds.
go test -p 1 -count=1 -timeout 20m ./bench/overload ./test/gatewaydrill ./test/postgresdrill ./test/lifecycle ./test/stack

leftovers | sort >"$after"
if ! diff=$(comm -13 "$before" "$after") || [ -n "$diff" ]; then
  echo "the tests left behind:" >&2
  echo "$diff" >&2
  exit 1
fi
echo "nothing left behind"
