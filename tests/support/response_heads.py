"""
Heads that servers send and no specification allows, and whether Chromium shows the image behind them.

The verdicts are Chromium's (156): `test_heads.py` holds imgkeep to them, and asks the Chromium of the machine for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.support.images import make_image

BODY = make_image(width=16, height=12, seed=15)
OTHER = make_image(width=16, height=12, seed=16)
SIZE = str(len(BODY)).encode()
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTH = b"Content-Length: " + SIZE
OK = b"HTTP/1.1 200 OK"
TYPE = b"Content-Type: image/png"


@dataclass(frozen=True)
class Head:
    """An answer as it goes over the wire, and whether Chromium shows its image."""

    answer: bytes
    shown: bool
    closes: bool = True
    """The server closes the connection behind the answer; otherwise framing must end it."""
    stored: bool | None = None
    """What imgkeep does where that is something else, for the reason beside it."""


def lines(*fields: bytes, status: bytes = OK, end: bytes = b"\r\n", body: bytes = BODY) -> bytes:
    return end.join([status, *fields, b"", b""]) + body


HEADS = {
    # Lengths
    "plain": Head(lines(TYPE, LENGTH), True, closes=False),
    "length twice the same": Head(lines(LENGTH, LENGTH), True, closes=False),
    "length thrice the same": Head(lines(LENGTH, TYPE, LENGTH, LENGTH), True, closes=False),
    "length as a list of equals": Head(lines(LENGTH + b", " + SIZE), True, closes=False),
    "length as a list of equals without spaces": Head(lines(LENGTH + b"," + SIZE), True, closes=False),
    "length with leading zeros and without": Head(lines(LENGTH, b"Content-Length: 00" + SIZE), False),
    "length with leading zeros": Head(lines(b"Content-Length: 00" + SIZE), True, closes=False),
    "two lengths, the second too small": Head(lines(LENGTH, b"Content-Length: 5"), False),
    "two lengths, the first too small": Head(lines(b"Content-Length: 5", LENGTH), False),
    "two lengths in a list": Head(lines(LENGTH + b", 5"), False),
    "two lengths in a list, too small first": Head(lines(b"Content-Length: 5, " + SIZE), False),
    "length and an empty one": Head(lines(LENGTH, b"Content-Length:"), False),
    "an empty length and a length": Head(lines(b"Content-Length:", LENGTH), False),
    "length with a sign": Head(lines(b"Content-Length: +" + SIZE), True),
    "negative length": Head(lines(b"Content-Length: -1"), True),
    "length with white space": Head(lines(b"Content-Length: \t " + SIZE + b" \t"), True, closes=False),
    "length without a number": Head(lines(b"Content-Length: unknown"), True),
    "length without a value": Head(lines(b"Content-Length:"), True),
    "length with a unit": Head(lines(LENGTH + b" bytes"), True),
    "length with a fraction": Head(lines(LENGTH + b".0"), True),
    "length in hexadecimal": Head(lines(b"Content-Length: 0x%x" % len(BODY)), True),
    "length with a comma behind it": Head(lines(LENGTH + b","), False),
    "length with a semicolon behind it": Head(lines(LENGTH + b";"), True),
    "length in quotes": Head(lines(b'Content-Length: "' + SIZE + b'"'), True),
    "length beyond 64 bits": Head(lines(b"Content-Length: 99999999999999999999999"), True),
    "length with an inner space": Head(lines(b"Content-Length: 1 2"), True),
    "length too large": Head(lines(b"Content-Length: %d" % (len(BODY) + 1)), False),
    # Codings of transfer
    "chunked": Head(lines(b"Transfer-Encoding: chunked", body=CHUNKS), True, closes=False),
    "chunked and a length": Head(lines(LENGTH, b"Transfer-Encoding: chunked", body=CHUNKS), True),
    "chunked and a length behind it": Head(lines(b"Transfer-Encoding: chunked", LENGTH, body=CHUNKS), True),
    "chunked and two lengths": Head(
        lines(LENGTH, b"Content-Length: 5", b"Transfer-Encoding: chunked", body=CHUNKS), True
    ),
    "chunked and a length that is none": Head(
        lines(b"Content-Length: none", b"Transfer-Encoding: chunked", body=CHUNKS), True
    ),
    "chunked twice": Head(lines(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKS), True),
    "chunked in a list twice": Head(lines(b"Transfer-Encoding: chunked, chunked", body=CHUNKS), True),
    "chunked in capitals": Head(lines(b"TRANSFER-ENCODING: CHUNKED", body=CHUNKS), True),
    "identity, then chunked": Head(lines(b"Transfer-Encoding: identity, chunked", body=CHUNKS), True),
    "chunked, then identity": Head(lines(b"Transfer-Encoding: chunked, identity", body=CHUNKS), True),
    "chunked field, then identity field": Head(
        lines(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=CHUNKS), True
    ),
    "chunked in quotes": Head(lines(b'Transfer-Encoding: "chunked"', body=CHUNKS), False),
    "chunked with a parameter": Head(lines(b"Transfer-Encoding: chunked;q=1", body=CHUNKS), False),
    "chunked with a comma behind it": Head(lines(b"Transfer-Encoding: chunked,", body=CHUNKS), True),
    "chunked that is not": Head(lines(b"Transfer-Encoding: chunked"), False),
    "chunked and a length, but not chunked": Head(lines(LENGTH, b"Transfer-Encoding: chunked"), False),
    "identity and a length": Head(lines(b"Transfer-Encoding: identity", LENGTH), True),
    "identity without a length": Head(lines(b"Transfer-Encoding: identity"), True),
    "an unknown coding and a length": Head(lines(b"Transfer-Encoding: utf-8", LENGTH), True),
    "an empty coding and a length": Head(lines(b"Transfer-Encoding:", LENGTH), True),
    "binary and a length": Head(lines(b"Transfer-Encoding: binary", LENGTH), True),
    "gzip, chunked in name only": Head(lines(b"Transfer-Encoding: gzip, chunked", body=CHUNKS), True),
    # Its chunks are chunks all the same, and the image is whole.
    "chunked in HTTP/1.0": Head(
        lines(b"Transfer-Encoding: chunked", status=b"HTTP/1.0 200 OK", body=CHUNKS), False, stored=True
    ),
    "chunks with spaces behind the size": Head(
        lines(b"Transfer-Encoding: chunked", body=b"%x  \r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), True
    ),
    "chunks with spaces before the size": Head(
        lines(b"Transfer-Encoding: chunked", body=b"  %x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), False
    ),
    "chunks with bare line feeds": Head(
        lines(b"Transfer-Encoding: chunked", body=b"%x\n%b\n0\n\n" % (len(BODY), BODY)), True
    ),
    "chunks with line feeds and carriage returns": Head(
        lines(b"Transfer-Encoding: chunked", body=b"%x\n%b\r\n0\n\r\n" % (len(BODY), BODY)), True
    ),
    "last chunk with line feeds": Head(lines(b"Transfer-Encoding: chunked", body=CHUNKS[:-4] + b"\n\n"), True),
    "chunks with an extension without a name": Head(
        lines(b"Transfer-Encoding: chunked", body=b"%x;\r\n%b\r\n0;\r\n\r\n" % (len(BODY), BODY)), True
    ),
    "chunks with an extension that is none": Head(
        lines(b"Transfer-Encoding: chunked", body=b"%x ; a b=@\xff\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), True
    ),
    "chunks with a tab behind the size": Head(
        lines(b"Transfer-Encoding: chunked", body=b"%x\t\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), False
    ),
    "chunks with two carriage returns": Head(
        lines(b"Transfer-Encoding: chunked", body=b"%x\r\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), False
    ),
    "chunks with a sign": Head(
        lines(b"Transfer-Encoding: chunked", body=b"+%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), False
    ),
    "chunks without a line end behind the data": Head(
        lines(b"Transfer-Encoding: chunked", body=b"%x\r\n%b0\r\n\r\n" % (len(BODY), BODY)), False
    ),
    "chunks behind an empty line": Head(lines(b"Transfer-Encoding: chunked", body=b"\r\n" + CHUNKS), False),
    "chunks of one byte": Head(
        lines(b"Transfer-Encoding: chunked", body=b"".join(b"1\r\n%c\r\n" % b for b in BODY) + b"0\r\n\r\n"), True
    ),
    "chunks with an extension": Head(
        lines(b"Transfer-Encoding: chunked", body=b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), True
    ),
    "chunks with zeros before the size": Head(
        lines(b"Transfer-Encoding: chunked", body=b"000%x\r\n%b\r\n000\r\n\r\n" % (len(BODY), BODY)), True
    ),
    "chunks with 0x": Head(
        lines(b"Transfer-Encoding: chunked", body=b"0x%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)), False
    ),
    "chunks with a trailer": Head(
        lines(b"Transfer-Encoding: chunked", body=CHUNKS[:-2] + b"X-Sum: 1\r\n\r\n"), True
    ),
    "chunks with a trailer that is none": Head(
        lines(b"Transfer-Encoding: chunked", body=CHUNKS[:-2] + b"PHP Warning: oh no\r\nnothing\r\n : b\r\n\r\n"), True
    ),
    "chunks without the last one": Head(
        lines(b"Transfer-Encoding: chunked", body=CHUNKS[:-5]), False
    ),
    "chunks without the last empty line": Head(
        lines(b"Transfer-Encoding: chunked", body=CHUNKS[:-2]), False
    ),
    # Lines
    "name with spaces": Head(lines(LENGTH, b"X Powered By: us", TYPE), True, closes=False),
    "warning of PHP": Head(
        lines(b"PHP Warning:  Undefined variable $a in /var/www/a.php on line 3", TYPE, LENGTH), True, closes=False
    ),
    "warning of PHP behind the length": Head(
        lines(LENGTH, b"PHP Warning:  Undefined variable $a in /var/www/a.php on line 3"), True, closes=False
    ),
    "white space before the colon": Head(lines(b"X-A : b", LENGTH), True, closes=False),
    "white space before the colon of the length": Head(lines(b"Content-Length : " + SIZE), True),
    "white space before the colon of a wrong length": Head(lines(b"Content-Length : 5"), False),
    "white space before the colon of chunked": Head(lines(b"Transfer-Encoding : chunked", body=CHUNKS), True),
    "tab before the colon": Head(lines(b"X-A\t: b", LENGTH), True, closes=False),
    "no colon": Head(lines(b"nonsense", LENGTH), True, closes=False),
    "no colon behind the length": Head(lines(LENGTH, b"nonsense"), True, closes=False),
    "empty name": Head(lines(b": b", LENGTH), True, closes=False),
    "only a colon": Head(lines(b":", LENGTH), True, closes=False),
    "a status line again": Head(lines(b"HTTP/1.1 200 OK", LENGTH), True, closes=False),
    "brackets in a name": Head(lines(b"X-(A): b", LENGTH), True, closes=False),
    "name in Latin-1": Head(lines(b"X-\xc4: b", LENGTH), True, closes=False),
    "name in UTF-8": Head(lines("X-Ä: b".encode(), LENGTH), True, closes=False),
    "control byte in a name": Head(lines(b"X-\x01: b", LENGTH), True, closes=False),
    "three malformed lines": Head(lines(b"one", b"t w o: 2", TYPE, b": 3", LENGTH), True, closes=False),
    "first field begins with a space": Head(lines(b" X-A: b", LENGTH), True, closes=False),
    "folded field": Head(lines(b"X-A: b", b"  c", LENGTH), True, closes=False),
    "folded field with a colon": Head(lines(b"X-A: b", b"\tc: d", LENGTH), True, closes=False),
    "length in a fold": Head(lines(b"X-A: b", b" Content-Length: 5"), True),
    "folded length": Head(lines(b"Content-Length:", b" " + SIZE), True),
    "folded length of two parts": Head(lines(b"Content-Length: 1", b" 2"), True),
    "fold behind a malformed line": Head(lines(b"t w o: b", b" Content-Length: 5", LENGTH), True, closes=False),
    "malformed line behind a fold": Head(lines(b"X-A: b", b" c", b"t w o: b", LENGTH), True, closes=False),
    # Line ends and bytes
    "bare line feeds": Head(lines(TYPE, LENGTH, end=b"\n"), True, closes=False),
    "bare line feed at the end of the head": Head(OK + b"\r\n" + LENGTH + b"\r\n\n" + BODY, True, closes=False),
    "bare line feed, then an empty line": Head(OK + b"\n" + LENGTH + b"\n\r\n" + BODY, True, closes=False),
    "bare line feed in the middle": Head(OK + b"\r\nX-A: b\n" + LENGTH + b"\r\n\r\n" + BODY, True, closes=False),
    "bare carriage returns": Head(lines(TYPE, LENGTH, end=b"\r"), False),
    "carriage return in a value": Head(lines(b"X-A: b\rc", LENGTH), True, closes=False),
    "carriage return before a length": Head(lines(b"X-A: b\rContent-Length: 5"), False),
    "two carriage returns at the end of a line": Head(lines(b"X-A: b\r", LENGTH), True, closes=False),
    "two carriage returns at each end": Head(lines(TYPE, LENGTH, end=b"\r\r\n"), False),
    "zero byte in a value": Head(lines(b"X-A: b\0c", LENGTH), False),
    "zero byte in a malformed line": Head(lines(b"b\0c", LENGTH), False),
    # The reason is not used.
    "zero byte in the reason": Head(lines(LENGTH, status=OK + b"\0"), False, stored=True),
    "control bytes in a value": Head(lines(b"X-A: \x01\x02\x1b[0m\x7f", LENGTH), True, closes=False),
    "Latin-1 in a value": Head(lines(b"X-A: \xe4\xff\x80", LENGTH), True, closes=False),
    "UTF-8 in a value": Head(lines("X-A: 猫".encode(), LENGTH), True, closes=False),
    # Status lines
    "no reason": Head(lines(LENGTH, status=b"HTTP/1.1 200"), True, closes=False),
    "no reason but a space": Head(lines(LENGTH, status=b"HTTP/1.1 200 "), True, closes=False),
    "reason in Latin-1": Head(lines(LENGTH, status=b"HTTP/1.1 200 \xe4"), True, closes=False),
    "reason without a space": Head(lines(LENGTH, status=b"HTTP/1.1 200OK"), True, closes=False),
    "two spaces before the status": Head(lines(LENGTH, status=b"HTTP/1.1  200 OK"), True, closes=False),
    "tab before the status": Head(lines(LENGTH, status=b"HTTP/1.1\t200 OK"), True, closes=False),
    "space before HTTP": Head(lines(LENGTH, status=b" HTTP/1.1 200 OK"), True, closes=False),
    "lower-case http": Head(lines(LENGTH, status=b"http/1.1 200 OK"), True, closes=False),
    "mixed-case http": Head(lines(LENGTH, status=b"Http/1.1 200 OK"), True, closes=False),
    "HTTP/1.0": Head(lines(LENGTH, status=b"HTTP/1.0 200 OK"), True),
    "HTTP/1.0 without a length": Head(lines(TYPE, status=b"HTTP/1.0 200 OK"), True),
    "HTTP/1.2": Head(lines(LENGTH, status=b"HTTP/1.2 200 OK"), True),
    "HTTP/1": Head(lines(LENGTH, status=b"HTTP/1 200 OK"), True),
    "HTTP/2.0": Head(lines(LENGTH, status=b"HTTP/2.0 200 OK"), True),
    "HTTP/2": Head(lines(LENGTH, status=b"HTTP/2 200 OK"), True),
    "HTTP/0.9 in words": Head(lines(LENGTH, status=b"HTTP/0.9 200 OK"), True),
    "HTTP/1.10": Head(lines(LENGTH, status=b"HTTP/1.10 200 OK"), True),
    "HTTP without a version": Head(lines(LENGTH, status=b"HTTP 200 OK"), True),
    "HTTP/ without a version": Head(lines(LENGTH, status=b"HTTP/ 200 OK"), True),
    "HTTPS/1.1": Head(lines(LENGTH, status=b"HTTPS/1.1 200 OK"), True),
    "status alone": Head(lines(LENGTH, status=b"HTTP/1.1"), True),
    "status in words": Head(lines(LENGTH, status=b"HTTP/1.1 OK"), True),
    # No server means a success by it.
    "status of two digits": Head(lines(LENGTH, status=b"HTTP/1.1 20 OK"), True, stored=False),
    # No server means a success by it.
    "status of four digits": Head(lines(LENGTH, status=b"HTTP/1.1 2000 OK"), True, stored=False),
    "ICY": Head(lines(LENGTH, status=b"ICY 200 OK"), False),
    # An image in a frame that can be read is whole.
    "RTSP": Head(lines(LENGTH, status=b"RTSP/1.0 200 OK"), False, stored=True),
    "a field before the status line": Head(TYPE + b"\r\n" + lines(LENGTH), False),
    "leading empty line": Head(b"\r\n" + lines(LENGTH), True, closes=False),
    "leading line feed": Head(b"\n" + lines(LENGTH), True, closes=False),
    "two leading empty lines": Head(b"\r\n\r\n" + lines(LENGTH), True, closes=False),
    # They are passed over as long as the head has room.
    "four leading empty lines": Head(b"\r\n" * 4 + lines(LENGTH), False, stored=True),
    "four leading bytes": Head(b"abcd" + lines(LENGTH), True),
    "five leading bytes": Head(b"abcde" + lines(LENGTH), False),
    "no head": Head(BODY, False),
    "an empty line and no head": Head(b"\r\n\r\n" + BODY, False),
    "status line and nothing else": Head(OK + b"\r\n\r\n" + BODY, True),
    # Size
    "a field of 20 kB": Head(lines(b"X-A: " + b"b" * 20_000, LENGTH), True, closes=False),
    "a field of 100 kB": Head(lines(b"X-A: " + b"b" * 100_000, LENGTH), True, closes=False),
    "a field of 200 kB": Head(lines(b"X-A: " + b"b" * 200_000, LENGTH), True, closes=False),
    "a malformed line of 20 kB": Head(lines(b"b" * 20_000, LENGTH), True, closes=False),
    "a name of 20 kB": Head(lines(b"b" * 20_000 + b": c", LENGTH), True, closes=False),
    "150 fields": Head(lines(*(b"X-%d: b" % n for n in range(150)), LENGTH), True, closes=False),
    "1000 fields": Head(lines(*(b"X-%d: b" % n for n in range(1000)), LENGTH), True, closes=False),
    # A limit of ours.
    "5000 fields": Head(lines(*(b"X-%d: b" % n for n in range(5000)), LENGTH), True, closes=False, stored=False),
    "150 cookies": Head(lines(*(b"Set-Cookie: a%d=b" % n for n in range(150)), LENGTH), True, closes=False),
    "a head of 900 kB": Head(lines(*(b"X-%d: %b" % (n, b"b" * 1000) for n in range(900)), LENGTH), False),
    "a reason of 20 kB": Head(lines(LENGTH, status=OK + b"!" * 20_000), True, closes=False),
    # Bytes behind the body
    "a line feed behind the body": Head(lines(LENGTH, body=BODY + b"\n"), True, closes=False),
    "an answer behind the body": Head(lines(LENGTH, body=BODY + lines(LENGTH, body=OTHER)), True, closes=False),
    "much behind the body": Head(lines(LENGTH, body=BODY + b"x" * 100_000), True),
    "a line feed behind the chunks": Head(
        lines(b"Transfer-Encoding: chunked", body=CHUNKS + b"\n"), True, closes=False
    ),
    "an answer behind the chunks": Head(
        lines(b"Transfer-Encoding: chunked", body=CHUNKS + lines(LENGTH, body=OTHER)), True, closes=False
    ),
    # Fields of which there may be one
    "type twice": Head(lines(TYPE, b"Content-Type: text/html", LENGTH), True, closes=False),
    # The place is not used.
    "place in the page twice": Head(
        lines(b"Content-Disposition: inline", b"Content-Disposition: attachment", LENGTH), False, stored=True),
    "connection twice": Head(lines(b"Connection: keep-alive", b"Connection: close", LENGTH), True),
    "upgrade without a switch": Head(lines(b"Connection: upgrade", b"Upgrade: h2c", LENGTH), True, closes=False),
    "old web socket key": Head(lines(b"Sec-WebSocket-Key1: a", LENGTH), True, closes=False),
}  # fmt: skip
