"""What a card tells of a model that was made smaller, from the ``compression.json`` of its folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlp_mtl.errors import ModelError
from nlp_mtl.hub.card_header import TITLES
from nlp_mtl.metrics import Scores


def report_of(folder: Path) -> dict[str, Any] | None:
    """What ``compression.json`` of a folder holds; None: there is none, or it is not finished.

    Raises:
        ModelError: it cannot be read.
    """
    file = folder / "compression.json"
    if not file.is_file():
        return None
    try:
        report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return report if "speed" in report else None  # which comes last
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error


def last_scores(report: Mapping[str, Any]) -> dict[str, dict[str, Scores]]:
    """``{split: {task: scores}}`` of the model that is there in the end; empty: it was compressed without data."""
    found: dict[str, dict[str, Scores]] = _last(report)["scores"]
    return found


def before_and_after(report: Mapping[str, Any], tasks: Sequence[Mapping[str, Any]]) -> str:
    """What went, and a table of the model as it was and as it is.

    Args:
        tasks: as ``config.json`` has them.
    """
    old, new = report["before"], _last(report)
    done = [f"{key} {told['before']:,} -> {told['after']:,}" for key, told in report["done"].items() if "after" in told]
    if "magnitude" in report["done"]:
        done.append(f"{report['done']['magnitude']['zeros']:.0%} of the weights in the encoder's layers are 0")
    lines = [f"From a larger model: {', '.join(done)}.", "", "| | before | after |", "|---|---:|---:|"]
    lines.append(f"| parameters | {old['parameters']:,} | {new['parameters']:,} |")
    lines.append(f"| weights, MB | {old['bytes'] / 1e6:.1f} | {new['bytes'] / 1e6:.1f} |")
    if report["speed"] is not None:
        rates = report["speed"]["texts_per_second"]
        lines.append(f"| texts a second | {rates['before']:,.1f} | {rates['after']:,.1f} |")
    for split, scores in old["scores"].items():
        for task in tasks:
            name, metric = task["name"], task["metric"]
            both = [one.get(name, {}).get(metric) for one in (scores, new["scores"].get(split, {}))]
            if None not in both:
                lines.append(f"| {name}, {TITLES[metric]}, {split} | {both[0]:.4f} | {both[1]:.4f} |")
    return "\n".join(lines)


def _last(report: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = report.get("finetuned") or report["compressed"]
    return found
