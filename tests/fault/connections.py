"""Thousands of idle connections and a thousand streams held at once: memory per idle connection, and whether it comes back."""

import argparse
import json
import os
import pathlib
import re
import resource
import selectors
import socket
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

from serving import NAME, Server, read_proc, tensord, wait_until  # noqa: E402

PER_CONNECTION_BYTES = 16384
SPARE = 300  # descriptors for everything else


def has_option(name):
    return f"--{name}" in tensord("serve", "--help").stdout.decode()


def rss_bytes(pid):
    return 1024 * int(re.search(rb"VmRSS:\s+(\d+)", read_proc(pid, "status"))[1])


def raise_limit(n):
    """Descriptors of this process and of the server, which inherits it; the number that there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(soft, min(hard, n + SPARE))
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most - SPARE


def connect(port):
    s = socket.socket()
    s.settimeout(20)
    s.connect(("127.0.0.1", port))
    return s


def ask_health(s):
    """One request on a connection that stays open."""
    s.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    data = b""
    while b"\r\n\r\n" not in data:
        got = s.recv(4096)
        if not got:
            raise OSError(f"the server closed an idle connection: {data[:100]!r}")
        data += got
    return data.startswith(b"HTTP/1.1 200")


def is_closed(s):
    s.setblocking(False)
    try:
        return s.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def hold_idle(server, n):
    """n connections that have asked once and are idle."""
    held = []
    for _ in range(n):
        s = connect(server.port)
        held.append(s)
        if not ask_health(s):
            raise OSError(f"connection {len(held)} of {n} was refused")
    return held


class Streams:
    """n streams at once, read as they come; `ended` counts those that ended with [DONE]."""

    def __init__(self, server, n, max_tokens):
        self.selector = selectors.DefaultSelector()
        self.tails, self.texts, self.refused, self.ended, self.broken = {}, set(), 0, 0, 0
        body = json.dumps({"model": NAME, "prompt": "Once upon a time", "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0,
                           "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        for _ in range(n):
            s = connect(server.port)
            s.sendall(head.encode() + body)
            s.setblocking(False)
            self.selector.register(s, selectors.EVENT_READ)
            self.tails[s] = b""
        self.n_open_most = 0

    def read(self, server, limit_s):
        end = time.monotonic() + limit_s
        asked_at = 0.0
        while self.tails and time.monotonic() < end:
            for key, _ in self.selector.select(0.5):
                self.take(key.fileobj)
            if time.monotonic() - asked_at > 1:
                asked_at = time.monotonic()
                self.n_open_most = max(self.n_open_most, server.group()["n_open"])
        self.broken += len(self.tails)
        for s in list(self.tails):
            self.drop(s)

    def take(self, s):
        try:
            data = s.recv(65536)
        except OSError:
            data = b""
        self.tails[s] += data
        done = b"data: [DONE]\n\n" in self.tails[s]
        if done or not data:
            text = self.tails[s]
            if done:
                self.ended += 1
                self.texts.add("".join(json.loads(m)["choices"][0]["text"] for m in re.findall(rb"^data: (\{.*\})$", text, re.M)))
            elif text.startswith((b"HTTP/1.1 429", b"HTTP/1.1 503")):
                self.refused += 1
            else:
                self.broken += 1
            self.drop(s)

    def drop(self, s):
        self.selector.unregister(s)
        del self.tails[s]
        s.close()


def mib(n_bytes):
    return f"{n_bytes / 2**20:.1f} MiB"


def close_all(server, sockets):
    """Closes them and waits until the server has, too."""
    for c in sockets:
        c.close()
    n = lambda: len(os.listdir(f"/proc/{server.p.pid}/fd"))
    wait_until(lambda: f"descriptors are closed: {n()}", lambda: n() < 64, 20, 0.1)


def given_back(server, wanted_bytes, limit_s=20):
    """The coordinator's memory once it is as little as is wanted, or after the limit: it may give back later than it closes."""
    end = time.monotonic() + limit_s
    while rss_bytes(server.p.pid) > wanted_bytes and time.monotonic() < end:
        time.sleep(0.2)
    return rss_bytes(server.p.pid)


def hold_and_stream(s, args, golden, wrong, wanted_bytes):
    """Streams beside idle connections; the coordinator's memory when all have gone."""
    idle = hold_idle(s, args.idle)
    streams = Streams(s, args.streams, args.tokens)
    streams.read(s, 300)
    n_closed = sum(is_closed(c) for c in idle)
    print(f"streams              {args.streams} at once beside {args.idle} idle connections, at most {streams.n_open_most} open: {streams.ended} whole, "
          f"{streams.refused} refused, {streams.broken} broken; {len(streams.texts)} different texts; {n_closed} idle ones were closed")
    if streams.ended != args.streams or streams.texts != {golden}:
        wrong.append("streams")
    if n_closed:
        wrong.append("idle connections were closed")
    close_all(s, idle)
    return given_back(s, wanted_bytes)


def main():
    p = argparse.ArgumentParser(prog="tests/fault/connections.py", description=__doc__)
    p.add_argument("--idle", type=int, default=10000)
    p.add_argument("--streams", type=int, default=1000)
    p.add_argument("--tokens", type=int, default=64, help="of each stream")
    p.add_argument("--rounds", type=int, default=2, help="how often all streams are opened")
    args = p.parse_args()
    n = raise_limit(args.idle + args.streams)
    if n < args.idle + args.streams:
        print(f"skipped: root: descriptors: {n} can be held, {args.idle + args.streams} were asked for (ulimit -n)")
        return 0
    words = ["-n", 1, "--threads", 1, "--max-queue", args.streams, "--max-num-seqs", 64, "--max-model-len", 256]
    if has_option("max-connections"):
        words += ["--max-connections", args.idle + args.streams + 64]
    if has_option("max-connections-per-address"):
        words += ["--max-connections-per-address", args.idle + args.streams + 64]
    wrong = []
    with Server(*words) as s:
        s.wait_ready()
        golden = s.complete("Once upon a time", max_tokens=args.tokens, temperature=0, ignore_eos=True)["text"]
        close_all(s, hold_idle(s, min(64, args.idle)))  # what is allocated once
        before = rss_bytes(s.p.pid)
        try:
            idle = hold_idle(s, args.idle)
        except OSError as e:
            print(f"FAILED: {args.idle} idle connections: {e}")
            return 1
        held = rss_bytes(s.p.pid)
        close_all(s, idle)
        after = given_back(s, 1.05 * before)
        per = (held - before) / max(1, args.idle)
        print(f"idle connections     {args.idle} held, {per:.0f} bytes of the coordinator's memory each, expected at most {PER_CONNECTION_BYTES}")
        print(f"memory               {mib(before)} before, {mib(held)} with them, {mib(after)} afterwards, expected at most 5 % more than before")
        if per > PER_CONNECTION_BYTES:
            wrong.append("memory per idle connection")
        if after > 1.05 * before:
            wrong.append("memory after idle connections")
        rounds = [after]
        for _ in range(args.rounds):
            rounds.append(hold_and_stream(s, args, golden, wrong, 1.05 * rounds[-1]))
        print(f"memory               {', '.join(map(mib, rounds[1:]))} after each round with streams; expected of the last at most 5 % more than of the one before")
        if args.rounds > 1 and rounds[-1] > 1.05 * rounds[-2]:
            wrong.append("memory after streams")
        s.stop()
    print(f"FAILED: {', '.join(wrong)}" if wrong else "passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
