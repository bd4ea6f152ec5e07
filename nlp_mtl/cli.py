"""The command line: verbs, no logic. Heavy imports are inside the verbs, so that ``--help`` is quick."""

import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nlp_mtl.cli_compress import compress
from nlp_mtl.cli_extend import extend
from nlp_mtl.cli_label_errors import label_errors
from nlp_mtl.cli_options import Debug, Overrides, Overwrite, RecipePath, Resume, how_to_resume
from nlp_mtl.cli_predict import predict
from nlp_mtl.cli_serve import serve
from nlp_mtl.terminal import nobody_reads, quiet_libraries, told
from nlp_mtl.text_streams import as_json_line, comma_separated

app = typer.Typer(
    help="Multi-task natural language processing with one shared encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    if version:
        from nlp_mtl import __version__

        print(f"nlp-mtl {__version__}")
        raise typer.Exit


@app.command()
@told
def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> None:
    """Train a model as a recipe says, evaluate it and save it."""
    from nlp_mtl.recipe import Recipe

    overrides, resumes = how_to_resume(overrides, resume)
    settings = Recipe.from_yaml(recipe, overrides)
    quiet_libraries()
    from accelerate import PartialState

    from nlp_mtl.reports import print_scores
    from nlp_mtl.run import train as run_train

    results = run_train(settings, resume=resumes, overwrite=overwrite)
    if PartialState().is_main_process:
        print_scores(results["scores"], results["main_metrics"])
        print(f"\nRun folder: {settings.output_dir}")


@app.command()
@told
def evaluate(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a folder with a graph, or a Hub id.")],
    overrides: Overrides = None,
    recipe: Annotated[Path | None, typer.Option(help="Whose data to use. Default: the run folder's.")] = None,
    split: Annotated[str, typer.Option(help="validation, test or train.")] = "test",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a trained model on a split of a recipe's datasets."""
    from nlp_mtl.recipe import SPLITS, Recipe

    if split not in SPLITS:
        near = " Did you mean validation?" if split in ("dev", "valid", "val") else ""
        raise typer.BadParameter(f"{split!r} is none of {', '.join(SPLITS)}.{near}", param_hint="--split")
    path = recipe or Path(model).expanduser() / "recipe.yaml"
    settings = Recipe.from_yaml(path, overrides or []) if recipe or path.is_file() else None
    quiet_libraries()
    from accelerate import PartialState

    from nlp_mtl.reports import main_metrics, print_scores
    from nlp_mtl.run_evaluation import evaluate as run_evaluate

    scores = run_evaluate(model, settings, split=split, revision=revision)
    if not PartialState().is_main_process:
        return
    if as_json:
        print(as_json_line(scores))
    else:
        print_scores({split: scores}, main_metrics(scores))


app.command()(told(extend))
app.command()(told(predict))
app.command()(told(serve))
app.command("label-errors")(told(label_errors))


Private = Annotated[
    bool | None, typer.Option("--private/--public", help="Of a new repository. Default: as the account says.")
]
CreatePr = Annotated[bool, typer.Option("--create-pr", help="As a pull request.")]
Message = Annotated[str | None, typer.Option(help="Of the commit.")]
License = Annotated[str | None, typer.Option(help="For the card, as the Hub calls it: apache-2.0, ...")]
Language = Annotated[list[str] | None, typer.Option(help="For the card, comma separated: en,de")]
Tags = Annotated[list[str] | None, typer.Option(help="For the card, comma separated.")]


@app.command()
@told
def export(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, or a Hub id.")],
    folder: Annotated[Path, typer.Argument(help="A new folder, or an empty one.")],
    task: Annotated[str | None, typer.Option(help="Which task, as a stock checkpoint.")] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="All tasks, as one ONNX graph (the extra `onnx`).")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="With matrices in 8 bits: faster, a little less exact.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None,
    push_to: Annotated[str | None, typer.Option("--push", metavar="USER/NAME", help="Push it to the Hub.")] = None,
    private: Private = None,
    create_pr: CreatePr = False,
    message: Message = None,
    license: License = None,
    language: Language = None,
    debug: Debug = False,
) -> None:
    """Write one task as a stock transformers checkpoint, which needs no nlp_mtl; or all as a graph for onnxruntime."""
    if (task is None) == (not onnx):
        raise typer.BadParameter("give either --task NAME or --onnx", param_hint="--task")
    if int8 and not onnx:
        raise typer.BadParameter("only --onnx reads it", param_hint="--int8")
    given: dict[str, Any]
    given = {"--push": push_to, "--license": license, "--language": language} if onnx else {}
    for option, value in given.items():
        if value is not None:
            raise typer.BadParameter("only --task reads it", param_hint=option)
    given = {"--private/--public": private, "--create-pr": create_pr or None, "--message": message}
    for option, value in given.items():
        if push_to is None and value is not None:
            raise typer.BadParameter("only --push reads it", param_hint=option)
    quiet_libraries()
    if onnx:
        from nlp_mtl.inference.onnx import export_onnx
        from nlp_mtl.models.loading import load_model

        export_onnx(*load_model(model, revision=revision), folder.expanduser(), int8=int8)
        print(f'Written. To use it: nlp-mtl predict {folder} "..."')
        return
    assert task is not None
    from nlp_mtl.hub.export import export as export_task

    kind, address = export_task(
        model, task, folder.expanduser(), revision=revision, repo_id=push_to, private=private, create_pr=create_pr,
        commit_message=message, license=license, language=comma_separated(language) or (),
    )  # fmt: skip
    print(f'Written. To use it: transformers.pipeline("{kind}", "{folder}")')
    if address is not None:
        print(address)


@app.command()
@told
def push(
    run: Annotated[Path, typer.Argument(help="A run folder, or a model folder.")],
    repo_id: Annotated[
        str | None, typer.Argument(metavar="[USER/NAME]", help="Made where there is none. Default: the recipe's hub.")
    ] = None,
    private: Private = None,
    revision: Annotated[str | None, typer.Option(help="The branch; made where there is none.")] = None,
    create_pr: CreatePr = False,
    message: Message = None,
    license: License = None,
    language: Language = None,
    tags: Tags = None,
    debug: Debug = False,
) -> None:
    """Push a trained model to the Hub, with its card, recipe, results and plots, in one commit."""
    quiet_libraries()
    from nlp_mtl.hub import push as push_run

    address = push_run(
        run, repo_id, private=private, revision=revision, create_pr=create_pr or None, commit_message=message,
        license=license, language=comma_separated(language), tags=comma_separated(tags),
    )  # fmt: skip
    print(address)


@app.command()
@told
def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Load a recipe's data and tell what is in it, what a step will hold, and what is odd."""
    from nlp_mtl.recipe import Recipe

    settings = Recipe.from_yaml(recipe, overrides or [])
    quiet_libraries()
    from nlp_mtl.reports import print_check
    from nlp_mtl.run_check import check as run_check

    report = run_check(settings)
    if as_json:
        print(as_json_line(report))
    else:
        print_check(report)


@app.command()
@told
def compare(
    recipe: RecipePath,
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many; the recipe's is the first.")] = 3,
    pairs: Annotated[bool, typer.Option("--pairs", help="Train each two tasks, too.")] = False,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Train all tasks but one, too, for each task.")
    ] = False,
    same_steps: Annotated[
        bool, typer.Option("--same-steps", help="Fewer tasks: smaller steps, as many; not fewer steps, as large.")
    ] = False,
    conflicts: Annotated[
        bool, typer.Option(help="Measure the cosines of the tasks' gradients in some steps of the joint runs.")
    ] = True,
    output_dir: Annotated[
        Path | None, typer.Option(help="The comparison's folder. Default: the recipe's output_dir with -compare.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove what an earlier comparison left.")] = False,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Of finished runs; they take several times the models' room.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Does joint training pay? Train the joint model and one model a task, and compare; goes on where it stopped."""
    from nlp_mtl.recipe import Recipe

    settings = Recipe.from_yaml(recipe, overrides or [])
    quiet_libraries()
    from nlp_mtl.compare import compare as run_compare
    from nlp_mtl.reports import print_comparison

    folder, report = run_compare(
        settings, seeds=seeds, pairs=pairs, leave_one_out=leave_one_out, same_steps=same_steps,
        measure_conflicts=conflicts, output_dir=output_dir, overwrite=overwrite, keep_checkpoints=keep_checkpoints,
    )  # fmt: skip
    if report:
        print_comparison(report)
        print(f"\nReport: {folder / 'report.html'}")


@app.command()
@told
def tune(
    recipe: RecipePath,
    overrides: Overrides = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUES", help="training.learning_rate=1e-5..1e-4:log, tasks.ner.loss_weight=0.5,1,2"),
    ] = None,
    method: Annotated[str | None, typer.Option(help="tpe or grid.")] = None,
    trials: Annotated[int | None, typer.Option(help="How many in all. Default: 20, or the whole grid.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn; the trials have the recipe's.")] = None,
    prune: Annotated[bool | None, typer.Option(help="Stop trials that are worse than the median.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Remove what an earlier search left in output_dir.")] = False,
    debug: Debug = False,
) -> None:
    """Search for the values with which a recipe scores best on validation; the same command goes on."""
    from nlp_mtl.recipe import Recipe
    from nlp_mtl.search_space import parse_search, search_space, with_settings

    given = {"method": method, "trials": trials, "seed": seed, "prune": prune, "search": parse_search(search or [])}
    settings = with_settings(Recipe.from_yaml(recipe, overrides or []), given)
    search_space(settings)  # what is wrong with it is told before anything is loaded
    quiet_libraries()
    from nlp_mtl.reports import print_trials
    from nlp_mtl.tune import tune as run_tune

    found = run_tune(settings, overwrite=overwrite)
    print_trials(found["trials"], found["best"])
    print(f"\nBest: trial {found['best']}, selection score {found['score']:.4f}. Its recipe: {found['recipe']}")


app.command()(told(compress))


@app.command()
@told
def copy(
    name: Annotated[str | None, typer.Argument(help="A shipped recipe. Without it they are listed.")] = None,
    folder: Annotated[Path, typer.Argument(help="Where to.")] = Path(),
    debug: Debug = False,
) -> None:
    """List the shipped recipes, or copy one (with its data) to change it."""
    from nlp_mtl.shipped import copy_recipe, shipped_recipes

    if name is None:
        for known, description in shipped_recipes().items():
            print(f"{known:20} {description}")
        return
    for path in copy_recipe(name, folder):
        print(path)


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal still gets the message
    try:
        app(arguments, prog_name="nlp-mtl")
    finally:
        try:
            sys.stdout.flush()  # what is still in the buffer: at the interpreter's end it would be too late
        except BrokenPipeError:
            nobody_reads()
