"""Offers a server a part, all, and a multiple of what it can carry, as Poisson arrivals, and tells what comes of it: goodput, refusals,
latency, memory. Offered much too much it should do as much good as at its best."""

import argparse
import json
import os
import pathlib
import re
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

from serving import Server, read_proc, tensord  # noqa: E402

COLUMNS = ["load", "offered/s", "done", "refused", "other failures", "throughput/s", "goodput/s", "of peak", "TTFT p50 ms", "TTFT p99 ms",
           "coordinator MiB", "ranks MiB"]


def most_mib(pids):
    """Peak resident memory of the processes so far."""
    return sum(int(re.search(rb"VmHWM:\s+(\d+)", read_proc(p, "status"))[1]) for p in pids) / 1024


def bench(server, args, *load):
    with tempfile.NamedTemporaryFile(suffix=".json") as f:
        words = ["bench", "serve", "--url", server.url, "--input-len", args.input_len, "--output-len", args.output_len, "--ignore-eos",
                 "--json-file", f.name, *load]
        p = tensord(*words, timeout=600)
        text = pathlib.Path(f.name).read_text()
        if not text:
            raise SystemExit(f"bench serve ended with {p.returncode}: {p.stderr.decode()[-1000:]}")
        return json.loads(text)["points"][0]


def main():
    p = argparse.ArgumentParser(prog="tests/fault/overload.py", description=__doc__)
    p.add_argument("--ranks", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="as many as leave a core for coordinator and clients")
    p.add_argument("--seqs", type=int, default=8, help="requests that run at a time; as many may wait")
    p.add_argument("--seconds", type=float, default=5, help="of each load")
    p.add_argument("--loads", default="0.5,1,2,5,10", help="multiples of what is carried by a closed loop")
    p.add_argument("--input-len", default="32")
    p.add_argument("--output-len", default="48")
    args = p.parse_args()
    wrong, rows = [], []
    with Server("-n", args.ranks, "--threads", 1, "--max-num-seqs", args.seqs, "--max-queue", args.seqs) as s:
        s.wait_ready()
        full = bench(s, args, "--concurrency", args.seqs, "--num-requests", 20 * args.seqs)
        carried, whole_ms = full["request_throughput"], full["e2el_ms"]["p50"]
        # Who is let in waits for one answer of those that run, and half as long again; later than twice that is no good any more.
        slo_ms = 3 * whole_ms
        print(f"carries {carried:.1f} requests/s with {args.seqs} at a time, {whole_ms:.0f} ms each; good: first token within {slo_ms:.0f} ms")
        ranks = list(s.ranks())
        for m in map(float, args.loads.split(",")):
            point = bench(s, args, "--request-rate", m * carried, "--duration", args.seconds, "--num-requests",
                          max(1, int(m * carried * args.seconds)), "--slo", f"ttft:{slo_ms:.0f}", "--seed", int(10 * m))
            errors = {k: v["count"] for k, v in point["errors"].items() if v["count"]}
            n_refused = errors.pop("refused", 0)
            rows.append([m, m * carried, point["completed"], n_refused, sum(errors.values()), point["request_throughput"],
                         point["request_goodput"], 0.0, point["ttft_ms"]["p50"], point["ttft_ms"]["p99"], most_mib([s.p.pid]), most_mib(ranks)])
            if errors:
                wrong.append(f"at {m:g} x: {errors}, expected nothing but refusals: {[v['first'] for v in point['errors'].values() if v['count']]}")
            first = point["errors"]["refused"]["first"]
            if n_refused and not re.match(r"(429|503)\b", first):
                wrong.append(f"at {m:g} x: refused with '{first}', expected 429 or 503")
        s.stop()
    peak = max(r[6] for r in rows)
    print("\n| " + " | ".join(COLUMNS) + " |\n|" + "---:|" * len(COLUMNS))
    for r in rows:
        r[7] = 100 * r[6] / peak if peak else 0.0
        cells = [f"{r[0]:g} x", f"{r[1]:.0f}", *map(str, r[2:5]), f"{r[5]:.1f}", f"{r[6]:.1f}", f"{r[7]:.0f} %", *(f"{v:.0f}" for v in r[8:10]),
                 f"{r[10]:.1f}", f"{r[11]:.1f}"]
        print("| " + " | ".join(cells) + " |")
    last, at_one = rows[-1], next((r for r in rows if r[0] >= 1), rows[0])
    if last[7] < 90:
        wrong.append(f"goodput at {last[0]:g} x is {last[7]:.0f} % of the peak, expected at least 90 %")
    for name, i in (("coordinator", 10), ("ranks", 11)):
        if last[i] > 1.1 * at_one[i] + 8:
            wrong.append(f"memory of the {name} at {last[0]:g} x is {last[i]:.1f} MiB, at {at_one[0]:g} x {at_one[i]:.1f} MiB")
    print("\n" + ("FAILED: " + "; ".join(wrong) if wrong else "passed"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
