"""The verb ``predict``: texts, lines or whole files in, answers out."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nlp_mtl.cli_options import Bf16, Debug, Device, MaxTokens, Threads
from nlp_mtl.errors import RunError
from nlp_mtl.terminal import is_first_process, quiet_libraries
from nlp_mtl.text_streams import answered, comma_separated, lines_given, texts_given

_FILES = "Whole files and datasets"


def predict(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, a folder with a graph, or a Hub id.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TEXT... | -]", help="Texts. Without any, or with -: the lines of standard input."),
    ] = None,
    text_pair: Annotated[
        list[str] | None, typer.Option(help="The second text, for tasks that read pairs; as often as there are texts.")
    ] = None,
    json_lines: Annotated[
        bool,
        typer.Option("--json-lines", help="Lines are JSON objects with `text` and, for pairs, `text_pair`."),
    ] = False,
    tasks: Annotated[list[str] | None, typer.Option(help="Tasks to answer, comma separated. Default: all.")] = None,
    all_scores: Annotated[bool, typer.Option("--all-scores", help="With the scores of all labels.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="FILE|DATASET",
            help="Answer for its rows: lines of .txt, .jsonl, .csv, .tsv, .parquet, .conllu (also .gz), a folder or a "
            "Hub id.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help=".jsonl or .parquet; the same command goes on after a kill.", rich_help_panel=_FILES),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace the output that is there, when the new one is whole.", rich_help_panel=_FILES
        ),
    ] = False,
    text_column: Annotated[
        str | None, typer.Option(help="Default: `text`, or the only one of text.", rich_help_panel=_FILES)
    ] = None,
    tokens_column: Annotated[
        str | None, typer.Option(help="Of word lists, instead of texts.", rich_help_panel=_FILES)
    ] = None,
    pair_column: Annotated[str | None, typer.Option(help="Of second texts.", rich_help_panel=_FILES)] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Columns to give with the answers, comma separated.", rich_help_panel=_FILES),
    ] = None,
    config: Annotated[str | None, typer.Option(help="Of a dataset on the Hub.", rich_help_panel=_FILES)] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset.", rich_help_panel=_FILES)] = None,
    data_revision: Annotated[str | None, typer.Option(help="Of a dataset on the Hub.", rich_help_panel=_FILES)] = None,
    device: Device = None,
    bf16: Bf16 = False,
    threads: Threads = None,
    max_tokens: MaxTokens = None,
    debug: Debug = False,
) -> None:
    """Answer for texts, all tasks from one pass: one JSON object a line."""
    chosen = comma_separated(tasks)
    if chosen == []:
        raise typer.BadParameter("names no task", param_hint="--tasks")
    options: dict[str, Any] = {
        "mixed_precision": "bf16" if bf16 else "no",
        "max_tokens": max_tokens,
        "threads": threads,
    }
    if source is not None or output is not None:
        if source is None or output is None or texts or text_pair is not None or json_lines:
            raise typer.BadParameter("rows of --input go to --output; texts and --json-lines do without both")
        _predict_rows(
            model, source, output, chosen, all_scores, overwrite, revision, device, options,
            text=text_column, tokens=tokens_column, text_pair=pair_column, keep=comma_separated(keep) or (),
            name=config, split=split, revision_of_data=data_revision,
        )  # fmt: skip
        return
    given = {
        "--overwrite": overwrite or None, "--text-column": text_column, "--tokens-column": tokens_column,
        "--pair-column": pair_column, "--keep": keep, "--config": config, "--split": split,
        "--data-revision": data_revision,
    }  # fmt: skip
    for option, value in given.items():
        if value is not None:
            raise typer.BadParameter("only --input reads it", param_hint=option)
    _predict_texts(model, texts, text_pair, json_lines, chosen, all_scores, revision, device, options)


def _predict_rows(
    model: str,
    source: str,
    output: Path,
    tasks: list[str] | None,
    all_scores: bool,
    overwrite: bool,
    revision: str | None,
    device: str | None,
    options: dict[str, Any],
    *,
    revision_of_data: str | None,
    **columns: Any,
) -> None:
    quiet_libraries()
    from nlp_mtl.inference.bulk import predict_rows
    from nlp_mtl.inference.predictor import load
    from nlp_mtl.inference.processes import launched_processes
    from nlp_mtl.inference.rows import open_rows

    with launched_processes().main_process_first():  # it reads, the others find what it has read
        rows = open_rows(source, revision=revision_of_data, **columns)
    nlp = load(model, revision=revision, device=device, **options)
    count = predict_rows(
        nlp, rows, output, tasks=tasks, all_scores=all_scores, overwrite=overwrite, progress=sys.stderr.isatty()
    )
    if is_first_process():
        before = f" ({len(rows) - count:,} of them by an earlier call)" if count < len(rows) else ""
        print(f"{len(rows):,} rows{before}: {output}")


def _predict_texts(
    model: str,
    texts: list[str] | None,
    text_pair: list[str] | None,
    json_lines: bool,
    tasks: list[str] | None,
    all_scores: bool,
    revision: str | None,
    device: str | None,
    options: dict[str, Any],
) -> None:
    if not texts and sys.stdin.isatty():
        raise typer.BadParameter("give texts, or - to read lines from standard input", param_hint="TEXT")
    if texts and "-" in texts and len(texts) > 1:
        raise typer.BadParameter("`-` (read standard input) and texts exclude each other", param_hint="TEXT")
    reads_lines = not texts or texts == ["-"]
    if text_pair is not None and (reads_lines or len(text_pair) != len(texts or ())):
        raise typer.BadParameter("give one for each text; for pairs in lines: --json-lines", param_hint="--text-pair")
    if json_lines and not reads_lines:
        raise typer.BadParameter("it is about lines of standard input: leave out the texts", param_hint="--json-lines")
    for text in () if reads_lines else texts or ():
        if os.path.isfile(text):
            print(f"nlp-mtl: {text} is taken as a text; for the rows of that file: --input {text}", file=sys.stderr)
    quiet_libraries()
    from tqdm.auto import tqdm

    from nlp_mtl.inference.predictor import load
    from nlp_mtl.inference.processes import started_processes

    if started_processes()[0] > 1:  # each would read lines of its own, and write between the others'
        raise RunError("several processes share the rows of a file: use --input and --output, or start one process")
    nlp = load(model, revision=revision, device=device, **options)
    given = lines_given(json_lines) if reads_lines else texts_given(texts or (), text_pair)
    # Answers on the terminal are progress enough.
    with tqdm(desc="Predicting", unit="text", disable=sys.stdout.isatty() or not sys.stderr.isatty()) as bar:
        for lines in answered(nlp, given, tasks, all_scores):
            print(*lines, sep="\n", flush=True)
            bar.update(len(lines))
