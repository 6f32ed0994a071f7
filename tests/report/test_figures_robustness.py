"""Figures of robustness: whose curves they are, their bands, and what lies over them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from figure_files import RAW, STANDARDISED, Shelf, attacks, figure_params, heading
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from capsrepro.claims import ValueClaim, load_claims
from capsrepro.records import Record
from capsrepro.report.figures.archive import NothingToDrawError, find_evaluated
from capsrepro.report.figures.curves import curve_of, styles
from capsrepro.report.figures.distortions import sweep
from capsrepro.report.figures.white_box import published_curve

CNN, CAPS = "mnist-short/cnn-baseline", "mnist-short/capsnet-r3-recon"
NOISE = [99.0, 98.0, 97.0]
EPSILONS = [float(Fraction(epsilon)) for epsilon in RAW]
IN_SD = [float(epsilon) for epsilon in STANDARDISED]
FIGURES = ("hinton2018-fig3", *(f"robustness-{n}" for n in ("accuracy", "targeted", "distortions")))


@pytest.fixture
def shelf(tmp_path: Path, run_record: Callable[..., Record]) -> Shelf:
    return Shelf(tmp_path / "results", figure_params(), run_record)


@pytest.fixture
def norb(shelf: Shelf) -> Shelf:
    """With the paper's own data and two other protocols whose ε has its unit."""
    own = shelf.params.protocols["matcaps-mnist-short"]
    models = ("cnn-baseline", "matcaps-em3", "matcaps-small-em3")
    changes = {"run_models": models, "attacks": attacks("standardised-pixels", models)}
    short = own.model_copy(update={**changes, "dataset": "solids-azimuth", "judged_as": None})
    whole = own.model_copy(update={**changes, "dataset": "smallnorb", "judged_as": "smallnorb"})
    added = {"solids": short, "norb": whole}
    shelf.params = shelf.params.model_copy(
        update={"protocols": {**shelf.params.protocols, **added}}
    )
    return shelf


def untargeted(shelf: Shelf, run: str, *values: float, name: str = "fgsm", **changes: object):
    measured = "transfer_accuracy_pct" if name.startswith("transfer") else "accuracy_pct"
    curves = {measured: list(values), "noise_accuracy_pct": NOISE}
    return shelf.attack(_trained(shelf, run), name, curves, **changes)


def targeted(shelf: Shelf, run: str, *values: float, name: str = "fgsm-targeted") -> Record:
    wrong = [value - 5 for value in values]
    curves = {"targeted_success_pct": list(values), "wrong_target_success_pct": wrong}
    return shelf.attack(_trained(shelf, run), name, curves)


def distorted(shelf: Shelf, run: str, lost: float = 0.0) -> Record:
    """A sweep of rotations in no order and one of scales, which share the image as it is."""
    points = [(30, 0, 1, 0, 0), (0, 0, 1, 0, 0), (-30, 0, 1, 0, 0), (0, 0, 0.5, 0, 0)]
    names = ("rotation_deg", "translation_px", "scale", "affine_share", "noise_sd")
    curves = {name: [float(p[n]) for p in points] for n, name in enumerate(names)}
    curves["distorted_accuracy_pct"] = [60.0 - lost, 98.0 - lost, 50.0 - lost, 40.0 - lost]
    return shelf.evaluate(
        _trained(shelf, run), "distortions", curves, metrics={"test_images": 2000.0}
    )


def _trained(shelf: Shelf, run: str) -> Record:
    archive = shelf.open()
    found = [r for r in archive.records if (r.kind, r.run) == ("train", run)]
    return found[0] if found else shelf.train(run)


def line(axes: Axes, label: str) -> list[tuple[float, float]]:
    """The points of the only line with this label."""
    (found,) = [drawn for drawn in axes.get_lines() if drawn.get_label() == label]
    return [(float(x), float(y)) for x, y in found.get_xydata()]


def band(axes: Axes, label: str) -> dict[float, tuple[float, float]]:
    """Lower and upper end of the only band of a line, by place."""
    (found,) = [c for c in axes.collections if c.get_label() == f"_band of {label}"]
    corners = found.get_paths()[0].vertices
    return {
        float(x): (float(corners[corners[:, 0] == x][:, 1].min()), float(at.max()))
        for x in np.unique(corners[:, 0])
        for at in [corners[corners[:, 0] == x][:, 1]]
    }


def legend(figure: Figure) -> list[str]:
    legends = [*figure.legends, *(a.get_legend() for a in figure.axes if a.get_legend())]
    (only,) = legends
    return [text.get_text() for text in only.get_texts()]


def dashed(axes: Axes) -> list[str]:
    return [str(drawn.get_label()) for drawn in axes.get_lines() if drawn.get_linestyle() == "--"]


def pairs(points: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(points, values, strict=True))


def test_accuracy_is_the_mean_of_the_seeds_and_the_band_their_range(shelf: Shelf) -> None:
    for seed, values in enumerate([(99, 60, 10), (97, 40, 20), (98, 50, 0)]):
        untargeted(shelf, f"{CNN}/seed-{seed}", *map(float, values))
    untargeted(shelf, f"{CAPS}/seed-0", 98, 80, 70)
    figure = shelf.draw("robustness-accuracy")
    (axes,) = figure.axes
    assert line(axes, "cnn-baseline (n = 3)") == pairs(EPSILONS, [98, 50, 10])
    ends = [(97, 99), (40, 60), (0, 20)]
    assert band(axes, "cnn-baseline (n = 3)") == dict(zip(EPSILONS, ends, strict=True))
    assert line(axes, "capsnet-r3-recon (n = 1)") == pairs(EPSILONS, [98, 80, 70])
    # One seed has no range.
    assert len(axes.collections) == 1
    assert line(axes, "_capsnet-r3-recon (n = 1), noise") == pairs(EPSILONS, NOISE)
    labels = ["cnn-baseline (n = 3)", "capsnet-r3-recon (n = 1)", "random ±ε, by model"]
    assert legend(figure)[:4] == [*labels, "chance, 10 classes"]
    assert "mnist-short, trained for 1 % of the full budget" in heading(figure)
    assert "bands: from the lowest to the highest seed" in heading(figure)


def test_axes_say_their_units(shelf: Shelf) -> None:
    untargeted(shelf, f"{CNN}/seed-0", 98, 50, 10)
    (axes,) = shelf.draw("robustness-accuracy").axes
    low, high = axes.get_ylim()
    assert low <= 0
    assert high >= 100
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "25/255", "50/255"]
    assert list(axes.get_xticks()) == EPSILONS
    assert "raw pixels" in axes.get_xlabel()
    chance = [drawn for drawn in axes.get_lines() if "chance" in str(drawn.get_label())]
    assert [float(drawn.get_ydata()[0]) for drawn in chance] == [10]


def test_one_panel_for_each_attack_says_how_it_was_made(shelf: Shelf) -> None:
    for name in ("transfer-cnn", "pgd", "bim", "fgsm"):
        untargeted(shelf, f"{CNN}/seed-0", 98, 50, 10, name=name)
    untargeted(shelf, f"{CAPS}/seed-0", 98, 70, 60, name="transfer-cnn")
    figure = shelf.draw("robustness-accuracy")
    titles = [axes.get_title() for axes in figure.axes]
    assert [title.partition("\n")[0] for title in titles] == [
        "fgsm",
        "bim, 10 steps",
        "pgd, 20 steps, worst of 3 starts",
        "transfer-cnn, bim on cnn-baseline, 10 steps",
    ]
    assert titles[2].endswith("loss: logit-difference; 10,000 test images")
    transferred = figure.axes[3]
    assert line(transferred, "capsnet-r3-recon (n = 1)") == pairs(EPSILONS, [98, 70, 60])


def test_a_model_looks_the_same_in_every_panel_and_figure(shelf: Shelf) -> None:
    for name in ("fgsm", "bim"):
        untargeted(shelf, f"{CAPS}/seed-0", 98, 70, 60, name=name)
    untargeted(shelf, f"{CNN}/seed-0", 98, 50, 10, name="fgsm")
    targeted(shelf, f"{CAPS}/seed-0", 10, 20, 30)
    distorted(shelf, f"{CAPS}/seed-0")
    looks = set()
    for name in FIGURES[1:]:
        for axes in shelf.draw(name).axes:
            for drawn in axes.get_lines():
                if str(drawn.get_label()).startswith("capsnet-r3-recon"):
                    looks.add((drawn.get_color(), drawn.get_marker()))
    assert len(looks) == 1
    archive = shelf.open()
    sources = [s for s in find_evaluated(archive) if s.record.model == "capsnet-r3-recon"]
    many = shelf.params.protocols["mnist-short"].model_copy(
        update={"run_models": tuple(f"model-{n}" for n in range(20))}
    )
    archive.params.protocols["mnist-short"] = many
    assert len(set(styles(archive, sources).values())) == 21


def test_reproductions_lie_over_the_same_attack_on_the_same_data(shelf: Shelf) -> None:
    for name in ("fgsm", "bim", "pgd", "transfer-cnn"):
        untargeted(shelf, f"{CNN}/seed-0", 98, 50, 10, name=name)
    claims = [
        claim
        for claim in load_claims("reproductions")
        if isinstance(claim, ValueClaim)
        and (claim.reported_by, claim.metric) == ("jsikyoon", "accuracy_pct")
    ]
    assert len(claims) == 8
    figure = shelf.draw("robustness-accuracy")
    for axes, attack, way in zip(figure.axes, ("fgsm", "bim"), ("", ", 5 steps"), strict=False):
        for model in ("capsnet-r3", "cnn-plain"):
            label = f"published by jsikyoon: {model}{way}"
            own = [c for c in claims if (c.model, c.condition["attack"]) == (model, attack)]
            assert line(axes, label) == [
                (float(Fraction(str(c.condition["epsilon"]))), c.value) for c in own
            ]
            assert label in legend(figure)
    for axes in figure.axes[2:]:
        assert not [d for d in axes.get_lines() if "published" in str(d.get_label())]


@pytest.mark.parametrize("protocol", ["digits", "multimnist-short"])
def test_reproductions_of_other_data_are_left_out(shelf: Shelf, protocol: str) -> None:
    untargeted(shelf, f"{protocol}/cnn-baseline/seed-0", 98, 50, 10)
    assert "jsikyoon" not in " ".join(legend(shelf.draw("robustness-accuracy")))


def test_the_judged_protocol_with_most_attacks_is_shown(shelf: Shelf) -> None:
    untargeted(shelf, "mnist/cnn-baseline/seed-0", 98, 50, 10)
    for name in ("fgsm", "bim"):
        untargeted(shelf, f"{CNN}/seed-0", 98, 50, 10, name=name)
        untargeted(shelf, "digits/cnn-baseline/seed-0", 98, 50, 10, name=name)
    untargeted(shelf, "digits/cnn-baseline/seed-0", 98, 50, 10, name="pgd")
    assert "attack: mnist-short" in heading(shelf.draw("robustness-accuracy"))
    untargeted(shelf, "mnist/cnn-baseline/seed-0", 98, 50, 10, name="bim")
    backwards = dict(reversed(shelf.params.protocols.items()))
    shelf.params = shelf.params.model_copy(update={"protocols": backwards})
    assert "attack: mnist, trained for 100 %" in heading(shelf.draw("robustness-accuracy"))


def test_a_named_run_chooses_its_protocol(shelf: Shelf) -> None:
    for run in (f"{CNN}/seed-0", f"{CAPS}/seed-1", "digits/cnn-baseline/seed-0"):
        untargeted(shelf, run, 98, 50, 10)
        targeted(shelf, run, 10, 20, 30)
        distorted(shelf, run)
    for name in FIGURES[1:]:
        figure = shelf.draw(name, f"{CAPS}/seed-1")
        assert ": mnist-short, " in heading(figure)
        drawn = " ".join(legend(figure))
        assert "cnn-baseline (n = 1)" in drawn
        assert "capsnet-r3-recon (n = 1)" in drawn
        figure = shelf.draw(name, "digits/cnn-baseline/seed-0")
        assert ": digits, " in heading(figure)
        assert "capsnet-r3-recon" not in " ".join(legend(figure))
        # It is not made up for by others of its protocol.
        with pytest.raises(NothingToDrawError, match=f"^{CNN}/seed-2 has no "):
            shelf.draw(name, f"{CNN}/seed-2")


def test_seeds_attacked_otherwise_are_not_mixed(shelf: Shelf) -> None:
    for seed in (0, 1, 2):
        untargeted(shelf, f"{CNN}/seed-{seed}", 98, 50, 10)
    before = shelf.params
    mnist = before.protocols["mnist-short"]
    shelf.params = before.model_copy(
        update={
            "protocols": {
                **before.protocols,
                "mnist-short": mnist.model_copy(
                    update={
                        "attacks": {
                            "fgsm": mnist.attacks["fgsm"].model_copy(update={"images": 100})
                        }
                    }
                ),
            }
        }
    )
    untargeted(shelf, f"{CNN}/seed-0", 0, 0, 0)
    (axes,) = shelf.draw("robustness-accuracy").axes
    assert line(axes, "cnn-baseline (n = 2)") == pairs(EPSILONS, [98, 50, 10])
    (axes,) = shelf.draw("robustness-accuracy", f"{CNN}/seed-0").axes
    assert line(axes, "cnn-baseline (n = 1)") == pairs(EPSILONS, [0, 0, 0])


def test_seeds_that_took_images_from_different_runs_are_one_curve(shelf: Shelf) -> None:
    for seed in (0, 1):
        untargeted(shelf, f"{CAPS}/seed-{seed}", 98, 50 + 10 * seed, 10, name="transfer-cnn")
    (axes,) = shelf.draw("robustness-accuracy").axes
    assert line(axes, "capsnet-r3-recon (n = 2)") == pairs(EPSILONS, [98, 55, 10])


def test_images_of_a_network_trained_again_are_not_shown(shelf: Shelf) -> None:
    untargeted(shelf, f"{CAPS}/seed-0", 98, 50, 10, name="transfer-cnn")
    # Without a record of the source the word of the attack is taken.
    assert shelf.draw("robustness-accuracy").axes
    source = shelf.train(f"{CNN}/seed-1")
    assert shelf.draw("robustness-accuracy").axes
    again = {**source.outputs, "weights.safetensors": "b" * 64}
    shelf.train(f"{CNN}/seed-1", outputs=again)
    with pytest.raises(NothingToDrawError):
        shelf.draw("robustness-accuracy")


def test_records_of_an_older_form_are_left_out(shelf: Shelf) -> None:
    record = untargeted(shelf, f"{CNN}/seed-0", 98, 50, 10)
    old = {"name": "fgsm", "loss": "margin", "epsilon_unit": "raw-pixels", "epsilons": list(RAW)}
    untargeted(shelf, f"{CNN}/seed-0", 98, 50, 10, spec={**record.spec, "attack": old})
    with pytest.raises(NothingToDrawError, match=f"run `capsrepro attack fgsm {CNN}/seed-0`"):
        shelf.draw("robustness-accuracy")


def test_targeted_success_with_and_without_the_true_class(shelf: Shelf) -> None:
    for seed, last in ((0, 30.0), (1, 50.0)):
        targeted(shelf, f"{CAPS}/seed-{seed}", 10, 20, last)
        targeted(shelf, f"{CAPS}/seed-{seed}", 10, 60, 70, name="bim-targeted")
    figure = shelf.draw("robustness-targeted")
    first, second = figure.axes
    every, wrong = (
        f"capsnet-r3-recon (n = 2), {which}" for which in ("every class", "without the true one")
    )
    assert line(first, every) == pairs(EPSILONS, [10, 20, 40])
    assert line(first, wrong) == pairs(EPSILONS, [5, 15, 35])
    assert band(first, every)[EPSILONS[2]] == (30, 50)
    assert band(first, wrong)[EPSILONS[2]] == (25, 45)
    assert line(second, every) == pairs(EPSILONS, [10, 60, 70])
    assert dashed(first) == [wrong]
    assert first.get_title().startswith("fgsm-targeted\n")


def test_fig_3_has_both_sides_and_the_curves_of_the_paper(norb: Shelf) -> None:
    for model, high in (("cnn-baseline", 60.0), ("matcaps-em3", 80.0)):
        for seed in (0, 1):
            run = f"norb/{model}/seed-{seed}"
            for name, lost in (("fgsm", 0.0), ("bim", 20.0)):
                untargeted(norb, run, 95, high + seed - lost, 10, name=name)
                success = 100 - high - seed + lost
                targeted(norb, run, 20, success, 70, name=f"{name}-targeted")
    figure = norb.draw("hinton2018-fig3")
    left, right = figure.axes
    assert line(left, "ours: cnn-baseline, FGSM (n = 2)") == pairs(IN_SD, [95, 60.5, 10])
    assert line(left, "ours: matcaps-em3, BIM (n = 2)") == pairs(IN_SD, [95, 60.5, 10])
    assert band(left, "ours: matcaps-em3, BIM (n = 2)")[IN_SD[1]] == (60, 61)
    assert line(right, "ours: matcaps-em3, FGSM (n = 2)") == pairs(IN_SD, [20, 19.5, 70])
    assert line(right, "ours: cnn-baseline, BIM (n = 2)") == pairs(IN_SD, [20, 59.5, 70])
    assert "standard deviations" in left.get_xlabel()
    assert [float(d.get_ydata()[0]) for d in left.get_lines() if "chance" in d.get_label()] == [10]
    assert "test images of smallnorb" in heading(figure)
    assert "cannot be compared" not in heading(figure)
    assert len(legend(figure)) == 9
    ours = [d for d in left.get_lines() if str(d.get_label()).startswith("ours")]
    assert len({(d.get_color(), d.get_marker()) for d in ours}) == 4


def test_published_curves_are_the_claims_with_their_error_of_reading(norb: Shelf) -> None:
    untargeted(norb, "norb/cnn-baseline/seed-0", 95, 60, 10)
    figure = norb.draw("hinton2018-fig3")
    claims = [
        claim
        for claim in load_claims("hinton2018")
        if isinstance(claim, ValueClaim) and claim.locator in ("Fig. 3 left", "Fig. 3 right")
    ]
    drawn = 0
    for axes, metric in zip(figure.axes, ("accuracy_pct", "targeted_success_pct"), strict=True):
        for model in ("cnn-baseline", "matcaps-em3"):
            for method in ("fgsm", "bim"):
                own = {
                    float(c.condition["epsilon"]): (c.value, c.reading_error)
                    for c in claims
                    if (c.metric, c.model, c.condition["attack"]) == (metric, model, method)
                }
                label = f"published: {model}, {method.upper()}"
                assert line(axes, label) == [(x, own[x][0]) for x in sorted(own)]
                ends = {x: (value - error, value + error) for x, (value, error) in own.items()}
                assert band(axes, label) == {x: pytest.approx(ends[x]) for x in ends}
                assert label in dashed(axes)
                drawn += len(own)
    assert drawn == len(claims) == 88
    assert published_curve("Fig. 3 left", "cnn-baseline", "fgsm").points[0] == 0


def test_the_paper_s_data_come_first_and_other_data_are_said(norb: Shelf) -> None:
    for name in ("fgsm", "bim"):
        untargeted(norb, "solids/cnn-baseline/seed-0", 95, 60, 10, name=name)
    # Judged by a paper, but with one attack alone, or in raw pixels.
    untargeted(norb, "matcaps-mnist-short/matcaps-em3/seed-0", 95, 60, 10)
    untargeted(norb, f"{CNN}/seed-0", 95, 60, 10)
    told = heading(norb.draw("hinton2018-fig3"))
    assert "test images of solids-azimuth" in told
    assert "ours are of solids-azimuth, not of smallNORB: values cannot be compared" in told
    untargeted(norb, "norb/cnn-baseline/seed-0", 95, 60, 10)
    assert "ours: norb, " in heading(norb.draw("hinton2018-fig3"))


def test_a_network_under_fewer_attacks_is_left_out_of_fig_3(norb: Shelf) -> None:
    for model in ("cnn-baseline", "matcaps-em3", "matcaps-small-em3"):
        untargeted(norb, f"norb/{model}/seed-0", 95, 60, 10)
    untargeted(norb, "norb/cnn-baseline/seed-0", 95, 60, 10, name="bim")
    untargeted(norb, "norb/matcaps-em3/seed-0", 95, 60, 10, name="bim")
    assert "small" not in " ".join(legend(norb.draw("hinton2018-fig3")))


def test_every_distortion_is_a_panel_with_what_else_is_left_alone(shelf: Shelf) -> None:
    distorted(shelf, f"{CAPS}/seed-0")
    distorted(shelf, f"{CAPS}/seed-1", lost=20)
    figure = shelf.draw("robustness-distortions")
    rotation, scale = figure.axes
    label = "capsnet-r3-recon (n = 2)"
    assert line(rotation, label) == [(-30, 40), (0, 88), (30, 50)]
    assert line(scale, label) == [(0.5, 30), (1, 88)]
    assert band(rotation, label)[-30] == (30, 50)
    assert rotation.get_xlabel() == "rotation, degrees"
    assert "mnist-short" in heading(figure)
    assert "2,000 test images" in heading(figure)


def test_all_five_distortions_leave_a_cell_for_the_legend(shelf: Shelf) -> None:
    names = ("rotation_deg", "translation_px", "scale", "affine_share", "noise_sd")
    identity = (0.0, 0.0, 1.0, 0.0, 0.0)
    rows = [identity] + [tuple(v + (k == n) for k, v in enumerate(identity)) for n in range(5)]
    curves = {name: [row[n] for row in rows] for n, name in enumerate(names)}
    curves["distorted_accuracy_pct"] = [99.0, 90.0, 80.0, 70.0, 60.0, 50.0]
    record = shelf.evaluate(
        shelf.train(f"{CAPS}/seed-0"), "distortions", curves, metrics={"test_images": 1.0}
    )
    figure = shelf.draw("robustness-distortions")
    assert len(figure.axes) == 6
    for n, (axes, name) in enumerate(zip(figure.axes, names, strict=False)):
        start = (identity[n], 99.0)
        assert line(axes, "capsnet-r3-recon (n = 1)") == [start, (identity[n] + 1, 90.0 - 10 * n)]
        assert sweep(record.curves, name)[0] == start
    assert not figure.axes[5].axison
    assert figure.axes[5].get_legend() is not None


def test_points_are_put_in_order_and_must_be_the_same() -> None:
    curve = curve_of([[(2.0, 1.0), (1.0, 3.0)], [(1.0, 5.0), (2.0, 1.0)]])
    assert (curve.points, curve.mean, curve.low, curve.high) == ([1, 2], [4, 1], [3, 1], [5, 1])
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        curve_of([[(1.0, 1.0), (2.0, 1.0)], [(1.0, 1.0)]])


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("robustness-accuracy", f"`capsrepro attack fgsm {CNN}/seed-0`"),
        ("robustness-targeted", f"`capsrepro attack fgsm-targeted {CNN}/seed-0`"),
        ("robustness-distortions", f"`capsrepro distortions {CNN}/seed-0`"),
    ],
)
def test_without_records_the_command_is_said(shelf: Shelf, name: str, commands: str) -> None:
    with pytest.raises(NothingToDrawError, match="; run `capsrepro run mnist-short/"):
        shelf.draw(name)
    shelf.train(f"{CNN}/seed-0")
    with pytest.raises(NothingToDrawError) as caught:
        shelf.draw(name)
    assert str(caught.value).endswith(f"; run {commands}.")
    run = f"{CAPS}/seed-2"
    with pytest.raises(NothingToDrawError, match=f"^{run} has no .* run `capsrepro run {run}`"):
        shelf.draw(name, run)


def test_what_is_trained_is_attacked_before_anything_is_trained(norb: Shelf) -> None:
    wanted = "run `capsrepro run norb/cnn-baseline/seed-0` and `capsrepro attack fgsm norb/cnn-ba"
    with pytest.raises(NothingToDrawError, match=re.escape(wanted)):
        norb.draw("hinton2018-fig3")
    norb.train("solids/matcaps-em3/seed-1")
    with pytest.raises(NothingToDrawError) as caught:
        norb.draw("hinton2018-fig3")
    assert str(caught.value) == (
        "no finished run has the record of an attack by FGSM or BIM in standardised pixels; "
        "run `capsrepro attack fgsm solids/matcaps-em3/seed-1`."
    )


def test_a_protocol_without_the_attack_is_said(norb: Shelf) -> None:
    with pytest.raises(NothingToDrawError) as caught:
        norb.draw("hinton2018-fig3", f"{CNN}/seed-0")
    assert str(caught.value) == (
        f"the protocol of {CNN}/seed-0 asks for no attack by FGSM or BIM in standardised pixels; "
        "name another run."
    )
    bare = {n: p.model_copy(update={"attacks": {}}) for n, p in norb.params.protocols.items()}
    norb.params = norb.params.model_copy(update={"protocols": bare})
    with pytest.raises(NothingToDrawError, match="add one to the `attacks` of a protocol"):
        norb.draw("robustness-accuracy")
