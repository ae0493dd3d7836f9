"""`sign`, `token`, and the recipes for other languages, run by their interpreters."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.derived.options import split_options
from imgkeep.core.signing import Signatures, signed_images_path, signed_path
from imgkeep.core.source_url import read_img_query
from tests.support.program import cannot
from tests.support.signing_vectors import KEY, OPTION_VECTORS, PAGE, VECTORS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.commands import Command

GO = """package main
import ("crypto/hmac"; "crypto/sha256"; "encoding/base64"; "encoding/json"; "fmt"; "net/url"; "os"; "strconv")
func main() {
    var vectors [][]any
    json.Unmarshal([]byte(os.Args[1]), &vectors)
    for _, v := range vectors {
        options := url.Values{}
        for name, value := range v[3].(map[string]any) { options.Set(name, value.(string)) }
        fmt.Println(SignedPath(v[0].(string), v[1].(string), int64(v[2].(float64)), options))
    }
}
"""
LANGUAGES = {
    "javascript": (
        "node",
        "a.js",
        "",
        "for (const [k, s, e, o] of JSON.parse(process.argv[2])) console.log(signedPath(k, s, e || undefined, o));",
    ),
    "php": (
        "php",
        "a.php",
        "<?php\n",
        'foreach (json_decode($argv[1], true) as [$k, $s, $e, $o]) echo signed_path($k, $s, $e ?: null, $o), "\\n";',
    ),
    "ruby": (
        "ruby",
        "a.rb",
        "require 'json'\n",
        "JSON.parse(ARGV[0]).each { |k, s, e, o| puts signed_path(k, s, e == 0 ? nil : e, o) }",
    ),
    "go": ("go", "a.go", GO, ""),
}
"""Interpreter, file name, prologue and epilogue of the recipe in each language."""


@pytest.mark.parametrize("language", LANGUAGES)
def test_recipe_signs_as_imgkeep_does(language: str, tmp_path: Path) -> None:
    program, name, before, after = LANGUAGES[language]
    if shutil.which(program) is None:
        cannot(f"{program} is not installed")
    (recipe,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / name
    file.write_text(f"{before}{recipe}{after}\n", "utf-8")
    rows = [*((src, "", end, sig) for src, end, sig in VECTORS), *OPTION_VECTORS]
    vectors = [(KEY, src, int(end or 0), dict(reversed(split_options(line)))) for src, line, end, _ in rows]
    words = [program, *(["run"] if language == "go" else []), str(file), json.dumps(vectors)]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", check=True)
    paths = done.stdout.splitlines()
    assert len(paths) == len(rows)
    for path, (src, line, end, sig) in zip(paths, rows, strict=True):
        query = read_img_query(path.removeprefix("/img?"))
        own = {**dict(split_options(line)), "sig": sig, **({"exp": end} if end else {})}
        assert (query.text, dict(query.options)) == (src, own)


def test_sign_prints_img_urls(command: Command) -> None:
    settings = {"security__signing_keys": KEY, "server__public_url": "https://img.example/base"}
    url = "https://example.com/a b.png?x=1"
    status, out, _ = command("sign", url, **settings)
    assert (status, out) == (0, f"https://img.example/base{signed_path(KEY, url)}\n")
    status, out, _ = command("sign", "--ttl-s", "60", "--json", url, **settings)
    reply = json.loads(out)
    query = read_img_query(reply["signed"].partition("?")[2])
    assert (status, reply["url"]) == (0, url)
    end = Signatures([KEY]).judge(query.text, dict(query.options), 0)
    assert end is not None


def test_sign_covers_options(command: Command) -> None:
    settings = {"security__signing_keys": KEY, "derive__presets": "thumb=w=320"}
    url, path, options = "https://example.com/a.png", "/images/ab12.png", [("q", "80"), ("w", "300")]
    status, out, _ = command("sign", "--options", "w=300&q=80", url, path, **settings)
    signed = [signed_path(KEY, url, options=options), signed_images_path(KEY, path, options=options)]
    assert (status, out.split()) == (0, signed)
    assert command("sign", "--options", "preset=thumb", url, **settings)[0] == 0
    for wrong in ("w=0", "preset=other", "width=1"):
        status, out, err = command("sign", "--options", wrong, url, **settings)
        assert (status, out, f"--options: {wrong.partition('=')[0]}" in err) == (2, "", True)


def test_sign_reports_a_bad_link_and_continues(command: Command) -> None:
    status, out, err = command("sign", "ftp://a", "https://example.com/", security__signing_keys=KEY)
    assert (status, out.count("\n"), "not an absolute" in err) == (1, 1, True)
    status, _, err = command("sign", "https://example.com/")
    assert (status, "security.signing_keys" in err) == (2, True)


def test_token_fits_both_settings(command: Command) -> None:
    status, out, _ = command("token")
    token = out.strip()
    assert (status, len(token)) == (0, 43)
    assert command("token")[1] != out
    assert command("check", security__signing_keys=token, security__api_tokens=token)[0] == 0
