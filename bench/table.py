"""The figures as a page: the table, the ratios and the targets, in Markdown. Called by `run.py`; measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from measure import Plan, Row

PEERS = ("litellm", "portkey", "nginx")
TARGETS: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("cpu_us_per_request", "CPU per request <= 80 us", lambda figure: figure <= 80),
    ("cpu_us_per_chunk", "CPU per stream chunk <= 25 us", lambda figure: figure <= 25),
    ("vs_litellm", "CPU per request at least 70 times below LiteLLM", lambda figure: figure >= 70),
    ("vs_portkey", "CPU per request at least 8 times below Portkey", lambda figure: figure >= 8),
    ("vs_nginx", "CPU per request at most 6 times nginx", lambda figure: figure <= 6),
    ("slow500_rps", "at least 8,000 requests/s at 500 connections, 50 ms upstream", lambda figure: figure >= 8000),
    ("rss_peak_mb", "resident memory <= 120 MB after all of this", lambda figure: figure <= 120),
    ("start_seconds", "start to first health reply < 1.5 s", lambda figure: figure < 1.5),
)


def _number(value: object, digits: int = 0) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "-"


def _pair(row: Row, first: str, second: str, digits: int = 1) -> str:
    return f"{_number(row.get(first), digits)} / {_number(row.get(second), digits)}" if first in row else "-"


def _cells(row: Row, plan: Plan, direct_us: float | None) -> list[str]:
    added = "-"
    if direct_us is not None and "c1_p50_us" in row and row["gateway"] != "direct":
        added = _number(row["c1_p50_us"] - direct_us)
    paced = _pair(row, "paced_p50_ms", "paced_p99_ms", 2) + (
        "" if row.get("pace", 300) == 300 else f" ({row['pace']}/s)"
    )
    streams = row.get("streams_at_once", 100)
    ttfb = _number(row.get("ttfb_p50_ms"), 1) + ("" if streams == 100 else f" ({streams})")
    slow = [
        f"{_number(row.get(f'slow{n}_rps'))}; {_pair(row, f'slow{n}_p50_ms', f'slow{n}_p99_ms')}"
        for n in plan.concurrency
    ]
    return [
        f"{row['title']} {row.get('version', '')}".strip() + (" (!)" if row.get("faults") else ""),
        _number(row.get("rps")),
        _number(row.get("cpu_us_per_request"), 1),
        _pair(row, "c64_p50_ms", "c64_p99_ms", 2),
        added,
        paced,
        _number(row.get("cpu_us_per_chunk"), 1),
        ttfb,
        *slow,
        _pair(row, "rss_idle_mb", "rss_peak_mb", 0),
        _number(row.get("start_seconds"), 2),
        _number(row.get("noise"), 2),
    ]


def ratios(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return {peer: {figure: ratio}} for the peers that were measured: peer / Hortator, but Hortator / nginx, which does less."""
    by_name = {row["gateway"]: row for row in rows}
    ours = by_name.get("hortator", {})
    found: dict[str, dict[str, float]] = {}
    for peer in PEERS:
        theirs = by_name.get(peer, {})
        for figure in ("cpu_us_per_request", "cpu_us_per_chunk"):
            if ours.get(figure) and theirs.get(figure):
                ratio = theirs[figure] / ours[figure]
                found.setdefault(peer, {})[figure] = 1 / ratio if peer == "nginx" else ratio
    return found


def _judged(rows: Sequence[Row]) -> list[tuple[str, float, bool]]:
    """Return (target, figure, met) for each target that this run can judge."""
    ours = next((row for row in rows if row["gateway"] == "hortator"), None)
    if ours is None:
        return []
    figures = dict(ours)
    for peer, found in ratios(rows).items():
        if "cpu_us_per_request" in found:
            figures[f"vs_{peer}"] = found["cpu_us_per_request"]
    return [(text, figures[name], met(figures[name])) for name, text, met in TARGETS if figures.get(name) is not None]


def missed_targets(rows: Sequence[Row]) -> list[str]:
    """Return what Hortator missed: targets, wrong replies, or not having run at all."""
    missed = [text for text, _, met in _judged(rows) if not met]
    for row in rows:
        if row["gateway"] == "hortator":
            missed += [str(row[key]) for key in ("missing", "failed") if key in row] + list(row.get("faults", []))
    return missed


def render(rows: Sequence[Row], about: Row, plan: Plan) -> str:
    """Return the whole page."""
    direct = next((row for row in rows if row["gateway"] == "direct"), {})
    head = [
        "gateway",
        "requests/s, 64 conn.",
        "us CPU / request",
        "p50 / p99 ms, 64 conn.",
        "added p50 us, 1 conn.",
        "p50 / p99 ms, 300/s",
    ]
    head += ["us CPU / chunk", "first byte p50 ms, 100 streams"]
    head += [f"{n:,} conn., 50 ms upstream: requests/s; p50 / p99 ms" for n in plan.concurrency]
    head += ["RSS MB idle / peak", "start s", "noise"]
    lines = [
        f"Measured {about['at']} at {about['commit']}: {about['cpu']}, {about['cores']} cores, Linux {about['kernel']}.",
        "",
    ]
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        if "missing" not in row and "failed" not in row:
            lines.append("| " + " | ".join(_cells(row, plan, direct.get("c1_p50_us"))) + " |")
    lines.append("")
    for row in rows:
        lines += [f"- {row['title']}: not installed: {row['missing']}"] if "missing" in row else []
        lines += [f"- {row['title']}: failed: {row['failed']}"] if "failed" in row else []
        lines += [f"- (!) {row['title']}: {fault}" for fault in row.get("faults", [])]
        if row.get("noise", 0) > 0.05:
            lines.append(
                f"- {row['title']}: other work took {row['noise']:.0%} of its core; its requests/s are too low."
            )
    for peer, found in ratios(rows).items():
        parts = [f"{value:.1f}x {figure.replace('cpu_us_per_', 'CPU per ')}" for figure, value in found.items()]
        lines.append(f"- {'Hortator / nginx' if peer == 'nginx' else f'{peer} / Hortator'}: {', '.join(parts)}")
    judged = _judged(rows)
    if judged:
        lines += ["", "| target | measured | met |", "|---|---|---|"]
        lines += [f"| {text} | {figure:,.2f} | {'yes' if met else '**no**'} |" for text, figure, met in judged]
    return "\n".join(lines).rstrip() + "\n"
