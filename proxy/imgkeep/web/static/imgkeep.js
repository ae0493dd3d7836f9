// @ts-self-types="./imgkeep.d.ts"
/**
 * Rewrites links to images to URLs of imgkeep, in browsers, in Node.js, and in every environment that has `URL`.
 * docs/javascript.md shows the usage, imgkeep.d.ts the types.
 *
 * Rules:
 * - The module writes the same links as imgkeep's own rewriter, in the form that its server accepts.
 * - It leaves links of imgkeep alone, so rewriting twice changes nothing; and links that imgkeep could not fetch.
 * - A picture that worked goes on working: `observe` leaves links alone that the server of this file would refuse, and
 *   gives a picture its first link back where the new link fails.
 * - An import touches nothing; only `observe` needs a page.
 */

/** The policy of the server, which it writes here when it serves this file; `null` in a copy from elsewhere. */
const SERVER = null;

/** Options of derived pictures, the parameters of `/img`, sorted; then all options, and those of functions that sign. */
const PICTURE = "bg blur dpr fit format gravity h metadata page preset q rotate w".split(" ");
const OPTIONS = ["publicUrl", "which", "base", "allow", "deny", ...PICTURE];
const SIGNING_OPTIONS = [...OPTIONS, "key", "expires"];

/** Maximum length of a link: the server refuses longer ones. */
const LINK_CHARS_MAX = 8192;
/** Maximum length of a style: longer ones hold pictures, not links to them. */
const STYLE_CHARS_MAX = 1_000_000;
/** Maximum number of changes of an element in one turn of the event loop: beyond it, another script resets the link. */
const CHANGES_MAX = 50;
/** Maximum number of links whose replacement failed that the module remembers. */
const FAILED_MAX = 1000;

const OWN_PATH = /^\/(?:img\?|images\/)/;
/** Path of a stored image, without options. */
const OWN_IMAGE = /^\/images\/[\da-z]+\.[a-z]+$/;
const UNREADABLE = /[\0-\x1f\x7f]|\p{Cs}/u;
const ABSOLUTE = /^https?:\/\/[^/?#\\@%]+(?:\/(?!\.|%2e)[^/?#\\]*)*(?:[?#].*)?$/is;
const HOST = /^(?:[\w-]+(?:\.[\w-]+)*\.?|\[.+\])$/;
/** Globs that can match a host: with `*`, `?`, and one of some characters, `[abc]` or `[!abc]`. */
const GLOB = /^(?:[\w.:*?-]|\[!?[\w.:-]+\])+$/;
const BRACKETED = /^\[([^[\]:]*:[^[\]]*)\]$/;
/** Characters that are ambiguous in quotes, in `srcset` or in CSS. */
const UNSAFE = /[^!#$%&'()*+,\-./0-9:;=?@A-Z[\]_a-z~]+/g;

/** Addresses that are not public (IANA's special-purpose registry). */
const SPECIAL = new RegExp(
  String.raw`^(?:0|10|127|2(?:2[4-9]|[345]\d)|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])|169\.254|172\.(?:1[6-9]|2\d|3[01])|` +
    String.raw`192\.(?:0\.[02]|88\.99|168)|198\.(?:1[89]|51\.100)|203\.0\.113)(?:\.\d+){1,3}$`,
);

/** Attributes that hold links, by elements; SVG has `href` with a namespace, too. */
const PLACES = new Map([
  ["img", ["src", "srcset"]],
  ["source", ["srcset"]],
  ["video", ["poster"]],
  ["input", ["src"]],
  ["image", ["href"]],
]);
const OBSERVED = ["src", "srcset", "poster", "href", "style", "type"];

/** Properties whose links lead to parts of SVG documents, and not to images. */
const NO_IMAGES = /^(?:-webkit-)?(?:filter|backdrop-filter|clip-path|fill|stroke|marker.*|offset-path)$/;
/** `url()` in its three forms, and the tokens around it that could contain its text: strings, comments, words. */
const CSS_STRING = /"([^"\\]*(?:\\[^][^"\\]*)*)"|'([^'\\]*(?:\\[^][^'\\]*)*)'/.source;
const CSS_URL = String.raw`url\(\s*(?:${CSS_STRING}|((?:[^\s"'()\\]|\\[^])*))\s*\)`;
const CSS_TOKEN = new RegExp(String.raw`${CSS_URL}|${CSS_STRING}|/\*[^]*?\*/|[-\w]+`, "gi");
const CSS_ESCAPE = /\\(?:([0-9a-f]{1,6})\s?|\n|([^]))/gi;

/** Returns the link of imgkeep for `src`; a link that the module leaves alone comes back as it is. */
export function imgUrl(src, options) {
  return src == null ? src : rewriter(options)(String(src));
}

/**
 * Makes a `srcset` of one link in several widths, in the best format that the browser takes. With options in the place
 * of widths it rewrites the links of a `srcset` in the same way as `imgUrl`; no other character of it changes.
 */
export function srcset(value, widths, options) {
  if (value == null) return value;
  if (!Array.isArray(widths)) return inSrcset(rewriter(widths))(String(value));
  return joined(value, checked(widths).map((w) => [w, imgUrl(value, { format: "auto", ...options, w })]));
}

/** As `imgUrl`, signed with `options.key`, until `options.expires` if that is given. For servers: a key is a secret. */
export async function signedImgUrl(src, options) {
  return src == null ? src : signer(options)(String(src));
}

/** As `srcset`, signed. */
export async function signedSrcset(value, widths, options) {
  if (value == null) return value;
  if (Array.isArray(widths)) {
    const sign = async (w) => [w, await signedImgUrl(value, { format: "auto", ...options, w })];
    return joined(value, await Promise.all(checked(widths).map(sign)));
  }
  options = widths;
  return (await Promise.all(cutSrcset(String(value)).map(eachLink(signer(options))))).join("");
}

/** Returns the signed path of any source URL, as `signed_path` of docs/signing.md does, with options of a picture. */
export async function signedPath(key, src, expires, options) {
  const end = expires == null ? "" : String(expires);
  if (typeof key !== "string" || !key) throw new TypeError("key: the first of security.signing_keys");
  if (end && !/^[1-9][0-9]{0,11}$/.test(end)) throw new TypeError("expires: in seconds since 1970, or nothing");
  const picture = pictureOf(options);
  const signed = picture.map((each) => each.join("=")).join("&");
  const [subtle, text] = [await webCrypto(), new TextEncoder()];
  const secret = await subtle.importKey("raw", text.encode(key), { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const mac = new Uint8Array(await subtle.sign("HMAC", secret, text.encode(`v1\n${end}\n${signed}\n${src}`)));
  const sig = btoa(String.fromCharCode(...mac)).replaceAll("+", "-").replaceAll("/", "_").replace("=", "");
  return `${pathOf(src, picture)}${end && `&exp=${end}`}&sig=${sig}`;
}

/**
 * Rewrites the links to images under `root`, and from then on those that scripts insert or change. Returns a function
 * that ends this. Shadow roots and frames are roots of their own.
 */
export function observe(root = document, options) {
  const rewrite = rewriter(options, serverAllows(SERVER));
  const mayChange = limiter();
  const given = new WeakMap();
  const failed = new Set();
  let hasEnded = false;
  const observer = new MutationObserver((records) => {
    const seen = new Set();
    for (const { type, target, addedNodes } of records) {
      if (type === "attributes") visit(target);
      for (const node of addedNodes) if (!seen.has(node)) visitAll(node, seen);
    }
  });

  // Methods of prototypes, because inputs may be named like those of their form, and hide them.
  function visitAll(node, seen) {
    const walker = Document.prototype.createTreeWalker.call(document, node, NodeFilter.SHOW_ELEMENT);
    for (let at = node; at; at = walker.nextNode()) {
      seen?.add(at);
      if (at.localName !== undefined) visit(at);
    }
  }

  function visit(element) {
    const places = PLACES.get(element.localName);
    if (places && (element.localName !== "input" || element.type === "image")) {
      for (const attribute of [...element.attributes]) {
        if (!places.includes(attribute.localName) || failed.has(attribute.value)) continue;
        const first = attribute.value;
        const made = (attribute.localName === "srcset" ? inSrcset(rewrite) : rewrite)(first);
        if (made === first || !mayChange(element)) continue;
        attribute.value = made;
        if (!given.has(element)) given.set(element, new Map());
        given.get(element).set(attribute, [first, made]);
        if (isSilent(element)) probe(made, () => giveBackTo(element));
      }
      // A filter lets no attribute pass that has a namespace (https://dom.spec.whatwg.org/#queueing-a-mutation-record).
      if (element.localName === "image" && element !== root) observer.observe(element, { attributes: true });
    }
    if (Element.prototype.hasAttribute.call(element, "style")) {
      const watch = (link, made, giveBack) => {
        // Later: to ask for it applies styles, and the browser would begin with links that are not rewritten yet.
        setTimeout(() => element.checkVisibility?.() !== false && probe(made, () => note(link, giveBack)));
      };
      const rewriteNew = (link) => (failed.has(link) ? link : rewrite(link));
      rewriteStyle(element.style, rewriteNew, () => mayChange(element), watch);
    }
  }

  /** Gives a picture its first links back. They may work where ours do not, as they did before. */
  function giveBack({ target }) {
    if (target.localName !== "img" || !target.currentSrc.includes("/img?src=")) return;
    // An event may be of the link before: then ours is on its way, and the picture is not complete.
    if (!target.complete || target.naturalWidth) return;
    const isInPicture = target.parentNode?.localName === "picture";
    for (const element of isInPicture ? target.parentNode.children : [target]) giveBackTo(element);
  }

  function giveBackTo(element) {
    for (const [attribute, [first, made]] of given.get(element) ?? []) {
      if (attribute.value === made) note(first, () => (attribute.value = first));
    }
    given.delete(element);
  }

  function note(first, giveBack) {
    if (hasEnded) return;
    if (failed.size >= FAILED_MAX) failed.delete(failed.values().next().value);
    failed.add(first);
    giveBack();
  }

  observer.observe(root, { subtree: true, childList: true, attributeFilter: OBSERVED });
  root.addEventListener("error", giveBack, true);
  visitAll(root);
  return () => {
    hasEnded = true;
    observer.disconnect();
    root.removeEventListener("error", giveBack, true);
  };
}

/** Tells whether an element fires no event of its own, or none that says which link failed. Those of `img` say it. */
const isSilent = ({ localName }) => !["img", "source"].includes(localName);

/** Asks for a picture beside the place that shows it, which the browser fetches once for both, and tells if it fails. */
function probe(url, tellFailure) {
  const image = new Image();
  image.onerror = tellFailure;
  image.src = url;
}

/** Changes a style by its properties, because a policy (CSP) against inline styles forbids to write the attribute. */
function rewriteStyle(style, rewrite, mayChange, watch) {
  const text = style?.cssText;
  if (typeof text !== "string" || text.length > STYLE_CHARS_MAX || !/url\(/i.test(text)) return;
  for (const name of Array.from(style)) {
    if (NO_IMAGES.test(name)) continue;
    const [value, priority, links] = [style.getPropertyValue(name), style.getPropertyPriority(name), new Map()];
    const made = value.replace(CSS_TOKEN, (token, ...forms) => {
      const link = forms.slice(0, 3).find(Boolean)?.replace(CSS_ESCAPE, unescaped);
      const written = link && rewrite(link);
      if (written === link) return token;
      links.set(link, written);
      return `url("${written}")`;
    });
    if (made === value || !mayChange()) continue;
    style.setProperty(name, made, priority);
    const set = style.getPropertyValue(name);
    // The other links of the property are rewritten again, because it changes.
    const giveBack = () => style.getPropertyValue(name) === set && style.setProperty(name, value, priority);
    if (!name.startsWith("--")) for (const [link, written] of links) watch(link, written, giveBack);
  }
}

function unescaped(_, code, character = "") {
  const number = parseInt(code, 16);
  return code ? String.fromCodePoint(number > 0x10ffff ? 0xfffd : number) : character;
}

/** Tells whether an element may be changed again: one that another script resets each time would block the page. */
function limiter() {
  let counts = null;
  return (element) => {
    if (!counts) {
      counts = new WeakMap();
      setTimeout(() => {
        counts = null;
      });
    }
    const count = (counts.get(element) ?? 0) + 1;
    counts.set(element, count);
    return count <= CHANGES_MAX;
  };
}

/** Returns a function that rewrites one link. */
function rewriter(options, isAllowed) {
  checkNames(options, OPTIONS);
  const [find, picture] = [finder(options ?? {}, isAllowed), pictureOf(options)];
  return (text) => {
    const found = find(text, picture.length > 0);
    return found ? found.write(pathOf(found.address, picture)) : text;
  };
}

/** Returns a function that rewrites and signs one link. */
function signer(options) {
  checkNames(options, SIGNING_OPTIONS);
  const find = finder(options ?? {});
  return async (text) => {
    const found = find(text, pictureOf(options).length > 0);
    return found ? found.write(await signedPath(options?.key, found.address, options?.expires, options)) : text;
  };
}

/** Returns a function that reads the URL of a link and how to write a new one; of other values nothing. */
function finder({ publicUrl = "", which = "all", base, allow, deny = [] }, isAllowed = () => true) {
  const prefix = String(publicUrl).replace(/\/+$/, "");
  const ours = prefix && new URL(prefix);
  if (ours && !isHttp(ours)) throw new TypeError("publicUrl: an http(s) URL, or nothing");
  const folder = ours && ours.pathname.replace(/\/*$/, "/");
  const basis = base && new URL(base);
  const page = typeof document === "object" ? document : null;
  const isChosen = chooser(which);
  const mayBeFetched = allow === undefined ? isAllowed : placeMatcher("allow", allow, false);
  const isDenied = placeMatcher("deny", deny, true);

  const isOurs = (url) => {
    const target = url.pathname + url.search;
    if (ours && url.host === ours.host && target.startsWith(folder)) return true;
    // Pictures of the page's own server do not die; `base` asks for them all the same.
    if (page && url.origin === location.origin && !basis) return true;
    return OWN_PATH.test(target) && [page && location.origin, basis?.origin].includes(url.origin);
  };

  return (text, isPicture) => {
    if (text.length > LINK_CHARS_MAX) return null;
    const own = text.startsWith(prefix) ? text.slice(prefix.length) : text;
    if (isPicture && OWN_IMAGE.test(own)) return { address: own, write: (path) => prefix + path };
    const link = text.replace(/^[\0- ]+|[\0- ]+$/g, "").replace(/[\t\n\r]/g, "");
    if (!link || link.startsWith("#") || OWN_PATH.test(link) || UNREADABLE.test(link)) return null;
    if (!basis && !/^https?:/i.test(link)) return null;
    // What browsers make of other characters depends on the encoding of the page.
    if (page && page.characterSet !== "UTF-8" && /[^\0-\x7f]/.test(link)) return null;
    const url = parse(link, basis);
    if (!url || !isHttp(url) || !HOST.test(url.hostname) || url.username || url.password || isOurs(url)) return null;
    // The link as written, because its signature was made for that. The server accepts no white space at the end, and
    // no address in disguise, like 0x7f.1.
    const isDisguised = /^[\d.]+$/.test(url.hostname) && !link.includes(`//${url.hostname}`);
    const whole = ABSOLUTE.test(link) && !/[\s\x85](?:#|$)/.test(link) && !isDisguised ? link : url.href;
    const [address] = whole.split("#", 1);
    if (url.href.length - url.hash.length > LINK_CHARS_MAX || !isChosen(url)) return null;
    if (!mayBeFetched(url) || isDenied(url)) return null;
    const fragment = whole.slice(address.length);
    return { address, write: (path) => (prefix + path + fragment).replace(UNSAFE, encodeURIComponent) };
  };
}

const isHttp = (url) => /^https?:$/.test(url.protocol);

function parse(link, base) {
  try {
    return base ? new URL(link, base) : new URL(link);
  } catch {
    return null;
  }
}

function chooser(which) {
  if (which === "all") return () => true;
  if (typeof which === "function") return which;
  if (!Array.isArray(which)) throw new TypeError('which: "all", host globs, or a function');
  const patterns = which.map((glob) => hostPattern("which", glob));
  return (url) => patterns.some((pattern) => pattern.test(hostOf(url)));
}

const hostOf = ({ hostname }) => hostname.replace(/^\[|[\].]$/g, "");

/**
 * Returns a function that tells whether patterns of hosts, or of hosts and paths, match a URL. A path that servers read
 * in more than one way is `unsure`.
 */
function placeMatcher(name, patterns, unsure) {
  if (!Array.isArray(patterns)) throw new TypeError(`${name}: a list of patterns, as in ["*.example.com"]`);
  const read = patterns.map((pattern) => {
    if (String(pattern).includes("://")) throw new TypeError(`${name}: "${pattern}" can match no host`);
    const [, glob, path] = /^([^/]*)(\/.*)?$/s.exec(String(pattern));
    return [hostPattern(name, glob), path === undefined ? null : starPattern(path, unsure ? "is" : "s")];
  });
  return (url) => {
    const [host, isUnsure] = [hostOf(url), /[%\\]|\/\/|\/\./.test(url.pathname)];
    return read.some(([glob, path]) => glob.test(host) && (!path || (isUnsure ? unsure : path.test(url.pathname))));
  };
}

/** Returns a function that tells whether the server would fetch a URL, as far as its policy is public. */
function serverAllows(told) {
  if (!told) return undefined;
  const allows = placeMatcher("allow", told.allow, false);
  return (url) => {
    const port = Number(url.port) || (url.protocol === "http:" ? 80 : 443);
    const host = hostOf(url);
    const isLocal = host.includes(":") || SPECIAL.test(host) || told.local.includes(host.split(".").pop());
    const isOutside = told.ports.includes(port) && !isLocal && host.includes(".");
    return (isOutside || told.inside) && allows(url);
  };
}

/** Refuses options that no function takes: a misspelt option would change nothing, without an error. */
function checkNames(options, known) {
  if (options == null) return;
  if (typeof options !== "object") throw new TypeError('options: an object, as in { publicUrl: "https://example.com" }');
  for (const name of Object.keys(options)) {
    if (known.includes(name)) continue;
    const [closest, distance] = known
      .map((each) => [each, distanceOf(each.toLowerCase(), name.toLowerCase())])
      .reduce((best, each) => (each[1] < best[1] ? each : best));
    const hint = distance <= 2 && distance < name.length ? `; did you mean ${closest}?` : "";
    const isSigning = SIGNING_OPTIONS.includes(name) ? "; signedImgUrl and signedSrcset take it" : hint;
    throw new TypeError(`${name.slice(0, 40)}: no option${isSigning || `; there are ${known.join(", ")}`}`);
  }
}

/** How many characters have to be changed, added or left out (Levenshtein). */
function distanceOf(one, other) {
  if (other.length > 40) return other.length;
  let row = [...Array(one.length + 1).keys()];
  for (const [number, character] of [...other].entries()) {
    const next = [number + 1];
    for (let at = 0; at < one.length; at += 1) {
      next.push(Math.min(row[at + 1] + 1, next[at] + 1, row[at] + (one[at] === character ? 0 : 1)));
    }
    row = next;
  }
  return row.at(-1);
}

/** Makes a pattern of a host glob. It searches each part between two stars once, so that many stars do not hang. */
function hostPattern(name, glob) {
  const labels = glob.toLowerCase().replace(/\.$/, "").split(".");
  const text = labels.map(inPunycode).join(".").replace(BRACKETED, "$1");
  if (!GLOB.test(text)) throw new TypeError(`${name}: "${glob}" can match no host`);
  return starPattern(text);
}

/** Makes a pattern of a text with stars. */
function starPattern(text, flags) {
  const plain = text.replace(/[.+^$(){}|\\]/g, "\\$&");
  const parts = plain.replaceAll("[!", "[^").replaceAll("?", ".").split(/\*+/);
  const last = parts.pop();
  const before = parts.map((part, number) => (number ? `(?=(.*?${part}))\\${number}` : part)).join("");
  return new RegExp(`^${before}${parts.length ? ".*" : ""}${last}$`, flags);
}

/** Writes an international label in the form of hosts. Another text, or a label with a star, stays and matches no host. */
function inPunycode(label) {
  const isWhole = /^(?!-|.*-$)[a-z\d\x80-\uffff-]+$/.test(label);
  return (isWhole && parse(`http://${label}.a`)?.hostname.slice(0, -".a".length)) || label;
}

/** Returns the path of a source URL, or of a stored image, with options of a picture. */
function pathOf(address, picture) {
  const escaped = (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`;
  const encoded = (text) => encodeURIComponent(text).replace(/[!'()*]/g, escaped);
  const parameters = picture.map(([name, value]) => `${name}=${encoded(value)}`);
  if (picture.length && OWN_IMAGE.test(address)) return `${address}?${parameters.join("&")}`;
  return `/img?${[`src=${encoded(address)}`, ...parameters].join("&")}`;
}

/** Returns names and values of the options of a picture, sorted by name, as a signature covers them. */
function pictureOf(options) {
  const given = PICTURE.filter((name) => options?.[name] != null).map((name) => [name, options[name]]);
  for (const [name, value] of given) {
    if (!["string", "number"].includes(typeof value)) throw new TypeError(`${name}: a text or a number`);
  }
  return given;
}

function checked(widths) {
  if (widths.every((w) => Number.isInteger(w) && w > 0)) return widths;
  throw new TypeError("widths: whole numbers, as in [320, 640, 1280]");
}

/** Joins links and their widths to a `srcset`; one that the module leaves alone has no other width, and makes none. */
function joined(value, made) {
  const links = made.filter(([, link]) => link !== String(value));
  return links.map(([w, link]) => `${link.replace(/,$/, "%2C")} ${w}w`).join(", ");
}

const inSrcset = (rewrite) => (value) => cutSrcset(value).map(eachLink(rewrite)).join("");
const eachLink = (rewrite) => (piece, number) => (number % 2 ? rewrite(piece) : piece);

/** Cuts a `srcset` into what is no link, a link, what is none, and so on, as browsers do: links may hold commas. */
function cutSrcset(value) {
  const link = /[\t\n\f\r ,]*([^\t\n\f\r ,][^\t\n\f\r ]*)/y;
  const descriptors = /[^,(]*(?:\([^)]*\)?[^,(]*)*/y;
  const pieces = [];
  let done = 0;
  for (let match = link.exec(value); match; match = link.exec(value)) {
    const start = link.lastIndex - match[1].length;
    let end = link.lastIndex;
    while (value[end - 1] === ",") end -= 1;
    pieces.push(value.slice(done, start), value.slice(start, end));
    done = end;
    descriptors.lastIndex = link.lastIndex;
    if (end === link.lastIndex && descriptors.test(value)) link.lastIndex = descriptors.lastIndex;
  }
  return [...pieces, value.slice(done)];
}

/** Node.js 18 has it in a module only; its name is no literal here, so that no bundler includes it for browsers. */
async function webCrypto() {
  const name = "node:crypto";
  return (globalThis.crypto ?? (await import(/* webpackIgnore: true */ /* @vite-ignore */ name)).webcrypto).subtle;
}
