#!/bin/sh
# Rewrite a page by the API, have its images saved, and wait until they are. Beside examples/origin.py and imgkeep:
#
#   curl -s -o out/api-before.html http://127.0.0.1:9000/page.html
#   sh examples/rewrite_api.sh out/api-before.html > out/api.html
set -eu
base=${IMGKEEP:-http://127.0.0.1:8080}
token=${IMGKEEP_TOKEN:-$(cat data/api-token)}
head=$(mktemp)
trap 'rm -f "$head"' EXIT

curl -fsS "$base/api/rewrite?save=true" -D "$head" -H "Authorization: Bearer $token" \
    -H 'Content-Type: text/html; charset=utf-8' --data-binary "@$1"

# Where links were rewritten, `Location` is the job that saves them.
job=$(sed -n 's/^[Ll]ocation:.*\(\/api\/jobs\/[0-9a-f]*\).*/\1/p' "$head")
if [ -n "$job" ]; then
    curl -fsSN "$base$job/events" -H "Authorization: Bearer $token" | tail -n 2 >&2
fi
