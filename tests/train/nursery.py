"""Runs trainings in processes of their own, for tests: imports once, then forks, so that a process costs no import.

python nursery.py kill STORE FOLDER             an undisturbed run, and one killed three times
python nursery.py ranks STORE FOLDER            one process, 2 ranks of DDP, 2 ranks of FSDP2
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_store

from medvlp.config.train import PretrainConfig
from medvlp.data.token_table import TokenTable
from medvlp.methods import METHODS
from medvlp.store.array_store import Store
from medvlp.text import labeler
from medvlp.text.tokenizer import Tokenizer
from medvlp.train import pretrain

IMPORTED = (TokenTable, METHODS.get("medclip"), Store, labeler, Tokenizer)


def start(config: PretrainConfig, environment: dict[str, str] | None = None) -> int:
    """Fork a training; return its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(environment or {})
        pretrain(config)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait(child: int) -> int:
    """Return the exit code, negative where a signal ended the process."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(store: Path, folder: Path) -> dict[str, object]:
    """Train once undisturbed, and once with kills at random moments and another number of workers each time."""
    train = {"steps": 24, "checkpoint_every": 2, "ema": 0.9}
    began = time.perf_counter()
    codes = [wait(start(tiny_store.config(store, folder / "whole", train=train)))]
    seconds = time.perf_counter() - began
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    for workers in (0, 4, 1):
        child = start(tiny_store.config(store, folder / "killed", train=train, data={"num_workers": workers}))
        time.sleep(seconds * moments.uniform(0.1, 0.5))
        os.kill(child, signal.SIGKILL)
        codes.append(wait(child))
    codes.append(wait(start(tiny_store.config(store, folder / "killed", train=train))))
    return {"codes": codes, "seed": seed}


def ranks(store: Path, folder: Path) -> dict[str, object]:
    """Train the same in one process, on 2 ranks with DDP and on 2 ranks with FSDP2."""
    optimizer = {"name": "sgd", "lr": 0.05, "warmup_steps": 1, "weight_decay": 0.1}
    method = {"text": {"dropout": 0.0}}
    codes = {}
    for name, world, changes in (
        ("one", 1, {}),
        ("ddp", 2, {}),
        ("fsdp2", 2, {"strategy": "fsdp2"}),
    ):
        train = {"steps": 3, "accumulate": 2, "ema": 0.5, "optimizer": optimizer} | changes
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        children = []
        for rank in range(world):
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
            config = tiny_store.config(store, folder / name, method=method, train=train)
            variables = {key: str(value) for key, value in environment.items()} | {"MASTER_PORT": port}
            children.append(start(config, variables))
        codes[name] = [wait(child) for child in children]
    return codes


if __name__ == "__main__":
    command = {"kill": kill, "ranks": ranks}[sys.argv[1]]
    sys.stdout.write(json.dumps(command(Path(sys.argv[2]), Path(sys.argv[3]))))
