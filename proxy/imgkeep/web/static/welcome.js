/*
 * The script of the home page: it shows the picture behind a link, and its facts.
 *
 * Rules:
 * - It asks this server alone, as any page may: /img, and with a session of this browser /api.
 * - Each answer becomes text, never markup.
 */

const PICTURES = 12;
const NAMES = { "image/svg+xml": "SVG", "image/x-icon": "ICO", "image/jxl": "JPEG XL" };

const base = new URL(".", location.href);
const find = (id) => document.getElementById(id);
const [input, result, told, figure, facts] = ["src", "result", "told", "figure", "facts"].map(find);
let turn = 0;
let session = findSession();

/** Returns the URL of imgkeep to request, and the link in it; a pasted URL of imgkeep stays as it is. */
function read(text) {
  try {
    const url = new URL(text, base);
    const path = url.origin === base.origin && url.pathname.startsWith(base.pathname) && url.pathname.slice(base.pathname.length);
    if (path && (path === "img" || path.startsWith("images/"))) {
      return { url: url.href, link: url.searchParams.get("src") };
    }
  } catch {
    // The text is no URL; the server has the better message.
  }
  return { url: new URL(`img?src=${encodeURIComponent(text.toWellFormed?.() ?? text)}`, base).href, link: text };
}

/** Returns the head of a response; null where it is unreadable, as after a redirect to a bucket without CORS. */
async function ask(url, method) {
  const abort = new AbortController();
  try {
    const answer = await fetch(url, { method, cache: "no-store", signal: abort.signal });
    if (!answer.ok) {
      return { answer, problem: await answer.json().catch(() => ({})) };
    }
    abort.abort(); // the body is in the page already, or cannot be shown
    return { answer };
  } catch {
    return null;
  }
}

/** Tells whether this browser has a session: a link on a page of another site opens this page without its cookie. */
async function findSession() {
  const read = (page) => page.querySelector("main")?.dataset.api;
  if (read(document) !== "ask") {
    return read(document) === "session";
  }
  const text = await fetch(base, { cache: "no-store", headers: { Accept: "text/html" } })
    .then((answer) => answer.text(), () => "");
  return read(new DOMParser().parseFromString(text, "text/html")) === "session";
}

async function askApi(path) {
  if (!(await session)) {
    return null;
  }
  try {
    const answer = await fetch(new URL(path, base), { cache: "no-store", credentials: "same-origin" });
    if (answer.status === 401) {
      session = Promise.resolve(false); // it has ended
    }
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

async function show(text) {
  const mine = (turn += 1);
  const { url, link } = read(text);
  result.hidden = false;
  say("Fetching", "busy");
  facts.replaceChildren();
  const image = new Image();
  image.alt = "The picture behind the link";
  const loaded = new Promise((resolve) => {
    image.onload = () => resolve(true);
    image.onerror = () => resolve(false);
  });
  image.src = url;
  figure.replaceChildren(image);
  const [isShown, inspected] = await Promise.all([
    loaded,
    link === null ? null : askApi(`api/inspect?src=${encodeURIComponent(link)}`),
  ]);
  // The body of a GET describes a failure. The HEAD of a picture names its permanent URL, once it is stored.
  const asked = isShown ? await ask(url, "HEAD") : await ask(url, "GET");
  const failure = asked?.answer.ok === false && (asked.problem.detail ? asked : await ask(url, "GET"));
  const stored = inspected && !failure ? await askApi(`api/images/${inspected.key}`) : null;
  if (mine !== turn) {
    return;
  }
  if (failure || (!isShown && !asked)) {
    figure.replaceChildren();
    tellFailure(failure);
  } else {
    tellPicture(image, isShown, asked?.answer, stored);
    setLine("html", `<img src="${url}" alt="">`);
    showNewest();
  }
  if (inspected) {
    tellLink(inspected);
  }
}

function tellFailure(failure) {
  const { title, detail, code } = failure ? failure.problem : {};
  say(title ?? "The server cannot be reached", "bad");
  if (detail) {
    tell("What happened", detail);
  }
  if (failure) {
    tell("Status", `${failure.answer.status} ${code ?? ""}`);
  }
}

function tellPicture(image, isShown, answer, stored) {
  const type = answer?.headers.get("Content-Type") ?? stored?.content_type;
  const size = answer?.headers.get("Content-Length") ?? stored?.size;
  const name = type ? NAMES[type] ?? type.replace("image/", "").toUpperCase() : "";
  const extent = isShown ? `${image.naturalWidth} × ${image.naturalHeight}` : "";
  const place = answer?.headers.get("Content-Location");
  const led = answer?.redirected && !new URL(answer.url).search ? answer.url : null;
  const permanent = stored?.url ?? (place ? new URL(place, answer.url).href : led);
  if (!isShown) {
    figure.replaceChildren();
    say(`This browser does not show ${name || "the format of this image"}`, "");
  } else {
    say(permanent ? "Stored" : "Shown", "");
  }
  tell("Picture", [name, extent, size ? bytes(Number(size)) : ""].filter(Boolean).join(", "));
  if (permanent) {
    tellUrl("Permanent URL", permanent);
  } else {
    tell("Permanent URL", "not known here; Content-Location of the answer names it once the image is stored");
  }
}

function tellLink(inspected) {
  const { provider, temporary, expires_at: end, key } = inspected;
  tell("Service", provider ?? "not one that imgkeep knows");
  tell("Link", !temporary ? "tells no end" : end ? `${ended(end) ? "ended" : "ends"} ${date(end)}` : "temporary");
  tell("Key", key, "value");
}

function say(text, kind) {
  told.textContent = text;
  told.className = `told ${kind}`;
}

function tell(name, value, kind = "") {
  const term = document.createElement("dt");
  const definition = document.createElement("dd");
  term.textContent = name;
  definition.textContent = value;
  definition.className = kind;
  facts.append(term, definition);
  return definition;
}

function tellUrl(name, text) {
  const link = document.createElement("a");
  link.className = "value";
  link.textContent = text;
  link.id = "permanent";
  if (/^https?:$/.test(new URL(text, base).protocol)) {
    link.href = text;
  }
  tell(name, "").append(link, copyButton(link, name));
}

async function showNewest() {
  const list = find("pictures");
  const page = list ? await askApi(`api/images?limit=${PICTURES}`) : null;
  if (!page) {
    return;
  }
  find("closed").hidden = true;
  find("none").hidden = page.images.length > 0;
  list.replaceChildren(...page.images.map(pictureItem));
}

function pictureItem({ url, source, stored_at: time }) {
  const [item, link, image, from, when] = ["li", "a", "img", "span", "span"].map((name) => document.createElement(name));
  const host = source.provider ?? source.host ?? "uploaded";
  if (/^https?:$/.test(new URL(url, base).protocol)) {
    link.href = image.src = new URL(url, base).href;
  }
  image.loading = "lazy";
  image.alt = "";
  [from.className, from.textContent] = ["from", host];
  [when.className, when.textContent, when.title] = ["when", shortDate(time), date(time)];
  link.append(image, from, when);
  item.append(link);
  return item;
}

function setLine(id, text) {
  find(id).querySelector("code").textContent = text;
}

function copyButton(target, name) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy: ${name}`);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(target.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(target); // http has no clipboard but on this machine
    }
  });
  return button;
}

function bytes(size) {
  return size < 1000 ? `${size} bytes` : size < 1e6 ? `${(size / 1e3).toFixed(1)} kB` : `${(size / 1e6).toFixed(1)} MB`;
}

function date(text) {
  return new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
}

/** Returns a time without its year, unless another year: the text stands below a small picture. */
function shortDate(text) {
  const time = new Date(text);
  const year = time.getFullYear() === new Date().getFullYear() ? undefined : "numeric";
  const clock = year ? {} : { hour: "numeric", minute: "2-digit" };
  return time.toLocaleString([], { year, month: "short", day: "numeric", ...clock });
}

function ended(text) {
  return Date.parse(text) < Date.now();
}

// A server without server.public_url does not know its own name; the browser does.
for (const code of document.querySelectorAll(".line code")) {
  code.textContent = code.textContent.replace(/(?<=["\s])(?=\/(?:img\?|imgkeep|api\/))|(?<=publicUrl: ")(?=")/g, base.href.slice(0, -1));
  const heading = code.closest(".line").querySelector("h3");
  heading.append(copyButton(code, heading.textContent));
}
document.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  if (text) {
    show(text);
  }
});
showNewest();
