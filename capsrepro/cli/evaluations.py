"""`capsrepro attack`, `reconstruct`, `overlap` and the like: what needs a trained model."""

from __future__ import annotations

import click

from capsrepro.cli.runs import resolve, shown, where_options
from capsrepro.imports import lasting_imports
from capsrepro.running.mlflow_sink import Sink
from capsrepro.running.parent import die_with_parent


@click.command()
@click.argument("kind", metavar="ATTACK")
@click.argument("run_name", metavar="PROTOCOL/MODEL/seed-N")
@where_options
def attack(kind: str, run_name: str, device: str | None, threads: int | None) -> None:
    """Attack a trained run on its test images and write a record of it.

    ATTACK is one of those that params.yaml lists for the protocol, such as fgsm, bim, pgd,
    fgsm-targeted or transfer-cnn: method, loss, ε and their unit, steps and restarts stand there.

    \b
    Example:
      capsrepro attack fgsm digits/capsnet-r3-recon/seed-0
    """
    die_with_parent()
    project, spec = resolve(run_name, device, threads)
    with Sink(project) as sink:
        with lasting_imports():
            from capsrepro.running.attacking import asked_attack
            from capsrepro.running.evaluations import run_evaluation

        asked_attack(spec, kind)
        outcome = run_evaluation(project, spec, kind, sink)
    curves, attack = outcome.record.curves, outcome.record.spec["attack"]
    prefix = "" if outcome.done else "nothing to do, its record is current: "
    failure = outcome.record.failure
    if failure is not None:
        click.echo(f"{spec.name}: {prefix}not attacked, its training failed: {failure.reason}")
        return
    measured = next(iter(name for name in curves if name != "epsilon"))
    points = ", ".join(
        f"{share:.1f} % at ε = {epsilon}"
        for epsilon, share in zip(attack["epsilons"], curves[measured], strict=True)
    )
    of = {"targeted_success_pct": "success"}.get(measured, "accuracy")
    crafted = f", made on {attack['source']}," if "source" in attack else ""
    click.echo(
        f"{spec.name}: {prefix}{of} under {kind} on the {attack['loss']} loss{crafted} "
        f"{points}; record {shown(project, outcome.path)}"
    )


def _evaluation(kind: str, purpose: str, example: str) -> click.Command:
    """The command of an evaluation: it measures one run and prints what its record holds."""

    @click.command(kind, help=f"{purpose}\n\n\b\nExample:\n  capsrepro {kind} {example}")
    @click.argument("run_name", metavar="PROTOCOL/MODEL/seed-N")
    @where_options
    def command(run_name: str, device: str | None, threads: int | None) -> None:
        die_with_parent()
        project, spec = resolve(run_name, device, threads)
        with Sink(project) as sink:
            with lasting_imports():
                from capsrepro.running.evaluations import run_evaluation

            outcome = run_evaluation(project, spec, kind, sink)
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

    return command


reconstruct = _evaluation(
    "reconstruct",
    "Measure and draw what the decoder makes of present, absent and perturbed digits.",
    "mnist-short/capsnet-r3-recon/seed-0",
)
overlap = _evaluation(
    "overlap",
    "Measure the error on two overlapping digits by label, by overlap, and when crowded.",
    "multimnist-short/capsnet-r3-recon/seed-0",
)
routing = _evaluation(
    "routing",
    "Measure what routing still changes at each iteration.",
    "mnist-short/capsnet-r3-recon/seed-0",
)
scores = _evaluation(
    "scores",
    "Keep the class scores of every test image, for the ensemble of all seeds.",
    "cifar10/capsnet-r3-recon/seed-0",
)
votes = _evaluation(
    "votes",
    "Measure how far votes lie from the class capsules at each iteration of EM routing.",
    "matcaps-mnist-short/matcaps-small-em3/seed-0",
)
crops = _evaluation(
    "crops",
    "Measure the error when several crops of every test image are classified together.",
    "matcaps-smallnorb/matcaps-em3/seed-0",
)
distortions = _evaluation(
    "distortions",
    "Measure the accuracy on rotated, moved, scaled, affinely mapped and noisy test images.",
    "mnist-short/capsnet-r3-recon/seed-0",
)
