#!/bin/sh
# Have the pages of a folder ask imgkeep for their images, and keep these first: sh rewrite_files.sh site
set -eu
export IMGKEEP_SERVER__PUBLIC_URL="${IMGKEEP_SERVER__PUBLIC_URL:-https://img.example.com}"

# What would change; 1: something would.
if imgkeep rewrite --diff "$1"; then
    exit 0
fi
imgkeep rewrite --in-place --save "$1"
