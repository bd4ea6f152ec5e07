"""``python -m nlp_mtl``: what ``torchrun -m`` and ``accelerate launch -m`` start."""

from nlp_mtl.cli import main

if __name__ == "__main__":
    main()
