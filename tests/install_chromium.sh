#!/bin/sh
# Chromium for the browser tests, from Debian or Ubuntu; elsewhere those tests skip.
set -eu
if ! command -v apt-get > /dev/null; then
    echo "no apt-get: install Chromium by hand, or the browser tests will be skipped" >&2
    exit 0
fi
run=""
[ "$(id -u)" = 0 ] || run="sudo -n"
$run apt-get update -qq
$run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null
