"""The model card: what a run's model is, what it was trained on, how it scores, how to use it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from nlp_mtl.errors import ModelError
from nlp_mtl.hub.repository import DatasetFacts

BEGIN, END = "<!-- nlp_mtl: what follows is made from the run -->", "<!-- nlp_mtl: end -->"
"""Around the part that the next push writes anew. All else in a card is its owner's."""

_OWNERS = ("license", "language")
"""What a user may have set in the card itself, and stays so."""
_TEMPLATE = Path(__file__).with_name("card_template.md")
_TASK_TEMPLATE = Path(__file__).with_name("task_card_template.md")
_TITLES = {
    "span_f1": "Span F1 (strict IOB2)",
    "span_f1_lenient": "Span F1 (conlleval)",
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
}
_METRICS = {"span_f1": "seqeval", "accuracy": "accuracy", "macro_f1": "f1"}
"""How the Hub calls our metrics."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class About(NamedTuple):
    """What only its owner knows of a model."""

    license: str | None = None
    language: tuple[str, ...] = ()
    """Codes; none: those of the datasets."""
    tags: tuple[str, ...] = ()


def hub_id(path: str | None) -> str | None:
    """A path in a recipe that is an id on the Hub, and not a folder; else None."""
    is_id = path is not None and _HUB_ID.fullmatch(path) and not path.startswith((".", "~")) and not Path(path).exists()
    return path if is_id else None


def datasets_of(recipe: Mapping[str, Any] | None) -> list[str]:
    """The ids on the Hub of a recipe's datasets; without a recipe there are none."""
    named = dict.fromkeys(hub_id(spec.get("path")) for spec in (recipe or {"datasets": {}})["datasets"].values())
    return [name for name in named if name]


def model_card(
    config: Mapping[str, Any],
    repo_id: str,
    *,
    about: About,
    recipe: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    facts: Mapping[str, DatasetFacts] | None = None,
    plots: Sequence[str] = (),
) -> tuple[dict[str, Any], str]:
    """The metadata of a multi-task model's card, and its text between the marks.

    Args:
        config: the model's ``config.json``.
        repo_id: what to load it by.
        recipe: resolved, as a run folder keeps it; None: the model comes without its run.
        results: what ``results.json`` holds.
        facts: what the Hub tells of datasets, by id.
        plots: picture files in the repository.
    """
    facts = facts or {}
    tasks = config["tasks"]
    types = list(dict.fromkeys(task["type"] for task in tasks))
    named: Any = {"tags": ["nlp_mtl", "multi-task", *types, *about.tags], "language": about.language}
    encoder = "of the family `" + config["encoder_config"]["model_type"] + "`"
    scores = data = training = state = ""
    limits = "How well it answers has not been told."
    if recipe is not None and results is not None:
        encoder = f"`{hub_id(recipe['encoder']) or Path(recipe['encoder']).name}`"
        named["language"] = about.language or _languages(recipe, facts)
        named |= {"datasets": datasets_of(recipe) or None, "base_model": hub_id(recipe["encoder"])}
        named["metrics"] = sorted({_METRICS[metric] for metric in results["main_metrics"].values()})
        pictures = "\n".join(f"![{Path(plot).stem}]({plot})" for plot in plots)
        scores = _section("Scores", f"{_scores_table(results)}\n\n{pictures}")
        data = _section("Training data", _data_table(recipe, results, facts))
        training = _section("How it was trained", _how_trained(recipe, results))
        limits = "The scores are those of the splits named above."
        if not results["finished"]:
            state = (
                f"Its training was under way when this was pushed: this is the model after step {results['step']:,}."
            )
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=repo_id, repo_id=repo_id, encoder=encoder, state=state, scores=scores, data=data, training=training,
        tasks="\n".join([
            "| task | type | labels |", "|---|---|---|",
            *[f"| {task['name']} | {task['type']} | {_labels(task['labels'])} |" for task in tasks],
        ]),
        first_task=tasks[0]["name"], first_type=tasks[0]["type"], max_length=config["max_length"], limits=limits,
    )  # fmt: skip
    pipeline = types[0] if len(types) == 1 else None
    header = _header_of(named, about, pipeline, _results(recipe, results), repo_id)
    return header, _between_marks(text)


def task_card(
    task: Mapping[str, Any],
    repo_id: str,
    *,
    source: str,
    encoder: Mapping[str, Any],
    about: About,
    recipe: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], str]:
    """The same for one task as a stock checkpoint.

    Args:
        task: as the multi-task model's ``config.json`` has it.
        repo_id: what to load it by.
        source: the multi-task model: an id on the Hub, or a folder.
        encoder: its configuration.
        recipe, results: of the run, where there is one.
    """
    base = hub_id(source)
    if results is not None:
        only = {split: {name: found[name] for name in found if name == task["name"]} for split, found in
                results["scores"].items()}  # fmt: skip
        results = {**results, "scores": {split: found for split, found in only.items() if found}}
    scores = "" if results is None else _section("Scores", _scores_table(results))
    text = Template(_TASK_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=repo_id, repo_id=repo_id, task=task["name"], type=task["type"], labels=_labels(task["labels"]),
        scores=scores,
        source=f"[{base}](https://huggingface.co/{base})" if base else f"`{Path(source).absolute().name}`",
        encoder=f"`{hub_id(recipe['encoder']) or Path(recipe['encoder']).name}`" if recipe is not None else
        f"of the family `{encoder['model_type']}`",
    )  # fmt: skip
    named = {"tags": ["nlp_mtl", *about.tags], "language": about.language, "base_model": base}
    header = _header_of(named, about, task["type"], _results(recipe, results), repo_id, library_name="transformers")
    return header, _between_marks(text)


def _header_of(
    named: Mapping[str, Any],
    about: About,
    pipeline_tag: str | None,
    evaluated: Sequence[EvalResult],
    repo_id: str,
    library_name: str = "nlp_mtl",
) -> dict[str, Any]:
    """Metadata as a card's YAML header has them."""
    told: dict[str, Any] = {
        key: [*value] if isinstance(value, tuple) else value for key, value in named.items() if value
    }
    data: Any = ModelCardData(license=about.license, library_name=library_name, pipeline_tag=pipeline_tag, **told)
    found: dict[str, Any] = {key: value for key, value in data.to_dict().items() if value is not None}
    if evaluated:
        found["model-index"] = eval_results_to_model_index(repo_id, list(evaluated))
    return found


def _languages(recipe: Mapping[str, Any], facts: Mapping[str, DatasetFacts]) -> tuple[str, ...]:
    """Those of the datasets, without such of many languages that do not tell which was read."""
    return tuple(dict.fromkeys(one for spec in recipe["datasets"].values() for one in _languages_of(spec, facts)))


def _languages_of(spec: Mapping[str, Any], facts: Mapping[str, DatasetFacts]) -> tuple[str, ...]:
    told = facts.get(hub_id(spec.get("path")) or "", DatasetFacts()).languages
    parts = re.split(r"[_-]", spec.get("name") or "")  # de, en_ewt, deu_Latn
    read = tuple(one for one in told if one in parts)
    return read or (told if len(told) == 1 else ())


def _results(recipe: Mapping[str, Any] | None, results: Mapping[str, Any] | None) -> list[EvalResult]:
    found: list[EvalResult] = []
    if recipe is None or results is None:
        return found
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


def _labels(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 30} more" if len(labels) > 30 else ""
    return ", ".join(f"`{label}`" for label in labels[:30]).replace("|", "\\|") + more  # it stands in a table


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


def _data_table(recipe: Mapping[str, Any], results: Mapping[str, Any], facts: Mapping[str, DatasetFacts]) -> str:
    lines = ["| dataset | from | licence | language | training rows |", "|---|---|---|---|---:|"]
    for name, spec in recipe["datasets"].items():
        known = hub_id(spec.get("path"))
        parts = [part for part in (spec.get("name"), spec.get("revision")) if part]
        source = f"[{known}](https://huggingface.co/datasets/{known})" if known else "files"
        license = facts.get(known or "", DatasetFacts()).license or "not told"
        language = ", ".join(_languages_of(spec, facts)) or "not told"
        rows = results["data"][name]["splits"].get("train", {}).get("rows")
        cells = [name, " ".join([source, *parts]), license, language, "unknown" if rows is None else f"{rows:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _how_trained(recipe: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    shown = f"```yaml\n{as_yaml(recipe).strip()}\n```"
    return f"<details><summary>The recipe</summary>\n\n{shown}\n\n</details>\n\nVersions: {versions}."


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text.strip()}"


def _between_marks(text: str) -> str:
    text = text.replace(BEGIN, "").replace(END, "")  # the next push finds each once, whatever labels and recipes hold
    return f"{BEGIN}\n" + re.sub(r"\n{3,}", "\n\n", text).strip() + f"\n{END}"


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
