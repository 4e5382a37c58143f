"""What the figures say, in sentences that they support and no others.

In: the blocks of metrics.json. Out: sentences with a verdict; the same for a terminal.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from density import distance_label
from geophoto.fusing import fused
from geophoto.plots import TITLES
from geophoto.resampling import FEW_GROUPS


def minutes_label(minutes: float) -> str:
    """Minutes as people say them: "45 min", "3.1 h"."""
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.3g} h"


def metres_label(metres: float) -> str:
    return f"{metres:,.0f} m"


def percent(share: float) -> str:
    return f"{share * 100:.0f} %" if 0.1 <= share <= 0.9 else f"{share * 100:.3g} %"


# title, the figure of metrics.json that stands for it, the unit of its interval, how it is shown
HEADS: dict[str, tuple[str, str, str, Callable[[float], str]]] = {
    "gps": ("Position", "median_km", "km", distance_label),
    "time": ("Time of day", "mean_minutes", "minutes", minutes_label),
    "altitude": ("Altitude", "mean_m", "m", metres_label),
}
CHANGES: dict[str, Callable[[float], str]] = {  # of differences, which are small: a decimal more
    "gps": distance_label,
    "time": "{:.1f} min".format,
    "altitude": "{:.1f} m".format,
}
FEW_TAGGED = 20  # photos with an orientation; fewer say nothing
QUARTER = 0.25  # of four turns, one is right by chance
TOLD = {  # by the model against (one fixed answer, nearest neighbours): verdict, in words
    ("better", "better"): ("good", "better than both, and more than luck"),
    ("better", "level"): ("fair", "more than luck, level with nearest neighbours"),
    ("better", "worse"): ("fair", "more than luck, but nearest neighbours do better"),
    ("level", "better"): ("open", "no clear gain over one fixed answer: this may be luck"),
    ("level", "level"): ("open", "no clear gain over either: this may be luck"),
    ("level", "worse"): ("bad", "no clear gain over one fixed answer, worse than neighbours"),
}
WORSE = ("bad", "worse than one fixed answer for all photos")


def against(limits: list[float] | None, own: str, other: str) -> str | None:
    """Whether an error is better, level or worse than another, by the interval of their difference;
    None without one. Errors that read the same are level, whatever lies behind the last digit."""
    if limits is None:
        return None
    if own == other or limits[0] <= 0 <= limits[1]:
        return "level"
    return "better" if limits[1] < 0 else "worse"


def verdict_of(head: str, block: dict) -> tuple[str, str]:
    """good, fair, open or bad, and in words whether a head beats what costs nothing."""
    _, key, _, show = HEADS[head]
    own, trivial, knn = (show(block[f"{before}{key}"]) for before in ("", "baseline_", "knn_"))
    sides = (
        against(block.get("minus_baseline_interval"), own, trivial),
        against(block.get("minus_knn_interval"), own, knn),
    )
    if sides[0] is None or sides[1] is None:
        return "open", "all photos are one group, so whether it is luck cannot be told"
    verdict, words = WORSE if sides[0] == "worse" else TOLD[sides[0], sides[1]]
    if block["groups"] < FEW_GROUPS and verdict != "bad":  # their bootstrap promises too much
        return "open", f"{block['groups']} groups of photos are too few to tell it from luck"
    return verdict, words


def range_words(limits: list[float] | None, show: Callable[[float], str]) -> str:
    return f" (95 % interval {show(limits[0])} to {show(limits[1])})" if limits else ""


def head_findings(metrics: dict, model: str) -> list[dict]:
    """One sentence per head of one model: title, text, and the verdict in words and by its name
    (good, fair, open, bad). A head without labels has none."""
    found = []
    for head, (title, key, unit, show) in HEADS.items():
        block = metrics[model][head]
        if not block["n"]:
            continue
        verdict, words = verdict_of(head, block)
        own = show(block[key])
        said = f"half of {block['n']} photos are placed within {own}"
        if head != "gps":
            said = f"{block['n']} answers are off by {own} on average"
        text = (
            f"{said}{range_words(block[f'interval_{unit}'], show)}. One fixed answer for all is "
            f"off by {show(block[f'baseline_{key}'])}, nearest neighbours by "
            f"{show(block[f'knn_{key}'])}"
        )
        one = {"head": head, "title": title, "text": text, "words": words, "verdict": verdict}
        found.append(one)
    turned = metrics[model]["orientation"]
    if turned["n"]:
        found.append({"head": "orientation", "title": "Orientation", **turn_finding(turned)})
    return found


def turn_finding(block: dict) -> dict:
    """Text and verdict on orientation."""
    limits = block["turn_interval"]
    text = (
        f"of four turns of {block['n']} photos {percent(block['turn_accuracy'])} are set upright"
        f"{range_words(limits, percent)}, by guessing 25 %; of mirror images "
        f"{percent(block['mirror_accuracy'])}, by guessing 50 %"
    )
    if block["n"] < FEW_TAGGED:
        words, verdict = "too few photos carry a tag to tell more", "open"
    elif limits is None:
        words, verdict = "all photos are one group, so whether it is luck cannot be told", "open"
    elif limits[0] > QUARTER:
        words, verdict = "more than luck", "good"
    else:
        words = "this may be luck"
        verdict = "bad" if block["turn_accuracy"] <= QUARTER else "open"
    return {"text": text, "words": words, "verdict": verdict}


# ---------------------------------------------------------------- depth


def depth_words(head: str, block: dict) -> str:
    """helps, hurts, mixed, within the noise, or unknown: one head of depth_minus_rgb. Positions
    count by their middle photo and by all (the ratio of the geometric means), which may disagree.
    """
    kept = [block["interval"]]
    if block.get("ratio_interval"):
        kept.append([math.log(x) for x in block["ratio_interval"]])
    if kept[0] is None:
        return "unknown"
    signs = {-1 if limits[1] < 0 else 1 for limits in kept if not limits[0] <= 0 <= limits[1]}
    if not signs or CHANGES[head](abs(change_of(block))) == CHANGES[head](0.0):
        return "within the noise"
    return "mixed" if len(signs) == 2 else "helps" if signs == {-1} else "hurts"


def change_of(block: dict) -> float:
    """The change of the headline error: RGB + depth minus RGB."""
    return next(v for k, v in block.items() if k.startswith(("median", "mean")))


def signed(value: float, show: Callable[[float], str]) -> str:
    """The value with its sign, none where it is shown as zero."""
    text = show(abs(value))
    return text if text == show(0.0) else f"{'−' if value < 0 else '+'}{text}"


def depth_findings(difference: dict) -> list[str]:
    """One sentence per head on what depth changes, with both intervals of positions."""
    names = {"gps": "median position", "time": "mean time", "altitude": "mean altitude"}
    lines = []
    for head, block in difference.items():
        show = CHANGES[head]
        limits = " to ".join(signed(x, show) for x in block["interval"] or ())
        line = (
            f"Adding depth changes the {names[head]} error by "
            f"{signed(change_of(block), show)} on the same {block['n']} photos "
            + (f"(95 % interval {limits})" if limits else "(one group)")
        )
        if block.get("ratio_interval"):
            low, high = block["ratio_interval"]
            line += (
                f", and all errors together by a factor of {block['geometric_ratio']:.2f} "
                f"({low:.2f} to {high:.2f})"
            )
        lines.append(f"{line}: {depth_words(head, block)}.")
    return lines


def depth_summary(difference: dict) -> dict | None:
    """Whether depth helps, in one sentence with a verdict; None where two models are not there."""
    if not difference:
        return None
    told = {head: depth_words(head, block) for head, block in difference.items()}
    parts = []
    for head, block in difference.items():
        title, show = HEADS[head][0], CHANGES[head]
        parts.append(
            f"{title.lower()} {told[head]} ({signed(change_of(block), show)}; "
            f"of {block['n']} photos {block['helped']} better, {block['hurt']} worse)"
        )
    words = set(told.values())
    if words == {"unknown"}:
        verdict, answer = "open", "cannot be told from one group"
    elif "helps" in words and not words & {"hurts", "mixed"}:
        verdict, answer = "good", "yes"
    elif words & {"hurts", "mixed"} and "helps" not in words:
        verdict, answer = "bad", "no"
    elif "helps" in words:
        verdict, answer = "fair", "in part"
    else:
        verdict, answer = "open", "not that one could tell"
    text = f"RGB + depth against RGB on the same photos: {', '.join(parts)}"
    return {"head": "depth", "title": "Does depth help?", "text": text, "words": answer,
            "verdict": verdict}  # fmt: skip


# ---------------------------------------------------------------- company


def fuse_words(kind: str, choices: dict) -> str:
    """What it brings to ask photos of one burst or folder together, all heads in one sentence."""
    gain, none, alone = [], [], []
    for head, choice in choices.items():
        if choice is None:
            continue
        title = HEADS[head][0].lower()
        change, low, high = (
            f"{signed(100 * x, '{:.0f}'.format)} %" for x in (choice["change"], *choice["interval"])
        )
        if fused(choice):
            limits = f"95 % interval {low} to {high}, {choice['photos']} held-out photos"
            gain.append(f"{title} errors {change} ({limits})")
        elif any(choice["interval"]):
            none.append(f"{title} ({change}, {low} to {high})")
        else:
            alone.append(title)
    told = gain + [f"no clear gain for {', '.join(none)}"] * bool(none)
    told += [f"{', '.join(alone)} better alone"] * bool(alone)
    return f"by {kind}: {'; '.join(told) or 'not measured, no held-out photo had company'}"


def fuse_finding(fuse: dict) -> dict:
    """Whether photos help each other, with a verdict."""
    gains = [fused(choice) for choices in fuse.values() for choice in choices.values()]
    return {
        "head": "fuse", "title": "Do photos of one burst or folder help each other?",
        "text": "asked together " + "; ".join(fuse_words(*about) for about in fuse.items()),
        "words": "in part, see --fuse" if any(gains) else "not that one could tell",
        "verdict": "fair" if any(gains) else "open",
    }  # fmt: skip


def findings(metrics: dict, difference: dict) -> list[str]:
    """The sentences for a terminal: every head of every model and how its photos help each other,
    then what depth changes."""
    lines = []
    for model, block in metrics.items():
        for one in head_findings(metrics, model):
            lines.append(f"{TITLES[model]}, {one['title'].lower()}: {one['text']}: {one['words']}.")
        if "fuse" in block:
            lines += [
                f"{TITLES[model]}, fused {fuse_words(*about)}." for about in block["fuse"].items()
            ]
    return lines + depth_findings(difference)
