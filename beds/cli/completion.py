"""`beds completion`: completion of commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_BEDS_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes `beds` in a shell.

    \b
    Examples:
      eval "$(beds completion bash)"                              (in ~/.bashrc)
      eval "$(beds completion zsh)"                               (in ~/.zshrc)
      beds completion fish > ~/.config/fish/completions/beds.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "beds", VARIABLE).source())
