"""Requests that a server must refuse, and odd ones that it must take: name, bytes, and where it is written.

``RFC 9110`` is HTTP's semantics, ``RFC 9112`` its first version's syntax, ``RFC 3986`` its URIs. Where these leave a choice
the router refuses what two readers could understand differently.
"""

from __future__ import annotations

from typing import NamedTuple

BODY = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
PATH = b"/v1/chat/completions"


class Case(NamedTuple):
    name: str
    data: bytes
    section: str


def line(first: bytes, *fields: bytes) -> bytes:
    """A request of ``first`` line without a body."""
    return b"\r\n".join((first, b"Host: r", *fields, b"", b""))


def get(*fields: bytes) -> bytes:
    """Without a Host of its own."""
    return b"\r\n".join((b"GET /health HTTP/1.1", *fields, b"", b""))


def post(*fields: bytes, body: bytes = BODY) -> bytes:
    """Without any framing of its own."""
    return b"\r\n".join((b"POST " + PATH + b" HTTP/1.1", b"Host: r", *fields, b"", b"")) + body


def sized(*fields: bytes) -> bytes:
    return post(b"Content-Length: %d" % len(BODY), *fields)


def chunked(body: bytes, *fields: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *fields, body=body)


CHUNK = b"%x\r\n%b\r\n" % (len(BODY), BODY)
LENGTH = b"%d" % len(BODY)

INVALID = (
    Case("no spaces in the line", line(b"GET/healthHTTP/1.1"), "RFC 9112 3"),
    Case("no target", line(b"GET HTTP/1.1"), "RFC 9112 3"),
    Case("a space within the target", line(b"GET /hea lth HTTP/1.1"), "RFC 9112 3.2"),
    Case("a tab between the parts", line(b"GET\t/health\tHTTP/1.1"), "RFC 9112 3"),
    Case("two spaces before the target", line(b"GET  /health HTTP/1.1"), "RFC 9112 3"),
    Case("two spaces before the version", line(b"GET /health  HTTP/1.1"), "RFC 9112 3"),
    Case("two spaces behind an empty line", b"\r\n" + line(b"GET  /health HTTP/1.1"), "RFC 9112 3"),
    Case("a space before the method", line(b" GET /health HTTP/1.1"), "RFC 9112 3"),
    Case("something behind the version", line(b"GET /health HTTP/1.1 x"), "RFC 9112 3"),
    Case("a method that is no token", line(b"G<>T /health HTTP/1.1"), "RFC 9110 9.1"),
    Case("a method with a NUL", line(b"GE\x00T /health HTTP/1.1"), "RFC 9110 9.1"),
    Case("a method in lower case", line(b"get /health HTTP/1.1"), "RFC 9110 9.1"),
    Case("a method that nobody knows", line(b"BREW /health HTTP/1.1"), "RFC 9110 9.1"),
    Case("a tunnel is asked for", line(b"CONNECT r:80 HTTP/1.1"), "RFC 9110 9.3.6"),
    Case("an authority as target of GET", line(b"GET r:80 HTTP/1.1"), "RFC 9112 3.2.3"),
    Case("a star as target of GET", line(b"GET * HTTP/1.1"), "RFC 9112 3.2.4"),
    Case("a target without its slash", line(b"GET health HTTP/1.1"), "RFC 9112 3.2.1"),
    Case("a fragment in the target", line(b"GET /health#a HTTP/1.1"), "RFC 9112 3.2"),
    Case(
        "a fragment behind a route",
        sized().replace(PATH, PATH + b"#a"),
        "RFC 9112 3.2",
    ),
    Case("a NUL in the target", line(b"GET /hea\x00lth HTTP/1.1"), "RFC 9112 3.2"),
    Case("bytes beyond ASCII in the target", line(b"GET /h\xe9alth HTTP/1.1"), "RFC 9112 3.2"),
    Case("no version", line(b"GET /health"), "RFC 9112 2.3"),
    Case("a version in lower case", line(b"GET /health http/1.1"), "RFC 9112 2.3"),
    Case("a version without its point", line(b"GET /health HTTP/11"), "RFC 9112 2.3"),
    Case("a version of two digits", line(b"GET /health HTTP/1.10"), "RFC 9112 2.3"),
    Case("a version of the future", line(b"GET /health HTTP/3.1"), "RFC 9112 2.3"),
    Case("a version of the past", line(b"GET /health HTTP/0.9"), "RFC 9112 2.3"),
    Case("the next version's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "RFC 9112 2.3"),
    Case("bare line feeds", b"GET /health HTTP/1.1\nHost: r\n\n", "RFC 9112 2.2"),
    Case("a bare line feed behind a field", b"GET /health HTTP/1.1\r\nHost: r\nX: y\r\n\r\n", "RFC 9112 2.2"),
    Case("a bare carriage return in a value", get(b"Host: r", b"X: a\rb"), "RFC 9112 2.2"),
    Case("a bare carriage return in a name", get(b"Host: r", b"X\rY: a"), "RFC 9112 2.2"),
    Case("a NUL in a value", get(b"Host: r", b"X: a\x00b"), "RFC 9110 5.5"),
    Case("a control character in a value", get(b"Host: r", b"X: a\x1bb"), "RFC 9110 5.5"),
    Case("a NUL in a name", get(b"Host: r", b"X\x00Y: a"), "RFC 9110 5.1"),
    Case("a space before the colon", get(b"Host: r", b"X : y"), "RFC 9112 5.1"),
    Case("a tab before the colon", get(b"Host: r", b"X\t: y"), "RFC 9112 5.1"),
    Case("a space within a name", get(b"Host: r", b"X Y: z"), "RFC 9110 5.1"),
    Case("a name that is no token", get(b"Host: r", b"X(Y): z"), "RFC 9110 5.1"),
    Case("a name beyond ASCII", get(b"Host: r", b"X\xe9: z"), "RFC 9110 5.1"),
    Case("an empty name", get(b"Host: r", b": z"), "RFC 9110 5.1"),
    Case("a field without a colon", get(b"Host: r", b"X"), "RFC 9112 5"),
    Case("a value folded over two lines", get(b"Host: r", b"X: a", b" b"), "RFC 9112 5.2"),
    Case("a value folded by a tab", get(b"Host: r", b"X: a", b"\tb"), "RFC 9112 5.2"),
    Case("a first field that begins with a space", get(b" Host: r"), "RFC 9112 2.2"),
    Case("no host", get(b"X: y"), "RFC 9112 3.2"),
    Case("an empty host", get(b"Host:"), "RFC 9110 7.2"),
    Case("two hosts", get(b"Host: r", b"Host: s"), "RFC 9112 3.2"),
    Case("one host twice", get(b"Host: r", b"Host: r"), "RFC 9112 3.2"),
    Case("a host with a user", get(b"Host: user@r"), "RFC 9110 7.2"),
    Case("a host with a path", get(b"Host: r/path"), "RFC 9110 7.2"),
    Case("a list of hosts", get(b"Host: r, s"), "RFC 9110 7.2"),
    Case("a host with a space", get(b"Host: r s"), "RFC 9110 7.2"),
    Case("a host with a port of letters", get(b"Host: r:http"), "RFC 9110 7.2"),
    Case("a host with a scheme", get(b"Host: http://r"), "RFC 9110 7.2"),
    Case("a host with a query", get(b"Host: r?a"), "RFC 9110 7.2"),
    Case("a host with an open bracket", get(b"Host: [::1"), "RFC 3986 3.2.2"),
    Case("a negative length", post(b"Content-Length: -1"), "RFC 9110 8.6"),
    Case("a length with a plus", post(b"Content-Length: +" + LENGTH), "RFC 9110 8.6"),
    Case("a length in hexadecimal", post(b"Content-Length: 0x3c"), "RFC 9110 8.6"),
    Case("a length with a point", post(b"Content-Length: %b.0" % LENGTH), "RFC 9110 8.6"),
    Case("a length with an underscore", post(b"Content-Length: 6_0"), "RFC 9110 8.6"),
    Case("an empty length", post(b"Content-Length:"), "RFC 9110 8.6"),
    Case("a list of equal lengths", post(b"Content-Length: %b, %b" % (LENGTH, LENGTH)), "RFC 9110 8.6"),
    Case("a list of lengths", post(b"Content-Length: %b, 5" % LENGTH), "RFC 9110 8.6"),
    Case("two lengths", sized(b"Content-Length: 5"), "RFC 9112 6.3"),
    Case("one length twice", sized(b"Content-Length: " + LENGTH), "RFC 9112 6.3"),
    Case("a length beyond 64 bits", post(b"Content-Length: 18446744073709551677"), "RFC 9110 8.6"),
    Case("a length of words", post(b"Content-Length: sixty"), "RFC 9110 8.6"),
    Case("two framings", sized(b"Transfer-Encoding: chunked"), "RFC 9112 6.1"),
    Case("two framings, the other way", chunked(CHUNK + b"0\r\n\r\n", b"Content-Length: 5"), "RFC 9112 6.1"),
    Case("an empty coding", post(b"Transfer-Encoding:"), "RFC 9112 6.1"),
    Case("an empty coding beside a length", sized(b"Transfer-Encoding:"), "RFC 9112 6.1"),
    Case("an unknown coding", post(b"Transfer-Encoding: xchunked"), "RFC 9112 6.1"),
    Case("a coding that is not chunked", post(b"Transfer-Encoding: identity"), "RFC 9112 6.1"),
    Case("chunked not last", post(b"Transfer-Encoding: chunked, gzip"), "RFC 9112 6.1"),
    Case("chunked behind another", post(b"Transfer-Encoding: gzip, chunked"), "RFC 9112 6.1"),
    Case("chunked twice in one field", post(b"Transfer-Encoding: chunked, chunked"), "RFC 9112 6.1"),
    Case("chunked in two fields", chunked(CHUNK, b"Transfer-Encoding: chunked"), "RFC 9112 6.1"),
    Case("chunked with a parameter", post(b"Transfer-Encoding: chunked;q=1"), "RFC 9112 6.1"),
    Case("chunked in quotes", post(b'Transfer-Encoding: "chunked"'), "RFC 9112 6.1"),
    Case("chunked with a control character", post(b"Transfer-Encoding: \x0bchunked"), "RFC 9112 6.1"),
    Case(
        "chunked in version 1.0",
        b"POST " + PATH + b" HTTP/1.0\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK + b"0\r\n\r\n",
        "RFC 9112 6.1",
    ),
    Case("a chunk size that is none", chunked(b"zz\r\n" + BODY), "RFC 9112 7.1"),
    Case("an empty chunk size", chunked(b"\r\n" + BODY), "RFC 9112 7.1"),
    Case("a negative chunk size", chunked(b"-3\r\n" + BODY), "RFC 9112 7.1"),
    Case("a chunk size with a plus", chunked(b"+3\r\nabc\r\n0\r\n\r\n"), "RFC 9112 7.1"),
    Case("a chunk size with its base", chunked(b"0x3\r\nabc\r\n0\r\n\r\n"), "RFC 9112 7.1"),
    Case("a chunk size beyond 64 bits", chunked(b"1000000000000003c\r\n" + BODY + b"\r\n0\r\n\r\n"), "RFC 9112 7.1"),
    Case("a space before the chunk size", chunked(b" 3\r\nabc\r\n0\r\n\r\n"), "RFC 9112 7.1"),
    Case("a space behind the chunk size", chunked(b"3 \r\nabc\r\n0\r\n\r\n"), "RFC 9112 7.1"),
    Case("a bare line feed behind the size", chunked(b"3\nabc\r\n0\r\n\r\n"), "RFC 9112 7.1"),
    Case("no line end behind the data", chunked(b"3\r\nabc0\r\n\r\n"), "RFC 9112 7.1"),
    Case("more data than the size", chunked(b"3\r\nabcdef\r\n0\r\n\r\n"), "RFC 9112 7.1"),
    Case("a bare line feed behind the data", chunked(b"3\r\nabc\n0\r\n\r\n"), "RFC 9112 7.1"),
    Case("an extension with a bare line feed", chunked(b"3;a\n\r\nabc\r\n0\r\n\r\n"), "RFC 9112 7.1.1"),
    Case("an extension with a NUL", chunked(b"3;a=\x00\r\nabc\r\n0\r\n\r\n"), "RFC 9112 7.1.1"),
    Case("a bare carriage return in an extension", chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n"), "RFC 9112 7.1.1"),
    Case("a trailer without a colon", chunked(CHUNK + b"0\r\nbad\r\n\r\n"), "RFC 9112 7.1.2"),
    Case("a trailer with a space before its colon", chunked(CHUNK + b"0\r\nX : y\r\n\r\n"), "RFC 9112 7.1.2"),
    Case("a trailer with a bare line feed", chunked(CHUNK + b"0\r\nX: y\n\r\n"), "RFC 9112 7.1.2"),
    Case("two keys", sized(b"Authorization: Bearer a", b"Authorization: Bearer b"), "RFC 9110 5.3"),
    Case("two keys of the other kind", sized(b"x-api-key: a", b"X-API-Key: b"), "RFC 9110 5.3"),
    Case("two types", sized(b"Content-Type: application/json", b"Content-Type: text/plain"), "RFC 9110 5.3"),
    Case("two encodings of content", sized(b"Content-Encoding: identity", b"Content-Encoding: gzip"), "RFC 9110 8.4"),
    Case("an unknown expectation", sized(b"Expect: 200-ok"), "RFC 9110 10.1.1"),
)

VALID = (
    Case("no spaces behind the colon", get(b"Host:r"), "RFC 9112 5"),
    Case("spaces and tabs around a value", get(b"Host: \t r \t "), "RFC 9112 5"),
    Case("an empty value", get(b"Host: r", b"X:"), "RFC 9110 5.5"),
    Case("a value beyond ASCII", get(b"Host: r", b"X: \xe9\xff"), "RFC 9110 5.5"),
    Case("a name of odd characters", get(b"Host: r", b"!#$%&'*+-.^_`|~9: y"), "RFC 9110 5.6.2"),
    Case("an empty line before the request", b"\r\n" + get(b"Host: r"), "RFC 9112 2.2"),
    Case("names in any case", get(b"hOsT: r"), "RFC 9110 5.1"),
    Case("a host with a port", get(b"Host: r.example:8080"), "RFC 9110 7.2"),
    Case("a host with an empty port", get(b"Host: r:"), "RFC 3986 3.2.3"),
    Case("a host of digits", get(b"Host: 127.0.0.1:80"), "RFC 3986 3.2.2"),
    Case("a host in brackets", get(b"Host: [::1]:80"), "RFC 3986 3.2.2"),
    Case("a host with an underscore", get(b"Host: my_router"), "RFC 3986 3.2.2"),
    Case("version 1.0 without a host", b"GET /health HTTP/1.0\r\n\r\n", "RFC 9112 3.2"),
    Case("a whole URI as target", line(b"GET http://r/health HTTP/1.1"), "RFC 9112 3.2.2"),
    Case("a query", line(b"GET /health?a=b&c HTTP/1.1"), "RFC 9112 3.2.1"),
    Case("a field twice that may be a list", get(b"Host: r", b"Accept: a/b", b"Accept: c/d"), "RFC 9110 5.3"),
    Case("a length of zeroes", get(b"Host: r", b"Content-Length: 000"), "RFC 9110 8.6"),
    Case("a length with leading zeroes", post(b"Content-Length: 000%b" % LENGTH), "RFC 9110 8.6"),
    Case("chunked in capitals", post(b"Transfer-Encoding: CHUNKED", body=CHUNK + b"0\r\n\r\n"), "RFC 9112 6.1"),
    Case("a chunk size in capitals", chunked(CHUNK.replace(b"3c", b"3C") + b"0\r\n\r\n"), "RFC 9112 7.1"),
    Case("a chunk size with zeroes", chunked(b"0000" + CHUNK + b"000\r\n\r\n"), "RFC 9112 7.1"),
    Case("an extension", chunked(CHUNK.replace(b"3c", b"3c;a=b", 1) + b"0;x\r\n\r\n"), "RFC 9112 7.1.1"),
    Case("a quoted extension", chunked(CHUNK.replace(b"3c", b'3c;a="b c"', 1) + b"0\r\n\r\n"), "RFC 9112 7.1.1"),
    Case("trailers", chunked(CHUNK + b"0\r\nX: y\r\nZ: w\r\n\r\n"), "RFC 9112 7.1.2"),
    Case("many small chunks", chunked(b"".join(b"1\r\n%c\r\n" % each for each in BODY) + b"0\r\n\r\n"), "RFC 9112 7.1"),
    Case("an upgrade that is declined", sized(b"Connection: Upgrade", b"Upgrade: h2c"), "RFC 9110 7.8"),
    Case("options of the connection", sized(b"Connection: keep-alive, X-Other", b"X-Other: y"), "RFC 9110 7.6.1"),
    Case("an encoding that is none", sized(b"Content-Encoding: identity"), "RFC 9110 8.4"),
    Case("a type with a parameter", sized(b"Content-Type: application/json; charset=utf-8"), "RFC 9110 8.3"),
    Case("an expectation of any case", sized(b"Expect: 100-Continue"), "RFC 9110 10.1.1"),
)
