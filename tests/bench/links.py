#!/usr/bin/env python3
"""Round trip and throughput over the links of deploy/netlab, as a Markdown table. Root; about a second per row and round.

One TCP connection from h0 to h1, nothing tuned: a byte to and fro, each side blocking in recv, then a transfer one way. The
rounds go over all shapes by turns. Shown are the shortest round trip and the medians of the round with the least median, and
the best throughput: other programs on the machine only make them worse.
"""
import argparse
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

NETLAB = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "netlab" / "netlab"
SHAPES = ["off", "delay=1us", "delay=50us", "delay=1ms", "delay=1ms rate=1gbit", "delay=5ms"]
PORT = 5000


def serve():
    """Answers bytes until 'm', then counts what comes."""
    with socket.create_server(("", PORT)) as server:
        print("listening", flush=True)
        c, _ = server.accept()
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while (data := c.recv(1)) == b"x":
        c.sendall(data)
    c.sendall(data)
    n, buffer = 0, bytearray(1 << 20)
    while k := c.recv_into(buffer):
        n += k
    c.sendall(str(n).encode())


def ask(host, n_trips, n_bytes):
    c = socket.create_connection((host, PORT), timeout=60)
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    trips = []
    for what in b"x" * n_trips + b"m":
        begin = time.perf_counter()
        c.sendall(bytes([what]))
        c.recv(1)
        trips.append(time.perf_counter() - begin)
    block = bytes(1 << 20)
    begin = time.perf_counter()
    for _ in range(n_bytes >> 20):
        c.sendall(block)
    c.shutdown(socket.SHUT_WR)
    c.recv(100)
    took = time.perf_counter() - begin
    print(json.dumps({"least_us": min(trips) * 1e6, "median_us": statistics.median(trips) * 1e6,
                      "p99_us": sorted(trips)[int(0.99 * len(trips))] * 1e6,
                      "gbit_s": (n_bytes >> 20 << 20) * 8 / took / 1e9}))


def netlab(*args, **kwargs):
    return subprocess.run([NETLAB, *args], check=True, stdout=subprocess.PIPE, text=True, timeout=120, **kwargs).stdout


def measure(shape):
    netlab("shape", *shape.split())
    run = ["exec", "h1", sys.executable, os.path.abspath(__file__), "--serve"]
    server = subprocess.Popen([NETLAB, *run], stdout=subprocess.PIPE, text=True)
    try:
        server.stdout.readline()
        n_bytes = 100 << 20 if "rate" in shape else 1000 << 20
        return json.loads(netlab("exec", "h0", sys.executable, os.path.abspath(__file__), "--ask", "h1", "1000", str(n_bytes)))
    finally:
        server.kill()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve()
    if args.ask:
        return ask(args.ask[0], int(args.ask[1]), int(args.ask[2]))
    os.environ["NETLAB"] = "bench"
    netlab("up", "2")
    try:
        got = {shape: [] for shape in SHAPES}
        for _ in range(args.rounds):
            for shape in SHAPES:
                got[shape].append(measure(shape))
    finally:
        netlab("down")
    print(f"Load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {args.rounds} rounds.\n")
    print("| shape | RTT least, us | RTT median, us | RTT p99, us | Gbit/s |\n|---|---|---|---|---|")
    for shape, rounds in got.items():
        quiet = min(rounds, key=lambda r: r["median_us"])
        print(f"| {shape} | {min(r['least_us'] for r in rounds):.0f} | {quiet['median_us']:.0f} | {quiet['p99_us']:.0f} "
              f"| {max(r['gbit_s'] for r in rounds):.3g} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
