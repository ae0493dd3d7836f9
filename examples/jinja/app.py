"""
A page by Jinja that asks imgkeep for its images, also those in a body that somebody else has written.

    python examples/jinja/app.py > page.html
"""

from __future__ import annotations

import os
import sys

from jinja2 import Environment

from proxy.sites.jinja import install

LINK = os.environ.get("LINK", "https://example.com/lighthouse.png")
POST = {"picture": LINK, "body": f'<p>A post <img src="{LINK.replace("&", "&amp;")}">'}

env = Environment(autoescape=True)
# An imgkeep that only this machine can reach fetches from all hosts.
install(env, public_url=os.environ.get("IMGKEEP_URL", "http://127.0.0.1:8080"), allow=["*"])

template = env.from_string("""<!doctype html>
<img src="{{ post.picture|img_url }}">
{{ post.body|safe|imgkeep }}
""")

sys.stdout.write(template.render(post=POST))
