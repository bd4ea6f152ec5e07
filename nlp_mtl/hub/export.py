"""One task as a stock transformers checkpoint: what `pipeline()` and any other tool loads without this package."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_mtl.errors import ModelError, did_you_mean, listed
from nlp_mtl.hub.card import task_card
from nlp_mtl.hub.card_header import About
from nlp_mtl.hub.card_text import merged
from nlp_mtl.hub.portable import portable_results
from nlp_mtl.hub.pushing import run_of
from nlp_mtl.hub.repository import Repository, check_repo_id
from nlp_mtl.models.heads import stock_model
from nlp_mtl.models.loading import load_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.models.unshared import encoder_of_task
from nlp_mtl.storage import save_tokenizer, write_text, written_folder
from nlp_mtl.task_types import kind_of
from nlp_mtl.tasks import Task


def stock(model: MultiTaskModel, task: str) -> PreTrainedModel:
    """The stock model of a task (``AutoModelForTokenClassification`` or the like), on copies of the same weights.

    Its logits for a text are those of ``model``: bit for bit, or to rounding where a task's gate or embedding went into
    the encoder's last norm, or where attention heads were taken out, in whose places heads of zeros stand.

    Raises:
        ModelError: there is no such task, or a stock model has no place for what lies between encoder and head, or for
            what chooses its labels.
    """
    known = _known(model, task)
    if known.decoder == "crf":
        raise ModelError(
            f"task `{task}` has the decoder crf, and a stock model has no place for its transitions between labels: it "
            "would answer otherwise than was measured. Train it with `decoder: softmax` for a stock checkpoint"
        )
    weights = encoder_of_task(model, task)
    made = stock_model(known.type, model.config.encoder_config, known.labels)
    own = {f"{made.base_model_prefix}.{name}": tensor for name, tensor in weights.items()}
    own |= model.head(task).state_dict()
    # Not what this task's class has no place for: a pooler that another task reads.
    made.load_state_dict({name: own[name].detach().cpu().clone() for name in made.state_dict()}, assign=True)
    # What no checkpoint keeps (positions, rotary frequencies) is computed when a model is built; not so on no device.
    computed = dict(model.encoder.named_buffers())
    for name, buffer in [*made.base_model.named_buffers()]:
        if buffer.is_meta:
            module, _, last = name.rpartition(".")
            owner = made.base_model.get_submodule(module)
            owner.register_buffer(last, computed[name].detach().cpu().clone(), persistent=False)
    made.tie_weights()
    made.eval()
    return made


@torch.no_grad()
def export_task(
    model: MultiTaskModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    folder: Path,
    *,
    card: str | None = None,
) -> None:
    """Write a task as a stock checkpoint with its tokenizer: complete or not at all.

    Args:
        card: goes with it.

    Raises:
        ModelError: there is no such task, or ``folder`` holds something already.
        RunError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} holds something already: choose another folder, or empty it")
    made = stock(model, task)
    with written_folder(folder) as partial:
        made.save_pretrained(partial)
        save_tokenizer(tokenizer, partial)
        if card is not None:
            (partial / "README.md").write_text(card, encoding="utf-8")


def export(
    source: str | Path,
    task: str,
    folder: Path,
    *,
    revision: str | None = None,
    repo_id: str | None = None,
    private: bool | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    license: str | None = None,
    language: Sequence[str] = (),
) -> tuple[str, str | None]:
    """Write one task of a model as a stock checkpoint with its tokenizer and a card, and push it if that is wanted.

    Args:
        source: a run folder, a model folder, or a Hub id.
        folder: a new one, or an empty one.
        revision: of ``source`` on the Hub.
        repo_id: where to push it; None: nowhere. The arguments behind it are those of :func:`nlp_mtl.hub.push`.

    Returns:
        the pipeline that reads it, and the address of the commit, if it was pushed.

    Raises:
        ModelError: there is no such model or task, ``folder`` holds something already, or the repository's card cannot
            be kept.
        RunError: it cannot be written.
        HubError: the Hub refused, or could not be reached. What was written stays.
    """
    if repo_id is not None:
        check_repo_id(repo_id)  # before anything is written
    model, tokenizer = load_model(source, revision=revision)
    known = _known(model, task)
    recipe, results = run_of(Path(source).expanduser())
    about = About(license, tuple(language))

    def card(name: str, there: str | None) -> str:
        made = task_card(
            known.to_dict(), name, source=str(source), encoder=model.config.encoder_config.to_dict(), about=about,
            recipe=recipe, results=results and portable_results(results),
        )  # fmt: skip
        return merged(there, *made, where=f"of {name}", said=about.said())

    export_task(model, tokenizer, task, folder, card=card(repo_id or f"USER/{folder.absolute().name}", None))
    if repo_id is None:
        return kind_of(known).stock, None
    flags = [*["--private"] * bool(private), *["--create-pr"] * create_pr]
    again = shlex.join(["hf", "upload", repo_id, str(folder), ".", *flags])
    repository = Repository(
        repo_id, again=f"it is written to {folder}; push that: {again}", private=private, create_pr=create_pr
    )
    head = repository.head()
    try:
        write_text(folder / "README.md", card(repository.repo_id, head.card))
    except ModelError as error:
        raise ModelError(f"{error}. Nothing was pushed; {repository.again}") from error
    return kind_of(known).stock, repository.upload(
        folder, commit_message or f"The task {task} of a model of nlp_mtl", head
    )


def _known(model: MultiTaskModel, name: str) -> Task:
    """The task of that name.

    Raises:
        ModelError: there is none.
    """
    known = {task.name: task for task in model.config.task_list()}
    if name not in known:
        raise ModelError(f"the model has no task `{name}`; it has {listed(known)}.{did_you_mean(name, known)}")
    return known[name]
