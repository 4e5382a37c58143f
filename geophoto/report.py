"""The page of an evaluation: one self-contained HTML file, its table and its sentences.

In: metrics, differences, pictures. Out: report.html; the same rows and sentences for a terminal.
"""

from __future__ import annotations

import base64
from pathlib import Path

import density
from geophoto.plots import TITLES, distance_label

HEADS = {  # title, the figure of metrics.json that stands for it, unit of its interval, how to show
    "gps": ("Position", "median_km", "km", distance_label),
    "time": ("Time of day", "mean_minutes", "minutes", "{:.0f} min".format),
    "altitude": ("Altitude", "mean_m", "m", "{:.0f} m".format),
}


def table_rows(metrics: dict) -> list[dict]:
    """Rows of the headline table: every head of every model beside its two baselines."""
    rows = []
    for head, (title, key, unit, show) in HEADS.items():
        for model, block in metrics.items():
            found = block[head]
            if not found["n"]:
                continue
            ratio = found[key] / max(found[f"baseline_{key}"], 1e-9)
            row = {
                "error of": title,
                "model": TITLES[model],
                "n": found["n"],
                "error": show(found[key]),
            }
            row["95 % interval"] = range_text(found[f"interval_{unit}"], show)
            row["trivial"], row["neighbours"] = (
                show(found[f"baseline_{key}"]),
                show(found[f"knn_{key}"]),
            )
            verdict = "good" if ratio < 1 else "bad"
            rows.append({**row, "error / trivial": f"{ratio:.2f}×", "verdict": verdict})
    for model, block in metrics.items():
        found = block["orientation"]
        if found["n"]:
            missed = 1 - found["turn_accuracy"]
            row = {"error of": "Four turns missed", "model": TITLES[model], "n": found["n"]}
            low_high = found["turn_interval"]
            flipped = [1 - x for x in reversed(low_high)] if low_high else None
            row |= {
                "error": f"{missed * 100:.1f} %",
                "95 % interval": range_text(flipped, lambda x: f"{x * 100:.1f} %"),
                "trivial": "75 %",
                "neighbours": "–",
            }
            verdict = "good" if missed < 0.75 else "bad"
            rows.append({**row, "error / trivial": f"{missed / 0.75:.2f}×", "verdict": verdict})
    return rows


def interval_rows(metrics: dict) -> list[dict]:
    """How wide the intervals are (median half-width), what share of the held-out photos they
    hold, and how many answers are confident, with their error (positions: geometric mean)."""
    rows = []
    for head, (title, _, _, show) in HEADS.items():
        for model, block in metrics.items():
            found = block[head]
            if not found["n"]:
                continue
            row = {"intervals": title, "model": TITLES[model]}
            for level in (50, 90):
                row[f"{level} %"] = f"± {show(found[f'interval{level}'])}"
                row[f"holds ({level})"] = f"{found[f'coverage{level}'] * 100:.0f} %"
            row["confident"] = f"{found['confident']} of {found['n']}"
            sure = found["confident_error"]
            rows.append({**row, "their error": show(sure) if sure is not None else "–"})
    return rows


def range_text(limits: list[float] | None, show) -> str:
    return f"{show(limits[0])} … {show(limits[1])}" if limits else "one group only"


def orientation_rows(metrics: dict) -> list[tuple]:
    """Rows of the orientation table of the report: question, chance, one cell per model."""
    blocks = [block["orientation"] for block in metrics.values()]
    if not all(block["n"] for block in blocks):
        return []

    def row(question: str, chance: str, key: str) -> tuple:
        return (question, chance, *(f"{block[key] * 100:.1f} %" for block in blocks))

    majority = f"{blocks[0]['stored_majority'] * 100:.1f} % (majority)"
    rows = [
        row("Stored files as they are", majority, "stored_accuracy"),
        row("Four turns", "25 %", "turn_accuracy"),
        row("Six classes", "16.7 %", "six_class_accuracy"),
    ]
    for pair in blocks[0]["mirror_pairs"]:
        cells = [f"{block['mirror_pairs'][pair] * 100:.1f} %" for block in blocks]
        rows.append((f"Mirror pair: {pair}", "50 %", *cells))
    return rows


def write_report(
    path: Path, metrics: dict, sentences: list[str], figures: list, about: dict
) -> None:
    """Fill the page; pictures are embedded, so that the file can be mailed."""
    import jinja2

    page = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent)
    ).get_template("report.html.j2")
    content = page.render(
        lead=about["lead"],
        method=about["method"],
        rows=table_rows(metrics),
        intervals=interval_rows(metrics),
        findings=sentences,
        models=[TITLES[name] for name in metrics],
        turns=orientation_rows(metrics),
        draws=about["draws"],
        figures=[
            (title, text, base64.b64encode(file.read_bytes()).decode())
            for title, text, file in figures
            if file is not None
        ],
    )
    with density.write_atomically(path, "w", encoding="utf-8") as file:
        file.write(content)
