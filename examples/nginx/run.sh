#!/bin/sh
# Pages, imgkeep and nginx on one host. Beside examples/origin.py:
#
#   sh examples/nginx/run.sh
#
# Then open http://127.0.0.1:8090/. The imgkeep of the other examples is not needed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
started=
stop() {
    trap '' INT TERM
    for process in $started; do kill "$process" || true; done
    wait
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 0' INT TERM
chmod 755 "$work"  # an nginx that root has started works as another user
cd "$work"

# nginx cannot rewrite pages. Here they are files: this script rewrites them once and stores their images, before it
# publishes them. A program that makes pages rewrites them itself.
mkdir pages
curl -fsS -o pages/index.html http://127.0.0.1:9000/page.html
imgkeep --config "$here/config.toml" rewrite --in-place --save pages

imgkeep --config "$here/config.toml" serve &
started="$started $!"
python3 -m http.server --bind 127.0.0.1 --directory pages 8092 &
started="$started $!"
nginx -p "$work/" -c "$here/nginx.conf" -e stderr -g 'daemon off;' &
started="$started $!"
wait
