"""Checking a recorded run: replay its first steps, or all of it, and compare."""

from __future__ import annotations

import math
from dataclasses import dataclass

from capsrepro.config import RunSpec
from capsrepro.errors import CapsreproError
from capsrepro.project import Project
from capsrepro.running import assembly, control, provenance
from capsrepro.running.experiment import current_record
from capsrepro.training import loop, state
from capsrepro.training.optimisation import make_optimizer

# Largest relative difference of a loss that is accepted on other hardware, with another torch or
# after a change of our own. Sums in another order start at the precision's rounding error and grow
# with every step; a different augmentation, start or learning rate is off by far more, and at once.
# Later steps are not held against it: a network that leaves a plateau a step later, as rounding
# will have it, is off by a tenth for some of them.
_TOLERANCES = {"float32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}


@dataclass(frozen=True)
class Replay:
    """How a replay compares with its record.

    Attributes:
        steps: Steps replayed.
        identical: Every loss has the same bits.
        largest_difference: Largest relative difference of a loss in the first half of the steps.
        tolerance: What is accepted on another machine or from another version of the program.
        same_machine: Device, threads, platform and libraries are those of the record.
        same_program: So is the source that decides what the numbers are.
    """

    steps: int
    identical: bool
    largest_difference: float
    tolerance: float
    same_machine: bool
    same_program: bool

    @property
    def agrees(self) -> bool:
        """Bit for bit on the same machine with the same program, else within the tolerance."""
        same = self.same_machine and self.same_program
        return self.identical or (not same and self.largest_difference <= self.tolerance)


def replay(project: Project, spec: RunSpec) -> Replay:
    """Train the first steps of a recorded run again and compare their losses.

    Raises:
        CapsreproError: There is no current record, or it holds no losses.
    """
    record, reason = current_record(project, spec)
    if record is None or reason is not None:
        raise CapsreproError(
            f"{spec.name} has no current record to verify ({reason}); "
            f"run `capsrepro run {spec.name}` first."
        )
    recorded = record.curves.get("first_losses", [])
    if not recorded:
        raise CapsreproError(
            f"the record of {spec.name} holds no losses to compare with; run it again."
        )
    device = state.choose_device(project.device)
    state.keep_freed_memory()
    state.make_deterministic()
    assembly.prepare_data(project, spec)
    model = assembly.build_model(spec, device)
    recipe = spec.protocol.recipe
    training = state.TrainingState(model, make_optimizer(model, recipe))
    stream = assembly.training_stream(project, spec, device)
    first = recipe.model_copy(update={"steps": len(recorded)})
    with control.explained(spec.name, str(device)):
        try:
            loop.train(training, stream, first, _Silent())
        except loop.DivergedError as error:
            raise CapsreproError(
                f"{spec.name} does not replay: {error}, where the record has finite losses; "
                "compare the environment in the record with this machine's."
            ) from error
    differences = [
        abs(now - then) / max(abs(then), 1e-12)
        for now, then in zip(training.first_losses, recorded, strict=True)
    ]
    here = provenance.describe_environment(device, recipe.precision)
    return Replay(
        steps=len(recorded),
        identical=training.first_losses == recorded,
        largest_difference=max(differences[: -(-len(differences) // 2)], default=math.nan),
        tolerance=_TOLERANCES[recipe.precision],
        same_machine=here == record.environment,
        same_program=provenance.science_digest() == record.code.science_digest,
    )


class _Silent:
    def on_step(self, training: state.TrainingState) -> bool:
        return True

    def on_epoch(self, entry: dict[str, float]) -> None:
        pass
