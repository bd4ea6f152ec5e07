"""One task as a stock transformers checkpoint: what `pipeline()` and any other tool loads without this package."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_mtl.errors import ModelError, did_you_mean, listed
from nlp_mtl.models.heads import stock_model
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.storage import written_folder


def stock(model: MultiTaskModel, task: str) -> PreTrainedModel:
    """The stock model of a task (``AutoModelForTokenClassification`` or the like), on copies of the same weights.

    Its logits for a text are those of ``model``, bit for bit.

    Raises:
        ModelError: there is no such task.
    """
    known = {one.name: one for one in model.config.task_list()}
    if task not in known:
        raise ModelError(f"the model has no task `{task}`; it has {listed(known)}.{did_you_mean(task, known)}")
    made = stock_model(known[task].type, model.config.encoder_config, known[task].labels)
    own = {f"{made.base_model_prefix}.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
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
def export_task(model: MultiTaskModel, tokenizer: PreTrainedTokenizerBase, task: str, folder: Path) -> None:
    """Write a task as a stock checkpoint with its tokenizer: complete or not at all.

    Raises:
        ModelError: there is no such task, or ``folder`` holds something already.
        RunError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} holds something already: choose another folder, or empty it")
    made = stock(model, task)
    with written_folder(folder) as partial:
        made.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
