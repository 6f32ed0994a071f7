"""Seeds, checkpoints and devices."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from capsrepro.errors import CapsreproError, UsageError
from capsrepro.training.state import (
    TrainingState,
    check_precision,
    checkpoint_paths,
    choose_device,
    load_checkpoint,
    save_checkpoint,
    stream_seed,
)


def trained(step: int, width: int = 20) -> TrainingState:
    """A small state after one step of Adam, so that its optimiser has moments."""
    model = nn.Linear(30, width)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 30)).sum().backward()
    optimizer.step()
    return TrainingState(model, optimizer, step=step)


def names(folder):
    return [path.name for path in checkpoint_paths(folder)]


def test_stream_seeds_are_frozen() -> None:
    assert [stream_seed(0, s) for s in ("init", "order", "augmentation", "dropout")] == [
        1_519_069_808_562_059_438,
        5_231_958_647_509_549_229,
        7_033_547_830_291_986_484,
        7_938_499_265_082_287_326,
    ]


def test_streams_and_seeds_are_independent() -> None:
    seeds = {
        stream_seed(seed, name)
        for seed in range(100)
        for name in ("init", "order", "augmentation", "dropout")
    }
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_checkpoint_holds_everything(tmp_path) -> None:
    before = trained(7)
    before.totals = {"train_loss": torch.tensor(1.5, dtype=torch.float64)}
    before.images, before.wall_time_s = 12, 3.25
    before.history, before.first_losses = [{"step": 5, "train_loss": 0.1}], [0.5, 0.25]
    save_checkpoint(tmp_path, before, "digest")
    random = torch.rand(3)

    after = trained(0)
    after.restore(load_checkpoint(tmp_path, "digest"))
    assert torch.equal(torch.rand(3), random)
    assert all(map(torch.equal, after.model.parameters(), before.model.parameters()))
    old, new = (state.optimizer.state_dict()["state"][0] for state in (before, after))
    assert all(torch.equal(old[key], new[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
    assert (after.step, after.images, after.wall_time_s) == (7, 12, 3.25)
    assert (after.totals, after.history) == (before.totals, before.history)
    assert after.first_losses == before.first_losses
    assert (before.sessions, after.sessions) == (1, 2)


def test_the_last_two_checkpoints_are_kept(tmp_path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, trained(step), "digest")
    assert names(tmp_path) == ["step-000000015.pt", "step-000000010.pt"]
    assert load_checkpoint(tmp_path, "digest")["step"] == 15


def test_no_checkpoint_is_no_trouble(tmp_path) -> None:
    assert load_checkpoint(tmp_path / "nothing", "digest") is None


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def other(content: bytes) -> bytes:
    return b"<html>not found</html>"


def flip_one_bit_of_a_weight(content: bytes) -> bytes:
    # torch.load itself reads this without a word, and the run would end elsewhere.
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, empty, other, flip_one_bit_of_a_weight])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage) -> None:
    for step in (10, 20):
        path = save_checkpoint(tmp_path, trained(step), "digest")
    path.write_bytes(damage(path.read_bytes()))
    assert load_checkpoint(tmp_path, "digest")["step"] == 10


def test_a_checkpoint_of_another_specification_is_ignored(tmp_path) -> None:
    save_checkpoint(tmp_path, trained(10), "new")
    save_checkpoint(tmp_path, trained(20), "old")
    assert load_checkpoint(tmp_path, "new")["step"] == 10
    assert load_checkpoint(tmp_path, "third") is None


def test_old_checkpoints_of_later_steps_do_not_push_out_new_ones(tmp_path) -> None:
    # params.yaml was changed after 300 steps: training starts again, and must be resumable.
    for step in (280, 300):
        save_checkpoint(tmp_path, trained(step), "old")
    for step in (20, 40):
        save_checkpoint(tmp_path, trained(step), "new")
        assert load_checkpoint(tmp_path, "new")["step"] == step
    assert names(tmp_path) == ["step-000000040.pt", "step-000000020.pt"]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Within it, no file can grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# In the header and among the weights, where torch hides the trouble behind one of its own.
@pytest.mark.parametrize("size", [10, 5_000, 100_000])
def test_a_full_disk_leaves_the_good_checkpoint(tmp_path, size: int) -> None:
    good = save_checkpoint(tmp_path, trained(1), "digest")
    state = trained(2, width=1000)  # its weights and moments take 370 kB
    sentence = f"^cannot write {tmp_path}/step-000000002.pt: File too large; free space"
    with pytest.raises(CapsreproError, match=sentence), room_for(size):
        save_checkpoint(tmp_path, state, "digest")
    assert list(tmp_path.iterdir()) == [good]
    assert load_checkpoint(tmp_path, "digest")["step"] == 1


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CapsreproError, match=r"^cannot write .*: Not a directory; free space"):
        save_checkpoint(tmp_path / "file" / "run", trained(1), "digest")


def test_cpu_and_auto_are_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto") == torch.device(expected)


# torch knows meta, mps and others, on which nothing here would run.
@pytest.mark.parametrize("request_", ["foo", "", "cuda:x", "cuda:-1", "cuda:300", "meta", "mps"])
def test_no_device_is_a_wrong_request(request_: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_device(request_)
    assert str(caught.value) == (
        f"{request_!r} is no device; use auto, cpu, cuda or cuda:N with --device."
    )


def test_a_missing_gpu_is_said_with_what_to_do() -> None:
    count = torch.cuda.device_count()
    absent = f"cuda:{count}" if count else "cuda"
    with pytest.raises(CapsreproError) as caught:
        choose_device(absent)
    assert str(caught.value) == (
        f"device {absent} is not here ({count} CUDA devices found); "
        "use --device cpu, or see `capsrepro doctor`."
    )


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_these_precisions_are_everywhere(precision: str) -> None:
    check_precision(precision, torch.device("cpu"))


def test_a_cpu_has_no_tf32() -> None:
    with pytest.raises(UsageError) as caught:
        check_precision("tf32", torch.device("cpu"))
    assert str(caught.value) == (
        "device cpu has no TF32 and would multiply in float32; use --device with an NVIDIA GPU of "
        "compute capability 8.0 or more, or a protocol of another precision."
    )
