"""The verb ``extend``: a trained model gets more tasks."""

from typing import Annotated

import typer

from nlp_mtl.cli_options import Debug, Overrides, Overwrite, RecipePath, Resume, how_to_resume
from nlp_mtl.terminal import quiet_libraries


def extend(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, or a Hub id.")],
    recipe: RecipePath,
    overrides: Overrides = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Add a recipe's tasks to a trained model, without forgetting its own, evaluate it and save it."""
    quiet_libraries()
    from accelerate import PartialState

    from nlp_mtl.extend_model import extend_base
    from nlp_mtl.extend_recipes import read_extension
    from nlp_mtl.metrics import old_scores
    from nlp_mtl.reports import print_old_scores, print_scores

    overrides, resumes = how_to_resume(overrides, resume)
    base, settings = read_extension(model, recipe, overrides, revision)
    results = extend_base(base, settings, resume=resumes, overwrite=overwrite)
    if PartialState().is_main_process:
        print_scores(results["scores"], results["main_metrics"])
        print_old_scores(old_scores(results), [*map(str, results["extension"]["old_tasks"])])
        print(f"\nRun folder: {settings.output_dir}")
