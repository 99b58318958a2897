"""The `gpupool` command: gathers the commands, and turns every failure into one line and an exit code."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version

import click
from click.shell_completion import get_completion_class

from gpupool.errors import GpupoolError, InvalidSpec, Unreachable

from . import cluster, doctor, failover, jobs, operations, planned, queues, reboot, safety, streams, submit, wishes
from .output import examples
from .settings import connection_options

EPILOG = "\n\n".join(
    (
        examples("gpupool submit job.yaml --wait", "gpupool jobs --state running", "gpupool explain JOB"),
        """\b
Exit codes:
    0  done               1  the request or the job failed
    2  wrong usage/spec   3  no such job, host or unit
    4  scheduler not reachable
    5  conflict with the present state
   10  doctor: warnings 11  doctor: problems
  124  not in time      130  interrupted
With `submit --wait` the guest's own exit code (1 when it has none).""",
        """\b
The scheduler is the first of: --server, $GPUPOOL_SERVER, the one that
`gpupool up` started, 127.0.0.1:50151. Several, with commas, are replicas.""",
    )
)

# Commands in modules that not every installation can import: name -> (module, attribute, extra that brings it).
LAZY = {
    "up": ("gpupool.cli.up", "up", "all"),
    "demo": ("gpupool.cli.demo", "demo", "all"),
    # It decides with the scheduler's core, so it is shipped with the scheduler, and the library never imports it.
    "simulate": ("gpupool.scheduler.simulate.command", "simulate", "scheduler"),
}


def _module_of(command: str) -> str | None:
    """The module that brings a lazy command; None where it is not installed. In the tree daemons stand at the top."""
    module = LAZY[command][0]
    for name in (module, module.removeprefix("gpupool.")):
        try:
            if importlib.util.find_spec(name):
                return name
        except ModuleNotFoundError:  # a package above it
            continue
    return None


class _Commands(click.Group):
    """A group whose lazy commands are imported when they are called or shown, and absent where they cannot be."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, sorted."""
        found = [name for name in LAZY if _module_of(name)]
        return sorted([*super().list_commands(ctx), *found])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None."""
        module = _module_of(cmd_name) if cmd_name in LAZY else None
        if module is None:
            return super().get_command(ctx, cmd_name)
        _, attribute, extra = LAZY[cmd_name]
        try:
            command = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            return _missing(
                cmd_name, f"`{cmd_name}` needs {error.name}; install it with: pip install 'gpupool[{extra}]'"
            )
        assert isinstance(command, click.Command)
        return command


def _missing(name: str, reason: str) -> click.Command:
    @click.command(name, help=f"Not installed: {reason}", context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1)
    def command(arguments: tuple[str, ...]) -> None:  # noqa: ARG001
        raise click.UsageError(reason)

    return command


@click.group(cls=_Commands, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@connection_options
def cli() -> None:
    """Run jobs as virtual machines that own real GPUs."""


@cli.command(
    epilog=examples(
        'bash:  eval "$(gpupool completion bash)"',
        'zsh:   eval "$(gpupool completion zsh)"',
        "fish:  gpupool completion fish | source",
    )
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes commands, job ids and host names."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "gpupool", "_GPUPOOL_COMPLETE").source())


@cli.command()
def version() -> None:
    """Print the version of this program; `gpupool status` has the scheduler's."""
    try:
        click.echo(installed_version("gpupool"))
    except PackageNotFoundError:
        click.echo("unknown (not installed as a package)")


_GROUPS = (submit, jobs, wishes, streams, operations, queues, doctor, planned, reboot, safety, failover, cluster)
for _command in (command for group in _GROUPS for command in group.COMMANDS):
    cli.add_command(_command)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Nothing that a user can cause shows a stack trace."""
    try:
        code = cli.main(list(arguments), prog_name="gpupool", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        return _usage(error)
    except GpupoolError as error:
        return _failure(error)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except UnicodeEncodeError as error:  # an argument that is no text has come as far as a message
        click.echo(f"error: {error.object!r} is not text in UTF-8", err=True)
        return 2
    except BrokenPipeError:  # `gpupool jobs | head`: nobody reads on, and Python must not flush at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # such as a full disk behind `gpupool jobs > file`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        click.echo(f"error: {error}", err=True)
        return 1
    return code if isinstance(code, int) else 0


def _usage(error: click.ClickException) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    more = f" (see `{ctx.command_path} --help`)" if ctx is not None else ""
    click.echo(f"error: {' '.join(error.format_message().split())}{more}", err=True)
    return 2


def _failure(error: GpupoolError) -> int:
    hint = "; name another with --server, or start one with `gpupool up`" if type(error) is Unreachable else ""
    lines = error.violations if isinstance(error, InvalidSpec) else (f"{error}{hint}",)
    for line in lines:
        click.echo(f"error: {line}", err=True)
    return error.exit_code
