"""Compressed DICOM frames and videos are decoded in a process of their own.

Guarantee: a broken stream that makes a C++ decoder abort, crash, hang or ask for gigabytes costs that one image, never
the run; what the decoders write to standard error is dropped. One decoder process serves each Python process; it starts
at the first request and ends with its owner.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Shaped

SECONDS_PER_FRAME = 120.0
"""A frame that takes longer is given up; real ones take well under ten seconds."""
MEMORY_BYTES = 4 * 2**30
"""Address space of the decoder process."""


class Request(Protocol):
    """What is sent to the decoder process: it is pickled, and answered there."""

    def answer(self) -> Any:
        """Decode; any exception means that the stream is refused."""


@dataclass(frozen=True)
class Frame:
    """One compressed frame and what its header says: `attributes` by DICOM keyword."""

    stream: bytes
    transfer_syntax: str
    plugin: str
    attributes: dict[str, Any]
    raw: bool

    def answer(self) -> Shaped[np.ndarray, "h w *c"]:
        """Decode the frame by pydicom's decoder of its transfer syntax."""
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.encaps import encapsulate
        from pydicom.pixels import get_decoder
        from pydicom.uid import UID

        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(self.transfer_syntax)
        for keyword, value in self.attributes.items():
            setattr(dataset, keyword, value)
        dataset.PixelData = encapsulate([self.stream])
        dataset["PixelData"].is_undefined_length = True
        decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
        options: Any = {"index": 0, "raw": self.raw, "decoding_plugin": self.plugin, "correct_unused_bits": False}
        return decoder.as_array(dataset, **options)[0]


class DecoderFailed(ValueError):
    """The decoder refused the frame, crashed or hung."""


class _Worker:
    """The other end: a Python process that decodes what comes through a pipe."""

    def __init__(self) -> None:
        ours, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.owner = os.getpid()
        self.connection = ours
        self.process = subprocess.Popen(
            [sys.executable, "-m", "medvlp.io.decoder_process", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()

    def ask(self, request: Request, seconds: float) -> Any:
        self.connection.send(request)
        if not self.connection.poll(seconds):
            raise DecoderFailed(f"the decoder gave no answer within {seconds:.0f} s")
        return self.connection.recv()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.close()
        if self.owner == os.getpid():
            self.process.kill()
            self.process.wait()


_lock = threading.Lock()
_worker: _Worker | None = None


@atexit.register
def _stop() -> None:
    if _worker is not None:
        _worker.stop()


def decode_frame(frame: Frame) -> Shaped[np.ndarray, "h w *c"]:
    """Decode one frame in the decoder process of this process.

    Raises:
        DecoderFailed: The frame cannot be decoded.
    """
    return ask(frame, SECONDS_PER_FRAME)


def ask(request: Request, seconds: float) -> Any:
    """Have a request answered in the decoder process of this process.

    Args:
        request: What to decode.
        seconds: How long to wait.

    Raises:
        DecoderFailed: The decoder refused it, crashed, or gave no answer in time.
    """
    global _worker
    with _lock:
        if _worker is not None and (_worker.owner != os.getpid() or _worker.process.poll() is not None):
            _worker.stop()  # inherited by a fork, or ended by someone else
            _worker = None
        _worker = _worker or _Worker()
        try:
            answer = _worker.ask(request, seconds)
        except BaseException as error:
            _worker.stop()
            _worker = None
            if isinstance(error, (EOFError, OSError)):
                raise DecoderFailed("the decoder crashed on it") from None
            raise
    if isinstance(answer, str):
        raise DecoderFailed(f"the decoder refused it: {answer}")
    return answer


def _serve(connection: Connection) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        try:
            answer: Any = request.answer()
        except Exception as error:  # whatever a decoder throws at a broken stream
            answer = f"{type(error).__name__}: {error}"
        connection.send(answer)


if __name__ == "__main__":
    # Under `-m` this file is `__main__`; frames are pickled by the module's real name.
    from medvlp.io import decoder_process

    decoder_process._serve(Connection(int(sys.argv[1])))
