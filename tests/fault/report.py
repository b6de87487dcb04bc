"""What faults did, as lines while they happen and as a table at the end."""

import collections
import dataclasses
import statistics


@dataclasses.dataclass
class Outcome:
    """Of one fault. Times in seconds from the strike, None where there was nothing to notice or nothing to resume."""

    index: int
    fault: str
    moment: str
    cluster: str
    said: str = ""
    detected_s: float | None = None
    working_s: float | None = None  # until the new group was ready, without its loading
    resumed_s: float | None = None
    n_requests: int = 0
    n_lost: int = 0
    n_refused: int = 0  # times that a request was refused and asked again
    bytes_different: int = 0
    took_s: float = 0.0
    problems: list = dataclasses.field(default_factory=list)

    @property
    def is_bad(self):
        return bool(self.n_lost or self.bytes_different or self.problems)


def ms(seconds):
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"


def line_of(o):
    whole = o.n_requests - o.n_lost
    text = (f"{o.index:4d}  {o.fault:<11} {o.moment:<9} {o.cluster:<9} detected {ms(o.detected_s):>8}, resumed {ms(o.resumed_s):>8}, "
            f"{whole} of {o.n_requests} whole")
    if o.is_bad:
        text += f"  FAILED: {o.n_lost} lost, {o.bytes_different} bytes different"
    return text + f"  {o.took_s:.1f} s" + (f"  ({o.said})" if o.said else "")


def spread(values):
    values = [v for v in values if v is not None]
    return f"{ms(statistics.median(values))} / {ms(max(values))}" if values else "-"


def table_of(outcomes):
    """Markdown: a row per fault and moment, and the sum."""
    rows = collections.defaultdict(list)
    for o in outcomes:
        rows[o.fault, o.moment].append(o)
    head = ["fault", "moment", "faults", "detected in (median / max)", "new group in (median / max)", "resumed in (median / max)", "requests", "lost",
            "bytes different", "other failures"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for (fault, moment), group in [*rows.items(), (("all", ""), list(outcomes))]:
        cells = [fault, moment, len(group), *(spread([getattr(o, t) for o in group]) for t in ("detected_s", "working_s", "resumed_s")),
                 sum(o.n_requests for o in group), sum(o.n_lost for o in group), sum(o.bytes_different for o in group),
                 sum(len(o.problems) for o in group)]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
