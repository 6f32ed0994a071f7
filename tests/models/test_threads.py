import multiprocessing
import sys
import threading
from pathlib import Path

import pytest
import torch

from capsrepro.models.cpu import threads as own_threads
from capsrepro.models.cpu.threads import PARTS, addresses, in_parts


@pytest.fixture(params=["torch's", "Python's"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which threads are used."""
    if request.param == "Python's":
        monkeypatch.setattr(own_threads, "_team", lambda: None)
    elif own_threads._team() is None:
        pytest.skip("this torch does not run on GNU's OpenMP")


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, kind: None):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def covered(places: int) -> list[int]:
    """Every place that some part is called for, in order of the parts."""
    found: dict[int, range] = {}
    in_parts(lambda part, first, last: found.update({part: range(first, last)}), places)
    assert sorted(found) == list(range(PARTS))
    return [place for part in sorted(found) for place in found[part]]


@pytest.mark.parametrize("places", [0, 1, 7, 8, 9, 100])
def test_parts_are_all_places_once(places: int, threads: int) -> None:
    assert covered(places) == list(range(places))


def test_as_many_threads_as_torch_uses_work_at_once(threads: int) -> None:
    together = threading.Barrier(threads, timeout=30)
    met = threading.local()

    def meet(*_: int) -> None:
        if not hasattr(met, "once"):
            met.once = True
            together.wait()

    in_parts(meet, PARTS)


@pytest.mark.skipif(
    not any(Path(torch.__file__).parent.glob("lib/libgomp*")),
    reason="this torch does not bring GNU's OpenMP along",
)
def test_torch_s_own_threads_do_the_work() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    own_threads._pool.cache_clear()
    try:
        torch.ones(2**20).exp()
        threads = set(Path("/proc/self/task").iterdir())
        assert covered(9) == list(range(9))
        assert set(Path("/proc/self/task").iterdir()) <= threads
    finally:
        torch.set_num_threads(before)


def test_what_fails_in_a_part_is_raised(threads: int) -> None:
    def fail(part: int, first: int, last: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_parts(fail, PARTS)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert covered(9) == list(range(9))
        child = multiprocessing.get_context("fork").Process(target=covered, args=(9,))
        child.start()
        child.join(30)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(before)


def test_only_arrays_of_the_right_size_type_and_strides_have_addresses() -> None:
    sizes, values = {"A": 2, "B": 3, "S": 4}, torch.zeros(2, 3)
    arrays = {"it_AB": values, "other_S": None, "one_": torch.ones(())}
    assert addresses(arrays, sizes, torch.float32)[:2] == [values.data_ptr(), None]
    for wrong in (values.T.contiguous().T, values.double(), values[:1], values.to("meta")):
        with pytest.raises(ValueError, match="it_AB is torch"):
            addresses({"it_AB": wrong}, sizes, torch.float32)
