"""The command line: verbs that call the library and print what it returns.

Guarantee: importing this package imports typer and rich only; every heavy library is imported by the verb that needs
it. A user's mistake ends in the three parts of a `UserError` and exit status 1, never in a traceback.
"""

from __future__ import annotations

import errno
import logging
import sys
from typing import Annotated

import typer

import medvlp
from medvlp.cli import (
    bench,
    config,
    data,
    data_copy,
    explain,
    finetune,
    knowledge,
    methods,
    models,
    phantom,
    read_study,
    zoo,
)
from medvlp.cli._common import first_process
from medvlp.cli.doctor import doctor
from medvlp.errors import UserError
from medvlp.threads import wait_asleep

app = typer.Typer(
    help="Medical vision-language pre-training for radiographs and CT, judged by one unified benchmark.",
    epilog="Start with: [bold]medvlp doctor[/bold], then [bold]medvlp phantom write --studies 64 --out phantom[/bold].",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(phantom.app, name="phantom")
data.app.command("copy", epilog=data_copy.EXAMPLE)(data_copy.copy)
app.add_typer(data.app, name="data")
app.add_typer(knowledge.app, name="knowledge")
app.command("pretrain", epilog=models.PRETRAIN_EXAMPLE)(models.pretrain)
app.command("plan-memory", epilog=models.PLAN_EXAMPLE)(models.plan_memory)
app.command("embed", epilog=models.EMBED_EXAMPLE)(models.embed)
app.command("finetune", epilog=finetune.FINETUNE_EXAMPLE)(finetune.finetune)
app.command("predict", epilog=finetune.PREDICT_EXAMPLE)(finetune.predict)
app.add_typer(bench.app, name="bench")
app.command("explain", epilog=explain.EXAMPLE)(explain.explain)
app.command("read-study", epilog=read_study.EXAMPLE)(read_study.read_study)
app.command("methods", epilog=methods.EXAMPLE)(methods.methods)
app.add_typer(zoo.app, name="zoo")
app.add_typer(config.app, name="config")
app.command("doctor", epilog="Example: medvlp doctor")(doctor)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"medvlp {medvlp.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log details of what is done.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Log warnings only.")] = False,
) -> None:
    """Options of every verb."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet or not first_process() else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("medvlp")
    logger.handlers[:] = [handler]
    logger.setLevel(level)


_DISK = {
    errno.ENOSPC: ("The disk is full.", "Free space, then run the same command again: it goes on where it stopped."),
    errno.EDQUOT: ("The disk quota is used up.", "Free space, then run the same command again."),
    errno.EROFS: ("The file system is read-only.", "Choose another output folder."),
    errno.EACCES: ("Permission was denied.", "Change the permissions, or choose another folder."),
}

_INTERRUPTED = 130  # typer's exit status after Ctrl-C


def main() -> None:
    """Run the command line; the entry point of the `medvlp` script."""
    wait_asleep()
    try:
        app()
    except UserError as error:
        _fail(error)
    except OSError as error:
        other = (f"The file system refused: {error.strerror or error}.", "Check the path and what is there.")
        what, fix = _DISK.get(error.errno or 0, other)
        logging.getLogger("medvlp").debug("Where this happened:", exc_info=True)
        _fail(UserError(what, error.filename or "", fix))
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            sys.stderr.write("Interrupted. Run the same command again; what is finished is kept.\n")
        raise


def _fail(error: UserError) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text("error: ", style="bold red") + Text(error.what))
    for name, text in (("where", error.where), ("next", error.fix)):
        if text:
            console.print(Text(f"  {name}: ", style="bold") + Text(text))
    sys.exit(1)
