"""A tiny multi-task model, and the stock single-task models that must answer as it does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixed_steps import MAX_LENGTH, TASKS, framing
from tiny import encoder, tokenizer
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedModel

from nlp_mtl.data.tokenization import encode_words
from nlp_mtl.models.heads import head_config
from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task


def tiny_model(family: str = "bert", tasks: Sequence[Task] = TASKS, **options: Any) -> MultiTaskModel:
    """Random, with weights so large that answers differ from word to word and from window to window."""
    model = from_encoder(encoder(family), tasks, **{"max_length": MAX_LENGTH, "window_overlap": 4, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.normal_(std=1.0, generator=generator)
        for parameter in model.encoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    return model.eval()


def saved(folder: Path, *, family: str = "bert", own_tokenizer: Any = None) -> Path:
    """A model folder."""
    tiny_model(family).save_pretrained(folder)
    (own_tokenizer or tokenizer()).save_pretrained(folder)
    return folder


def rounded(value: Any) -> Any:
    """Answers whose scores have three digits."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def stock(model: MultiTaskModel, task: Task) -> PreTrainedModel:
    """A task as the stock class of its own, with the same weights."""
    is_token = task.type == "token-classification"
    auto_class: Any = AutoModelForTokenClassification if is_token else AutoModelForSequenceClassification
    found = auto_class.from_config(head_config(model.config.encoder_config, task.labels), dtype=torch.float32)
    found.base_model.load_state_dict(model.encoder.state_dict(), strict=False)
    found.load_state_dict(model.head(task.name).state_dict(), strict=False)
    return found.eval()


@torch.no_grad()
def window_logits(one: PreTrainedModel, words: Sequence[str]) -> list[tuple[range, np.ndarray]]:
    """For each window of a text, read alone: the words that it answers, and their logits (or the text's)."""
    around = framing()
    (pieces,), (starts,) = encode_words(tokenizer(), [words])
    found = []
    for window in around.windows(starts, len(pieces)):
        ids = [*around.prefix, *pieces[window.start : window.stop], *around.suffix]
        logits = one(input_ids=torch.tensor([ids])).logits[0].numpy()
        answered = range(window.first_word, window.last_word)
        if logits.ndim == 2:
            logits = logits[[starts[word] - window.start + len(around.prefix) for word in answered]]
        found.append((answered, logits))
    return found


def by_hand(one: PreTrainedModel, words: Sequence[str]) -> np.ndarray:
    """Probabilities of a text: [words, labels], or [labels] from the mean logits of its windows."""
    parts = [logits for _, logits in window_logits(one, words)]
    logits = np.concatenate(parts) if parts[0].ndim == 2 else np.mean(parts, axis=0)
    return torch.from_numpy(logits).softmax(-1).numpy()
