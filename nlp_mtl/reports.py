"""Tables for people: scores, and what ``nlp-mtl check`` found."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from nlp_mtl.analysis.data_report import label_summary, number_summary
from nlp_mtl.metrics import Scores

TABLES = (
    ("micro_f1", "macro_f1", "exact_match"),
    ("pearson", "spearman", "mse", "mae"),
    ("span_f1", "span_f1_lenient", "accuracy", "macro_f1"),
)
"""What is told of tasks: of the first table whose first metric they have, else of the last."""


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=False, markup=False, emoji=False)  # labels are plain text
    if not console.is_terminal:
        console.width = 120  # a log file has no width of its own
    return console


def main_metrics(scores: Mapping[str, Scores]) -> dict[str, str]:
    """``{task: main metric}``: the first of a task's scores."""
    return {task: next(iter(values)) for task, values in scores.items()}


def print_scores(scores: Mapping[str, Mapping[str, Scores]], main: Mapping[str, str]) -> None:
    """Tables of ``{split: {task: scores}}``; the main metric of each task is marked."""
    told: dict[tuple[str, ...], list[str]] = {}
    for task in main:
        there = {name for found in scores.values() for name in found.get(task, ())}
        told.setdefault(next((table for table in TABLES if table[0] in there), TABLES[-1]), []).append(task)
    for metrics in [table for table in reversed(TABLES) if table in told]:
        names = [name.replace("_", " ") for name in metrics]
        table = Table("task", "split", *names, "items", title="Scores (* main metric)")
        for column in table.columns[2:]:
            column.justify = "right"
        for task in told[metrics]:
            for split, found in scores.items():
                if task in found:
                    values = found[task]
                    cells = [
                        f"{values[name]:.4f}{'*' if main[task] == name else ' '}" if name in values else ""
                        for name in metrics
                    ]
                    table.add_row(task, split, *cells, f"{values['items']:,}")
        _console().print(table)


def print_old_scores(rows: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> None:
    """A table of the main metrics of an extended model's old tasks, before and after; which of them were not scored."""
    console = _console()
    if rows:
        table = Table("task", "split", "metric", "before", "after", "change", title="Old tasks, before and after")
        for column in table.columns[3:]:
            column.justify = "right"
        for row in rows:
            before, after = row["before"], row["after"]
            metric = row["metric"].replace("_", " ")
            table.add_row(row["task"], row["split"], metric, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}")
        console.print(table)
    if unscored := [task for task in tasks if task not in {row["task"] for row in rows}]:
        console.print(f"Not scored, as their data were not read: {', '.join(unscored)}", soft_wrap=True)


def print_comparison(report: Mapping[str, Any]) -> None:
    """Of what :func:`nlp_mtl.compare.compare` found, sentences of tasks and their mean, and what predictions cost."""
    console = _console()
    for one in (*report["tasks"].values(), report["mean"]):
        console.print(f"- {one['sentence']}", soft_wrap=True)
    cost = report["cost"]
    asked = " and ".join(f"{cost[kind]:,} {kind}" for kind in ("texts", "pairs") if cost[kind])
    console.print(
        f"\nTo answer all tasks for {asked}, the single-task models took {cost['ratio']:.2f} times as "
        "long as the joint one on this machine.",
        soft_wrap=True,
    )


def print_trials(trials: Sequence[Mapping[str, Any]], best: int) -> None:
    """A table of trials, as ``trials.csv`` has them; the best is marked. Keys with one value are left out."""
    keys = [key for key in trials[0] if len({trial[key] for trial in trials}) > 1 or key in ("trial", "state", "score")]
    table = Table(title="Trials (* best selection score on validation)")
    for key in keys:
        table.add_column(key.replace(".", ".\n"), overflow="fold")
    for trial in trials:
        cells = {key: _cell(value) for key, value in trial.items()}
        cells["score"] = (
            "" if trial["score"] is None else f"{trial['score']:.4f}{'*' if trial['trial'] == best else ' '}"
        )
        table.add_row(*[cells[key] for key in keys])
    _console().print(table)


_WORST = 10
"""Likely errors of a task that are shown."""

_AROUND_WORD, _OF_TEXT = 4, 60
"""Words that are shown on both sides of one; characters of a text."""


def print_label_errors(report: Mapping[str, Any]) -> None:
    """Of what :func:`nlp_mtl.label_errors.label_errors` found, how much it is and each task's likeliest errors."""
    console = _console()
    table = Table("task", "labels", "estimated errors", "listed", "most often", title="Labels that are likely wrong")
    for task, told in report["tasks"].items():
        often = [f"{pair['given']} -> {pair['proposed']} ({pair['count']:,})" for pair in told["pairs"][:3]]
        share = told["estimated"] / told["labels"]
        table.add_row(
            task, f"{told['labels']:,}", f"{told['estimated']:,} ({share:.1%})", f"{told['listed']:,}", ", ".join(often)
        )
    console.print(table)
    for task in report["tasks"]:
        worst = [line for line in report["errors"] if line["task"] == task][:_WORST]
        table = Table(
            "dataset", "row", "text", "given", "proposed", "quality", "confidence", title=f"{task}: likeliest"
        )
        for column in ("row", "quality", "confidence"):
            next(one for one in table.columns if one.header == column).justify = "right"
        for line in worst:
            labels = [
                ", ".join(one) or "none" if isinstance(one, list) else one for one in (line["given"], line["proposed"])
            ]
            table.add_row(
                line["dataset"], str(line["row"]), _place(line), *labels, f"{line['quality']:.3f}",
                f"{line['confidence']:.3f}",
            )  # fmt: skip
        if worst:
            console.print(table)


def _place(line: Mapping[str, Any]) -> str:
    """The beginning of a text; or a word in brackets, among those beside it."""
    if "word" in line:
        place, words = line["word"], [word or "" for word in line["tokens"]]
        before, after = words[max(0, place - _AROUND_WORD) : place], words[place + 1 : place + 1 + _AROUND_WORD]
        return " ".join([*before, f"[{words[place]}]", *after])
    texts = [line[key] or "" for key in ("text", "text_pair") if key in line] or [
        " ".join(filter(None, line["tokens"]))
    ]
    return " | ".join(text if len(text) <= _OF_TEXT else f"{text[:_OF_TEXT]}..." for text in texts)


def print_compression(report: Mapping[str, Any]) -> None:
    """What :func:`nlp_mtl.compress.compress` found: what was done, and a table of sizes, speed and scores."""
    console, done = _console(), report["done"]
    for key, one in done.items():
        if key == "magnitude":
            console.print(f"- {key}: {one['zeros']:.1%} of the weights in the encoder's layers are 0", soft_wrap=True)
            continue
        of = {"intermediate": "units in each layer", "vocabulary": "pieces"}.get(key, key)
        console.print(f"- {key}: {one['after']:,} of {one['before']:,} {of} are left", soft_wrap=True)
        for split, words in one.get("elsewhere", {}).items():
            console.print(
                f"  of {words['words']:,} words of {split}, {words['otherwise']:,} become other pieces, "
                f"{words['unknown']:,} of them with an unknown one",
                soft_wrap=True,
            )
    stages = [stage for stage in ("before", "compressed", "finetuned") if stage in report]
    table = Table("", *stages, title="Before and after (scores: main metrics)")
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("parameters", *[f"{report[stage]['parameters']:,}" for stage in stages])
    for key, name in (("bytes", "weights, MB"), ("gzip_bytes", "weights by gzip, MB")):
        if key in report["before"]:
            table.add_row(name, *[f"{report[stage][key] / 1e6:.1f}" for stage in stages])
    if speed := report["speed"]:
        rates = speed["texts_per_second"]
        between = [""] * (len(stages) - 2)
        table.add_row("texts a second", f"{rates['before']:.1f}", *between, f"{rates['after']:.1f}")
        table.add_row("times as fast", "1.00", *between, f"{speed['ratio']:.2f}")
    for split, found in report["before"]["scores"].items():
        for task, metric in main_metrics(found).items():
            values = [report[stage]["scores"][split][task][metric] for stage in stages]
            table.add_row(f"{task}, {metric.replace('_', ' ')}, {split}", *[f"{value:.4f}" for value in values])
    console.print(table)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def print_check(report: Mapping[str, Any]) -> None:
    """What :func:`nlp_mtl.analysis.data_report.data_report` found (its notes were logged while loading)."""
    console = _console()
    table = Table(
        "dataset",
        "split",
        "rows",
        "tokens",
        "p50",
        "p95",
        "p99",
        "max",
        "windowed",
        "cut words",
        "cut pairs",
        title="Lengths in tokens",
    )
    for row in report["splits"]:
        table.add_row(
            row["dataset"], row["split"], f"{row['rows']:,}", f"{row['tokens']:,}",
            *[str(row[f"length_{key}"]) for key in ("p50", "p95", "p99", "max")],
            f"{row['windowed_share']:.2%}", str(row["cut_words"]), str(row["cut_pairs"]),
        )  # fmt: skip
    console.print(table)
    table = Table("task", "dataset", "split", "labelled rows", "labelled items", "labels", title="Labels")
    for row in report["labels"]:
        table.add_row(
            row["task"], row["dataset"], row["split"],
            f"{row['labelled_rows']:,}", f"{row['labelled_items']:,}",
            label_summary(row["counts"]) if "counts" in row else number_summary(row["numbers"]),
        )  # fmt: skip
    console.print(table)
    if report["agreement"]:
        table = Table("tasks", "items", "measure", "value", title="Labels of two tasks on the same training rows")
        for row in report["agreement"]:
            name = {"equal": "share of equal labels", "nmi": "normalised mutual information"}[row["measure"]]
            table.add_row(", ".join(row["tasks"]), f"{row['items']:,}", name, f"{row['value']:.4f}")
        console.print(table)
    table = Table("dataset", "train rows", "share", "rows a step", "passes", title="Sampling")
    for row in report["sampling"]:
        table.add_row(
            row["dataset"],
            "unknown" if row["rows"] is None else f"{row['rows']:,}",
            f"{row['share']:.4f}",
            f"{row['rows_per_step']:.1f}",
            "unknown" if row["passes"] is None else f"{row['passes']:.2f}",
        )
    console.print(table)
    steps, first = report["steps"], report["first_micro_batch"]
    console.print(
        f"Steps: {steps['steps']:,} of {steps['batch_size']} rows ({steps['rows']:,} rows), windows of at most "
        f"{steps['max_length']} tokens, {steps['layout']} micro-batches of at most {steps['max_tokens']}.\n"
        f"First step: {_count(first['micro_batches_in_step'], 'micro-batch', 'es')}, "
        f"{first['padding_in_step']:.1%} padding. Its first: {_count(first['rows'], 'row', 's')} of up to "
        f"{first['longest']} tokens, {first['padding']:.1%} padding; labelled rows: "
        + ", ".join(f"{task} {count}" for task, count in first["labelled_rows"].items())
    )
    if "episodes" in report:
        episodes = report["episodes"]
        console.print(
            f"\nA meta run: {episodes['steps']:,} outer steps of {_count(episodes['episodes'], 'episode', 's')}, each "
            f"of up to {episodes['ways']} labels, {_count(episodes['shots'], 'row', 's')} a label and "
            f"{_count(episodes['inner_steps'], 'inner step', 's')}. The steps above are those of the tasks themselves.",
            soft_wrap=True,
        )
    _print_cleaning(console, report["cleaning"])
    if report["odd"]:
        console.print(f"\n{_count(len(report['odd']), 'odd thing', 's')}:")
        for sentence in report["odd"]:
            console.print(f"  - {sentence}", soft_wrap=True)
    else:
        console.print("\nNothing odd found.")


def _print_cleaning(console: Console, cleaning: Mapping[str, Any]) -> None:
    if not cleaning["splits"] and not cleaning["prediction"]:
        return
    console.print(f"\nCleaning at prediction: {_steps(cleaning['prediction'])}.", soft_wrap=True)
    for split in cleaning["splits"]:
        console.print(
            f"Cleaning of {split['dataset']}, {split['split']}: {split['changed']:,} of "
            f"{_count(split['texts'], 'text', 's')} changed by {_steps(split['steps'])}.",
            soft_wrap=True,
        )
        for before, after in split["examples"]:
            console.print(f"  {before!r} -> {after!r}", soft_wrap=True)


def _steps(steps: Mapping[str, Any]) -> str:
    """Steps in a line; of stop words how many."""
    told = {key: f"{len(value)} words" if isinstance(value, list) else value for key, value in steps.items()}
    return ", ".join(key if value is True else f"{key} {value!r}" for key, value in told.items()) or "nothing"


def _count(number: int, thing: str, plural: str) -> str:
    return f"{number:,} {thing}{plural if number != 1 else ''}"
