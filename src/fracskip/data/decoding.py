"""Many image files at once: by threads of this process, or by processes of their own.

Pillow releases the interpreter while it decodes, so threads go a long way; where there are many
cores and many files, processes go further. The images are the same, and so are the errors.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fracskip.config import ImageConfig
from fracskip.data.decode import decode_image
from fracskip.errors import DataError

CHUNK = 32  # files a piece of work: short, so that Ctrl-C is soon obeyed
MAX_THREADS = 8
Progress = Callable[[int, int], None]
"""Called with the number of images that are decoded, and of all."""


def decode_all(
    files: list[Path], image: ImageConfig, workers: int = 0, progress: Progress | None = None
) -> tuple[NDArray[np.uint8], dict[Path, str]]:
    """Decodes files.

    Args:
        files: N of them.
        image: Size and channels to decode to.
        workers: Processes; 0 takes threads.
        progress: Called now and then.

    Returns:
        uint8 (N, H, W, C), in the files' order, and of each file that could not be decoded why;
        its pixels are 0.

    Raises:
        DataError: if a process ended before its work was done.
    """
    images = np.zeros((len(files), *image.size, image.channels), dtype=np.uint8)
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    failures: dict[Path, str] = {}
    done = 0
    with _pool(min(workers, len(chunks))) as pool:
        try:
            with _interrupts_are_for_us():
                parts = pool.map(partial(_decode, image=image), chunks)
            for pixels, reasons in parts:
                images[done : done + len(pixels)] = pixels
                failures.update(reasons)
                done += len(pixels)
                if progress is not None:
                    progress(done, len(files))
        except BrokenProcessPool:
            raise DataError(
                "a process that decoded images ended before its work was done: out of memory, or "
                "the program that loads the data does so outside of `if __name__ == '__main__':`; "
                "0 workers decode without processes"
            ) from None
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images, failures


def _decode(files: list[Path], image: ImageConfig) -> tuple[NDArray[np.uint8], dict[Path, str]]:
    """What `decode_all` does, one file after the other."""
    images = np.zeros((len(files), *image.size, image.channels), dtype=np.uint8)
    reasons = {}
    for file, pixels in zip(files, images, strict=True):
        try:
            pixels[...] = decode_image(file, image)
        except DataError as error:
            reasons[file] = str(error)
    return images, reasons


def _pool(workers: int) -> Executor:
    if not workers:
        return ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    # Not forked: this process may have threads, of torch for one, whose locks would be copied held.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Lets a process end when the one that it works for was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _interrupts_are_for_us() -> Iterator[None]:
    """Processes that are started here never see Ctrl-C: this one ends them, without a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
