"""What it does to the scores of trained models when two tasks' labels are chosen together; nothing is trained.

    scripts/score_consistency RUN RUN RUN --tasks ner,pos
    scripts/score_consistency RUN RUN RUN --tasks ner,pos --allowed '{PER: [PROPN]}' --allowed '{PER: [PROPN, X]}'

RUNs are run folders of one recipe with different seeds. Tables are counted on the recipe's training rows, and `auto`
chooses on its validation rows, as training does. Printed are means over the runs, and in brackets the lowest and the
highest difference to the same run's labels that are chosen apart (there: the lowest and highest score). For rules it is
told first how many of the words that they are about keep to them as annotated.
"""

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
import yaml

from nlp_mtl import Recipe
from nlp_mtl.build_consistency import CONSISTENCY_WEIGHTS, consistency, settle_consistency
from nlp_mtl.build_data import Prepared, prepare
from nlp_mtl.data.items import frame
from nlp_mtl.evaluation import evaluate
from nlp_mtl.models.loading import load_model
from nlp_mtl.recipe import SPLITS
from nlp_mtl.task_types.consistency import only_allowed

Setting = tuple[str, str, float | str | None, dict[str, list[str]]]
"""What it is called; the decoder of tags; weight (None: labels are chosen apart); rule."""

APART = "apart, `iob2`"


class Remembering(torch.nn.Module):
    """A model that reads no batch twice."""

    reads_once_a_task = False

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config, self.device = model, model.config, model.device
        self.answers: dict[Any, Any] = {}

    def forward(self, input_ids: torch.Tensor, tasks: Sequence[str], **inputs: Any) -> Any:
        asked = (input_ids.cpu().numpy().tobytes(), *input_ids.shape, *tasks)
        if asked not in self.answers:
            self.answers[asked] = self.model(input_ids=input_ids, tasks=tasks, **inputs)
        return self.answers[asked]


def settings(rules: Sequence[dict[str, list[str]]]) -> Iterator[Setting]:
    yield "apart, `softmax`", "softmax", None, {}
    yield APART, "iob2", None, {}
    for weight in (*CONSISTENCY_WEIGHTS[1:], "auto"):
        yield f"`iob2`, weight {weight}", "iob2", weight, {}
    for rule in rules:
        for weight in (0, "auto"):
            told = yaml.safe_dump(rule, default_flow_style=True).strip()
            yield f"`iob2`, weight {weight}, `{told}`", "iob2", weight, rule


def recipe_of(run: str, tasks: Sequence[str], setting: Setting, overrides: Sequence[str]) -> Recipe:
    """The run's, of two tasks alone."""
    whole = Recipe.from_yaml(f"{run}/recipe.yaml", list(overrides))
    given = whole.to_dict()
    _, decoder, weight, rule = setting
    given["tasks"] = {name: given["tasks"][name] for name in tasks}
    read = {dataset for name in tasks for dataset in whole.tasks[name].columns()}
    given["datasets"] = {name: one for name, one in given["datasets"].items() if name in read}
    for name in tasks:
        if given["tasks"][name]["metric"] == "span_f1":
            given["tasks"][name]["decoder"] = decoder
    pair = {"tasks": list(tasks), "weight": weight, "allowed": rule}
    unread = {"sampling": {}, "balancing": {}, "gradients": {}, "tune": None, "hub": None}
    given["training"]["selection_weights"] = {}
    return Recipe.from_dict({**given, **unread, "consistency": [] if weight is None else [pair]})


def kept(prepared: Prepared, rule: dict[str, list[str]], split: str) -> dict[str, tuple[int, int]]:
    """Of the words that a rule is about: how many keep to it as annotated, and how many there are."""
    first, second = prepared.tasks
    counts = sum(rows.joint_counts(first, second) for rows in prepared.split(split).values())
    found = {}
    for label, others in rule.items():
        one = only_allowed(first, second, {label: []}) < 0  # all that the rule is about
        two = one & (only_allowed(first, second, {label: others}) == 0)
        found[label] = (int(counts[two].sum()), int(counts[one].sum()))
    return found


def scored(model: Remembering, recipe: Recipe, prepared: Prepared) -> tuple[float | None, dict[str, Any]]:
    """The weight that was used, and the scores on validation and test."""
    model.config.consistency = consistency(recipe, prepared) or None

    def score(split: str) -> Any:
        return evaluate(model, prepared.split(split), prepared.tasks, prepared.framing, max_tokens=4096)

    settle_consistency(recipe, prepared, model, lambda: score("validation"))
    weight = model.config.consistency[0]["weight"] if model.config.consistency else None
    return weight, {split: score(split) for split in ("validation", "test")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--tasks", required=True, help="two, comma separated")
    parser.add_argument("--allowed", action="append", default=[], metavar="RULE", type=yaml.safe_load)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the runs' recipes")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    tasks, found = given.tasks.split(","), {}
    columns: list[tuple[str, str, str]] = []
    for run in given.runs:
        loaded, tokenizer = load_model(run)
        model, config = Remembering(loaded), loaded.config
        framing = frame(tokenizer, config.max_length, config.window_overlap)
        for setting in settings(given.allowed):
            called, _, weight, rule = setting
            recipe = recipe_of(run, tasks, setting, given.set)
            prepared = prepare(
                recipe, tokenizer=tokenizer, framing=framing, word_splitter=config.word_splitter,
                trained_tasks=config.task_list(),
            )  # fmt: skip
            if rule and weight == 0 and run == given.runs[0]:
                for split in SPLITS:
                    shares = kept(prepared, rule, split)
                    told = [f"{label} {one} of {two}, {one / max(two, 1):.1%}" for label, (one, two) in shares.items()]
                    print(f"{rule}, annotated, {split}: {'; '.join(told)}", flush=True)
            found.setdefault(called, []).append(scored(model, recipe, prepared))
            metrics = [(task.name, task.metric) for task in prepared.tasks]
            metrics += [(name, "span_f1_lenient") for name, metric in metrics if metric == "span_f1"]
            columns = [(split, *metric) for split in ("validation", "test") for metric in metrics]
    titles = [f"{split}: {name} {metric}" for split, name, metric in columns]
    print("| labels are chosen | weights |", " | ".join(titles), "|")
    for called, of_runs in found.items():
        weights = ", ".join(f"{weight:g}" for weight, _ in of_runs if weight is not None)
        cells = []
        for split, name, metric in columns:
            values, apart = (
                np.array([100 * scores[split][name][metric] for _, scores in runs]) for runs in (of_runs, found[APART])
            )
            low, high = (
                f"{one(values):.2f}" if called == APART else f"{one(values - apart):+.2f}" for one in (min, max)
            )
            cells.append(f"{values.mean():.2f} ({low} to {high})")
        print(f"| {called} | {weights} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
