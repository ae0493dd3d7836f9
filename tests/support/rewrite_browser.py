"""What a real browser reads in pages: all in one session of Chromium, without network and without their scripts."""

from __future__ import annotations

import json
import re
import subprocess
from base64 import b64decode
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from tests.support.browser import find_chromium

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PATIENCE_S = 60

# Of each page: what stands in places of images, in order of the tree; and all else, as one text.
READER = r"""
const HTML = "http://www.w3.org/1999/xhtml", SVG = "http://www.w3.org/2000/svg";
const OF = {
  img: ["src", "srcset", "data-src", "data-srcset"], source: ["srcset", "data-srcset"], video: ["poster"],
  body: ["background"], table: ["background"], thead: ["background"], tbody: ["background"], tfoot: ["background"],
  tr: ["background"], td: ["background"], th: ["background"],
};
function placesOf(element) {
  const name = element.localName, value = n => (element.getAttribute(n) || "").toLowerCase();
  if (element.namespaceURI === SVG) return name === "image" ? ["href", "xlink:href"] : [];
  if (element.namespaceURI !== HTML) return [];
  if (name === "input") return value("type") === "image" ? ["src"] : [];
  if (name === "link") {
    const preloads = element.relList.contains("preload") && value("as") === "image";
    const icons = /(^|[\t\n\f\r ])(icon|apple-touch-icon)([\t\n\f\r ]|$)/.test(value("rel"));
    return [...(preloads || icons ? ["href"] : []), ...(preloads ? ["imagesrcset"] : [])];
  }
  if (name === "meta") {
    return /^(og:image(:secure_url)?|twitter:image)$/.test(value("property") || value("name")) ? ["content"] : [];
  }
  return OF[name] || [];
}
function sheet(text) {
  const made = new CSSStyleSheet();
  made.replaceSync(text);
  return [...made.cssRules].map(rule => rule.cssText).join("\n");
}
function read(page) {
  const places = [], rest = [];
  function visit(node) {
    if (node.nodeType !== Node.ELEMENT_NODE) {
      rest.push(node.nodeType, node.nodeValue);
    } else {
      const own = new Set(placesOf(node));
      rest.push("<", node.namespaceURI, node.localName);
      for (const {name, value} of node.attributes) {
        if (name === "style") places.push(node.style ? node.style.cssText : value);
        else if (own.has(name)) places.push(value);
        else rest.push(name, value);
      }
      const is = name => node.namespaceURI === HTML && node.localName === name;
      const isCss = /^(text\/css)?$/i.test(node.getAttribute("type") || "");
      const isJson = /^[\t\n\f\r ]*application\/ld\+json/.test(node.getAttribute("type") || "");
      const isStyle = is("style") || (node.namespaceURI === SVG && node.localName === "style");
      if (isStyle && isCss && !node.childElementCount) {
        // What counts is the text right in it, in pieces where a comment stands in between.
        const texts = [...node.childNodes].filter(child => child.nodeType === Node.TEXT_NODE);
        places.push(sheet(texts.map(child => child.nodeValue).join("")));
        rest.push(...[...node.childNodes].filter(child => !texts.includes(child)).map(child => child.nodeValue));
      }
      else if (is("script") && isJson) places.push(node.text);
      else (node instanceof HTMLTemplateElement ? node.content : node).childNodes.forEach(visit);
      rest.push(">");
    }
  }
  new DOMParser().parseFromString(page, "text/html").childNodes.forEach(visit);
  return [places, rest.join("\u0001")];
}
const pages = JSON.parse(document.getElementById("pages").value);
const text = new TextEncoder().encode(JSON.stringify(pages.map(read)));
let bytes = "";
for (let at = 0; at < text.length; at += 32768) bytes += String.fromCharCode(...text.subarray(at, at + 32768));
document.body.textContent = "[" + btoa(bytes) + "]";
"""

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage"),
)


@dataclass(frozen=True)
class Reading:
    """What a browser reads in a page: `places` of images, and the `rest` of the tree."""

    places: list[str]
    rest: str


def read_pages(pages: Sequence[str], folder: Path) -> list[Reading]:
    """Have Chromium read pages."""
    program = find_chromium()
    # In a text area nothing but its end and references mean something; a line feed at its start would be dropped.
    source = f"<!doctype html><meta charset=utf-8><textarea id=pages>{escape(json.dumps(pages))}</textarea>"
    (folder / "reader.html").write_text(f"{source}<script>{READER}</script>")
    done = subprocess.run(
        [program, *FLAGS, f"--user-data-dir={folder}/profile", "--dump-dom", f"file://{folder}/reader.html"],
        capture_output=True,
        check=True,
        timeout=PATIENCE_S,
        text=True,
    )
    told = re.search(r"<body>\[([A-Za-z0-9+/=]*)\]</body>", done.stdout)
    assert told is not None, done.stdout[-2000:] + done.stderr[-2000:]
    return [Reading(places, rest) for places, rest in json.loads(b64decode(told[1]))]
