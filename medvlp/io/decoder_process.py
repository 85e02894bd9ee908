"""Compressed DICOM frames are decoded in a process of their own.

Guarantee: a broken stream that makes a C++ decoder abort, crash or hang costs that one image, never the run; what the
decoders write to standard error is dropped. One decoder process serves each Python process; it starts at the first
compressed frame and ends with its owner.
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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Shaped

SECONDS_PER_FRAME = 120.0
"""A frame that takes longer is given up; real ones take well under ten seconds."""


@dataclass(frozen=True)
class Frame:
    """One compressed frame and what its header says: `attributes` by DICOM keyword."""

    stream: bytes
    transfer_syntax: str
    plugin: str
    attributes: dict[str, Any]
    raw: bool


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

    def ask(self, frame: Frame) -> Any:
        self.connection.send(frame)
        if not self.connection.poll(SECONDS_PER_FRAME):
            raise DecoderFailed(f"the decoder gave no answer within {SECONDS_PER_FRAME:.0f} s")
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
    global _worker
    with _lock:
        if _worker is not None and (_worker.owner != os.getpid() or _worker.process.poll() is not None):
            _worker.stop()  # inherited by a fork, or ended by someone else
            _worker = None
        _worker = _worker or _Worker()
        try:
            answer = _worker.ask(frame)
        except BaseException as error:
            _worker.stop()
            _worker = None
            if isinstance(error, (EOFError, OSError)):
                raise DecoderFailed("the decoder crashed on it") from None
            raise
    if isinstance(answer, str):
        raise DecoderFailed(f"the decoder refused it: {answer}")
    return answer


def _decode(frame: Frame) -> Shaped[np.ndarray, "h w *c"]:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(frame.transfer_syntax)
    for keyword, value in frame.attributes.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = encapsulate([frame.stream])
    dataset["PixelData"].is_undefined_length = True
    decoder = get_decoder(dataset.file_meta.TransferSyntaxUID)
    options: Any = {"index": 0, "raw": frame.raw, "decoding_plugin": frame.plugin, "correct_unused_bits": False}
    return decoder.as_array(dataset, **options)[0]


def _serve(connection: Connection) -> None:
    while True:
        try:
            frame = connection.recv()
        except EOFError:
            return
        try:
            answer: Any = _decode(frame)
        except Exception as error:  # whatever a decoder throws at a broken stream
            answer = f"{type(error).__name__}: {error}"
        connection.send(answer)


if __name__ == "__main__":
    # Under `-m` this file is `__main__`; frames are pickled by the module's real name.
    from medvlp.io import decoder_process

    decoder_process._serve(Connection(int(sys.argv[1])))
