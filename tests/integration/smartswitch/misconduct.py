"""A table of wrong answers, each with its outcome by DESIGN §4: shared by the tests of client and of daemon.

Every answer is bytes, made for the request_ids and the target that were asked; the server closes after it. Where
it can, it says ``ok`` for everything asked, so that a client that reads it carelessly acknowledges falsely.
Endless answers and those about TLS are not here.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, unquote_to_bytes

Raw = Callable[[Sequence[int], bytes], bytes]
"""From the request_ids asked and the request's target to the bytes to answer with."""

ACKNOWLEDGED = "acknowledged"


@dataclass(frozen=True, slots=True)
class Misconduct:
    """One wrong (or merely odd) answer, and the word of the outcome that it has to have."""

    name: str
    outcome: str
    raw: Raw


def good_document(ids: Sequence[int]) -> dict[str, object]:
    """Make the answer that acknowledges all of ``ids``, as in the seed's examples."""
    return {"data": [entry(str(each)) for each in ids]}


def entry(request_id: object, status: object = "ok") -> dict[str, object]:
    """Make one entry, as in the seed's examples."""
    return {
        "attributes": {"status": status},
        "id": "1561370632713",
        "meta": {"request_id": request_id},
        "type": "dlr",
    }


def good_body(ids: Sequence[int]) -> bytes:
    """Write the answer that acknowledges all of ``ids``."""
    return json.dumps(good_document(ids)).encode()


def http(body: bytes, *headers: bytes, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    """Frame ``body`` with its Content-Length, or with a wrong one."""
    return framed(
        body, b"Content-Length: %d" % (len(body) if length is None else length), *headers, status=status
    )


def framed(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """Put a head with just these headers before ``body``."""
    return b"\r\n".join([b"HTTP/1.1 " + status, *headers, b"", body])


def chunked(body: bytes, size: int = 16, end: bytes = b"0\r\n\r\n") -> bytes:
    """Cut ``body`` into chunks of ``size`` bytes."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end


def table() -> Iterator[Misconduct]:
    """Give every row; the names are unique."""
    yield from _lengths()
    yield from _chunks()
    yield from _statuses()
    yield from _no_http()
    yield from _encodings()
    yield from _no_json()
    yield from _shapes()
    yield from _ids()


def _lengths() -> Iterator[Misconduct]:
    def lie(name: str, outcome: str, *lines: bytes) -> Misconduct:
        return Misconduct(f"length-{name}", outcome, lambda ids, _: framed(good_body(ids), *lines))

    yield Misconduct(
        "length-too-small", "not-json", lambda ids, _: http(good_body(ids), length=len(good_body(ids)) - 1)
    )
    yield Misconduct(
        "length-too-big", "truncated", lambda ids, _: http(good_body(ids), length=len(good_body(ids)) + 1)
    )
    yield lie("zero", "not-json", b"Content-Length: 0")
    yield lie("negative", "protocol", b"Content-Length: -1")
    yield lie("signed", "protocol", b"Content-Length: +20")
    yield lie("hexadecimal", "protocol", b"Content-Length: 0x20")
    yield lie("a-gibibyte", "truncated", b"Content-Length: 1073741824")
    yield lie("huge", "truncated", b"Content-Length: 9999999999999999999")
    yield lie("absurd", "protocol", b"Content-Length: " + b"9" * 100)
    yield lie("two-different", "protocol", b"Content-Length: 20", b"Content-Length: 21")
    yield lie("a-list-that-differs", "protocol", b"Content-Length: 20, 21")
    yield lie("with-transfer-encoding", "truncated", b"Content-Length: 20", b"Transfer-Encoding: chunked")
    yield Misconduct(
        "length-twice-alike",
        ACKNOWLEDGED,
        lambda ids, _: http(good_body(ids), b"Content-Length: %d" % len(good_body(ids))),
    )
    yield Misconduct("length-missing", ACKNOWLEDGED, lambda ids, _: framed(good_body(ids)))


def _chunks() -> Iterator[Misconduct]:
    def chunks(
        name: str, outcome: str, make: Callable[[bytes], bytes], coding: bytes = b"chunked"
    ) -> Misconduct:
        header = b"Transfer-Encoding: " + coding
        return Misconduct(f"chunks-{name}", outcome, lambda ids, _: framed(make(good_body(ids)), header))

    yield chunks("sound", ACKNOWLEDGED, chunked)
    yield chunks("with-trailers", ACKNOWLEDGED, lambda body: chunked(body, end=b"0\r\nA: b\r\n\r\n"))
    yield chunks(
        "with-extensions", ACKNOWLEDGED, lambda body: b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    )
    yield chunks("of-size-nonsense", "protocol", lambda body: b"zz\r\n" + body + b"\r\n0\r\n\r\n")
    yield chunks("of-size-negative", "protocol", lambda body: b"-5\r\n" + body + b"\r\n0\r\n\r\n")
    yield chunks("of-no-size", "protocol", lambda body: b"\r\n" + body + b"\r\n0\r\n\r\n")
    yield chunks("of-giant-size", "truncated", lambda body: b"ffffffffffffffff\r\n" + body)
    yield chunks("of-absurd-size", "protocol", lambda body: b"f" * 100 + b"\r\n" + body)
    yield chunks("too-short", "protocol", lambda body: b"5\r\n" + body + b"\r\n0\r\n\r\n")
    yield chunks("without-the-last", "truncated", lambda body: chunked(body, end=b""))
    yield chunks("without-the-end", "truncated", lambda body: chunked(body, end=b"0\r\n"))
    yield chunks("with-broken-trailers", "protocol", lambda body: chunked(body, end=b"0\r\n: \r\n\r\n"))
    yield chunks("that-are-none", "protocol", lambda body: body + b"\r\n")
    yield chunks("of-gzip", "protocol", chunked, b"gzip, chunked")
    yield chunks("unknown", "protocol", chunked, b"lumps")


def _statuses() -> Iterator[Misconduct]:
    def status(line: bytes, outcome: str, *headers: bytes) -> Misconduct:
        return Misconduct(
            f"status-{line.decode()}",
            outcome,
            lambda ids, _: http(good_body(ids), *headers, status=line),
        )

    for number in (408, 425, 429, 500, 502, 503, 504, 599, 999):
        yield status(b"%d Later" % number, f"http-{number}")
    for number in (413, 414, 431):
        yield status(b"%d Large" % number, "too-large")
    for number in (401, 403):
        yield status(b"%d No" % number, "authentication")
    for number in (400, 402, 404, 405, 418, 499):
        yield status(b"%d Bad" % number, "refused")
    yield status(b"101 Switching", "protocol", b"Upgrade: x", b"Connection: upgrade")
    yield status(b"204 No Content", "not-json")
    yield status(b"304 Not Modified", "redirect")
    yield status(b"200", ACKNOWLEDGED)
    yield status(b"206 Partial", ACKNOWLEDGED)
    yield status(b"099 Early", "protocol")
    yield status(b"1000 Late", "protocol")
    yield status(b"20 OK", "protocol")
    for number in (300, 301, 302, 303, 307, 308):
        yield _redirect(number)
    yield from _echoes()
    yield Misconduct(
        "hints-before-the-answer",
        ACKNOWLEDGED,
        lambda ids, _: b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + http(good_body(ids)),
    )
    yield Misconduct("hints-only", "reset", lambda *_: b"HTTP/1.1 103 Early Hints\r\n\r\n")


def _echoes() -> Iterator[Misconduct]:
    """Repeat the credentials, as they came and decoded, where an admin gets to read what the server said."""

    def page(_: Sequence[int], target: bytes) -> bytes:
        return http(b"<p>" + _credentials(target), status=b"404 Not " + _credentials(target))

    def body(_: Sequence[int], target: bytes) -> bytes:
        return http(unquote_to_bytes(_credentials(target)), b"X-Echo: " + target)

    def errors(_: Sequence[int], target: bytes) -> bytes:
        quoted = _credentials(target).decode()
        error = {"code": "authentication", "title": unquote(quoted), "detail": quoted}
        return http(json.dumps({"errors": [error]}).encode())

    yield Misconduct("echo-in-a-page", "refused", page)
    yield Misconduct("echo-as-the-body", "not-json", body)
    yield Misconduct("echo-in-errors", "authentication", errors)


def _credentials(target: bytes) -> bytes:
    """Return the login and the password without their names, still encoded."""
    return target[target.index(b"_login=") + len(b"_login=") :].replace(b"_password=", b"")


def _redirect(number: int) -> Misconduct:
    def raw(ids: Sequence[int], target: bytes) -> bytes:
        location = b"Location: http://127.0.0.1:9" + target
        return http(good_body(ids), location, status=b"%d Away" % number)

    return Misconduct(f"redirect-{number}", "redirect", raw)


def _no_http() -> Iterator[Misconduct]:
    yield Misconduct("http-0.9", "reset", lambda ids, _: good_body(ids))
    yield Misconduct("http-1.0", ACKNOWLEDGED, lambda ids, _: b"HTTP/1.0 200 OK\r\n\r\n" + good_body(ids))
    yield Misconduct(
        "http-2", "protocol", lambda *_: b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\x00\x00\xff\xff"
    )
    yield Misconduct("http-2-preface", "protocol", lambda *_: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    # Only the framing depends on a version, and what came was framed.
    yield Misconduct("http-9.9", ACKNOWLEDGED, lambda ids, _: b"HTTP/9.9 200 OK\r\n\r\n" + good_body(ids))
    yield Misconduct("a-request", "protocol", lambda _, target: b"POST " + target + b" HTTP/1.1\r\n\r\n")
    yield Misconduct("ssh", "protocol", lambda *_: b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    yield Misconduct("nothing", "reset", lambda *_: b"")
    yield Misconduct("zeros", "protocol", lambda *_: bytes(100))
    yield Misconduct("a-colon-missing", "protocol", lambda ids, _: http(good_body(ids), b"no colon"))
    yield Misconduct("a-header-without-name", "protocol", lambda ids, _: http(good_body(ids), b": x"))
    yield Misconduct("a-header-with-zero", "protocol", lambda ids, _: http(good_body(ids), b"A: \x00"))
    yield Misconduct(
        "a-header-of-200-KB", "protocol", lambda ids, _: http(good_body(ids), b"A: " + b"x" * 200_000)
    )
    yield Misconduct("100000-headers", "protocol", lambda ids, _: http(good_body(ids), *[b"A: b"] * 100_000))


def _encodings() -> Iterator[Misconduct]:
    bomb = gzip.compress(bytes(64 * 1024 * 1024), 1)
    yield Misconduct("gzip-bomb", "protocol", lambda *_: http(bomb, b"Content-Encoding: gzip"))
    yield Misconduct(
        "gzip", "protocol", lambda ids, _: http(gzip.compress(good_body(ids)), b"Content-Encoding: gzip")
    )
    yield Misconduct(
        "deflate",
        "protocol",
        lambda ids, _: http(zlib.compress(good_body(ids)), b"Content-Encoding: deflate"),
    )
    yield Misconduct(
        "encoded-unknown", "protocol", lambda ids, _: http(good_body(ids), b"Content-Encoding: identity, x")
    )
    yield Misconduct("gzip-untold", "not-json", lambda ids, _: http(gzip.compress(good_body(ids))))


def _no_json() -> Iterator[Misconduct]:
    def text(name: str, outcome: str, make: Callable[[bytes], bytes]) -> Misconduct:
        return Misconduct(f"json-{name}", outcome, lambda ids, _: http(make(good_body(ids))))

    yield text("with-a-bom", ACKNOWLEDGED, lambda body: b"\xef\xbb\xbf" + body)
    yield text("with-two-boms", "not-json", lambda body: b"\xef\xbb\xbf" * 2 + body)
    yield text("utf-16", "not-json", lambda body: body.decode().encode("utf-16"))
    yield text("utf-16-le", "not-json", lambda body: body.decode().encode("utf-16-le"))
    yield text("utf-32", "not-json", lambda body: body.decode().encode("utf-32"))
    yield text("invalid-utf-8", "not-json", lambda body: body.replace(b"dlr", b"\xff\xc0\xaf"))
    yield text("utf-8-surrogates", "not-json", lambda body: body.replace(b"dlr", b"\xed\xa0\x80"))
    yield text("nan", "not-json", lambda body: body.replace(b'"dlr"', b"NaN"))
    yield text("infinity", "not-json", lambda body: body.replace(b'"dlr"', b"Infinity"))
    yield text("minus-infinity", "not-json", lambda body: body.replace(b'"dlr"', b"-Infinity"))
    yield text("empty", "not-json", lambda _: b"")
    yield text("white-space", "not-json", lambda _: b" \r\n\t")
    yield text("cut", "not-json", lambda body: body[:-1])
    yield text("twice", "not-json", lambda body: body + body)
    yield text("with-a-tail", "not-json", lambda body: body + b"\x00")
    yield text("in-quotes", "neither", lambda body: json.dumps(body.decode()).encode())
    yield text("with-single-quotes", "not-json", lambda body: body.replace(b'"', b"'"))
    yield text("with-a-last-comma", "not-json", lambda body: body.replace(b"]}", b",]}"))
    yield text("with-a-comment", "not-json", lambda body: b"/* ok */" + body)
    yield text("jsonp", "not-json", lambda body: b"f(" + body + b")")
    yield text("html", "not-json", lambda body: b"<html>" + body)
    yield text("with-a-control-character", "not-json", lambda body: body.replace(b"dlr", b"d\nr"))
    yield text("arrays-100000-deep", "not-json", lambda body: b"[" * 100_000 + body + b"]" * 100_000)
    yield text("arrays-100000-deep-and-cut", "not-json", lambda _: b"[" * 100_000)
    yield text("objects-100000-deep", "not-json", lambda body: b'{"a":' * 100_000 + body + b"}" * 100_000)
    yield text(
        "deep-within-an-entry",
        "not-json",
        lambda body: body.replace(b'"dlr"', b"[" * 20_000 + b"]" * 20_000),
    )
    yield text("too-many-values", "too-long", lambda body: body.replace(b"]}", b",1" * 200_000 + b"]}"))


def _shape(name: str, outcome: str, make: Callable[[Sequence[int]], object]) -> Misconduct:
    return Misconduct(f"shape-{name}", outcome, lambda ids, _: http(json.dumps(make(ids)).encode()))


def _instead(name: str, value: object) -> Iterator[Misconduct]:
    """Put ``value`` in the place of the answer and of each of its parts."""

    def in_entries(member: str) -> Callable[[Sequence[int]], object]:
        return lambda ids: {"data": [{**entry(str(each)), member: value} for each in ids]}

    yield _shape(f"{name}-alone", "neither", lambda _: value)
    yield _shape(f"{name}-as-data", "neither" if value is None else "names-none", lambda _: {"data": value})
    yield _shape(f"{name}-as-entry", "names-none", lambda _: {"data": [value]})
    yield _shape(f"{name}-as-meta", "names-none", in_entries("meta"))
    yield _shape(f"{name}-as-attributes", "partial", in_entries("attributes"))
    if value != "ok":
        yield _shape(
            f"{name}-as-status", "partial", lambda ids: {"data": [entry(str(i), value) for i in ids]}
        )


def _shapes() -> Iterator[Misconduct]:
    yield from _instead("null", None)
    yield from _instead("true", value=True)
    yield from _instead("number", 1)
    yield from _instead("text", "ok")
    yield from _instead("array", [])
    yield from _instead("object", {})
    problem = {"code": "unknown-message", "title": "No", "detail": "Never heard of it"}
    yield _shape("the-entries-alone", "neither", lambda ids: good_document(ids)["data"])
    yield _shape("one-deeper", "names-none", lambda ids: {"data": good_document(ids)})
    yield _shape("capitals", "neither", lambda ids: {"Data": good_document(ids)["data"]})
    yield _shape("data-and-errors", "both", lambda ids: {**good_document(ids), "errors": [problem]})
    yield _shape("data-and-odd-errors", "both", lambda ids: {**good_document(ids), "errors": "none"})
    yield _shape("null-data-and-errors", "refused", lambda _: {"data": None, "errors": [problem]})
    yield _shape("errors", "refused", lambda _: {"errors": [problem]})
    yield _shape("odd-errors", "refused", lambda _: {"errors": [None]})
    yield _shape("no-errors", "neither", lambda _: {"errors": []})
    yield _shape("empty-errors-beside-data", ACKNOWLEDGED, lambda ids: {**good_document(ids), "errors": []})
    yield _shape("refused", "partial", lambda ids: {"data": [entry(str(each), "failed") for each in ids]})
    yield _shape("capital-ok", "partial", lambda ids: {"data": [entry(str(each), "OK") for each in ids]})


def _ids() -> Iterator[Misconduct]:
    def ids(name: str, outcome: str, form: Callable[[int], str]) -> Misconduct:
        def raw(asked: Sequence[int], _: bytes) -> bytes:
            one = json.dumps(entry("ID"))
            return http(b'{"data":[%b]}' % ",".join(one.replace('"ID"', form(i)) for i in asked).encode())

        return Misconduct(f"id-{name}", outcome, raw)

    def twice(name: str, outcome: str, first: object, second: object) -> Misconduct:
        return Misconduct(
            f"twice-{name}",
            outcome,
            lambda asked, _: http(
                json.dumps(
                    {"data": [entry(str(i), status) for i in asked for status in (first, second)]}
                ).encode()
            ),
        )

    yield ids("as-number", ACKNOWLEDGED, str)
    yield ids("as-text", ACKNOWLEDGED, '"{}"'.format)
    yield ids("escaped", ACKNOWLEDGED, lambda i: '"' + "".join(f"\\u{ord(c):04x}" for c in str(i)) + '"')
    for name, form in (
        ("fraction", "{}.0"),
        ("exponent", "{}e0"),
        ("with-zero", '"0{}"'),
        ("with-sign", '"+{}"'),
        ("negative", "-{}"),
        ("with-space", '" {}"'),
        ("with-newline", '"{}\\n"'),
        ("with-nul", '"{}\\u0000"'),
        ("in-an-array", "[{}]"),
    ):
        yield ids(name, "names-none", form.format)
    yield ids("octal", "not-json", "0{}".format)
    yield ids("beyond-64-bits", "names-none", lambda i: str(i + 2**64))
    yield ids("of-5000-digits", "names-none", lambda i: str(i) * 5000)
    yield ids("full-width", "names-none", lambda i: '"' + "".join(chr(0xFEE0 + ord(c)) for c in str(i)) + '"')
    yield ids("of-others", "names-none", lambda i: str(i + 1_000_000))
    for constant in ("true", "false", "null", "{{}}", '""'):
        yield ids(constant, "names-none", constant.format)
    yield ids("written-twice", "partial", lambda i: f'{i}, "request_id": {i + 1_000_000}')
    yield Misconduct(
        "id-in-two-places",
        "partial",
        lambda asked, _: http(
            json.dumps(
                {"data": [{**entry(str(i)), "request_id": str(i + 1_000_000)} for i in asked]}
            ).encode()
        ),
    )
    yield Misconduct(
        "strangers-beside-ours",
        ACKNOWLEDGED,
        lambda asked, _: http(good_body([i for each in asked for i in (each, each + 1_000_000)])),
    )
    yield Misconduct("only-the-first", "acknowledged-first", lambda asked, _: http(good_body(asked[:1])))
    yield twice("alike", ACKNOWLEDGED, "ok", "ok")
    yield twice("ok-then-failed", "partial", "ok", "failed")
    yield twice("failed-then-ok", "partial", "failed", "ok")
    yield twice("ok-then-nothing", "partial", "ok", None)
