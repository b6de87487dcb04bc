"""The tables of cpu.sh, in Markdown, from the raw outputs that it gathered.

usage: table.py FOLDER ROUNDS N_MODELS MODEL... PEER...
"""
import json
import pathlib
import re
import statistics
import sys

# Case: what a line says of it, and what must be reached by the type that most weights have.
CASES = {
    "decode": ("decode", lambda dtype: "≥ 85 % of memory"),
    "prefill": ("prefill", lambda dtype: "≥ 80 % of bf16" if dtype == "bf16" else "≥ 60 % of int8"),
    "batch": ("batched decode", lambda dtype: "≥ 50 % of int8" if dtype[0] in "qi" else ""),
    "depth": ("decode", lambda dtype: "≥ 80 % of memory"),
    "load": ("load and pack, GB/s", lambda dtype: "≥ 3 GB/s"),
    "first": ("first token, s", lambda dtype: "≤ 1 s"),
}


class Case:
    """All rounds of one case of one model."""

    def __init__(self, rounds, name):
        self.name = name
        cases = [r["cases"][name] for r in rounds]
        self.rates = [c["best"] for c in cases]
        self.limit = cases[0].get("limit", "memory" if name == "load" else None)
        self.shares = [c["memory_share" if self.limit == "memory" else "peak_share"]["best"] for c in cases] \
            if self.limit else []
        self.unsteady = sum(c["repeated"] for c in cases)

    @property
    def best(self):
        return min(self.rates) if self.name == "first" else max(self.rates)

    def share(self):
        if not self.shares:
            return ""
        fastest = self.shares[self.rates.index(self.best)]
        return f"{100 * fastest:.0f} / {100 * statistics.median(self.shares):.0f} % of {self.limit}"


def peer_rates(folder, model, peer, name, rounds):
    """Tokens per second of every round that worked."""
    out = []
    for i in range(rounds):
        stem = folder / f"{model}.peer{peer}.{i}.{name}"
        try:
            if name == "batch":
                rows = re.findall(r"^\|(?: *[0-9.]+ *\|){10}", stem.with_name(stem.name + ".txt").read_text(), re.M)
                out.append(float(rows[-1].split("|")[8]))
            else:
                out.append(json.loads(stem.with_name(stem.name + ".json").read_text())[-1]["avg_ts"])
        except (OSError, ValueError, IndexError):
            pass
    return out


def peer_facts(folder, model, peer):
    """Commit and the kinds of weight memory that it says it uses."""
    commit, buffers = "?", folder / f"{model}.peer{peer}.buffers"
    for path in sorted(folder.glob(f"{model}.peer{peer}.*.json")):
        try:
            commit = json.loads(path.read_text())[-1]["build_commit"]
        except (ValueError, IndexError):
            pass
    text = buffers.read_text() if buffers.exists() else ""
    return commit, [" ".join(b) for b in re.findall(r"(\S+) +(?:model )?buffer size = +([0-9.]+ MiB)", text)]


def two(values, digits):
    return f"{max(values):.{digits}f} / {statistics.median(values):.{digits}f}" if values else "–"


def table(folder, model, path, rounds, peers):
    ours = [json.loads((folder / f"{model}.ours.{i}.json").read_text()) for i in range(rounds)]
    first = ours[0]
    probes = [r["probes"] for r in ours]
    print(f"\n### {pathlib.Path(path).name}: {first['architecture']}, most weights {first['dtype']}, "
          f"{first['model_bytes'] / 1e9:.2f} GB\n")
    memory = [p["memory_bytes_per_second"] / 1e9 for p in probes]
    peak = [p["peak_ops_per_second"] / 1e9 for p in probes]
    print(f"Probes, best of each round: memory {min(memory):.1f} to {max(memory):.1f} GB/s, "
          f"{probes[0]['peak']} {min(peak):.0f} to {max(peak):.0f} Gop/s ({probes[0]['peak_instruction']}). "
          f"{first['ranks'][0]['device']}, {first['ranks'][0]['threads']} threads. Figures are best / median of "
          f"{rounds} rounds, in tokens/s where nothing else is said.\n")
    head = ["", "tensord", "of the probe", "must reach"]
    for p in peers:
        head += [p, "ratio of the best"]
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for name, (title, target) in CASES.items():
        if name not in first["cases"]:
            continue
        case = Case(ours, name)
        if name == "prefill":
            title += f" {first['cases'][name]['tokens']}"
        if name == "batch":
            title += f", {first['cases'][name]['tokens'] // first['cases'][name]['steps']} sequences"
        if name in ("decode", "depth"):
            title += f" at {first['cases'][name]['depth']:.0f}"
        if name == "first":
            shown = f"{case.best:.2f} / {statistics.median(case.rates):.2f}"
            starts = [int((folder / f"{model}.ours.{i}.start_ns").read_text()) * 1e-9 for i in range(rounds)]
            title += f" (from the program's start to its end: {min(starts):.2f} / {statistics.median(starts):.2f})"
        elif name == "load":
            shown = two([r * 1e-9 for r in case.rates], 2)
        else:
            shown = two(case.rates, 1)
        row = [title, shown, case.share(), target(first["dtype"])]
        for p in range(len(peers)):
            rates = peer_rates(folder, model, p, name, rounds) if name not in ("load", "first") else []
            row += [two(rates, 1), f"{case.best / max(rates):.2f}" if rates else "–"]
        print("| " + " | ".join(row) + " |")
    repeated = sum(Case(ours, name).unsteady for name in first["cases"])
    print(f"\n{repeated} runs were repeated because the probes beside them differed by more than 20 %.")
    for p, name in enumerate(peers):
        commit, buffers = peer_facts(folder, model, p)
        print(f"{name}: commit {commit}; buffers: {', '.join(buffers) or 'it names none'}.")


def main():
    folder, rounds, n_models = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    models, peers = sys.argv[4:4 + n_models], sys.argv[4 + n_models:]
    machine = json.loads((folder / "machine.json").read_text())
    columns = machine["probes"]
    print("\n| probe | " + " | ".join(f"{c['threads']} thread{'s' * (c['threads'] > 1)}" for c in columns) + " | |")
    print("|---|" + "---|" * (len(columns) + 1))
    print("| memory read, GB/s | " + " | ".join(f"{c['memory_bytes_per_second'] / 1e9:.1f}" for c in columns) + " | |")
    for kind, instruction in machine["instructions"].items():
        rates = [c["ops_per_second"][kind] for c in columns]
        cells = " | ".join("none" if r is None else f"{r / 1e9:.0f}" for r in rates)
        print(f"| {kind}, Gop/s | {cells} | {instruction or ''} |")
    for i, path in enumerate(models):
        table(folder, i, path, rounds, peers)


if __name__ == "__main__":
    main()
