"""What a table must say where an accuracy, and not a number of steps, ended the training."""

from __future__ import annotations

from collections.abc import Iterator

from capsrepro.report.formatting import plain, quantity, title_of
from capsrepro.schema.params import Params, Protocol, StopRule


def selection_notes(protocol: Protocol, params: Params) -> Iterator[str]:
    """Which images decided when training ended, and which protocol lets others decide.

    Args:
        protocol: One of params.yaml; nothing is said of one that trains all its steps.
        params: What is asked for; its other protocols are searched.
    """
    recipe, rule = protocol.recipe, protocol.recipe.stop
    if rule is None:
        return
    ended = _ended(rule)
    others = ", ".join(_twins(protocol, rule, params)) or "none"
    if _on_test_images(rule):
        yield (
            f"{ended} the split {rule.split}, which is made of test images: this repeats the "
            f"paper's selection on test images. The same without it: {others}."
        )
        if rule.split in protocol.measured:
            title = title_of(protocol.measured[rule.split])
            but = f", but for {rule.accuracy_of}," if rule.accuracy_of else ""
            yield f"What stands under “{title}” was selected so{but} and is no finding."
    else:
        yield (
            f"{ended} {plain(recipe.validation_images)} training images that were held out: no "
            "test image was looked at before the end. The same with the paper's selection on test "
            f"images: {others}."
        )


def _ended(rule: StopRule) -> str:
    """What ended the training, up to the images that decided it."""
    every = f" (looking every {plain(rule.every_epochs)} epochs)" if rule.every_epochs > 1 else ""
    if rule.accuracy_pct is not None:
        accuracy = quantity("test_accuracy_pct", rule.accuracy_pct)
        return (
            f"Training ended at the first epoch{every} with an accuracy of {accuracy} % or more on"
        )
    return (
        f"{rule.accuracy_of} was trained to the end; training of every other model ended at the "
        f"first epoch{every} at which it was at least as accurate, seed by seed, on"
    )


def _on_test_images(rule: StopRule) -> bool:
    """Every split but the held-out training images is made of test images."""
    return rule.split != "validation"


def _twins(protocol: Protocol, rule: StopRule, params: Params) -> Iterator[str]:
    """The protocols that differ from this one in nothing but the images that end the training."""
    for name, other in params.protocols.items():
        stop = other.recipe.stop
        if stop is not None and _on_test_images(stop) != _on_test_images(rule):
            same_data = (other.dataset, other.judged_as) == (protocol.dataset, protocol.judged_as)
            if same_data and _on_any_images(other, stop) == _on_any_images(protocol, rule):
                yield name


def _on_any_images(protocol: Protocol, rule: StopRule) -> object:
    """The recipe without the images that end it."""
    stop = rule.model_copy(update={"split": "validation"})
    return protocol.recipe.model_copy(update={"stop": stop, "validation_images": 0})
