"""`capsrepro attack`, `reconstruct`, `overlap`, `routing`, `scores`: what needs a trained model."""

from __future__ import annotations

import click

from capsrepro.cli.runs import resolve, shown, where_options
from capsrepro.errors import UsageError
from capsrepro.running.parent import die_with_parent


@click.command()
@click.argument("kind", metavar="ATTACK")
@click.argument("run_name", metavar="PROTOCOL/MODEL/seed-N")
@where_options
def attack(kind: str, run_name: str, device: str | None, threads: int | None) -> None:
    """Attack a trained run on the whole test set and write a record of it.

    ATTACK is fgsm; its loss and ε grid stand in params.yaml.

    \b
    Example:
      capsrepro attack fgsm digits/capsnet-r3-recon/seed-0
    """
    die_with_parent()
    project, spec = resolve(run_name, device, threads)
    from capsrepro.running.evaluations import ATTACKS, run_evaluation

    if kind not in ATTACKS:
        raise UsageError(f"unknown attack {kind!r}; choose one of {', '.join(ATTACKS)}.")
    outcome = run_evaluation(project, spec, kind)
    curves, settings = outcome.record.curves, outcome.record.spec["attack"]
    prefix = "" if outcome.done else "nothing to do, its record is current: "
    failure = outcome.record.failure
    if failure is not None:
        click.echo(f"{spec.name}: {prefix}not attacked, its training failed: {failure.reason}")
        return
    points = ", ".join(
        f"{accuracy:.1f} % at ε = {epsilon}"
        for epsilon, accuracy in zip(settings["epsilons"], curves["accuracy_pct"], strict=True)
    )
    click.echo(
        f"{spec.name}: {prefix}accuracy under {kind} on the {settings['loss']} loss "
        f"{points}; record {shown(project, outcome.path)}"
    )


@click.command()
@click.argument("run_name", metavar="PROTOCOL/MODEL/seed-N")
@where_options
def reconstruct(run_name: str, device: str | None, threads: int | None) -> None:
    """Measure and draw what the decoder makes of present, absent and perturbed digits.

    \b
    Example:
      capsrepro reconstruct mnist-short/capsnet-r3-recon/seed-0
    """
    _evaluate("reconstruct", run_name, device, threads)


@click.command()
@click.argument("run_name", metavar="PROTOCOL/MODEL/seed-N")
@where_options
def overlap(run_name: str, device: str | None, threads: int | None) -> None:
    """Measure the error on two overlapping digits by label, by overlap, and when crowded.

    \b
    Example:
      capsrepro overlap multimnist-short/capsnet-r3-recon/seed-0
    """
    _evaluate("overlap", run_name, device, threads)


@click.command()
@click.argument("run_name", metavar="PROTOCOL/MODEL/seed-N")
@where_options
def routing(run_name: str, device: str | None, threads: int | None) -> None:
    """Measure what routing still changes at each iteration.

    \b
    Example:
      capsrepro routing mnist-short/capsnet-r3-recon/seed-0
    """
    _evaluate("routing", run_name, device, threads)


@click.command()
@click.argument("run_name", metavar="PROTOCOL/MODEL/seed-N")
@where_options
def scores(run_name: str, device: str | None, threads: int | None) -> None:
    """Keep the class scores of every test image, for the ensemble of all seeds.

    \b
    Example:
      capsrepro scores cifar10/capsnet-r3-recon/seed-0
    """
    _evaluate("scores", run_name, device, threads)


def _evaluate(kind: str, run_name: str, device: str | None, threads: int | None) -> None:
    die_with_parent()
    project, spec = resolve(run_name, device, threads)
    from capsrepro.running.evaluations import run_evaluation

    outcome = run_evaluation(project, spec, kind)
    record = outcome.record
    prefix = "" if outcome.done else "nothing to do, its record is current: "
    if record.failure is not None:
        said = f"not evaluated, its training failed: {record.failure.reason}"
    else:
        numbers = [f"{name} {value:.4g}" for name, value in record.metrics.items()]
        points = [
            f"{name} {', '.join(f'{value:.2g}' for value in values)}"
            for name, values in record.curves.items()
        ]
        said = "; ".join(numbers + points)
    click.echo(f"{spec.name}: {prefix}{said}; record {shown(project, outcome.path)}")
