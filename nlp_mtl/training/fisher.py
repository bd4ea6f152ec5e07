"""Which weights a trained model's answers depend on: the diagonal of its Fisher information."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from tqdm.auto import tqdm

from nlp_mtl.data.batches import TaskRows, collate
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.items import Framing, read_items
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.task_types import KINDS, crf
from nlp_mtl.tasks import PLAIN_LOSS, Task, transitions_key
from nlp_mtl.training.balancing import summed_loss
from nlp_mtl.training.cpu import sparse_gradient


def labelled_rows(splits: Sequence[EncodedSplit], tasks: Sequence[Task]) -> np.ndarray:
    """[n, 2] The place of its split, and the row in it, of each row with labels of some of the tasks."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    for place, split in enumerate(splits):
        labelled = [split.labelled[task.name] > 0 for task in tasks if task.name in split.tasks]
        rows = np.flatnonzero(np.any(labelled, axis=0)) if labelled else np.zeros(0, dtype=np.int64)
        found.append(np.stack([np.full(len(rows), place), rows], axis=1))
    return np.concatenate(found)


def diagonal_fisher(
    model: MultiTaskModel,
    splits: Sequence[EncodedSplit],
    tasks: Sequence[Task],
    framing: Framing,
    *,
    num_rows: int,
    seed: int,
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """The mean over rows of the squared gradient of the log-likelihood of their labels, by parameter, on the CPU.

    Labels are drawn from the model's own answers, of all tasks that a row has labels of: so it is the Fisher
    information itself, not the "empirical" one of the labels that are there, which is no measure of curvature (Kunstner
    et al. 2019, arXiv 1905.12558). Each row has a gradient of its own. A token task's log-likelihood is the sum over
    its words.

    Args:
        model: it is on its device, and whole on each process; its dropout is off meanwhile.
        splits: rows are drawn from all of them alike, of those with labels of ``tasks``.
        num_rows: how many; all, if there are fewer.
        seed: of the rows and the labels.
        accelerator: to share the rows among processes.
        progress: show a bar.

    Returns:
        of the parameters that have a part in the answers; nothing where there is no labelled row.
    """
    rows = labelled_rows(splits, tasks)
    chosen = np.sort(np.random.default_rng([seed, 7]).permutation(len(rows))[:num_rows])
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    was_training = model.training
    model.eval()
    model.zero_grad()
    bar = tqdm(chosen[rank::processes], desc="Importance of weights", disable=None if progress else True, leave=False)
    # Gradients of embeddings are then the rows that a text has, not as large as the vocabulary.
    with sparse_gradient(model.get_input_embeddings()):
        for place in bar:
            split, row = rows[place].tolist()
            generator = torch.Generator().manual_seed(
                int(np.random.SeedSequence([seed, int(place)]).generate_state(1)[0])
            )
            _log_loss(model, splits[split], row, tasks, framing, generator).backward()
            for name, parameter in parameters.items():
                _add_square(sums[name], parameter.grad)
            model.zero_grad()
    model.train(was_training)
    if accelerator is not None and processes > 1:
        sums = {name: accelerator.reduce(total, "sum") for name, total in sums.items()}
    return {name: total.cpu() / len(chosen) for name, total in sums.items()} if len(chosen) else {}


def _log_loss(
    model: MultiTaskModel,
    split: EncodedSplit,
    row: int,
    tasks: Sequence[Task],
    framing: Framing,
    generator: torch.Generator,
) -> Tensor:
    """Minus the log-likelihood of labels that are drawn for a row."""
    batch = collate(read_items(split, [row], tasks, framing), tasks, framing)
    present = {task: rows for task, rows in batch.tasks.items() if len(rows.rows)}
    inputs, present = send_to_device((batch.inputs, present), model.device)
    logits = model(**inputs, rows={task: rows.rows for task, rows in present.items()})
    losses = []
    for task, rows in present.items():
        found, transitions = logits[task], logits.get(transitions_key(task))
        if not KINDS[rows.type].reads_words:  # in several windows a text has one answer: of the mean of their logits
            found = found.mean(0, keepdim=True)
            rows = rows._replace(labels=rows.labels[:1], weights=torch.ones_like(rows.weights[:1]))
        own = rows._replace(labels=_drawn(found, rows, transitions, generator), loss=PLAIN_LOSS)
        losses.append(summed_loss(found, own, transitions))
    return torch.stack(losses).sum()


def _drawn(logits: Tensor, rows: TaskRows, transitions: Tensor | None, generator: torch.Generator) -> Tensor:
    """Labels as likely as the model finds them; drawn on the CPU, so that they are the same on any device."""
    found, labels = logits.detach().float().cpu(), rows.labels.cpu()
    if rows.chains is not None:
        assert transitions is not None
        chains = crf.Chains(*(tensor.cpu() for tensor in rows.chains))
        drawn = crf.drawn(found, transitions.detach().cpu(), labels, chains, generator)
    else:
        drawn = KINDS[rows.type].drawn(found, labels, generator)
    return drawn.to(logits.device)


def _add_square(total: Tensor, gradient: Tensor | None) -> None:
    if gradient is None:
        return
    if gradient.is_sparse:
        gradient = gradient.coalesce()
        total.index_add_(0, gradient.indices()[0], gradient.values().square())
    else:
        total.add_(gradient.square())
