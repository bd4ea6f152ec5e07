"""A small Hub on 127.0.0.1, the one that the tests push to and load from, to try things by hand without a network.

It prints what to paste into another shell, and runs until Ctrl-C. Repositories are folders: models/USER/NAME,
datasets/USER/NAME.
"""

import argparse
import shlex
import sys
from pathlib import Path
from threading import Event

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from writable_hub import writable_hub

SHOWN = ("HF_ENDPOINT", "HF_TOKEN", "HF_HOME", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "NO_PROXY", "no_proxy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the repositories lie; made where there is none")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with writable_hub(folder) as hub:
        values = " ".join(f"{key}={shlex.quote(hub.environment[key])}" for key in SHOWN)
        print(f"export {values}", flush=True)
        try:
            Event().wait()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
