from __future__ import annotations

import timeit
from collections import Counter
from pathlib import Path

import pytest

from capsrepro.claims import (
    PAPERS,
    PUBLISHED,
    Claim,
    OrderingClaim,
    ValueClaim,
    load_claims,
    load_papers,
    parse_verbatim,
)
from capsrepro.errors import CapsreproError, UsageError

CLAIMS = load_claims()
BY_ID = {claim.id: claim for claim in CLAIMS}

MICHELS = {"mnist", "fashion-mnist", "svhn", "cifar10"}
NORB_2018 = {"smallnorb", "smallnorb-azimuth", "smallnorb-elevation", "norb"}
PROTOCOLS = {
    "sabour2017": {"mnist", "multimnist", "affnist", "cifar10", "svhn", "smallnorb-2017"},
    "hinton2018": NORB_2018 | {"mnist-2018", "cifar10-2018"},
    "michels2019": MICHELS,
    "garg-blog": {"smallnorb"},
}

# The headline numbers, typed in a second time from the papers' tables; * stands for the name.
KEY_NUMBERS = """\
sabour2017/mnist/*/test-error: cnn-baseline 0.39, capsnet-r1 0.34, capsnet-r1-recon 0.29
sabour2017/mnist/*/test-error: capsnet-r3 0.35, capsnet-r3-recon 0.25, wan2013-augmented 0.21
sabour2017/multimnist/*/test-error: cnn-baseline 8.1, capsnet-r1-recon 7.5, capsnet-r3-recon 5.2
sabour2017/multimnist/*: capsnet-r3-recon/test-error-in-text 5, generator/overlap 80
sabour2017/mnist/*/parameters: capsnet-r3 6.8e6, capsnet-r3-recon 8.2e6, cnn-baseline 35.4e6
sabour2017/multimnist/*/parameters: capsnet-r3-recon 11.36e6, cnn-baseline 24.56e6
sabour2017/affnist/*/affnist-accuracy: capsnet-r3-recon 79, cnn-baseline 66
sabour2017/affnist/*/expanded-mnist-accuracy: capsnet-r3-recon 99.23, cnn-baseline 99.22
sabour2017/*/test-error: cifar10/capsnet-r3-ensemble7 10.6, svhn/capsnet-r3 4.3
sabour2017/smallnorb-2017/*/test-error: capsnet-r3 2.7
sabour2017/mnist/capsnet-r10/logit-change/*: text-iteration-2 0.007, text-iteration-5 1e-5
hinton2018/smallnorb/*/test-error: matcaps-em1 9.7, matcaps-em2 2.2, matcaps-em3 1.8
hinton2018/smallnorb/*/test-error: matcaps-em5 3.9, matcaps-em3-vector 2.9, cnn-baseline 5.2
hinton2018/smallnorb/*/test-error: matcaps-em3-nocoord 2.6, matcaps-em3-vector-nocoord 3.2
hinton2018/smallnorb/*/test-error: matcaps-em3-margin 3.2, matcaps-em3-crossentropy 5.8
hinton2018/smallnorb/*/test-error: matcaps-em3-mixing 4.5, matcaps-em3-multicrop 1.4
hinton2018/smallnorb/*/test-error: matcaps-small-em3 2.2, ciresan2011 2.56
hinton2018/smallnorb/*/test-error-checkpoint: matcaps-em3 1.8, matcaps-em3-multicrop 1.3
hinton2018/*/matcaps-em3/test-error: norb 2.6, mnist-2018 0.44
hinton2018/cifar10-2018/*/test-error: matcaps-em3-conv256 11.9
hinton2018/smallnorb/*/parameters: matcaps-em3 310e3, matcaps-small-em3 68e3, cnn-baseline 4.2e6
hinton2018/smallnorb-azimuth/*-test-error: cnn-baseline/novel 20, matcaps-em3/novel 13.5
hinton2018/smallnorb-azimuth/*-test-error: cnn-baseline/familiar 3.7, matcaps-em3/familiar 3.7
hinton2018/smallnorb-elevation/*-test-error: cnn-baseline/novel 17.8, matcaps-em3/novel 12.3
hinton2018/smallnorb-elevation/*-test-error: cnn-baseline/familiar 4.3, matcaps-em3/familiar 4.3
hinton2018/smallnorb/*/error-reduction: matcaps-em3-multicrop 45, matcaps-em3 30
hinton2018/smallnorb/*: matcaps-em3/accuracy-never-below-chance 20
hinton2018/smallnorb/*: cnn-baseline/accuracy/fgsm-0.20 16.1, matcaps-em3/accuracy/bim-0.50 54.8
reproductions/xifengguo-keras/mnist/*/test-error: capsnet-r3 0.40, capsnet-r3-recon 0.34
michels2019/mnist/*/test-accuracy: michels-conv 99.39, michels-capsnet 99.40
michels2019/*/perturbation-l2-cw: mnist/michels-capsnet 1.82, cifar10/michels-conv 0.37
michels2019/*/perturbation-l2-boundary: fashion-mnist/michels-conv 1.24, svhn/michels-capsnet 1.88
michels2019/*/perturbation-l2-deepfool: mnist/michels-conv 1.07, cifar10/michels-capsnet 0.16
michels2019/*/perturbation-l2-universal: mnist/michels-capsnet 11.45, svhn/michels-conv 2.46
michels2019/cifar10/*/transfer-fooling-universal: michels-conv 25.9, michels-capsnet 47.2
michels2019/mnist/*/transfer-fooling-boundary: michels-conv 8.8, michels-capsnet 14.2
garg-blog/smallnorb/*/accuracy: cnn-baseline 20, matcaps-em3 70
garg-blog/smallnorb/*/parameters: cnn-baseline 4e6, matcaps-em3 300e3
"""

NETWORKS = ("michels-conv", "michels-capsnet")
BY_STRENGTH = ("perturbation_l2_mean", "transfer_fooling_pct")
ATTACKED = {"accuracy_pct", "targeted_success_pct", "zero_gradient_pixels_pct"}
ATTACKED |= {"gradient_orders_of_magnitude_smaller", "black_box_accuracy_advantage_pp"}

PAPER_BLOCK = """\
paper: {id: sabour2017, title: T, authors: [A], year: 2017, venue: V, version: v2, url: u, read: r}
claims:
"""
GOOD = (
    "- {id: sabour2017/mnist/m/error, kind: value, protocol: mnist, model: m, "
    "metric: test_error_pct, value: 0.25, verbatim: '0.25', locator: Table 1, source: text}\n"
)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claim(claim: Claim) -> None:
    assert sum(other.id == claim.id for other in CLAIMS) == 1
    paper, second = claim.id.split("/")[:2]
    if paper in PROTOCOLS:
        assert second == claim.protocol
        assert claim.protocol in PROTOCOLS[paper]
        assert claim.reported_by is None
        assert claim.judged or claim.cited_from or claim.unreliable
    else:
        assert second == claim.reported_by
        assert not claim.judged
    assert claim.locator.strip()
    assert (claim.source == "figure") == (claim.reading_error is not None)
    assert all(sentence.endswith(".") for sentence in (*claim.unsaid, claim.note or "."))
    if isinstance(claim, OrderingClaim):
        assert claim.better != claim.worse
        if claim.minimum_effect_pct is not None:
            assert parse_verbatim(claim.verbatim, claim.metric) == claim.minimum_effect_pct
        return
    assert parse_verbatim(claim.verbatim, claim.metric) == pytest.approx(claim.value, rel=1e-12)
    if claim.metric.endswith("_pct"):
        assert 0 <= claim.value <= 100
    if isinstance(claim, ValueClaim) and claim.spread is not None:
        spread = claim.verbatim.split()[-1].strip("()")
        assert float(spread) == claim.spread


@pytest.mark.parametrize("line", KEY_NUMBERS.splitlines())
def test_key_numbers_are_there(line: str) -> None:
    pattern, _, pairs = line.partition(": ")
    for pair in pairs.split(", "):
        name, value = pair.split(" ")
        claim = BY_ID[pattern.replace("*", name)]
        assert not isinstance(claim, OrderingClaim)
        assert claim.value == float(value)


def test_spread_of_table_1_of_2017() -> None:
    rows = [c for c in CLAIMS if isinstance(c, ValueClaim) and c.spread_kind == "sd"]
    assert [c.spread for c in rows] == [0.032, 0.011, 0.036, 0.005]
    assert {c.n for c in rows} == {3}


def test_figure_3_of_2018_is_complete() -> None:
    points = [c for c in load_claims("hinton2018") if c.kind == "value" and c.source == "figure"]
    assert len(points) == 88
    curves = Counter((c.metric, c.model, c.condition["attack"]) for c in points)
    assert list(curves.values()) == [11] * 8
    for metric, step in (("accuracy_pct", 0.05), ("targeted_success_pct", 0.025)):
        grid = sorted({float(c.condition["epsilon"]) for c in points if c.metric == metric})
        assert grid == pytest.approx([step * i for i in range(11)])


def test_tables_of_michels_are_complete() -> None:
    values = [c for c in load_claims("michels2019") if c.judged and isinstance(c, ValueClaim)]
    found = Counter((c.metric, c.condition.get("attack"), c.protocol, c.model) for c in values)
    attacks = ("cw", "boundary", "deepfool", "universal")
    cells = [
        ("test_accuracy_pct", None),
        *(("perturbation_l2_mean", attack) for attack in attacks),
        *(("transfer_fooling_pct", attack) for attack in attacks),
    ]
    assert found == {(*cell, p, model): 1 for cell in cells for p in MICHELS for model in NETWORKS}


def test_counter_evidence_is_ordered_as_its_numbers_are() -> None:
    """One ordering for each attack and data set, of the norms before the fooling rates."""
    claims = [c for c in load_claims("michels2019") if c.judged]
    values = {
        (c.metric, c.condition.get("attack"), c.protocol, c.model): c.value
        for c in claims
        if isinstance(c, ValueClaim)
    }
    found = {
        (str(c.condition["attack"]), c.protocol): c.metric
        for c in claims
        if isinstance(c, OrderingClaim) and (c.better, c.worse) == NETWORKS
    }
    expected: dict[tuple[str, str], str] = {}
    for attack in ("cw", "boundary", "deepfool", "universal"):
        for protocol in MICHELS:
            conv, caps = (
                [values[metric, attack, protocol, model] for metric in BY_STRENGTH]
                for model in NETWORKS
            )
            worse = (caps[0] < conv[0], caps[1] > conv[1])
            if any(worse):
                expected[attack, protocol] = BY_STRENGTH[worse.index(True)]
    assert found == expected
    assert len(found) == sum(isinstance(c, OrderingClaim) for c in claims) == 14


def test_attacks_of_2018_name_what_the_paper_did() -> None:
    """Raw pixels, other losses and transferred images are ours: none may answer for the paper."""
    for claim in load_claims("hinton2018") + load_claims("garg-blog"):
        if claim.judged and claim.metric in ATTACKED:
            condition = claim.condition
            assert condition["epsilon_unit"] == "standardised-pixels", claim.id
            assert condition["goal"] in ("untargeted", "targeted"), claim.id
            assert ("source_model" in condition) == claim.metric.startswith("black_box"), claim.id
            assert "source_model" in condition or condition["attack"] in ("fgsm", "bim"), claim.id


def test_figures_of_2017_are_complete() -> None:
    figures = Counter(c.locator for c in load_claims("sabour2017") if c.source == "figure")
    assert figures == {"Fig. A.1 (a)": 9, "Fig. A.1 (b)": 5, "Fig. A.2": 14}


@pytest.mark.parametrize(
    "ordering",
    [
        *("mnist: capsnet-r3-recon capsnet-r1-recon", "mnist: capsnet-r3-recon capsnet-r3"),
        *("multimnist: capsnet-r3-recon cnn-baseline", "affnist: capsnet-r3-recon cnn-baseline"),
        *("cifar10: capsnet-r3 capsnet-r1", "smallnorb: matcaps-em3 matcaps-em2"),
        *("smallnorb: matcaps-em3 cnn-baseline", "smallnorb-azimuth: matcaps-em3 cnn-baseline"),
        "smallnorb-elevation: matcaps-em3 cnn-baseline",
    ],
)
def test_key_ordering_is_there(ordering: str) -> None:
    stated = {f"{c.protocol}: {c.better} {c.worse}" for c in CLAIMS if c.kind == "ordering"}
    assert ordering in stated


def test_orderings_agree_with_the_numbers_beside_them() -> None:
    """An ordering typed the wrong way round would contradict the two values it compares."""
    values = {
        (c.paper, c.protocol, c.model): c.value
        for c in reversed(CLAIMS)  # the first, Table 1's, wins over a later checkpoint or text
        if isinstance(c, ValueClaim) and c.metric == "test_error_pct"
    }
    compared = [
        (values[c.paper, c.protocol, c.better], values[c.paper, c.protocol, c.worse])
        for c in CLAIMS
        if isinstance(c, OrderingClaim) and c.metric == "test_error_pct"
    ]
    assert len(compared) >= 25
    assert all(better < worse for better, worse in compared)


def test_numbers_of_others_are_never_judged() -> None:
    assert not BY_ID["sabour2017/mnist/wan2013-augmented/test-error"].judged
    assert BY_ID["sabour2017/mnist/capsnet-r3-recon/test-error"].judged


def test_known_traps_are_flagged() -> None:
    unreliable = {c.id for c in CLAIMS if c.unreliable}
    assert unreliable == {
        # Corrected by its authors.
        "michels2019/fashion-mnist/michels-conv/perturbation-l2-deepfool-draft",
        "michels2019/fashion-mnist/michels-conv/perturbation-l2-universal-draft",
        "reproductions/cedrickchee/mnist/capsnet-r3-recon/test-error-claimed",
        "reproductions/shinseung428/smallnorb-2017/capsnet-r3/test-error",
    }
    assert sum(c.unverified for c in CLAIMS) == 9


def test_every_source_is_used() -> None:
    papers = {paper.id: paper for paper in load_papers()}
    assert list(papers) == list(PAPERS)
    assert set(papers["reproductions"].sources) == {c.reported_by for c in CLAIMS} - {None}


def test_claims_are_read_only() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(CLAIMS[0], "note", "changed")  # noqa: B010 - mypy knows it is read-only


def test_loading_is_quick() -> None:
    # The best of three: a busy machine must not fail it.
    assert min(timeit.repeat(load_claims, number=1, repeat=3)) < 0.3


@pytest.mark.parametrize(
    ("text", "metric", "value"),
    [
        *[("0.25 ± 0.005", "test_error_pct", 0.25), ("8–9 %", "test_error_pct", 8.0)],
        *[("≈ .95", "accuracy_pct", 95.0), (".944", "train_loss", 0.944)],
        *[("~300k", "parameters", 3e5), ("6.8M", "parameters", 6.8e6)],
        *[("6,804,224", "parameters", 6_804_224.0), ("≈ 1.5e-7", "logit_change", 1.5e-7)],
    ],
)
def test_parse_verbatim(text: str, metric: str, value: float) -> None:
    assert parse_verbatim(text, metric) == pytest.approx(value, rel=1e-12)


def test_parse_verbatim_without_a_number() -> None:
    with pytest.raises(ValueError, match="no number in 'lower'"):
        parse_verbatim("lower", "test_error_pct")


def write(folder: Path, claims: str, paper: str = PAPER_BLOCK) -> Path:
    (folder / "sabour2017.yaml").write_text(paper + claims)
    return folder


def complaint(folder: Path, claims: str, paper: str = PAPER_BLOCK) -> str:
    """What the loader says of a broken file: one sentence that starts with the file's path."""
    with pytest.raises(CapsreproError) as caught:
        load_claims("sabour2017", write(folder, claims, paper))
    message = str(caught.value)
    assert message.startswith(str(folder / "sabour2017.yaml"))
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_a_well_formed_file_loads(tmp_path: Path) -> None:
    (claim,) = load_claims("sabour2017", write(tmp_path, GOOD))
    assert isinstance(claim, ValueClaim)
    assert (claim.paper, claim.value, claim.spread) == ("sabour2017", 0.25, None)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("model: m, ", "", "key 'model': Field required"),
        ("model: m, ", "modle: m, model: m, ", "key 'modle': Extra inputs"),
        ("kind: value", "kind: rumour", "key 'kind' must be one of bound, ordering, value"),
        ("value: 0.25", "value: low", "key 'value': Input should be a valid number"),
        ("value: 0.25", "value: .nan", "key 'value': Input should be a finite number"),
        ("value: 0.25", "value: 0.25, spread: 0.1", "spread_kind must be sd or unstated"),
        ("value: 0.25", "value: 0.25, condition: {recon: yes}", "key 'condition.recon"),
        ("source: text", "source: figure", "reading_error is required when source is figure"),
        ("source: text", "source: text, unreliable: true", "note must say why"),
        ("source: text", "source: text, reported_by: nobody", "key 'reported_by' names no source"),
        ("locator: Table 1", "locator: ''", "key 'locator': String should have"),
        ("id: sabour2017", "id: hinton2018", "key 'id' must start with 'sabour2017/'"),
        ("kind: value", "kind: ordering, better: m, worse: m", "key 'model': Extra inputs"),
    ],
)
def test_a_malformed_claim_is_one_sentence(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert old in GOOD
    broken = GOOD.replace(old, new)
    name = broken.removeprefix("- {id: ").split(",")[0]
    message = complaint(tmp_path, broken)
    assert f"claim {name}: " in message
    assert expected in message


def test_an_ordering_needs_two_models(tmp_path: Path) -> None:
    claim = GOOD.replace("kind: value", "kind: ordering").replace("value: 0.25, ", "")
    claim = claim.replace("model: m", "better: m, worse: m")
    assert "m/error: worse must be another model" in complaint(tmp_path, claim)


@pytest.mark.parametrize(
    ("claims", "paper", "expected"),
    [
        (GOOD + GOOD, PAPER_BLOCK, "claim sabour2017/mnist/m/error: key 'id' is used by"),
        ("- 7\n", PAPER_BLOCK, "claim number 1: "),
        ("", PAPER_BLOCK, "needs a key 'claims' that holds a list"),
        (GOOD, PAPER_BLOCK.replace("claims", "extra: 1\nclaims"), "unknown key 'extra'"),
        (GOOD, PAPER_BLOCK.replace("year: 2017, ", ""), "paper block: key 'year': Field required"),
        (GOOD, PAPER_BLOCK.replace("sabour2017", "s"), "key 'id' must be 'sabour2017', not 's'"),
        (GOOD, "claims:\n", "paper block: "),
        ("- {id: [\n", PAPER_BLOCK, "is not valid YAML: "),
    ],
)
def test_a_malformed_file_is_one_sentence(
    tmp_path: Path, claims: str, paper: str, expected: str
) -> None:
    assert expected in complaint(tmp_path, claims, paper)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CapsreproError, match=r"cannot read .*sabour2017\.yaml"):
        load_claims("sabour2017", tmp_path)


def test_an_unknown_paper_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown paper 'lecun1998'; choose one of sabour2017"):
        load_claims("lecun1998")


def test_no_published_file_is_left_out() -> None:
    assert {path.name for path in PUBLISHED.glob("*.yaml")} == set(PAPERS.values())
