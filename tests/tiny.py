"""Tiny encoders, tokenizers and corpora, built in code: tests need no network and no downloads."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLMRobertaConfig,
)

SPECIALS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
WORDS = [
    "anna",
    "bob",
    "clara",
    "delta",
    "acme",
    "paris",
    "rome",
    "oslo",
    "loves",
    "hates",
    "sees",
    "the",
    "a",
    "of",
    "in",
    "good",
    "bad",
    "great",
    "poor",
    "film",
    "game",
    "market",
    "tea",
    ".",
    ",",
    "!",
    "?",
    "new",
    "tram",
    "line",
    "opened",
]
PIECES = ["un", "##ing", "##s", "##ed", "##ly", "##a", "##e", "##t", "t", "x", "##x"]
PAD, CLS, SEP, UNK = 0, 1, 2, 3
VOCABULARY = {piece: place for place, piece in enumerate([*SPECIALS, *WORDS, *PIECES])}

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "electra", "modernbert", "xlm-roberta", "albert", "mpnet")


def encoder_config(family: str = "bert", *, max_positions: int = 64, dropout: float = 0.0) -> PreTrainedConfig:
    """The configuration of a two-layer encoder, 16 wide, without dropout unless asked for."""
    size: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": max_positions,
        "pad_token_id": PAD,
    }
    usual = {
        **size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    rates = {
        "attention_dropout": dropout,
        "embedding_dropout": dropout,
        "mlp_dropout": dropout,
        "classifier_dropout": dropout,
    }
    modern = {key: value for key, value in usual.items() if not key.endswith("_prob")} | rates
    ids = {"bos_token_id": CLS, "eos_token_id": SEP, "cls_token_id": CLS, "sep_token_id": SEP}
    configs: dict[str, Any] = {
        "bert": lambda: BertConfig(**usual),
        "roberta": lambda: RobertaConfig(**usual),
        "distilbert": lambda: DistilBertConfig(
            **size, dim=16, n_layers=2, n_heads=2, hidden_dim=32,
            dropout=dropout, attention_dropout=dropout, seq_classif_dropout=dropout,
        ),
        "deberta-v2": lambda: DebertaV2Config(
            **usual, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True,
        ),
        "electra": lambda: ElectraConfig(**usual, embedding_size=16),
        "modernbert": lambda: ModernBertConfig(**modern, **ids, local_attention=16),
        "xlm-roberta": lambda: XLMRobertaConfig(**usual),
        "albert": lambda: AlbertConfig(**usual, embedding_size=8, classifier_dropout_prob=dropout),
        "mpnet": lambda: MPNetConfig(**usual),
    }  # fmt: skip
    return configs[family]()


def encoder(family: str = "bert", *, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A tiny encoder with random weights."""
    torch.manual_seed(seed)
    return AutoModel.from_config(encoder_config(family, **options), dtype=torch.float32)


def tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of 56 entries, lower-casing like BERT's."""
    backend = Tokenizer(models.WordPiece(VOCABULARY, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _wrap(backend, model_input_names=["input_ids", "token_type_ids", "attention_mask"])


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer like RoBERTa's, trained on a few words."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return _wrap(backend)


def _wrap(backend: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        **options,
    )


def save_encoder(folder: Path, family: str = "bert", **options: Any) -> Path:
    """A folder that an encoder and its tokenizer can be loaded from."""
    encoder(family, **options).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


NAMES = {
    "anna": "PER",
    "bob": "PER",
    "clara": "PER",
    "acme": "ORG",
    "delta": "ORG",
    "paris": "LOC",
    "rome": "LOC",
    "oslo": "LOC",
}
VERBS, GOOD, BAD, PUNCTUATION = (
    {"loves", "hates", "sees", "opened"},
    {"good", "great", "loves"},
    {"bad", "poor", "hates"},
    {".", ",", "!", "?"},
)


def token_row(random_: random.Random) -> dict[str, Any]:
    """A row with words, entities and parts of speech that follow from the words: it can be learned."""
    words = random_.choices(WORDS, k=random_.randint(3, 12))
    ner, previous = [], "O"
    for word in words:
        kind = NAMES.get(word)
        tag = "O" if kind is None else f"I-{kind}" if previous[2:] == kind else f"B-{kind}"
        ner.append(tag)
        previous = tag
    upos = ["PROPN" if w in NAMES else "VERB" if w in VERBS else "PUNCT" if w in PUNCTUATION else "NOUN" for w in words]
    return {"tokens": words, "ner": ner, "upos": upos}


def text_row(random_: random.Random) -> dict[str, Any]:
    """A row with a text and a sentiment that follows from its words."""
    words = random_.choices([w for w in WORDS if w not in GOOD | BAD], k=random_.randint(2, 8))
    label = random_.choice(["negative", "positive"])
    words.insert(random_.randint(0, len(words)), random_.choice(sorted(GOOD if label == "positive" else BAD)))
    return {"text": " ".join(words), "label": label}


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON Lines; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_corpus(folder: Path, *, train: int = 48, other: int = 16, seed: int = 0) -> Path:
    """Two datasets in a folder: ``words`` with two token tasks, ``texts`` with one text task; three splits each."""
    random_ = random.Random(seed)
    for split, count in {"train": train, "validation": other, "test": other}.items():
        write_jsonl(folder / "words" / f"{split}.jsonl", [token_row(random_) for _ in range(count)])
        write_jsonl(folder / "texts" / f"{split}.jsonl", [text_row(random_) for _ in range(count)])
    return folder


def recipe(
    folder: Path, *, corpus: Path | None = None, encoder_folder: Path | None = None, **training: Any
) -> dict[str, Any]:
    """A recipe's values for three tasks on :func:`write_corpus` (written to ``folder/corpus`` if not given)."""
    corpus = corpus or write_corpus(folder / "corpus")
    encoder_folder = encoder_folder or save_encoder(folder / "encoder")
    files = {
        name: {split: f"{name}/{split}.jsonl" for split in ("train", "validation", "test")}
        for name in ("words", "texts")
    }
    return {
        "encoder": str(encoder_folder),
        "data_dir": str(corpus),
        "datasets": {
            "words": {"data_files": files["words"], "tokens": "tokens"},
            "texts": {"data_files": files["texts"], "text": "text"},
        },
        "tasks": {
            "ner": {"type": "token-classification", "dataset": "words", "labels": "ner"},
            "pos": {"type": "token-classification", "dataset": "words", "labels": "upos"},
            "sentiment": {"type": "text-classification", "dataset": "texts", "labels": "label"},
        },
        "training": {"num_epochs": 2, "batch_size": 16, "max_tokens": 128, "log_every": 1, **training},
        "output_dir": str(folder / "run"),
    }


class Drawn(TorchDispatchMode):
    """Notes the operators by which stock dropout draws."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ("bernoulli", "dropout")):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))
