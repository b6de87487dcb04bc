"""Attacks over HTTP/2, each named after its class, with frames made by hand (RFC 9113, RFC 7541).

What is too much ends with GOAWAY ENHANCE_YOUR_CALM and the end of the connection; the server goes on.
"""

import pathlib
import socket
import struct

import pytest
from serving import Server, needs_model, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
LIMITS = ("-n", 1, "--threads", 1, "--header-timeout", 1, "--body-timeout", 2, "--idle-timeout", 2, "--stall-timeout", 2)
PATIENCE = 30
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL, CALM = 8, 11
MODEL_INFO = "/tensord.v1.Inference/ModelInfo"


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def integer(value, bits, first=0):
    """RFC 7541 5.1."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([first | value])
    out, value = [first | limit], value - limit
    while value >= 128:
        out.append(value % 128 | 128)
        value //= 128
    return bytes(out + [value])


def field(name, value, indexed=False):
    """A literal field with a new name, put into the dynamic table or not."""
    return (b"\x40" if indexed else b"\x00") + b"".join(integer(len(t), 7) + t for t in (name.encode(), value.encode()))


def call_headers(path=MODEL_INFO):
    pairs = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "a"), ("content-type", "application/grpc"),
             ("te", "trailers")]
    return b"".join(field(*p) for p in pairs)


def message(data=b""):
    return b"\0" + struct.pack(">I", len(data)) + data


class Peer:
    """A client that knows no rules."""

    def __init__(self, server, settings=b""):
        self.s = socket.create_connection(("127.0.0.1", server.port), PATIENCE)
        self.seen, self.rest = [], b""
        self.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings) + frame(SETTINGS, ACK))

    def send(self, data):
        try:
            self.s.sendall(data)
            return True
        except (BrokenPipeError, ConnectionResetError):
            return False

    def read(self):
        """What came, as (kind, flags, stream, payload); None at the end."""
        try:
            part = self.s.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            return None
        self.rest += part
        got = []
        while len(self.rest) >= 9:
            n = int.from_bytes(self.rest[:3], "big")
            if len(self.rest) < 9 + n:
                break
            kind, flags, stream = struct.unpack(">BBI", self.rest[3:9])
            got.append((kind, flags, stream & 0x7FFFFFFF, self.rest[9 : 9 + n]))
            self.rest = self.rest[9 + n :]
        self.seen += got
        return got

    def drain(self):
        """Reads without waiting, so that a flood is not held up by what the server has to say."""
        self.s.setblocking(False)
        try:
            while self.read() is not None:
                pass
        except BlockingIOError:
            pass
        finally:
            self.s.settimeout(PATIENCE)

    def read_until(self, wanted):
        """The first frame for which wanted(kind, flags, stream, payload) is true."""
        for f in self.seen:
            if wanted(*f):
                return f
        while (got := self.read()) is not None:
            for f in got:
                if wanted(*f):
                    return f
        pytest.fail(f"it did not come; seen: {[f[:3] for f in self.seen[-20:]]}")

    def is_calmed(self):
        """GOAWAY with ENHANCE_YOUR_CALM, then the end."""
        goaway = self.read_until(lambda kind, *_: kind == GOAWAY)
        assert struct.unpack(">I", goaway[3][4:8])[0] == CALM, goaway
        while self.read() is not None:
            pass
        return True

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.s.close()


@pytest.fixture(scope="module")
def small():
    with Server(*LIMITS) as s:
        s.wait_ready()
        yield s
        assert s.is_ready() and s.complete("Once", max_tokens=2)["text"]
        s.stop()


def flood(peer, make, n, step=50):
    """n frames, some at a time; stops when the server does."""
    for first in range(0, n, step):
        if not peer.send(b"".join(make(i) for i in range(first, first + step))):
            break
        peer.drain()
        if any(f[0] == GOAWAY for f in peer.seen):
            break
    assert peer.is_calmed()


def test_the_frames_by_hand_are_right(small):
    with Peer(small) as p:
        p.send(frame(HEADERS, END_HEADERS, 1, call_headers()) + frame(DATA, END_STREAM, 1, message()))
        p.read_until(lambda kind, flags, stream, _: kind == HEADERS and stream == 1 and flags & END_STREAM)
        answer = b"".join(f[3] for f in p.seen if f[0] == DATA)
        assert small.status()["groups"][0]["model"].encode() in answer


def test_rapid_reset_CVE_2023_44487(small):
    with Peer(small) as p:
        call = lambda i: frame(HEADERS, END_HEADERS, 2 * i + 1, call_headers()) + frame(RST_STREAM, 0, 2 * i + 1, struct.pack(">I", CANCEL))
        flood(p, call, 5000)


def test_made_you_reset_CVE_2025_8671(small):
    """The client breaks a stream's window, so that the server resets it."""
    with Peer(small) as p:
        broken = lambda i: frame(HEADERS, END_HEADERS, 2 * i + 1, call_headers()) + frame(
            WINDOW_UPDATE, 0, 2 * i + 1, struct.pack(">I", 0x7FFFFFFF))
        flood(p, broken, 5000)


def test_continuation_flood_CVE_2024_27316(small):
    with Peer(small) as p:
        p.send(frame(HEADERS, 0, 1, call_headers()) + frame(CONTINUATION, 0, 1, field("x", "y")) * 200)
        assert p.is_calmed()


def test_ping_flood_CVE_2019_9512(small):
    with Peer(small) as p:
        flood(p, lambda i: frame(PING, 0, 0, struct.pack(">Q", i)), 20000)


def test_unread_pings_CVE_2019_9512(small):
    """The same by a client that reads no answer."""
    with Peer(small) as p:
        p.send(frame(PING, 0, 0, b"12345678") * 50000)
        wait_until("the connection ends", lambda: not p.send(frame(PING, 0, 0, b"12345678")), PATIENCE, 0.1)


def test_settings_flood_CVE_2019_9515(small):
    with Peer(small) as p:
        flood(p, lambda i: frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535 + i)), 20000)


def test_empty_frames_CVE_2019_9518(small):
    with Peer(small) as p:
        p.send(frame(HEADERS, END_HEADERS, 1, call_headers()))
        flood(p, lambda i: frame(DATA, 0, 1), 5000)


def test_priority_and_window_churn_CVE_2019_9513(small):
    with Peer(small) as p:
        flood(p, lambda i: frame(PRIORITY, 0, 2 * i + 1, struct.pack(">IB", 0, 5)) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1)), 20000)


def resident(pid):
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_hpack_bomb_CVE_2016_6581(small):
    """One long field in the table, then thousands of references of a byte each: 48 MB out of 12 KB, in every call."""
    before = resident(small.p.pid)
    with Peer(small) as p:
        bomb = call_headers() + field("x", "y" * 4000, indexed=True) + b"\xbe" * 12000
        p.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, bomb))
        for i in range(1, 20):
            p.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * i + 1, call_headers() + b"\xbe" * 12000))
        for i in range(20):
            p.read_until(lambda kind, flags, stream, _: stream == 2 * i + 1 and (kind == RST_STREAM or kind == HEADERS and flags & END_STREAM))
        assert resident(small.p.pid) - before < 16 << 20
        assert not any(f[0] == DATA for f in p.seen), "a bomb was answered"


def test_zero_window_stall(small, rpc):
    """A client that gives no window holds neither a sequence nor the connection."""
    with Peer(small, struct.pack(">HI", 4, 0)) as p:
        request = rpc.message("GenerateRequest", text=b"Once upon a time", max_tokens=200, ignore_eos=True).SerializeToString()
        p.send(frame(HEADERS, END_HEADERS, 1, call_headers("/tensord.v1.Inference/Generate")) + frame(DATA, END_STREAM, 1, message(request)))
        wait_until("it is accepted", lambda: small.status()["n_requests"] > 0, 10)
        reset = p.read_until(lambda kind, flags, stream, _: kind == RST_STREAM and stream == 1)
        assert struct.unpack(">I", reset[3])[0] == CANCEL
        wait_until("its sequence is freed", lambda: not any(small.group()[k] for k in ("n_open", "n_running", "kv_blocks_used")), 10)


def test_slow_headers(small):
    """A header block that never ends stops the whole connection, so it goes."""
    with Peer(small) as p:
        p.send(frame(HEADERS, 0, 1, call_headers()))
        assert p.is_calmed()


def test_slow_request(small):
    """A call whose message does not come is ended."""
    with Peer(small) as p:
        p.send(frame(HEADERS, END_HEADERS, 1, call_headers()) + frame(DATA, 0, 1, message(b"xxxx")[:7]))
        p.read_until(lambda kind, flags, stream, _: kind == HEADERS and stream == 1 and flags & END_STREAM)


def test_slow_preface(small):
    with socket.create_connection(("127.0.0.1", small.port), PATIENCE) as s:
        s.sendall(b"PRI * HTTP/2.0\r\n")
        assert s.recv(100) == b""


def test_idle_connection(small):
    with Peer(small) as p:
        goaway = p.read_until(lambda kind, *_: kind == GOAWAY)
        while p.read() is not None:
            pass
        assert any(struct.unpack(">I", f[3][4:8])[0] == 0 for f in p.seen if f[0] == GOAWAY), goaway


def test_streams_of_a_connection(small):
    """1024 at a time, as the settings say; one more breaks them."""
    with Peer(small) as p:
        told = p.read_until(lambda kind, flags, *_: kind == SETTINGS and not flags & ACK)[3]
        assert (3, 1024) in [struct.unpack(">HI", told[i : i + 6]) for i in range(0, len(told), 6)]
        p.send(b"".join(frame(HEADERS, END_HEADERS, 2 * i + 1, call_headers()) for i in range(1024)) + frame(PING, 0, 0, b"are here"))
        p.read_until(lambda kind, flags, stream, payload: kind == PING and payload == b"are here")
        assert not any(f[0] in (RST_STREAM, GOAWAY) for f in p.seen)
        p.send(frame(HEADERS, END_HEADERS, 2049, call_headers()))
        p.read_until(lambda kind, flags, stream, _: kind == GOAWAY or kind == RST_STREAM and stream == 2049)


def test_header_list_too_large(small):
    """16 KiB at most, half of --max-header-bytes."""
    with Peer(small) as p:
        block = call_headers() + field("x1", "y" * 10000)
        p.send(frame(HEADERS, 0, 1, block) + frame(CONTINUATION, END_HEADERS, 1, field("x2", "y" * 10000)))
        p.read_until(lambda kind, flags, stream, _: stream == 1 and kind == HEADERS and flags & END_STREAM)
