"""What torchrun starts in test_ranks.py: trainings, each in a process of its own, for importing them takes seconds.

    started_by_torchrun.py STEPS.json LOG

A step is ``{"arguments": [...], "term": n}``: SIGTERM comes to rank 1 alone at its n-th batch, 0 for never. The status
of each step goes to the log; the first one is also this program's.
"""

import json
import os
import signal
import sys
from pathlib import Path

from training_runs import at_event, forked

from espnet_llmst.bin import llmst_train
from espnet_llmst.cli import run


def main(steps: str, log: str) -> int:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to the others when one has ended
    statuses, log = [], Path(f"{log}.{os.environ['RANK']}")
    for step in json.loads(Path(steps).read_text()):
        event = step["term"] if os.environ["RANK"] == "1" else 0
        training = at_event(
            event,
            lambda: os.kill(os.getpid(), signal.SIGTERM),
            lambda arguments=step["arguments"]: run(llmst_train.main, arguments),
            batches_only=True,
        )
        statuses.append(forked(training, log))
        with open(log, "a") as file:
            file.write(f"status: {statuses[-1]}\n")
    return statuses[0]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
