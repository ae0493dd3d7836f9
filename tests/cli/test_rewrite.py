"""`rewrite`: documents are printed, compared or replaced, and their images saved first."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import shutil
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from imgkeep.__main__ import main
from imgkeep.cli.diff import unified
from imgkeep.cli.documents import FileVersion, find_documents, read_document, replace_document
from tests.support.images import make_image
from tests.support.page_links import DIES, SIGNED, STAYS
from tests.support.program import cannot, environment
from tests.support.raw_http import port_of, target_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.origins import Exchange, FakeOrigin
    from tests.support.server import Imgkeep

    Start = Callable[..., Awaitable[Imgkeep]]

    Command = Callable[..., tuple[int, bytes, str]]

PAGE = f'\ufeff<p>\r\n<img src="{DIES}">\n<img src="{STAYS}">'.encode()
WARNING = (
    "imgkeep: new links are paths like /img?src=..., which work only in pages from the server that imgkeep is behind; "
    "server.public_url or --base say how readers reach imgkeep\n"
)
NEW_PAGE = PAGE.replace(DIES.encode(), target_of(DIES).encode())
TEXT = f"# A\n![b]({DIES})\n".encode()
NEW_TEXT = TEXT.replace(DIES.encode(), target_of(DIES).encode())


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of pages and other files."""
    site = tmp_path / "site"
    (site / "süß").mkdir(parents=True)
    (site / ".git").mkdir()
    (site / "a.html").write_bytes(PAGE)
    (site / "süß" / "b.md").write_bytes(TEXT)
    (site / "c.htm").write_bytes(b"nothing")
    (tmp_path / "outside.html").write_bytes(PAGE)
    for path in (site / ".git" / "x.html", site / ".hidden.html", site / "d.txt", site / "e.js"):
        path.write_bytes(PAGE)
    (site / "link.html").symlink_to("../outside.html")
    (site / "folder").symlink_to("..")
    return site


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., tuple[int, bytes, str]]:
    """Run `rewrite` in this process, in the folder of the test."""

    def run_here(*arguments: str, stdin: bytes = b"", **settings: str) -> tuple[int, bytes, str]:
        monkeypatch.chdir(tmp_path)
        with monkeypatch.context() as here:
            for name, value in environment(tmp_path / "data", **settings).items():
                here.setenv(name, value)
            here.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            try:
                status = main(("rewrite", *arguments))
            except SystemExit as exit_:  # argparse's way
                status = int(exit_.code or 0)
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    return run_here


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- printed


def test_printing_changes_no_file(command: Command, site: Path) -> None:
    before = contents(site.parent)
    assert command("site/a.html") == (0, NEW_PAGE, "")
    assert command("site/d.txt", "--format", "html") == (0, NEW_PAGE, "")
    assert command("-", stdin=PAGE) == (0, NEW_PAGE, "")
    assert command("-", "--format", "markdown", stdin=TEXT) == (0, NEW_TEXT, "")
    assert command("-", stdin=b"\0\xff<img") == (0, b"\0\xff<img", "")
    assert contents(site.parent) == before, "not even a store is begun"


def test_options_choose_links_and_base(command: Command) -> None:
    both = PAGE.replace(DIES.encode(), target_of(DIES).encode()).replace(STAYS.encode(), target_of(STAYS).encode())
    other = PAGE.replace(STAYS.encode(), target_of(STAYS).encode())
    assert command("-", "--all", stdin=PAGE)[1] == both
    assert command("-", "--hosts", "a.example", "--hosts", "o*.example", stdin=PAGE)[1] == other
    relative = b'<img src="../a.png">'
    assert (
        b"src=https%3A%2F%2Fh.example%2Fa.png"
        in command("-", "--all", "--url", "https://h.example/b/c", stdin=relative)[1]
    )
    status, out, _ = command(
        "-",
        stdin=PAGE,
        server__public_url="https://img.example/",
        security__signing_keys="a-key-that-signs-links",
        sources__deny="other.example",
    )
    assert status == 0
    assert b'src="https://img.example/img?src=https%3A%2F%2Fpictures.example' in out
    assert b"sig=" in out
    assert STAYS.encode() in out


def test_img_gets_options_and_attributes_when_asked(command: Command) -> None:
    page = f'<img src="{DIES}"><img width=100 src="{STAYS}">'.encode()
    status, out, _ = command(
        *(
            "-",
            "--all",
            "--pictures",
            "other.example/* format=auto",
            "--pictures",
            "preset=thumb",
            "--widths",
            "200,100",
        ),
        "--lazy",
        stdin=page,
        derive__presets="thumb=w=320",
    )
    first, second = out.decode().split("><")
    assert status == 0
    assert first.endswith('&amp;preset=thumb" loading="lazy"')
    assert "&amp;w=100&amp;format=auto 100w, " in second
    assert second.endswith('200w" sizes="(max-width: 100px) 100vw, 100px" loading="lazy">')


async def test_img_gets_the_size_of_its_stored_image(command: Command, site: Path, origin: FakeOrigin) -> None:
    url = origin.gives("/a.png", make_image())
    page = f'<img src="{url}"><img src="{DIES}">'.encode()
    (site / "a.html").write_bytes(f'<img src="{url}">'.encode())
    arguments = ("--all", "--dimensions", "--save", "--lazy", "--in-place", "site/a.html")
    assert (await asyncio.to_thread(command, *arguments))[0] == 0
    assert b' width="64" height="48" loading="lazy">' in (site / "a.html").read_bytes()
    status, out, _ = await asyncio.to_thread(command, "-", "--all", "--dimensions", stdin=page)
    assert (status, out.count(b' width="64" height="48"'), out.count(b"width=")) == (0, 1, 1)


# --- compared


def test_patch_applies_the_diff(command: Command, site: Path) -> None:
    if shutil.which("patch") is None:
        cannot("patch is not installed")
    before = contents(site)
    status, out, err = command("--diff", "site")
    assert (status, err) == (1, "2 would be rewritten, 1 would not\n")
    assert contents(site) == before
    subprocess.run(["patch", "-p0", "--binary"], input=out, cwd=site.parent, check=True, stdout=subprocess.DEVNULL)
    assert (site / "a.html").read_bytes() == NEW_PAGE
    assert (site / "süß" / "b.md").read_bytes() == NEW_TEXT
    assert command("--diff", "site") == (0, b"", "0 would be rewritten, 3 would not\n")


DIFFERENCES = {
    "one line": (b"a", b"b"),
    "an end that is no line's": (b"a\nb", b"a\nc"),
    "first and last": (b"x\n" * 30, b"y\n" + b"x\n" * 28 + b"y\n"),
    "shared context": (b"1\n2\n3\n4\n5\n6\n7\n8\n", b"1\nx\n3\n4\n5\n6\ny\n8\n"),
    "too far apart": (b"1\n" * 20, b"x\n" + b"1\n" * 7 + b"y\n" + b"1\n" * 11),
    "fewer lines": (b"a\nb\nc\n" * 9, b"a\nbc\n" + b"a\nb\nc\n" * 8),
    "more lines": (b"a\nb\nc\n" * 9, b"a\nb\nc\n" * 9 + b"d"),
    "carriage returns": (b"a\r\nb\rc\r\n", b"a\r\nd\rc\r\n"),
    "all of it": (b"a\nb\n", b"c\nd\n"),
    "no text": (bytes(range(256)), bytes(range(255, -1, -1))),
}


@pytest.mark.parametrize(("before", "after"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_patch_applies_every_kind_of_difference(tmp_path: Path, before: bytes, after: bytes) -> None:
    if shutil.which("patch") is None:
        cannot("patch is not installed")
    file = tmp_path / "file"
    file.write_bytes(before)
    patch = b"".join(unified(before, after, "file"))
    subprocess.run(["patch", "-p0", "--binary", "--fuzz=0"], input=patch, cwd=tmp_path, check=True, capture_output=True)
    assert file.read_bytes() == after


@pytest.mark.parametrize(
    "name", ["a b", 'say "a"', "back\\slash", "tab\tbed", "süß", " ahead", "behind ", os.fsdecode(b"\xff")], ids=ascii
)
def test_patch_finds_files_of_any_name(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if shutil.which("patch") is None:
        cannot("patch is not installed")
    file = tmp_path / f"{name}.html"
    file.write_bytes(PAGE)
    monkeypatch.chdir(tmp_path)
    status, out, _ = command("--diff", file.name)
    assert status == 1
    subprocess.run(["patch", "-p0", "--binary", "--fuzz=0"], input=out, cwd=tmp_path, check=True, capture_output=True)
    assert file.read_bytes() == NEW_PAGE


def test_many_differences_take_linear_time() -> None:
    text = b"same\nsame\nlink\nsame\n" * 50_000
    assert list(unified(text, text, "file")) == []
    # `difflib` would need minutes for this.
    assert sum(line.startswith(b"+new") for line in unified(text, text.replace(b"link", b"new"), "file")) == 50_000


# --- in place


def test_in_place_changes_documents_only(command: Command, site: Path) -> None:
    (site / "a.html").chmod(0o604)
    before, untouched = contents(site.parent), (site / "c.htm").stat()
    status, out, err = command("--in-place", "site")
    assert (status, out, err) == (
        0,
        b"",
        f"{WARNING}2 rewritten, 1 unchanged, 0 failed; 2 links; --undo puts the old links back\n",
    )
    after = contents(site.parent)
    assert {name: after[name] for name in after if after[name] != before.get(name)} == {
        "site/a.html": NEW_PAGE,
        "site/süß/b.md": NEW_TEXT,
    }
    assert after.keys() == before.keys(), "nothing partial is left"
    assert stat.S_IMODE((site / "a.html").stat().st_mode) == 0o604
    assert os.path.samestat((site / "c.htm").stat(), untouched), "the same file as before"
    assert (site / "link.html").is_symlink()
    assert command("--in-place", "site")[2] == f"{WARNING}0 rewritten, 3 unchanged, 0 failed; 0 links\n"


def test_named_symbolic_link_is_followed(command: Command, site: Path) -> None:
    status, _, err = command("--in-place", "site/link.html")
    assert (status, err) == (
        0,
        f"{WARNING}1 rewritten, 0 unchanged, 0 failed; 1 links; --undo puts the old links back\n",
    )
    assert (site / "link.html").is_symlink()
    assert (site.parent / "outside.html").read_bytes() == NEW_PAGE


def test_json_reports_each_file(command: Command, site: Path) -> None:
    status, out, err = command("--in-place", "--json", "site", "nowhere.html")
    reply = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (1, WARNING)
    assert reply == [
        {"file": "site/a.html", "state": "rewritten", "links": 1},
        {"file": "site/c.htm", "state": "unchanged", "links": 0},
        {"file": "site/süß/b.md", "state": "rewritten", "links": 1},
        {"file": "nowhere.html", "state": "failed", "links": 0, "error": "No such file or directory"},
    ]
    assert site.exists()


def test_relative_links_count_from_their_page(command: Command, site: Path) -> None:
    (site / "süß" / "c.html").write_bytes(b'<img src="x.png">')
    assert command("--in-place", "--all", "--url", "https://h.example/docs/", "site")[0] == 0
    assert target_of("https://h.example/docs/s%C3%BC%C3%9F/x.png").encode() in (site / "süß" / "c.html").read_bytes()


def test_unreadable_file_stops_no_other(command: Command, site: Path) -> None:
    os.mkfifo(site.parent / "pipe.html")
    (site / "long.md").write_bytes(b" " * (1 << 20) + b" ")
    status, out, err = command("--in-place", "pipe.html", "site", "nowhere.md", str(site / "bad\x1b\udcff.html"))
    assert (status, out) == (1, b"")
    lines = err.removeprefix(WARNING).splitlines()
    assert lines[0] == "imgkeep: pipe.html: it is not a file"
    assert "long.md: Markdown of more than 1048576 bytes" in lines[1]
    assert lines[2] == "imgkeep: nowhere.md: No such file or directory"
    assert r"bad\x1b\udcff.html: No such file" in lines[3]
    assert lines[4] == "2 rewritten, 1 unchanged, 4 failed; 2 links; --undo puts the old links back"
    assert command("nowhere.md")[0] == command("--diff", "nowhere.md")[0] == 1


def test_unreadable_folder_is_reported(site: Path) -> None:
    gone = find_documents([str(site)], None, None, io.BytesIO())[0]
    shutil.rmtree(site)
    with pytest.raises(OSError, match="No such file"):
        read_document(gone)


def test_change_of_another_program_stays(site: Path) -> None:
    page = find_documents([str(site / "a.html")], None, None, io.BytesIO())[0]
    held = read_document(page)
    assert isinstance(held, FileVersion)
    (site / "a.html").write_bytes(b"theirs")
    with pytest.raises(OSError, match="meanwhile"):
        replace_document(page, held, NEW_PAGE)
    assert (site / "a.html").read_bytes() == b"theirs"
    assert not list(site.glob(".imgkeep*"))


# --- undone

VALID = PAGE.replace(b"&", b"&amp;")
BASE = "https://img.example"


@pytest.mark.parametrize("base", [(), ("--base", BASE)], ids=["paths", "base"])
def test_undo_restores_the_documents(command: Command, site: Path, base: tuple[str, ...]) -> None:
    (site / "a.html").write_bytes(VALID)
    (site / "a.html").chmod(0o604)
    before = contents(site.parent)
    assert command("--in-place", *base, "site")[0] == 0
    assert contents(site.parent) != before
    status, out, err = command("--in-place", "--undo", *base, "site")
    assert (status, out, err) == (0, b"", "2 restored, 1 unchanged, 0 failed; 2 links\n")
    assert contents(site.parent) == before
    assert stat.S_IMODE((site / "a.html").stat().st_mode) == 0o604
    assert command("--in-place", "--undo", *base, "site")[2] == "0 restored, 3 unchanged, 0 failed; 0 links\n"


def test_undo_keeps_later_edits(command: Command, site: Path) -> None:
    (site / "a.html").write_bytes(VALID)
    assert command("--in-place", "--base", BASE, "site/a.html")[0] == 0
    edited = (site / "a.html").read_bytes().replace(b"<p>", b"<p class=new>")
    (site / "a.html").write_bytes(edited)
    status, out, _ = command("--diff", "--undo", "--base", BASE, "site/a.html")
    assert (status, out.count(b"\n-"), out.count(b"\n+")) == (1, 1, 2)
    assert (site / "a.html").read_bytes() == edited
    assert command("--undo", "--base", BASE, "site/a.html")[1] == VALID.replace(b"<p>", b"<p class=new>")


@pytest.mark.parametrize(
    ("base", "says"),
    [
        (BASE, ""),
        ("http://127.0.0.1:8080", "only this machine"),
        ("http://img", "only this machine"),
        ("", "are paths"),
    ],
)
def test_local_base_gets_a_warning(command: Command, site: Path, base: str, says: str) -> None:
    settings = {"server__public_url": base}
    assert site.exists()
    assert says in command("--in-place", "site", **settings)[2].partition("rewritten")[0]
    assert command("--diff", "site/c.htm", **settings)[2] == "0 would be rewritten, 1 would not\n"


# --- usage


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "FILE|DIR"),
        ("site", "several documents"),
        ("site/a.html site/c.htm", "several documents"),
        ("site/d.txt", "--format"),
        ("--in-place -", "standard input"),
        ("--in-place --diff site", "not allowed with"),
        ("--all --hosts x.example site/a.html", "not allowed with"),
        ("--hosts a@b site/a.html", "--hosts"),
        ("--url nonsense site/a.html", "--url"),
        ("--diff --url https://a.example/ site site", "--url"),
        ("--diff --save site", "--save"),
        ("--server http://127.0.0.1:1 --undo site/a.html", "--undo asks no server"),
        ("--json site/a.html", "--in-place"),
        ("--undo --all site/a.html", "not allowed with"),
        ("--undo --save --in-place site", "--save"),
        ("--base nonsense site/a.html", "--base"),
        ("--undo --lazy site/a.html", "--undo: takes no options of derived pictures"),
        ("--server http://127.0.0.1:1 --dimensions site/a.html", "--dimensions"),
        ("--pictures w=0 site/a.html", "--pictures: w: expected"),
        ("--pictures https://a=w=1 site/a.html", "--pictures: https://a is not an option"),
        ("--widths 1,x site/a.html", "--widths: expected auto"),
        ("--token abcdefghijklmnop site/a.html", "--server"),
    ],
)
def test_contradicting_options_are_refused(command: Command, site: Path, arguments: str, says: str) -> None:
    before = contents(site)
    status, out, err = command(*arguments.split())
    assert (status, out) == (2, b"")
    assert says in err
    assert contents(site) == before


# --- saved


async def watched(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run one command to its end on a terminal; return exit status and output."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "imgkeep", *arguments),
        cwd=folder.parent,
        env={**environment(folder), "TERM": "xterm-256color", "COLUMNS": "120"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    status = await process.wait()
    shown = os.read(ours, 65_536).decode()
    os.close(ours)
    return status, shown


async def test_images_are_saved_before_files_are_written(
    command: Command, start: Start, tmp_path: Path, site: Path, origin: FakeOrigin
) -> None:
    folder, page = tmp_path / "data", site / "a.html"
    at_fetch: list[bytes] = []

    async def answer(exchange: Exchange) -> None:
        at_fetch.append(page.read_bytes())
        await exchange.answer(make_image(seed=int(exchange.target[1])))

    urls = [f"{origin.on(f'/{n}.png', answer)}?{SIGNED}" for n in range(4)]
    bad = origin.url(f"/missing.png?{SIGNED}")
    old = "".join(f'<img src="{url}">' for url in [*urls[:3], urls[0], bad]).encode()
    page.write_bytes(old)
    text = site / "süß" / "b.md"
    text.write_bytes(f"![]({urls[3]})".encode())
    status, out, err = await asyncio.to_thread(command, "--in-place", "--save", "site/a.html")
    lines = err.removeprefix(WARNING).splitlines()
    assert (status, out) == (1, b"")
    assert lines[0].startswith("imgkeep: site/a.html: an image of 127.0.0.1: source_")
    assert lines[1:] == [
        "3 images stored; 1 failed, whose links stay as they are",
        "1 rewritten, 0 unchanged, 0 failed; 4 links; --undo puts the old links back",
    ]
    assert "Signature" not in err
    assert at_fetch == [old] * 3, "each link once, and before the page was written"
    assert page.read_bytes().count(b"/img?src=") == 4
    assert page.read_bytes().endswith(f'<img src="{bad}">'.encode())
    imgkeep = await start(folder=folder)
    there = f"http://127.0.0.1:{port_of(imgkeep)}"
    status, shown = await watched(folder, "rewrite", "--in-place", "--save", "--server", there, "site/süß")
    assert status == 0
    for words in ("reading", "saving", "rewriting", "1/1", "1 images stored", "1 rewritten"):
        assert words in shown
    await origin.stop()
    for n, url in enumerate(urls):
        assert await (await imgkeep.img(url)).read() == make_image(seed=n)


async def test_links_that_the_server_refuses_stay(
    start: Start, command: Command, site: Path, tmp_path: Path, origin: FakeOrigin
) -> None:
    origin.gives("/a.png", make_image())
    fetched, refused = origin.url(f"/a.png?{SIGNED}"), DIES
    page = f'<img src="{fetched}"><img src="{refused}">'
    (site / "a.html").write_text(page)
    token = "a-token-for-the-api"
    refusing = await start(sources={"deny": ("pictures.example",)}, security={"api_tokens": (token,)})
    arguments = ("--save", "--server", f"http://127.0.0.1:{port_of(refusing)}", "site/a.html")
    status, out, err = await asyncio.to_thread(command, *arguments, security__api_tokens=token)
    assert (status, out) == (0, page.replace(fetched, target_of(fetched)).encode()), err
    asked = len(origin.seen)
    status, out, err = await asyncio.to_thread(command, *arguments[1:], security__api_tokens=token)
    assert (status, out) == (0, page.replace(fetched, target_of(fetched)).encode()), (
        "the policy counts without --save too"
    )
    assert len(origin.seen) == asked
    status, out, err = await asyncio.to_thread(command, *arguments[1:], security__api_tokens="a-token-it-does-not-take")
    assert (status, out) == (1, b"")
    assert "401" in err

    signing = {"signature": "misses", "signing_keys": ("k" * 16,), "api_tokens": (token,)}
    refusing = await start(folder=tmp_path / "other", security=signing)
    arguments = ("--save", "--server", f"http://127.0.0.1:{port_of(refusing)}", "site/a.html")
    status, out, err = await asyncio.to_thread(command, *arguments, security__api_tokens=token)
    assert (status, out) == (2, b"")
    assert "security.signing_keys: the server that --server names takes signed links only" in err
