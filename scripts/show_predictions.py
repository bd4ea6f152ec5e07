"""Print a model's answers for some texts, for people: `scripts/show_predictions RUN TEXT...`."""

import sys

import transformers

from nlp_mtl import load


def main(path: str, texts: list[str]) -> None:
    transformers.logging.disable_progress_bar()
    nlp = load(path)
    types = {task.name: task for task in nlp.tasks}
    for text, answer in zip(texts, nlp(texts), strict=True):
        print(f"\n  {text}")
        for task, found in answer.items():
            if types[task].type == "text-classification":
                shown = f"{found['label']} ({found['score']:.2f})"
            elif types[task].is_spans:
                shown = ", ".join(f"{span['text']} = {span['label']}" for span in found) or "none"
            else:
                shown = " ".join(f"{word['text']}/{word['label']}" for word in found)
            print(f"    {task:10} {shown}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
