"""A token task and a text task, a few ids, and a tiny model of both in training."""

import tiny
import torch

from nlp_mtl.models.multitask import MultiTaskModel, from_encoder
from nlp_mtl.tasks import Task

TASKS = [
    Task("ner", "token-classification", ("O", "B-PER", "I-PER"), "span_f1"),
    Task("topic", "text-classification", ("a", "b"), "accuracy"),
]
IDS = torch.arange(5, 35).reshape(3, 10)
MASK = torch.ones_like(IDS)
MASK[1, 6:] = 0


def in_training(family: str, dropout: float = 0.3) -> MultiTaskModel:
    return from_encoder(tiny.encoder(family, dropout=dropout), TASKS).train()
