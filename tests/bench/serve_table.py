"""The table of serve.sh, in Markdown, from the JSON files that it gathered.

usage: serve_table.py FOLDER ROUNDS N_LOADS SERVER...
"""
import json
import pathlib
import statistics
import sys

# What a line shows, where it stands in a point, digits, and whether more is better.
FIGURES = (
    ("output tokens/s", lambda p: p["output_throughput"], 1, True),
    ("TTFT p50, ms", lambda p: p["ttft_ms"]["p50"], 1, False),
    ("TTFT p99, ms", lambda p: p["ttft_ms"]["p99"], 1, False),
    ("TPOT p50, ms", lambda p: p["tpot_ms"]["p50"], 2, False),
    ("ITL p50, ms", lambda p: p["itl_ms"]["p50"], 2, False),
    ("ITL p99, ms", lambda p: p["itl_ms"]["p99"], 2, False),
)

LEAST = 0.05  # ms between two events: below it they came in one piece


def title(point):
    if point["load"] == "concurrency":
        n = point["concurrency"]
        return f"{n} user" + ("s" if n > 1 else "")
    return f"{point['request_rate']:g} requests/s" if point["request_rate"] != "inf" else "all at once"


def ratio(ours, theirs, more_is_better):
    """How many times better ours is: above 1 wherever we are ahead. Times too short to be told apart have none."""
    if min(ours, theirs) < LEAST:
        return "–"
    return f"{ours / theirs if more_is_better else theirs / ours:.2f}×"


def remarks(name, points):
    """What makes a column doubtful."""
    failed = sum(p["failed"] for p in points)
    short = sum(p["total_events"] for p in points) / max(1, sum(p["total_output_tokens"] for p in points))
    late = max(p["lag_ms"]["p99"] for p in points)
    out = []
    if failed:
        kinds = {k for p in points for k, e in p["errors"].items() if e["count"]}
        out.append(f"{failed} requests failed ({', '.join(sorted(kinds))})")
    if short < 0.9:
        out.append(f"{short:.2f} events per output token: several tokens came at once")
    if statistics.median(p["itl_ms"]["p50"] for p in points) < LEAST:
        out.append("most tokens came in one piece with the one before, so TPOT tells more than ITL")
    if late > 5:
        out.append(f"requests were sent up to {late:.0f} ms late (p99)")
    if any(p["without_usage"] for p in points):
        out.append("tokens counted as events: the server gives no usage")
    return f"{name}, {title(points[0])}: {'; '.join(out)}" if out else None


def main():
    folder, rounds, n_loads, servers = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    head = ["load", "figure", "tensord"]
    for name in servers[1:]:
        head += [name, "ratio of best", "of median"]
    print(f"\nBest / median of {rounds} rounds. A ratio above 1 means that tensord is ahead.\n")
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    notes = []
    for load in range(n_loads):
        points = [[json.loads((folder / f"{s}.{load}.{r}.json").read_text())["points"][0] for r in range(rounds)]
                  for s in range(len(servers))]
        notes += [remarks(name, p) for name, p in zip(servers, points)]
        for figure, get, digits, more in FIGURES:
            best = [(max if more else min)(get(p) for p in ps) for ps in points]
            median = [statistics.median(get(p) for p in ps) for ps in points]
            cells = [title(points[0][0]), figure]
            for s in range(len(servers)):
                cells.append(f"{best[s]:.{digits}f} / {median[s]:.{digits}f}")
                if s:
                    cells += [ratio(best[0], best[s], more), ratio(median[0], median[s], more)]
            print("| " + " | ".join(cells) + " |")
        words = [statistics.mean(p["total_input_tokens"] / max(1, p["completed"]) for p in ps) for ps in points]
        print(f"| {title(points[0][0])} | input tokens per request | " + " | ".join(
            f"{w:.1f}" + (" | | " if s else "") for s, w in enumerate(words)) + " |")
    for note in filter(None, notes):
        print(f"\n{note}.")


if __name__ == "__main__":
    main()
