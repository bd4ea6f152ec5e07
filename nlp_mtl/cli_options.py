"""Options that several verbs have."""

from typing import Annotated

import typer

HOW_IT_RUNS = "How it runs"

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
