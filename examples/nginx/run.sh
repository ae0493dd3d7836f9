#!/bin/sh
# Pages, imgkeep and nginx on one host: sh run.sh, then http://127.0.0.1:8000/
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
chmod 755 "$work"  # started by root, nginx works as somebody else
cd "$work"

# nginx cannot rewrite pages. Here they are files, and rewritten once, before they are published. Pages that a program
# makes are rewritten by the program.
cp -r "$here/pages" pages
imgkeep --config "$here/config.toml" rewrite --in-place pages

imgkeep --config "$here/config.toml" serve &
started="$started $!"
python3 -m http.server --bind 127.0.0.1 --directory pages 9000 &
started="$started $!"
nginx -p "$work/" -c "$here/nginx.conf" -e stderr -g 'daemon off;' &
started="$started $!"
wait
