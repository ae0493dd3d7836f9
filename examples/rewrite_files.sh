#!/bin/sh
# Store the images of the pages in a folder, then have the pages ask imgkeep for them. Beside examples/origin.py and imgkeep:
#
#   curl -s --create-dirs -o out/site/page.html http://127.0.0.1:9000/page.html
#   IMGKEEP_CONFIG=examples/config.toml sh examples/rewrite_files.sh out/site
set -eu
base=${IMGKEEP:-http://127.0.0.1:8080}

# What would change; exit status 1: something would.
if imgkeep rewrite --diff --base "$base" "$1"; then
    exit 0
fi
imgkeep rewrite --in-place --save --base "$base" "$1"
