"""torchrun with the exit status of the process that failed first; its own is always 1, with a traceback.

python -m espnet_llmst.train.launch [torchrun's options] -m espnet_llmst.bin.llmst_train ...
"""

import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes and wait for them; 143 after SIGTERM to this one or to one of them."""
    try:
        run.main(argv)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"launch: error: process {rank} ended with status {failure.exitcode}; see above", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main())
