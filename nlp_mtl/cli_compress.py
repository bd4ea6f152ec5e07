"""The verb ``compress``: options become keys of the recipe's ``compression``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nlp_mtl.cli_options import Debug
from nlp_mtl.terminal import quiet_libraries
from nlp_mtl.text_streams import as_json_line, comma_separated


def compress(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder, or a Hub id.")],
    folder: Annotated[Path, typer.Argument(help="A new folder; or the one of the same command, which goes on.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Of the recipe, for example training.learning_rate=1e-4."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Whose data and training to use. Default: the run's.")] = None,
    layers: Annotated[
        str | None, typer.Option(metavar="N|N,N,...", help="Layers that stay: so many, or these.")
    ] = None,
    heads: Annotated[float | None, typer.Option(metavar="SHARE", help="Of attention heads that go.")] = None,
    intermediate: Annotated[float | None, typer.Option(metavar="SHARE", help="Of feed-forward units that go.")] = None,
    vocabulary: Annotated[
        list[str] | None, typer.Option(metavar="SPLITS", help="Whose words stay the same: train,validation,test")
    ] = None,
    vocabulary_files: Annotated[
        list[str] | None, typer.Option(metavar="FILES", help="Texts, one a line, whose words stay the same as well.")
    ] = None,
    vocabulary_size: Annotated[
        int | None, typer.Option(metavar="N", help="Pieces that stay at least. Default: those that are needed.")
    ] = None,
    keep_characters: Annotated[
        bool | None, typer.Option(help="Whether all pieces of one character stay. Default: they do.")
    ] = None,
    magnitude: Annotated[float | None, typer.Option(metavar="SHARE", help="Of weights that become 0.")] = None,
    finetune_steps: Annotated[int | None, typer.Option(min=0, help="Of training afterwards. Default: none.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove what an earlier command left.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    debug: Debug = False,
) -> None:
    """Make a trained model smaller and faster: fewer layers, heads, units, pieces; train it again, and compare."""
    from nlp_mtl.recipe import Recipe
    from nlp_mtl.recipe_compression import compression_alone, own_recipe, with_compression

    given: dict[str, Any] = {
        "layers": _layers(layers), "heads": heads, "intermediate": intermediate,
        "vocabulary": comma_separated(vocabulary), "vocabulary_files": comma_separated(vocabulary_files),
        "vocabulary_size": vocabulary_size, "keep_characters": keep_characters,
        "magnitude": magnitude, "finetune_steps": finetune_steps,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    path, done = (recipe, []) if recipe else own_recipe(model)
    settings, spec = None, None
    if path is not None:
        settings = Recipe.from_yaml(path, [*done, *with_compression(overrides or [], given, folder)])
    else:
        if overrides:
            raise typer.BadParameter("they are of a recipe, and there is none: give --recipe", param_hint="KEY=VALUE")
        spec = compression_alone(given)
    quiet_libraries()
    from nlp_mtl.compress import compress as run_compress
    from nlp_mtl.reports import print_compression

    report = run_compress(model, folder, settings, spec, revision=revision, overwrite=overwrite)
    if as_json:
        print(as_json_line(report))
    else:
        print_compression(report)
        print(f"\nModel: {folder}, report: {folder / 'compression.json'}")


def _layers(given: str | None) -> int | list[int] | None:
    parts = comma_separated(None if given is None else [given])
    if parts is None:
        return None
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        raise typer.BadParameter(f"{given!r} is neither a number nor numbers", param_hint="--layers") from None
    return numbers if given is not None and "," in given else numbers[0] if numbers else None
