"""`sign`, `token`, and the recipes for other languages, run by their interpreters."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from imgkeep.core.signing import Signatures, signed_path
from imgkeep.core.source_url import read_img_query
from tests.support.program import cannot
from tests.support.signing_vectors import KEY, PAGE, VECTORS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.commands import Command

GO = """package main
import ("crypto/hmac"; "crypto/sha256"; "encoding/base64"; "encoding/json"; "fmt"; "net/url"; "os"; "strconv")
func main() {
    var vectors [][]any
    json.Unmarshal([]byte(os.Args[1]), &vectors)
    for _, v := range vectors { fmt.Println(SignedPath(v[0].(string), v[1].(string), int64(v[2].(float64)))) }
}
"""
LANGUAGES = {
    "javascript": (
        "node",
        "a.js",
        "",
        "for (const [k, s, e] of JSON.parse(process.argv[2])) console.log(signedPath(k, s, e || undefined));",
    ),
    "php": (
        "php",
        "a.php",
        "<?php\n",
        'foreach (json_decode($argv[1]) as [$k, $s, $e]) echo signed_path($k, $s, $e ?: null), "\\n";',
    ),
    "ruby": (
        "ruby",
        "a.rb",
        "require 'json'\n",
        "JSON.parse(ARGV[0]).each { |k, s, e| puts signed_path(k, s, e == 0 ? nil : e) }",
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
    vectors = [(KEY, src, int(end or 0)) for src, end, _ in VECTORS]
    words = [program, *(["run"] if language == "go" else []), str(file), json.dumps(vectors)]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", check=True)
    paths = done.stdout.splitlines()
    assert len(paths) == len(VECTORS)
    for path, (src, end, sig) in zip(paths, VECTORS, strict=True):
        query = read_img_query(path.removeprefix("/img?"))
        assert (query.text, dict(query.options)) == (src, {"sig": sig, **({"exp": end} if end else {})})


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
