"""The model card: what a run's model is, what it was trained on, how it scores, how to use it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from nlp_mtl.errors import ModelError

BEGIN, END = "<!-- nlp_mtl: what follows is made from the run -->", "<!-- nlp_mtl: end -->"
"""Around the part that the next push writes anew. All else in a card is its owner's."""

_OWNERS = ("license", "language")
"""What a user may have set in the card itself, and stays so."""
_TEMPLATE = Path(__file__).with_name("card_template.md")
_TITLES = {
    "span_f1": "Span F1 (strict IOB2)",
    "span_f1_lenient": "Span F1 (conlleval)",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
}
_METRICS = {"span_f1": "seqeval", "accuracy": "accuracy", "macro_f1": "f1"}
"""How the Hub calls our metrics."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def hub_id(path: str | None) -> str | None:
    """A path in a recipe that is an id on the Hub, and not a folder; else None."""
    is_id = path is not None and _HUB_ID.fullmatch(path) and not path.startswith((".", "~")) and not Path(path).exists()
    return path if is_id else None


def card_data(
    recipe: Mapping[str, Any], results: Mapping[str, Any], about: Mapping[str, Any], repo_id: str
) -> dict[str, Any]:
    """The metadata of a card, as its YAML header has them.

    Args:
        recipe: resolved, as a run folder keeps it.
        results: what ``results.json`` holds.
        about: what only the user knows: ``license``, ``language``, ``tags``.
    """
    types = list(dict.fromkeys(task["type"] for task in recipe["tasks"].values()))
    named = dict.fromkeys(hub_id(spec.get("path")) for spec in recipe["datasets"].values())
    data: Any = ModelCardData(
        language=about.get("language"),
        license=about.get("license"),
        library_name="nlp_mtl",
        tags=["nlp_mtl", "multi-task", *types, *about.get("tags", [])],
        datasets=[name for name in named if name] or None,
        base_model=hub_id(recipe["encoder"]),
        pipeline_tag=types[0] if len(types) == 1 else None,
        metrics=sorted({_METRICS[metric] for metric in results["main_metrics"].values()}),
    )
    found: dict[str, Any] = {key: value for key, value in data.to_dict().items() if value is not None}
    evaluated = _results(recipe, results)
    if evaluated:
        found["model-index"] = eval_results_to_model_index(repo_id, evaluated)
    return found


def _results(recipe: Mapping[str, Any], results: Mapping[str, Any]) -> list[EvalResult]:
    found = []
    for split, tasks in results["scores"].items():
        for task, scores in tasks.items():
            spec = recipe["tasks"][task]
            datasets = [spec["dataset"]] if isinstance(spec["dataset"], str) else spec["dataset"]
            first = recipe["datasets"][datasets[0]]
            for metric, title in _TITLES.items():
                if metric not in scores:
                    continue
                found.append(
                    EvalResult(
                        task_type=spec["type"],
                        task_name=task,
                        dataset_type=hub_id(first.get("path")) or datasets[0],
                        dataset_name=", ".join(datasets),
                        dataset_config=first.get("name"),
                        dataset_revision=first.get("revision"),
                        dataset_split=split,
                        metric_type=_METRICS.get(metric, "f1"),
                        metric_name=title,
                        metric_value=round(float(scores[metric]), 6),
                    )
                )
    return found


def card_body(
    recipe: Mapping[str, Any],
    results: Mapping[str, Any],
    config: Mapping[str, Any],
    repo_id: str,
    plots: Sequence[str] = (),
) -> str:
    """The part of a card that is made from a run, between its marks.

    Args:
        config: the model's ``config.json``.
        plots: picture files in the repository.
    """
    tasks = config["tasks"]
    rows = [f"| {task['name']} | {task['type']} | {_labels(task['labels'])} |" for task in tasks]
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        repo_id=repo_id,
        tasks="\n".join(["| task | type | labels |", "|---|---|---|", *rows]),
        scores=_scores_table(results),
        data=_data_table(recipe, results),
        encoder=hub_id(recipe["encoder"]) or Path(recipe["encoder"]).name,
        first_task=tasks[0]["name"],
        first_type=tasks[0]["type"],
        max_length=config["max_length"],
        recipe=as_yaml(recipe).strip(),
        plots="\n".join(f"![{Path(plot).stem}]({plot})" for plot in plots),
        versions=", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    )
    return f"{BEGIN}\n{text.strip()}\n{END}"


def _labels(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 30} more" if len(labels) > 30 else ""
    return ", ".join(f"`{label}`" for label in labels[:30]) + more


def _scores_table(results: Mapping[str, Any]) -> str:
    if not results["scores"]:
        return "Nothing could be scored: the data had no labelled validation or test split."
    lines = ["| task | split | metric | score | items |", "|---|---|---|---:|---:|"]
    for split, tasks in results["scores"].items():
        for task, scores in tasks.items():
            for metric, title in _TITLES.items():
                if metric in scores:
                    mark = " (main)" if results["main_metrics"].get(task) == metric else ""
                    lines.append(f"| {task} | {split} | {title}{mark} | {scores[metric]:.4f} | {scores['items']:,} |")
    return "\n".join(lines)


def _data_table(recipe: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    lines = ["| dataset | from | training rows |", "|---|---|---:|"]
    for name, spec in recipe["datasets"].items():
        known = hub_id(spec.get("path"))
        parts = [part for part in (spec.get("name"), spec.get("revision")) if part]
        source = f"[{known}](https://huggingface.co/datasets/{known})" if known else "files"
        rows = results["data"][name]["splits"].get("train", {}).get("rows")
        lines.append(f"| {name} | {' '.join([source, *parts])} | {'unknown' if rows is None else f'{rows:,}'} |")
    return "\n".join(lines)


def merged(old: str | None, data: Mapping[str, Any], body: str) -> str:
    """A whole card: a new one, or an old one whose made part is written anew and whose other text stays.

    Args:
        old: the card that is there.

    Raises:
        ModelError: the old one has a mark too few or too many, or its header cannot be read.
    """
    if old is None:
        return f"---\n{_header(data)}---\n\n{body}\n"
    try:
        kept: Any = ModelCard(old, ignore_metadata_errors=False)
    except (ValueError, yaml.YAMLError) as error:
        raise ModelError(f"the card that is there has a header that cannot be read: {error}") from error
    text = kept.text.strip("\n")
    marks = (text.count(BEGIN), text.count(END))
    if marks == (0, 0):
        text = f"{text}\n\n{body}".strip("\n")
    elif marks == (1, 1) and text.index(BEGIN) < text.index(END):
        text = text[: text.index(BEGIN)] + body + text[text.index(END) + len(END) :]
    else:
        raise ModelError(
            f"the card that is there holds {BEGIN!r} {marks[0]} times and {END!r} {marks[1]} times; each should stand "
            "there once, around what a push writes anew: mend the card, or take both out"
        )
    own = {key: value for key, value in kept.data.to_dict().items() if value is not None}
    stays = {key: value for key, value in own.items() if key in _OWNERS or key not in data}
    return f"---\n{_header({**data, **stays})}---\n\n{text}\n"


def _header(data: Mapping[str, Any]) -> str:
    return as_yaml(json.loads(json.dumps(data)))  # plain values only


def as_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML, in their order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
