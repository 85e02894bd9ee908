"""`medvlp config`: check and show configurations before anything is started."""

from __future__ import annotations

from typing import Annotated

import typer

from medvlp.cli._common import Overrides, say

app = typer.Typer(help="Check configuration files and show what they resolve to.", no_args_is_help=True)
File = Annotated[str, typer.Argument(metavar="FILE", help="YAML file; shipped ones by their relative path.")]


@app.command("check", epilog="Example: medvlp config check configs/pretrain/medclip_nih_iu.yaml train.steps=100")
def check(file: File, overrides: Overrides = None) -> None:
    """List every mistake of a configuration; exit status 1 if there is one."""
    from medvlp.bench.suite import resolve_tasks
    from medvlp.config.load import check_config
    from medvlp.config.suite import SuiteConfig

    loaded = check_config(file, overrides or [])
    if isinstance(loaded.config, SuiteConfig):
        resolve_tasks(loaded.config)
    say(f"{file}: no mistakes")
    if loaded.missing:
        say(f"Still to be given when it is run: {', '.join(loaded.missing)}")
    else:
        say(f"Hash: {loaded.config.sha256()}")


@app.command("show", epilog="Example: medvlp config show configs/pretrain/medclip_nih_iu.yaml")
def show(file: File, overrides: Overrides = None) -> None:
    """Print the whole resolved configuration as YAML, defaults included."""
    import yaml

    from medvlp.config.load import check_config

    say(yaml.safe_dump(check_config(file, overrides or []).config.resolved(), sort_keys=False).rstrip())
