"""The report of a comparison as one HTML file: no script, no network, light or dark as the reader's screen is."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; --soft: #f3f5f7; --faint: #57606a }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #14171b; --line: #3a424b; --soft: #1d2228; --faint: #9aa4af }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
       max-width: 74rem; padding: 0 1rem }
h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; margin: 0.8rem 0 }
th, td { border: 1px solid var(--line); padding: 0.3rem 0.5rem; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
th { background: var(--soft) }
ul.verdicts { list-style: none; padding: 0 }
ul.verdicts li { border-left: 0.4rem solid var(--line); background: var(--soft); padding: 0.5rem 0.8rem;
                 margin: 0.5rem 0 }
ul.verdicts li.helped { border-color: #2d7dd2 }
ul.verdicts li.hurt { border-color: #d1495b }
.faint { color: var(--faint) }
img { max-width: 100%; background: #fff; border-radius: 4px; margin: 0.5rem 0 }
code { background: var(--soft); padding: 0 0.2rem; overflow-wrap: anywhere }
"""

_TRANSFER = {
    "pairs": "Row: the task that is scored. Column: the task that it is trained with. Each number is the score of the "
    "two trained together less that of the row's task alone.",
    "leave_one_out": "Row: the task that is scored. Column: the task that is left out. Each number is the score of the "
    "joint model less that of the model without the column's task: what that task gives.",
}
_MARKED = "Below it, the 95% interval over test rows; * where it leaves out 0 and all seeds have the same sign."
_CHOSEN = (
    "there is no labelled test split, so the scores are those of the validation split, on which each run's best step "
    "was chosen: they are too good, jointly and alone."
)
_SCORES = (
    "Scores are means over seeds, ± the standard deviation over seeds. The interval is that of the difference of the "
    "means when the test rows are drawn again (paired bootstrap, {draws:,} draws or more); it does not cover the "
    "seeds, which stand beside it. “Helped” and “hurt” need both: an interval without 0, and the same sign in every "
    "seed."
)
_CONFLICTS = (
    "Cosines between the tasks' gradients on the shared encoder in {steps:,} steps of the joint runs: below 0, two "
    "tasks pull apart. A conflict is no proof of harm; the scores above are what counts."
)
_TIMES = (
    "To answer all tasks for the same texts, the single-task models took {ratio:.2f} times as long as the joint one, "
    "measured in one process on this machine ({device}; medians of a few repeats, by turns)."
)
_METHOD = (
    "Every model draws as many rows of each of its datasets as the joint run does, {steps}, with the same learning "
    "rates, whose schedule ends with its own last step, and is evaluated as often. All models and seeds have the same "
    "training, validation and test rows. A joint run's best step is chosen by the recipe's selection score over its "
    "tasks, a single-task run's by its own task. With several tasks, one interval in twenty leaves out 0 by chance."
)
_STEPS = {
    False: "in steps of as many rows",
    True: "but for what rounding the rows of a step to a whole number adds or takes away (see above), in as many steps",
}


def page(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The whole file.

    Args:
        report: see :func:`nlp_mtl.compare.compare`. What comes from data and recipes is escaped.
        pictures: PNG files by name; see :func:`nlp_mtl.analysis.comparison_plots.draw_comparison`.
    """
    title = f"Does joint training pay? {report['name']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _verdicts(report),
        "<h2>Scores</h2>",
        _score_table(report),
        _picture("differences.png", pictures),
        "<h2>Learning curves</h2>" if "learning_curves.png" in pictures else "",
        _picture("learning_curves.png", pictures),
        *(_transfer(report, kind, pictures) for kind in _TRANSFER),
        _conflicts(report, pictures),
        _over_time(pictures),
        _cost(report["cost"]),
        _models(report),
        _method(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )  # fmt: skip


def _verdicts(report: Mapping[str, Any]) -> str:
    items = [
        f'<li class="{escape(one["verdict"].replace(" ", "-"))}">{escape(one["sentence"])}</li>'
        for one in (*report["tasks"].values(), report["mean"])
    ]
    chosen = [task for task, one in report["tasks"].items() if one["split"] != "test"]
    warning = f"<p>{escape(', '.join(chosen))}: {_CHOSEN}</p>" if chosen else ""
    return f'<ul class="verdicts">{"".join(items)}</ul>{warning}'


def _score_table(report: Mapping[str, Any]) -> str:
    rows = []
    for task, one in (*report["tasks"].items(), ("mean", report["mean"])):
        low, high = one["interval"]
        cells = [task, one["metric"].replace("_", " "), one["split"], f"{one['rows']:,}", _spread(one["joint"]),
                 _spread(one["alone"]), f"{one['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}",
                 ", ".join(f"{value:+.4f}" for value in one["differences"]), one["verdict"]]  # fmt: skip
        rows.append(cells)
    seeds = ", ".join(map(str, report["seeds"]))
    head = ["task", "metric", "split", "rows", "joint", "single-task", "difference", "95% interval",
            f"by seed ({seeds})", "verdict"]  # fmt: skip
    told = _SCORES.format(draws=min(one["resamples"] for one in report["tasks"].values()))
    return _table(head, rows, numbers=range(3, 9)) + f'<p class="faint">{told}</p>'


def _spread(values: Mapping[str, Any]) -> str:
    return f"{values['mean']:.4f}" + (f" ± {values['sd']:.4f}" if values["sd"] is not None else "")


def _transfer(report: Mapping[str, Any], kind: str, pictures: Mapping[str, bytes]) -> str:
    found = report["transfer"][kind]
    if not found:
        return ""
    tasks = [*report["tasks"]]
    largest = max(abs(of["difference"]) for others in found.values() for of in others.values()) or 1.0
    rows = []
    for one in tasks:
        cells = [f"<th>{escape(one)}</th>"]
        for other in tasks:
            of = found.get(one, {}).get(other)
            if of is None:
                cells.append("<td></td>")
                continue
            low, high = of["interval"]
            mark = "" if of["verdict"] == "no difference" else " *"
            style = f"background: {_tint(of['difference'] / largest)}"
            interval = f'<br><span class="faint">{low:+.4f} to {high:+.4f}</span>'
            cells.append(f'<td class="number" style="{style}">{of["difference"]:+.4f}{mark}{interval}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(name)}</th>" for name in ["", *tasks])
    return (
        f"<h2>{kind.replace('_', ' ').capitalize()}</h2><p>{_TRANSFER[kind]} {_MARKED}</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
        + _picture(f"transfer_{kind}.png", pictures)
    )


def _tint(value: float) -> str:
    """Red below 0, blue above, readable on light and on dark paper."""
    red, green, blue = (45, 125, 210) if value > 0 else (209, 73, 91)
    return f"rgba({red}, {green}, {blue}, {0.35 * min(abs(value), 1.0):.2f})"


def _conflicts(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    found = report["conflicts"]
    if not found:
        why = report["conflicts_missing"] or "no step of a joint run had two tasks with gradients"
        return f"<h2>Conflicts</h2><p>Not measured: {escape(why)}.</p>"
    rows = [[pair.replace("/", " and "), f"{mean:+.4f}", f"{found['negative'][pair]:.0%}"]
            for pair, mean in found["mean"].items()]  # fmt: skip
    count = sum(len(points) for points in found["over_time"].values())
    return (
        f"<h2>Conflicts</h2><p>{_CONFLICTS.format(steps=count)}</p>"
        + _table(["tasks", "mean cosine", "steps below 0"], rows, numbers=(1, 2))
        + _picture("conflicts.png", pictures)
        + _picture("conflicts_over_time.png", pictures)
    )


def _over_time(pictures: Mapping[str, bytes]) -> str:
    names = [f"{what}_over_time.png" for what in ("weights", "gradient_weights", "shares")]
    shown = "".join(_picture(name, pictures) for name in names)
    return f"<h2>Weights over time</h2><p>In the joint runs.</p>{shown}" if shown else ""


def _cost(cost: Mapping[str, Any]) -> str:
    tokens = cost["training_tokens"]

    def count(value: int | None) -> str:
        return "unknown (streamed)" if value is None else f"{value:,}"

    asked = [f"{cost[kind]:,} {kind}" for kind in ("texts", "pairs") if cost[kind]]
    rows = [
        ["parameters", f"{cost['parameters']['joint']:,}", f"{cost['parameters']['alone']:,}"],
        ["training tokens of a seed", count(tokens["joint"]), count(tokens["alone"])],
        [f"seconds for {' and '.join(asked)}", f"{cost['seconds']['joint']:.3f}", f"{cost['seconds']['alone']:.3f}"],
    ]
    return (
        "<h2>Cost</h2>"
        + _table(["", "joint", "single-task models together"], rows, numbers=(1, 2))
        + f"<p>{_TIMES.format(ratio=cost['ratio'], device=escape(cost['device']))}</p>"
    )


def _models(report: Mapping[str, Any]) -> str:
    rows = []
    for name, model in report["models"].items():
        changed = "; ".join(f"{one['key']}: {one['joint']} → {one['here']}" for one in model["differences"])
        steps = ", ".join(f"{run['step']:,} of {run['steps']:,}" for run in model["runs"])
        drawn = f"{model['rows']:,}; jointly {model['joint_rows']:,}"
        rows.append([name, ", ".join(model["tasks"]), drawn, steps, changed or "the recipe itself"])
    head = [
        "model",
        "tasks",
        "rows drawn, as planned",
        "best step of steps, by seed",
        "how its recipe differs from the joint one",
    ]
    return "<h2>What was trained</h2>" + _table(head, rows)


def _method(report: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"<h2>How to read this</h2><p>{_METHOD.format(steps=_STEPS[report['same_steps']])}</p>"
        f'<p class="faint">Command: <code>{escape(report["command"])}</code><br>Versions: {escape(versions)}<br>'
        "All figures: <code>report.json</code>, beside this file.</p>"
    )


def _picture(name: str, pictures: Mapping[str, bytes]) -> str:
    if name not in pictures:
        return ""
    data = base64.b64encode(pictures[name]).decode()
    alt = escape(name.removesuffix(".png").replace("_", " "))
    return f'<p><img alt="{alt}" src="data:image/png;base64,{data}"></p>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=number' if place in right else ''}>{escape(cell)}</td>" for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{cells}</tr>{body}</table></div>'
