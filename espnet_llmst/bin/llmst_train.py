"""Trains one phase: ESPnet's task command for LLMSTTask."""

import multiprocessing
import signal
import sys
from collections.abc import Sequence

from torch.multiprocessing import ProcessExitedException

from espnet_llmst.cli import run
from espnet_llmst.tasks.llmst import LLMSTTask
from espnet_llmst.train.sigterm import EXIT_STATUS


def get_parser():
    """The task's parser (ESPnet tools look for this name)."""
    return LLMSTTask.get_parser()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the task's life cycle; with a process per GPU, its status is that of the first which fails."""
    before = signal.signal(signal.SIGTERM, _pass_on)
    try:
        LLMSTTask.main(cmd=argv)
    except ProcessExitedException as error:  # the process itself has said why
        return error.exit_code if error.exit_code > 0 else 128 - error.exit_code
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _pass_on(*_) -> None:
    """SIGTERM goes to the processes of the GPUs, which save and end."""
    processes = multiprocessing.active_children()
    for process in processes:
        process.terminate()
    if not processes:
        raise SystemExit(EXIT_STATUS)


if __name__ == "__main__":
    sys.exit(run(main))
