"""Print a model's answers for some texts, for people: `scripts/show_predictions RUN TEXT...`."""

import sys

import transformers

from nlp_mtl import load
from nlp_mtl.task_types import kind_of


def main(path: str, texts: list[str]) -> None:
    transformers.logging.disable_progress_bar()
    nlp = load(path)
    types = {task.name: task for task in nlp.tasks}
    for text, answer in zip(texts, nlp(texts), strict=True):
        print(f"\n  {text}")
        for task, found in answer.items():
            if isinstance(found, dict):
                shown = f"{found['value']:.2f}" if "value" in found else f"{found['label']} ({found['score']:.2f})"
            elif not kind_of(types[task]).reads_words:
                shown = ", ".join(f"{label['label']} ({label['score']:.2f})" for label in found) or "none"
            elif types[task].is_spans:
                shown = ", ".join(f"{span['text']} = {span['label']}" for span in found) or "none"
            else:
                shown = " ".join(f"{word['text']}/{word['label']}" for word in found)
            print(f"    {task:10} {shown}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
