"""The hidden states of an encoder that does not learn, computed once and kept on disk for all runs that can use them.

They lie in the folder of the datasets' caches (``HF_DATASETS_CACHE``), under a key of all that they depend on.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from nlp_mtl.data.batches import collate
from nlp_mtl.data.encoded_splits import EncodedSplit
from nlp_mtl.data.items import Framing, Item, item_lengths, read_items
from nlp_mtl.data.kept_states import KeptStates, TokensRead, first_rows, tokens_read
from nlp_mtl.data.layout import MICRO_BATCH_COST, cut, pack_sorted
from nlp_mtl.errors import RunError
from nlp_mtl.models.checksum import add_weights
from nlp_mtl.models.multitask import MultiTaskModel
from nlp_mtl.models.packing import encode_packed
from nlp_mtl.models.precision import autocast
from nlp_mtl.storage import cannot_write, write_text, written_file
from nlp_mtl.tasks import Task

logger = logging.getLogger(__name__)

VERSION = 2
"""Part of the key; raised when what is kept changes."""

FOLDER = "nlp_mtl_hidden_states"


def keep_states(
    model: MultiTaskModel,
    split: EncodedSplit,
    tasks: Sequence[Task],
    framing: Framing,
    accelerator: Accelerator,
    *,
    max_tokens: int,
    packed: bool,
    mixed_precision: str,
) -> KeptStates:
    """The hidden states of a split's rows: those that are kept already, and the others computed, without dropout.

    Several processes share the work, and runs that start together do it once. A killed one leaves whole files, which
    are not computed again.

    Args:
        model: on the device where it is to run; its encoder must not learn.
        tasks: those of the model; those of the split decide which tokens are kept.
        packed: whether texts are packed to be read; see :meth:`nlp_mtl.models.multitask.MultiTaskModel.packs`.

    Raises:
        RunError: they cannot be written, or there is no room for them.
    """
    learned = [task for task in tasks if task.name in split.tasks or task.name in split.soft]
    read = tokens_read(learned, model.first_token_tasks)
    key = _key(model, split, framing, read, packed, mixed_precision)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / FOLDER / key
    kept = KeptStates(folder, read, model.encoder.config.hidden_size, first_rows(split.lengths))
    numbers = range(len(kept.first_rows) - 1)
    missing = [number for number in numbers if not _is_sound(kept.file(number))]
    if accelerator.is_main_process:
        if missing:
            _make_room(kept, split, framing, missing)
        else:
            logger.info("%s: hidden states are read from %s", split.source.title, kept.folder)
    accelerator.wait_for_everyone()
    # By number: another run may have written some meanwhile, so that not all processes miss the same.
    mine = [number for number in missing if number % accelerator.num_processes == accelerator.process_index]
    show = accelerator.is_main_process and mine
    for number in tqdm(mine, desc="Computing hidden states", unit="file", disable=None if show else True, leave=False):
        with FileLock(kept.file(number).with_suffix(".lock")):
            if not kept.file(number).is_file():
                items = read_items(split, kept.rows(number), (), framing)
                states, tokens = _computed(model, items, read, framing, max_tokens, packed, mixed_precision)
                _write(kept, number, items, states, tokens)
    accelerator.wait_for_everyone()
    if lost := [number for number in numbers if not kept.file(number).is_file()]:
        raise RunError(
            f"{kept.file(lost[0])} was written by another process, and is not seen here: set HF_DATASETS_CACHE to a "
            "folder that all machines share, or leave out training.cache_features"
        )
    return kept


def _key(
    model: MultiTaskModel, split: EncodedSplit, framing: Framing, read: TokensRead, packed: bool, mixed_precision: str
) -> str:
    """A checksum of all that hidden states depend on."""
    digest = hashlib.sha256()
    config = model.encoder.config.to_dict()
    about = [VERSION, framing, read, packed, mixed_precision, model.device.type]
    told = {name: value for name, value in config.items() if not _tells_nothing(name)}
    digest.update(json.dumps([about, told], sort_keys=True, default=str).encode())
    # The pooler stands behind hidden states, and learns.
    add_weights(
        digest, {name: one for name, one in model.encoder.state_dict().items() if not name.startswith("pooler.")}
    )
    digest.update(split.digest(["pieces", "starts", "second"]).encode())
    return digest.hexdigest()[:32]


def _tells_nothing(name: str) -> bool:
    """Whether a setting of an encoder changes no hidden states: where it comes from, labels, dropout, which is off."""
    parts = ("dropout", "pdrop", "name_or_path", "label", "architectures", "transformers_version", "dtype", "problem")
    return any(part in name for part in parts)


def _is_sound(file: Path) -> bool:
    """Whether a file is there and whole; one that is not is removed.

    Raises:
        RunError: it cannot be read.
    """
    try:
        with safe_open(file, "pt"):
            return True
    except FileNotFoundError:
        return False
    except SafetensorError as error:
        logger.warning("%s is damaged (%s): it is computed again", file, error)
        file.unlink(missing_ok=True)
        return False
    except OSError as error:
        raise RunError(f"{file} cannot be read: {error.strerror or error}") from error


def _make_room(kept: KeptStates, split: EncodedSplit, framing: Framing, missing: Sequence[int]) -> None:
    """Tell how large files will be, and make their folder.

    Raises:
        RunError: it cannot be written, or they do not fit.
    """
    counts = [0, 0]  # rows, tokens
    for number in missing:
        rows = kept.rows(number)
        counts[0] += len(rows)
        counts[1] += sum(len(kept.read.places(item, framing)) for item in read_items(split, rows, (), framing))
    needed = counts[1] * kept.size * 4
    try:
        kept.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(kept.folder).free
    except OSError as error:
        raise cannot_write(kept.folder, error) from error
    told = (
        f"the hidden states of {counts[0]:,} rows ({counts[1]:,} tokens that heads read) take {needed / 2**30:.2f} GB"
    )
    if needed > free:
        raise RunError(
            f"{split.source.title}: {told} in {kept.folder}, where {free / 2**30:.2f} GB are free: make room, set "
            "HF_DATASETS_CACHE to a folder elsewhere, or leave out training.cache_features"
        )
    about = {"of": split.source.title, "rows": len(split), "tokens_read": kept.read._asdict()}
    write_text(kept.folder / "about.json", json.dumps(about, indent=1) + "\n")
    logger.info("%s: %s in %s; they are computed once", split.source.title, told, kept.folder)


@torch.inference_mode()
def _computed(
    model: MultiTaskModel, items: Sequence[Item], read: TokensRead, framing: Framing, max_tokens: int, packed: bool,
    mixed_precision: str,
) -> tuple[Tensor, np.ndarray]:  # fmt: skip
    """[tokens read, hidden] Of all items, one behind the other; [items + 1] where those of each begin."""
    was_training = model.training
    model.eval()
    lengths = item_lengths(items, framing)
    cost = MICRO_BATCH_COST.get(model.device.type, MICRO_BATCH_COST["cuda"])
    places = [read.places(item, framing) for item in items]
    tokens = np.cumsum([0, *map(len, places)])
    states = torch.empty(int(tokens[-1]), model.encoder.config.hidden_size)
    for batch in pack_sorted(lengths, max_tokens) if packed else cut(lengths, max_tokens, cost):
        inputs = send_to_device(collate([items[i] for i in batch], (), framing, packed=packed).inputs, model.device)
        if not model.has_segments:
            inputs.pop("token_type_ids", None)
        with autocast(model.device, mixed_precision):
            if packed:
                hidden = encode_packed(model.encoder, **inputs)[-1]
            else:
                hidden = model.encoder(**inputs).last_hidden_state
        hidden = hidden.float().cpu().flatten(0, 1)
        starts = np.cumsum(lengths[batch]) - lengths[batch] if packed else np.arange(len(batch)) * lengths[batch].max()
        for start, i in zip(starts, batch, strict=True):
            states[tokens[i] : tokens[i + 1]] = hidden[start + places[i]]
    model.train(was_training)
    return states, tokens


def _write(kept: KeptStates, number: int, items: Sequence[Item], states: Tensor, tokens: np.ndarray) -> None:
    windows = np.bincount([item.place for item in items], minlength=len(kept.rows(number)))
    tensors = {
        "states": states,
        "items": torch.from_numpy(np.cumsum([0, *windows])),
        "tokens": torch.from_numpy(tokens),
    }
    with written_file(kept.file(number)) as partial:
        save_file(tensors, partial)
