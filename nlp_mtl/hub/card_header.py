"""A model card's metadata: what the Hub shows, filters by and checks."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData

from nlp_mtl.task_types import KINDS
from nlp_mtl.tasks import TaskType

TITLES = {
    "span_f1": "Span F1 (strict IOB2)",
    "span_f1_lenient": "Span F1 (conlleval)",
    "accuracy": "Accuracy",
    "micro_f1": "Micro F1",
    "macro_f1": "Macro F1",
    "exact_match": "Exact match",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "mse": "Mean squared error",
    "mae": "Mean absolute error",
}
METRICS = {
    "span_f1": "seqeval",
    "span_f1_lenient": "f1",
    "accuracy": "accuracy",
    "micro_f1": "f1",
    "macro_f1": "f1",
    "exact_match": "exact_match",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mse": "mse",
    "mae": "mae",
}
"""How the Hub calls our metrics."""


class About(NamedTuple):
    """What only its owner knows of a model."""

    license: str | None = None
    language: tuple[str, ...] = ()
    """Codes; none: those of the datasets."""
    tags: tuple[str, ...] = ()

    def said(self) -> dict[str, Any]:
        """What of it there is."""
        return {key: value for key, value in self._asdict().items() if value}


def header(named: Mapping[str, Any], about: About, library_name: str, pipeline_tag: str | None) -> dict[str, Any]:
    """Metadata in the order that the Hub's own cards have; what is empty is left out."""
    told: dict[str, Any] = {
        key: [*value] if isinstance(value, tuple) else value for key, value in named.items() if value
    }
    index = told.pop("model-index", None)
    data: Any = ModelCardData(license=about.license, library_name=library_name, pipeline_tag=pipeline_tag, **told)
    found = {key: value for key, value in data.to_dict().items() if value is not None}
    return {**found, "model-index": index} if index else found


def hub_type(type: TaskType) -> str:
    """The Hub's own name of a task type, by which it sorts models: that of the stock head."""
    return KINDS[type].stock


def model_index(repo_id: str, recipe: Mapping[str, Any], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Scores as the Hub reads them, one entry for each task and split.

    huggingface_hub's own function makes one of two tasks of a type on the same dataset.
    """
    entries = []
    for split, tasks in results["scores"].items():
        for task, scores in tasks.items():
            spec = recipe["tasks"][task]
            metrics = [
                {"type": METRICS[metric], "value": round(float(scores[metric]), 6), "name": title}
                for metric, title in TITLES.items()
                if metric in scores
            ]
            entries.append({
                "task": {"type": hub_type(spec["type"]), "name": task},
                "dataset": _dataset(spec["dataset"], results, split),
                "metrics": metrics,
            })  # fmt: skip
    return [{"name": repo_id.rpartition("/")[2], "results": entries}] if entries else []


def _dataset(names: str | list[str], results: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The dataset of an entry; of several that a task reads, what they have in common."""
    names = [names] if isinstance(names, str) else names
    read = [results["data"][name] for name in names]
    places = [told["path"] if told["from_hub"] else name for name, told in zip(names, read, strict=True)]
    found: dict[str, Any] = {"name": ", ".join(names), "type": ", ".join(dict.fromkeys(places))}
    for key, told_as in (("name", "config"), ("revision", "revision")):
        values = {told.get(key) for told in read}
        if len(values) == 1 and (value := values.pop()) is not None:
            found[told_as] = value
    return {**found, "split": split}
