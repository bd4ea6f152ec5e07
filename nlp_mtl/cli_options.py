"""Options that several verbs have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

HOW_IT_RUNS = "How it runs"

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example training.max_steps=20."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint in output_dir; --resume auto: or start.")
]
Overwrite = Annotated[bool, typer.Option(help="Remove what an earlier run left in output_dir.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, ... Default: the GPU if there is one.", rich_help_panel=HOW_IT_RUNS),
]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Faster, a little less exact.", rich_help_panel=HOW_IT_RUNS)]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Of the CPU. Default: as many as cores.", rich_help_panel=HOW_IT_RUNS)
]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, help="In a micro-batch. Default: 4096; of a graph 640.", rich_help_panel=HOW_IT_RUNS),
]


def how_to_resume(overrides: list[str] | None, resume: bool) -> tuple[list[str], bool | Literal["auto"]]:
    """Overrides, and whether a run resumes: ``--resume`` is a flag, so an ``auto`` behind it comes with the others."""
    given = overrides or []
    if resume and "auto" in given:
        return [one for one in given if one != "auto"], "auto"
    return given, resume
