"""
A page by Jinja that asks imgkeep for its images, also for those in HTML that an author wrote. Beside examples/origin.py
and imgkeep:

    python examples/jinja/app.py > out/jinja.html
"""

from __future__ import annotations

import os
import sys
from html import escape
from urllib.request import urlopen

from jinja2 import Environment

from imgkeep.integrations.jinja import install

with urlopen("http://127.0.0.1:9000/link") as answer:
    LINK = str(answer.read(), "utf-8")
POST = {"picture": LINK, "body": f'<p>A post <img src="{escape(LINK)}">'}

env = Environment(autoescape=True)
install(
    env,
    public_url=os.environ.get("IMGKEEP_URL", "http://127.0.0.1:8080"),
    # What this imgkeep may fetch: all hosts, and this machine. Leave both out for one that others can reach.
    allow=["*"],
    allow_networks=["127.0.0.1/32"],
)

template = env.from_string("""<!doctype html>
<img src="{{ post.picture|img_url }}">
{{ post.body|safe|imgkeep }}
""")

sys.stdout.write(template.render(post=POST))
