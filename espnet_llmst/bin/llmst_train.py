"""Trains one phase: ESPnet's task command for LLMSTTask."""

import sys
from collections.abc import Sequence

from espnet_llmst.cli import run
from espnet_llmst.tasks.llmst import LLMSTTask


def get_parser():
    """The task's parser (ESPnet tools look for this name)."""
    return LLMSTTask.get_parser()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the task's life cycle."""
    LLMSTTask.main(cmd=argv)


if __name__ == "__main__":
    sys.exit(run(main))
