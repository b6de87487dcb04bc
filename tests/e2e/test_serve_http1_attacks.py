"""Attacks over HTTP/1.1, each named after its class: the server says what was too much, or closes, and goes on.

The server has small limits, so that none of the tests waits long.
"""

import re
import select
import socket
import time

import pytest
from serving import Process, Server, TENSORD, MODEL, free_port, needs_model, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
LIMITS = ("-n", 1, "--threads", 1, "--header-timeout", 1, "--body-timeout", 5, "--idle-timeout", 2, "--stall-timeout", 2,
          "--max-header-bytes", "8KiB", "--max-body-bytes", "64KiB")
PATIENCE = 30
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def small():
    with Server(*LIMITS) as s:
        s.wait_ready()
        yield s
        assert s.is_ready() and s.complete("Once", max_tokens=2)["text"]
        s.stop()


def dial(server, source=None):
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE, source_address=(source, 0) if source else None)


def read_all(s):
    got = b""
    try:
        while part := s.recv(65536):
            got += part
    except ConnectionResetError:
        pass
    return got


def ask(server, data):
    with dial(server) as s:
        try:
            s.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        return read_all(s)


def status_of(answer):
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[9:12])


# ---- how much ----


def test_body_size(small):
    assert status_of(ask(small, HEAD + b"Content-Length: 65537\r\n\r\n")) == 413
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    assert status_of(ask(small, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17)) == 413
    fits = b'{"prompt":"a","max_tokens":1,"user":"' + b"x" * 65000 + b'"}'
    assert small.post("/v1/completions", fits).status == 200


def test_header_bytes_and_count(small):
    get = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    assert status_of(ask(small, get + b"X: " + b"a" * 9000 + b"\r\n\r\n")) == 431
    assert status_of(ask(small, get + b"".join(b"X%d: a\r\n" % i for i in range(99)) + b"\r\n")) == 431
    assert status_of(ask(small, get + b"".join(b"X%d: a\r\n" % i for i in range(98)) + b"\r\n")) == 200


def test_chunk_framing_without_content(small):
    """Chunks of one byte with long extensions: more framing than body."""
    chunk = b"1;" + b"e" * 4000 + b"\r\na\r\n"
    assert status_of(ask(small, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 600)) in (400, 413)


# ---- how long ----


def test_slowloris_headers(small):
    """A byte now and then: the deadline is that of the whole head, not of a silence."""
    with dial(small) as s:
        s.sendall(b"GET /healthz HTTP/1.1\r\n")
        end = time.monotonic() + PATIENCE
        while not select.select([s], [], [], 0.2)[0] and time.monotonic() < end:
            s.sendall(b"X")
        assert status_of(read_all(s)) == 408


def test_slowloris_first_byte(small):
    with dial(small) as s:
        assert read_all(s) == b""


def test_slow_body(small):
    """The first silence of a tenth of the time ends it; so does the time, however often a byte comes."""
    with dial(small) as s:
        s.sendall(HEAD + b"Content-Length: 50\r\n\r\n{")
        assert status_of(read_all(s)) == 408
    with dial(small) as s:
        s.sendall(HEAD + b"Content-Length: 60000\r\n\r\n{")
        end = time.monotonic() + PATIENCE
        while not select.select([s], [], [], 0.1)[0] and time.monotonic() < end:
            s.sendall(b" ")
        assert status_of(read_all(s)) == 408


def test_idle_connection(small):
    with dial(small) as s:
        s.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = read_all(s)  # the answer, and later the end
        assert status_of(answer) == 200 and b"Connection: close" not in answer


def test_reader_that_takes_nothing(small):
    """Thousands of requests and not one answer read: what waits is bounded, and the connection is cut."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.connect(("127.0.0.1", small.port))
        s.setblocking(False)
        data, sent = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 4000, 0
        poll = select.poll()
        poll.register(s, select.POLLOUT)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            events = poll.poll(1000)
            if any(e & (select.POLLERR | select.POLLHUP) for _, e in events):
                return
            if events and sent < len(data):
                try:
                    sent += s.send(data[sent:])
                except (BrokenPipeError, ConnectionResetError):
                    return
            elif sent >= len(data):
                poll.modify(s, 0)
        pytest.fail(f"still open after {PATIENCE} s, {sent} bytes were taken")


# ---- where a message ends ----

TAIL = b"GET /healthz HTTP/1.1\r\nHost: smuggled\r\n\r\n"
CHUNKED = b"0\r\n\r\n"
SMUGGLING = {
    "CL.TE": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "TE.CL": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + CHUNKED,
    "CL.CL": HEAD + b"Content-Length: 2\r\nContent-Length: 7\r\n\r\n{}",
    "CL.CL equal": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "CL list": HEAD + b"Content-Length: 2, 2\r\n\r\n{}",
    "CL sign": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "CL negative": HEAD + b"Content-Length: -2\r\n\r\n{}",
    "CL hex": HEAD + b"Content-Length: 0x2\r\n\r\n{}",
    "CL overflow": HEAD + b"Content-Length: 18446744073709551618\r\n\r\n{}",
    "CL empty": HEAD + b"Content-Length: \r\n\r\n{}",
    "CL inner space": HEAD + b"Content-Length: 1 2\r\n\r\n{}",
    "TE twice": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "TE list": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED,
    "TE identity last": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "TE other": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "TE vertical tab": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKED,
    "TE space before colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    "TE in 1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "TE folded": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKED,
    "fold": HEAD + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
    "fold first": b"POST /v1/completions HTTP/1.1\r\n Host: a\r\nContent-Length: 2\r\n\r\n{}",
    "bare LF": (HEAD + b"Content-Length: 2\r\n\r\n{}").replace(b"\r\n", b"\n"),
    "bare LF in one header": HEAD + b"X: a\nContent-Length: 2\r\n\r\n{}",
    "bare CR": HEAD + b"X: a\rContent-Length: 2\r\n\r\n{}",
    "NUL": HEAD + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    "no name": HEAD + b": a\r\nContent-Length: 2\r\n\r\n{}",
    "space in name": HEAD + b"Content Length: 2\r\n\r\n{}",
    "chunk size overflow": HEAD + b"Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\n{}\r\n" + CHUNKED,
    "chunk size sign": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n" + CHUNKED,
    "chunk size 0x": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n" + CHUNKED,
    "chunk bare LF": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
    "chunk too long": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}}\r\n" + CHUNKED,
    "chunk trailer": HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nContent-Length: 9\r\n\r\n",
    "two hosts": HEAD + b"Host: b\r\nContent-Length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_request_smuggling(small, name):
    """One refusal, then the end: what follows is never taken for a request."""
    answer = ask(small, SMUGGLING[name] + TAIL)
    assert len(re.findall(rb"HTTP/1\.1 \d{3} ", answer)) == 1, answer
    assert status_of(answer) in (400, 501) and b"Connection: close" in answer, answer


# ---- how many ----


def test_connection_exhaustion():
    """Over the cap 503; the workers' stream is not counted, and what was there goes on."""
    with Server("-n", 1, "--threads", 1, "--max-connections", 20, "--control-host", "127.0.0.3") as s:
        s.wait_ready()
        held = [dial(s) for _ in range(20)]
        wait_until("the cap is reached", lambda: status_of(ask(s, b"")) == 503, 10, 0.2)
        with dial(s) as c:
            answer = read_all(c)
        assert status_of(answer) == 503 and b"too_many_connections" in answer
        held[0].sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert status_of(read_all(held[0])) == 200
        for c in held:
            c.close()
        s.wait_ready(10)
        assert "max_connections=20" in s.log()
        s.stop()


def test_connection_exhaustion_by_one_address():
    with Server("-n", 1, "--threads", 1, "--max-connections-per-address", 8, "--control-host", "127.0.0.3") as s:
        s.wait_ready()
        time.sleep(0.1)
        held = [dial(s) for _ in range(8)]
        wait_until("the cap is reached", lambda: ask(s, b"").startswith(b"HTTP/1.1 429"), 10, 0.2)
        with dial(s, "127.0.0.2") as c:
            c.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert status_of(read_all(c)) == 200
        for c in held:
            c.close()
        s.wait_ready(10)
        assert "max_connections_per_address=8" in s.log()
        s.stop()


@pytest.mark.parametrize("option, value", [
    ("--max-connections", "0"), ("--max-connections-per-address", "-1"), ("--max-header-bytes", "10"), ("--max-body-bytes", "2GiB"),
    ("--header-timeout", "0"), ("--body-timeout", "-1"), ("--idle-timeout", "nan"), ("--stall-timeout", "1e9"),
])
def test_an_absurd_limit_is_refused_by_name(option, value):
    with Process([TENSORD, "serve", "--model", MODEL, "--port", free_port(), option, value]) as p:
        assert p.wait_exit(10) == 2, p.log()
        assert option in p.log() and value in p.log(), p.log()
