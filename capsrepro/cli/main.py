"""The `capsrepro` command: commands by name, imported only when they are called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from capsrepro.errors import CapsreproError
from capsrepro.imports import lasting_imports

# Read when torch is loaded. Its idle threads otherwise spin on cores that other processes need: of
# two runs at once each step takes 2.2 times as long (docs/performance.md).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Name: (where it is, what `capsrepro --help` says of it). Kept as text so that listing the
# commands imports neither torch nor mlflow nor scipy.
COMMANDS: dict[str, tuple[str, str]] = {
    "datasets": (
        "capsrepro.cli.datasets:datasets",
        "Fetch, prepare, verify and show data sets.",
    ),
    "run": ("capsrepro.cli.runs:run", "Train and test one run; resumes by itself."),
    "attack": ("capsrepro.cli.evaluations:attack", "Attack a trained run."),
    "reconstruct": ("capsrepro.cli.evaluations:reconstruct", "What the decoder of a run draws."),
    "overlap": ("capsrepro.cli.evaluations:overlap", "Two digits in one image, by overlap."),
    "routing": ("capsrepro.cli.evaluations:routing", "What routing changes per iteration."),
    "scores": ("capsrepro.cli.evaluations:scores", "Class scores, for an ensemble of seeds."),
    "votes": ("capsrepro.cli.evaluations:votes", "Distances of votes in EM routing."),
    "crops": ("capsrepro.cli.evaluations:crops", "Test error over several crops."),
    "distortions": ("capsrepro.cli.evaluations:distortions", "Accuracy on distorted images."),
    "verify": ("capsrepro.cli.runs:verify", "Replay a recorded run and compare."),
    "submit": (
        "capsrepro.cli.submit:submit",
        "Run all that is pending, several at once, here or on a cluster.",
    ),
    "asked": ("capsrepro.cli.asked:asked", "Write what DVC compares of params.yaml."),
    "pending": ("capsrepro.cli.state:pending", "List the runs that no current record has."),
    "export": ("capsrepro.cli.bundles:export_", "Records and histories of runs into one file."),
    "import": ("capsrepro.cli.bundles:import_", "Bring here what another machine exported."),
    "report": ("capsrepro.cli.reports:report", "Tables beside the published numbers."),
    "claims": ("capsrepro.cli.reports:claims", "Every published claim and its verdict today."),
    "figures": ("capsrepro.cli.figures:figures", "The papers' figures, drawn from records."),
    "mlflow-sync": ("capsrepro.cli.state:mlflow_sync", "Bring MLflow up to date with the records."),
    "bench": ("capsrepro.cli.bench:bench", "Measure how fast training is on this machine."),
    "doctor": ("capsrepro.cli.doctor:doctor", "Check this machine, and say how to mend it."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name][0].split(":")
        with lasting_imports():
            command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="capsrepro")
def cli() -> None:
    """Rerun, check and judge the published numbers of Capsule Networks.

    \b
    Example:
      capsrepro datasets prepare mnist
      capsrepro run mnist-short/capsnet-r3-recon/seed-0
      capsrepro report mnist-short
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; every trouble is one sentence and an exit code.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 130 and 143 interrupted.
    """
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=arguments, prog_name="capsrepro", standalone_mode=False)
    except CapsreproError as error:
        click.echo(f"capsrepro: {error}", err=True)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        command = context.command_path if context else "capsrepro"
        what = " ".join(error.format_message().split()).rstrip(".")
        click.echo(f"capsrepro: {what}; see `{command} --help`.", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("capsrepro: interrupted; nothing was left half-written.", err=True)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`); Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        click.echo(
            f"capsrepro: the Python package {error.name} is not installed; run `make setup` in the "
            "clone, or `pip install 'capsrepro[train,pipeline]'`.",
            err=True,
        )
        return 1
    except Exception as error:
        if os.environ.get("CAPSREPRO_TRACEBACK"):
            raise
        click.echo(
            f"capsrepro: an unforeseen {type(error).__name__} ({' '.join(str(error).split())}); "
            "call again with CAPSREPRO_TRACEBACK=1 and report what it prints.",
            err=True,
        )
        return 1
    return result if isinstance(result, int) else 0
