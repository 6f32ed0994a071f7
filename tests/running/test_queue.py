from __future__ import annotations

import json

import pytest

from capsrepro.records import read_record, write_record

RUN = "digits/capsnet-r3-recon/seed-0"
OTHERS = [f"digits/capsnet-r3-recon/seed-{seed}" for seed in (1, 2)]


def owed(workplace) -> dict[str, tuple[str, float | None]]:
    runs = json.loads(workplace.call("pending", "--json").out)
    assert all(set(run) == {"run", "reason", "cost_s"} for run in runs)
    return {run["run"]: (run["reason"], run["cost_s"]) for run in runs}


def took(workplace, run: str, seconds: float, steps: int = 40) -> None:
    """Put down the record of a run that took so long for so many steps."""
    record = read_record(workplace.record())
    path = workplace.record(run=run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_record(
        path.parent,
        record.model_copy(
            update={
                "run": run,
                "cost": record.cost.model_copy(update={"wall_time_s": seconds}),
                "budget": record.budget.model_copy(update={"steps": steps}),
            }
        ),
    )


def test_nothing_is_known_of_a_model_that_never_ran(prepared):
    runs = owed(prepared)
    assert {cost_s for _, cost_s in runs.values()} == {None}
    # Of those that are matched to another run, that one is named besides.
    assert {reason.split(";")[0] for reason, _ in runs.values()} == {"no record"}
    assert next(iter(runs)) == "digits/cnn-baseline/seed-0"
    assert "(time unknown)" in prepared.call("pending").out


def test_estimate_is_the_median_time_per_step_times_the_steps(trained):
    took(trained, RUN, 60, steps=40)  # 1.5 s per step
    assert owed(trained)[OTHERS[0]] == ("no record", pytest.approx(60))
    took(trained, OTHERS[0], 400, steps=4)  # 100 s: a slow machine
    took(trained, "digits/capsnet-r3-recon/seed-7", 120, steps=40)  # 3 s
    runs = owed(trained)
    assert runs[OTHERS[1]] == ("no record", pytest.approx(3 * 40))
    assert f"{OTHERS[1]}: no record (about 2 min)" in trained.call("pending").out
    # Another model on the same data, and the same model on others, are not estimated by it.
    assert runs["digits/capsnet-r1-recon/seed-0"][1] is None
    assert runs["mnist/capsnet-r3-recon/seed-0"][1] is None


def test_estimate_crosses_protocols_on_the_same_data(trained):
    def longer(document):
        digits = document["protocols"]["digits"]
        document["protocols"]["long"] = digits | {"recipe": digits["recipe"] | {"steps": 400}}

    took(trained, RUN, 60)
    trained.edit(longer)
    assert owed(trained)["long/capsnet-r3-recon/seed-0"] == ("no record", pytest.approx(600))


def test_reasons(trained):
    assert RUN not in owed(trained)
    manifest = trained.root / "data" / "prepared" / "digits" / "manifest.json"
    before = trained.root / "params.yaml"
    text = before.read_text()

    trained.edit(lambda d: d["protocols"]["digits"].update(version="1.1"))
    assert owed(trained)[RUN][0] == "protocol version 1.0 is now 1.1"
    before.write_text(text)

    trained.edit(lambda d: d["models"]["digits"]["capsnet-r3-recon"].update(class_dim=8))
    assert owed(trained)[RUN][0] == "its specification in params.yaml has changed"
    before.write_text(text)

    record = read_record(trained.record())
    data = record.data.model_copy(update={"digest": "0" * 64})
    write_record(trained.record().parent, record.model_copy(update={"data": data}))
    assert owed(trained)[RUN][0] == "the prepared data have changed"
    manifest.unlink()  # data that are not here cannot contradict
    assert RUN not in owed(trained)
