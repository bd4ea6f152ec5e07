"""The model card: what a run's model is, what it was trained on, how it scores, how to use it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from nlp_mtl.hub.card_compression import before_and_after, last_scores
from nlp_mtl.hub.card_header import METRICS, TITLES, About, header, hub_type, model_index
from nlp_mtl.hub.card_text import as_yaml
from nlp_mtl.hub.repository import DatasetFacts
from nlp_mtl.metrics import old_scores

_TEMPLATE = Path(__file__).with_name("card_template.md")
_TASK_TEMPLATE = Path(__file__).with_name("task_card_template.md")
_ENCODER_TEMPLATE = Path(__file__).with_name("encoder_card_template.md")

_LIMITS = "The scores are those of the splits named above."


class Card(NamedTuple):
    """What is made of a card."""

    header: dict[str, Any]
    """Metadata, as the YAML header has them."""
    text: str


def datasets_of(results: Mapping[str, Any] | None) -> list[str]:
    """The ids on the Hub of the datasets that a run read; without results there are none."""
    data = (results or {"data": {}})["data"]
    return list(dict.fromkeys(told["path"] for told in data.values() if told["from_hub"]))


def model_card(
    config: Mapping[str, Any],
    repo_id: str,
    *,
    about: About,
    recipe: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    facts: Mapping[str, DatasetFacts] | None = None,
    plots: Sequence[str] = (),
    compression: Mapping[str, Any] | None = None,
) -> Card:
    """The card of a multi-task model.

    Args:
        config: the model's ``config.json``.
        repo_id: what to load it by.
        about: what only its owner knows.
        recipe: resolved, as a run folder keeps it; None: the model comes without its run.
        results: what ``results.json`` holds.
        facts: what the Hub tells of datasets, by id.
        plots: picture files in the repository.
        compression: what ``compression.json`` holds, where the model was made smaller.
    """
    facts = facts or {}
    tasks = config["tasks"]
    types = list(dict.fromkeys(hub_type(task["type"]) for task in tasks))
    named: dict[str, Any] = {"tags": ["nlp_mtl", "multi-task", *types, *about.tags], "language": about.language}
    encoder = f"of the family {_code(config['encoder_config']['model_type'])}"
    scores = data = training = state = extension = smaller = ""
    limits = "How well it answers has not been told."
    if recipe is not None and results is not None:
        encoder = _encoder(results)
        named["language"] = about.language or _languages(results, facts)
        named |= {"datasets": datasets_of(results), "base_model": _base_model(config, results)}
        named["metrics"] = sorted({METRICS[metric] for metric in results["main_metrics"].values()})
        named["model-index"] = model_index(repo_id, recipe, results)
        pictures = "\n".join(f"![{Path(plot).stem}]({plot})" for plot in plots)
        scores = _section("Scores", f"{_scores_table(results)}\n\n{pictures}")
        if "extension" in results:
            extension = _section("What it extends", _extension(results))
        data = _section("Training data", _data_table(results, facts))
        training = _section("How it was trained", _how_trained(recipe, results))
        limits = _LIMITS
        if not results["finished"]:
            state = (
                f"Its training was under way when this was pushed: this is the model after step {results['step']:,}."
            )
    if compression is not None:
        smaller = _section("How it was made smaller", before_and_after(compression, tasks))
        if results is None and (found := last_scores(compression)):
            main_metrics = {task["name"]: task["metric"] for task in tasks}
            scores = _section("Scores", _scores_table({"scores": found, "main_metrics": main_metrics}))
            limits = _LIMITS
    example, texts = '"Angela Merkel opened the new tram line in Berlin."', '"A text."'
    if all(task.get("pairs") for task in tasks):
        example, texts = '"A man plays the guitar.", text_pair="Somebody makes music."', '"A text.", "Another text."'
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=repo_id, repo_id=repo_id, encoder=encoder, origin=_origin(config), state=state, scores=scores,
        extension=extension, compression=smaller, data=data, training=training,
        tasks="\n".join([
            "| task | type | labels |", "|---|---|---|",
            *[f"| {task['name']} | {task['type']} | {_labels(task['labels'])} |" for task in tasks],
        ]),
        export=_how_to_export(tasks, repo_id), example=example, texts=texts,
        long_texts=_long_texts(tasks, config["max_length"]), limits=limits,
    )  # fmt: skip
    return Card(header(named, about, "nlp_mtl", types[0] if len(types) == 1 else None), _tidy(text))


def _long_texts(tasks: Sequence[Mapping[str, Any]], max_length: int) -> str:
    """What becomes of texts that are too long to be read at once."""
    are_pairs = {bool(task.get("pairs")) for task in tasks}
    told = [
        *[f"Texts longer than {max_length} tokens are read in overlapping windows."] * (False in are_pairs),
        *[f"Of pairs of more than {max_length} tokens the longer text loses its end."] * (True in are_pairs),
    ]
    return " ".join(told)


def _how_to_export(tasks: Sequence[Mapping[str, Any]], repo_id: str) -> str:
    """For the first task that can be; else empty."""
    task = next((task for task in tasks if task.get("decoder") != "crf"), None)
    if task is None:
        return ""
    return (
        "One task in any tool that reads transformers checkpoints:\n\n"
        f"```bash\nnlp-mtl export {repo_id} exported --task {task['name']}\n```\n"
        f'```python\nfrom transformers import pipeline\n\npipeline("{hub_type(task["type"])}", "exported")\n```'
    )


def task_card(
    task: Mapping[str, Any],
    repo_id: str,
    *,
    source: str,
    encoder: Mapping[str, Any],
    about: About,
    recipe: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
) -> Card:
    """The card of one task as a stock checkpoint.

    Args:
        task: as the multi-task model's ``config.json`` has it.
        repo_id: what to load it by.
        source: the multi-task model: an id on the Hub, or a folder.
        encoder: its configuration.
        about: what only its owner knows.
        recipe, results: of the run, where there is one.
    """
    base = None if Path(source).expanduser().exists() else source
    named: dict[str, Any] = {"tags": ["nlp_mtl", *about.tags], "language": about.language, "base_model": base}
    scores, of = "", f"of the family {_code(encoder['model_type'])}"
    if recipe is not None and results is not None:
        found = {split: {task["name"]: told[task["name"]]} for split, told in results["scores"].items()
                 if task["name"] in told}  # fmt: skip
        results = {**results, "scores": found}
        scores, of = _section("Scores", _scores_table(results)), _encoder(results)
        named["model-index"] = model_index(repo_id, recipe, results)
    text = Template(_TASK_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=repo_id, repo_id=repo_id, task=task["name"], type=hub_type(task["type"]), labels=_labels(task["labels"]),
        scores=scores, encoder=of,
        source=f"[{base}](https://huggingface.co/{base})" if base else _code(Path(source).absolute().name),
    )  # fmt: skip
    return Card(header(named, about, "transformers", hub_type(task["type"])), _tidy(text))


def encoder_card(
    config: Mapping[str, Any], repo_id: str, *, about: About, recipe: Mapping[str, Any], results: Mapping[str, Any]
) -> Card:
    """The card of an encoder that a meta run leaves; arguments as for :func:`model_card`."""
    learned, episodes = config["meta_learned"], results["episodes"]
    named: dict[str, Any] = {
        "tags": ["nlp_mtl", "meta-learning", *about.tags], "language": about.language,
        "datasets": datasets_of(results), "base_model": _base_model(config, results),
    }  # fmt: skip
    told = (
        f"Of new heads for up to {episodes['ways']} of a task's labels, after {episodes['inner_steps']} steps on "
        f"{episodes['shots']} rows a label, on other rows; over {episodes['evaluated_episodes']} "
        "episodes of each task."
    )
    text = Template(_ENCODER_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=repo_id, repo_id=repo_id, encoder=_encoder(results), algorithm=learned["algorithm"],
        tasks="\n".join(
            ["| task | type |", "|---|---|", *(f"| {task} | {type} |" for task, type in learned["tasks"].items())]
        ),
        origin=_origin(config), scores=_section("Scores", f"{told}\n\n{_scores_table(results)}"),
        data=_section("Training data", _data_table(results, {})),
        training=_section("How it was trained", _how_trained(recipe, results)),
        limits="Tasks that are unlike these may gain nothing: compare with the encoder that it started from.",
    )  # fmt: skip
    return Card(header(named, about, "nlp_mtl", None), _tidy(text))


def _encoder(results: Mapping[str, Any]) -> str:
    told = results["encoder"]
    return _code(told["name"] if told["from_hub"] else Path(told["name"]).name)


def _base_model(config: Mapping[str, Any], results: Mapping[str, Any]) -> str | None:
    """The nearest model on the Hub that this one goes on from, or that its encoder comes from."""
    extension = results.get("extension")
    if extension is not None and extension["from_hub"]:
        return str(extension["model"])
    steps = config.get("encoder_origin") or [results["encoder"]]
    return next((step["name"] for step in reversed(steps) if step["from_hub"]), None)


def _origin(config: Mapping[str, Any]) -> str:
    """What the encoder learned before it was trained for these tasks; empty: it is the stock one."""
    steps = config.get("encoder_origin") or []
    runs = [step for step in steps if "tasks" in step]
    if not runs:
        return ""
    first = f"The encoder started as {_code(steps[0]['name'])} and" if "tasks" not in steps[0] else "The encoder"
    how = [f"by {step['algorithm']}, " if "algorithm" in step else "" for step in runs]
    told = [
        f"{', '.join(map(_code, step['tasks']))} ({by}in {_code(step['name'])})"
        for step, by in zip(runs, how, strict=True)
    ]
    return f"{first} learned, before these tasks: {', then '.join(told)}."


def _extension(results: Mapping[str, Any]) -> str:
    """What was there before, and how its tasks score since."""
    told = results["extension"]
    model = told["model"]
    source = f"[{model}](https://huggingface.co/{model})" if told["from_hub"] else _code(Path(model).name)
    added = f"; new: {_labels(told['new_tasks'])}" if told["new_tasks"] else ""
    lines = [f"The tasks of {source}: {_labels(told['old_tasks'])}{added}."]
    rows = old_scores(results)
    if rows:
        lines += ["", "That model and this one on the same rows:", ""]
        lines += ["| task | split | metric | before | after |", "|---|---|---|---:|---:|"]
    for row in rows:
        cells = [row["task"], row["split"], TITLES[row["metric"]], f"{row['before']:.4f}", f"{row['after']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _languages(results: Mapping[str, Any], facts: Mapping[str, DatasetFacts]) -> tuple[str, ...]:
    """Those of the datasets, without such of many languages that do not tell which was read."""
    return tuple(dict.fromkeys(one for told in results["data"].values() for one in _languages_of(told, facts)))


def _languages_of(told: Mapping[str, Any], facts: Mapping[str, DatasetFacts]) -> tuple[str, ...]:
    known = facts.get(told["path"], DatasetFacts()).languages if told["from_hub"] else ()
    parts = re.split(r"[_-]", told.get("name") or "")  # de, en_ewt, deu_Latn
    read = tuple(one for one in known if one in parts)
    return read or (known if len(known) == 1 else ())


def _labels(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - 30} more" if len(labels) > 30 else ""
    return ", ".join(_code(label).replace("|", "\\|") for label in labels[:30]) + more  # it stands in a table


def _code(text: str) -> str:
    """A text in the type of code, whatever it holds."""
    text = " ".join(text.split())
    fence = "`" * (1 + _longest_run(text))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _longest_run(text: str) -> int:
    """Backticks that follow each other in a text, at most."""
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _scores_table(results: Mapping[str, Any]) -> str:
    if not results["scores"]:
        return "Nothing could be scored: the data had no labelled validation or test split."
    lines = ["| task | split | metric | score | items |", "|---|---|---|---:|---:|"]
    for split, tasks in results["scores"].items():
        for task, scores in tasks.items():
            for metric, title in TITLES.items():
                if metric in scores:
                    mark = " (main)" if results["main_metrics"].get(task) == metric else ""
                    lines.append(f"| {task} | {split} | {title}{mark} | {scores[metric]:.4f} | {scores['items']:,} |")
    return "\n".join(lines)


def _data_table(results: Mapping[str, Any], facts: Mapping[str, DatasetFacts]) -> str:
    lines = ["| dataset | from | licence | language | training rows |", "|---|---|---|---|---:|"]
    for name, told in results["data"].items():
        known = told["path"] if told["from_hub"] else None
        source = f"[{known}](https://huggingface.co/datasets/{known})" if known else "files"
        parts = [told[key] for key in ("name", "revision") if told.get(key)]
        license = facts.get(known or "", DatasetFacts()).license or "not told"
        language = ", ".join(_languages_of(told, facts)) or "not told"
        rows = told["splits"].get("train", {}).get("rows")
        cells = [name, " ".join([source, *parts]), license, language, "unknown" if rows is None else f"{rows:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _how_trained(recipe: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    text = as_yaml(recipe).strip()
    fence = "`" * max(3, 1 + _longest_run(text))
    return (
        f"<details><summary>The recipe</summary>\n\n{fence}yaml\n{text}\n{fence}\n\n</details>\n\nVersions: {versions}."
    )


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text.strip()}"


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text).strip()
