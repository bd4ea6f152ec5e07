"""The verb ``label-errors``: training labels that are likely wrong; they are listed, taken out or mended."""

import shlex
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from nlp_mtl.cli_options import Debug, Overrides, RecipePath
from nlp_mtl.terminal import quiet_libraries
from nlp_mtl.text_streams import comma_separated

_USE = "A dataset with fewer errors"


def label_errors(
    recipe: RecipePath,
    overrides: Overrides = None,
    folds: Annotated[int, typer.Option(min=2, help="Models to train, each without the rows of its fold.")] = 5,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", help="Whose labels to look at, comma separated. Default: all that have label sets."),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Rank by the quality that models give labels which they did not see, by the confidence of one that "
            "learned from them, over its training, or by both."
        ),
    ] = "quality",
    share: Annotated[
        float | None,
        typer.Option(help="Of each task's labels, to be listed. Default: as many as cleanlab takes for errors."),
    ] = None,
    drop: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Write the dataset without the likeliest errors: this share of each task's labels.",
            rich_help_panel=_USE,
        ),
    ] = None,
    review: Annotated[
        bool, typer.Option("--review", help="Write review.jsonl, to be edited.", rich_help_panel=_USE)
    ] = False,
    apply: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="An edited review.jsonl: write the dataset with its labels.", rich_help_panel=_USE
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="The search's folder. Default: the recipe's output_dir with -label-errors.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove what an earlier search left, but a review.jsonl.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Find training labels that are likely wrong, by models that did not see them; goes on where it stopped."""
    from nlp_mtl.recipe import Recipe

    settings = Recipe.from_yaml(recipe, overrides or [])
    quiet_libraries()
    from nlp_mtl.label_errors import label_errors as run_label_errors
    from nlp_mtl.reports import print_label_errors

    folder, report = run_label_errors(
        settings, folds=folds, tasks=comma_separated(tasks), by=cast(Any, by), share=share, drop=drop, review=review,
        apply=apply, output_dir=output_dir, overwrite=overwrite,
    )  # fmt: skip
    if "tasks" in report:
        print_label_errors(report)
        print(f"\nAll of them: {folder / 'label_errors.jsonl'}; counts: {folder / 'report.json'}")
    given = shlex.join([str(recipe), *(overrides or [])])
    if review and report:
        where = "" if output_dir is None else f" --output-dir {shlex.quote(str(output_dir))}"
        file = shlex.quote(str(folder / "review.jsonl"))
        print(f"Edit `label` in {file}, then: nlp-mtl label-errors {given}{where} --apply {file}")
    if report.get("written"):
        _tell_written(report["written"], given)


def _tell_written(written: dict[str, Any], recipe: str) -> None:
    for dataset, counts in written["datasets"].items():
        told = f"{counts['rows']:,} training rows, {counts['edited']:,} of them edited, {counts['left_out']:,} left out"
        print(f"{dataset}: {told}")
    print(f"To use them: nlp-mtl train {shlex.quote(written['recipe'])}")
    print(f"Or: nlp-mtl train {recipe} {shlex.join(written['overrides'])} output_dir=FOLDER")
