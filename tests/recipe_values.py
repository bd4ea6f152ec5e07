"""A recipe's values, for tests to change."""

VALUES = {
    "encoder": "./encoder",
    "datasets": {
        "words": {"data_files": "words.jsonl", "tokens": "tokens"},
        "texts": {"path": "some/texts", "text": "text"},
    },
    "tasks": {
        "ner": {"type": "token-classification", "dataset": "words", "labels": "ner"},
        "topic": {"type": "text-classification", "dataset": "texts", "labels": "label"},
    },
    "output_dir": "runs/x",
}
