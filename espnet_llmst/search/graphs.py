"""Decoding steps without the host's work: on a GPU each kind of step is captured once as a CUDA graph and replayed.

A step must read and write storage that stays where it is, ask nothing of the host, and have shapes that follow from
its extent alone. On a CPU, which has no graphs, the same steps run as they are.
"""

import gc
import logging
from collections.abc import Callable

import torch

from espnet_llmst.search.pool import Extent

Step = Callable[[Extent], torch.Tensor | None]
MOST = 64  # graphs kept; each takes some megabytes of the GPU


class StepRunner:
    """A step for every extent.

    The first step of an extent runs as it is, which also loads what its kernels need; the second is captured. A step
    that cannot be captured runs as it is from then on, and a warning says so.

    Args:
        step: what to run. What it returns is overwritten by the next run of any extent.
        device: where it works.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step = step
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.capture = capture_cuda if device.type == "cuda" else None
        self.forget()

    def forget(self) -> None:
        """Drop what was captured: its storage has moved."""
        self.warm: set[Extent] = set()
        self.captured: dict[Extent, tuple[Callable[[], None], torch.Tensor | None]] = {}
        self.memory = torch.cuda.graph_pool_handle() if self.stream else None  # shared by all graphs

    def run(self, extent: Extent) -> torch.Tensor | None:
        """One step."""
        if self.capture is None or extent not in self.warm:
            self.warm.add(extent)
            return self._run_beside(extent)
        if extent not in self.captured:
            try:
                self.captured[extent] = self.capture(self.step, extent, self.memory, self.stream)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                logging.warning("cuda_graphs: a step could not be captured, none is from here on: %s", reason)
                self.capture = None
                return self._run_beside(extent)
            if len(self.captured) > MOST:
                del self.captured[next(iter(self.captured))]
        replay, result = self.captured[extent]
        replay()
        return result

    def _run_beside(self, extent: Extent) -> torch.Tensor | None:
        """Run on the stream that captures, whose libraries' workspaces are thereby there before a capture."""
        if self.stream is None:
            return self.step(extent)
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = self.step(extent)
        current.wait_stream(self.stream)
        return result


def capture_cuda(step: Step, extent: Extent, memory, stream) -> tuple[Callable[[], None], torch.Tensor | None]:
    """The graph of a step, which is recorded and not run: what replays it, and what it returns."""
    graph, cached = torch.cuda.CUDAGraph(), torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a graph must not read casts that lie in another's memory
    collects = gc.isenabled()
    gc.disable()  # to free another engine's graphs and storage meanwhile would end the capture
    try:
        with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode="thread_local"):
            result = step(extent)
    finally:
        torch.set_autocast_cache_enabled(cached)
        if collects:
            gc.enable()
    return graph.replay, result
