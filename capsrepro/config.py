"""The one reader of `params.yaml`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from capsrepro.errors import UsageError
from capsrepro.files import digest
from capsrepro.schema.augmentation import OPERATIONS
from capsrepro.schema.base import Entry
from capsrepro.schema.evaluations import Evaluations
from capsrepro.schema.models import FAMILIES, ModelSpec
from capsrepro.schema.params import Params, Protocol
from capsrepro.yaml_lines import LOADER, line_of, refuse_doubled_keys

_RUN_NAME = re.compile(r"^(?P<protocol>[\w.-]+)/(?P<model>[\w.-]+)/seed-(?P<seed>\d+)$")
# Branches of a union, which pydantic puts into the place of an error; the file has no such keys.
_TAGS = (*FAMILIES, *OPERATIONS, "int", "float", "str")


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides the numbers of one run.

    Attributes:
        protocol_name: e.g. `mnist-short`.
        model_name: e.g. `capsnet-r3-recon`.
        seed: The root seed.
        protocol: Its resolved protocol.
        model: Its resolved model.
        dataset_parameters: How its data set is prepared.
        reference: The run whose accuracy ends the training of this one; mostly none.
        sources: By transferred attack, the run that its images are made on.
    """

    protocol_name: str
    model_name: str
    seed: int
    protocol: Protocol
    model: ModelSpec
    dataset_parameters: dict[str, int | float | str]
    reference: RunSpec | None = None
    sources: Mapping[str, RunSpec] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`protocol/model/seed-n`."""
        return f"{self.protocol_name}/{self.model_name}/seed-{self.seed}"

    def document(self) -> dict[str, Any]:
        """The resolved specification as it stands in the record."""
        return {
            "protocol": self.protocol_name,
            "protocol_version": self.protocol.version,
            "dataset": {"name": self.protocol.dataset, "parameters": self.dataset_parameters},
            "model": {"name": self.model_name, **_written(self.model)},
            "recipe": _written(self.protocol.recipe),
            "full_steps": self.protocol.full_steps,
            "seed": self.seed,
            **({"measured": measured} if (measured := self.protocol.measured) else {}),
            **({"test_images": count} if (count := self.protocol.test_images) else {}),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of `document()`."""
        return digest(self.document())


def _written(entry: Entry) -> dict[str, Any]:
    """An entry as JSON.

    A key that is added to the schema later comes with a default and is left out here while it has
    it, so that the digests of earlier records stay what they are.
    """
    return entry.model_dump(mode="json", exclude_defaults=True)


def load_params(path: Path) -> Params:
    """Read and check `params.yaml`.

    Raises:
        UsageError: The file is missing, is no YAML, or holds a wrong key, type or name; the
            sentence names the key and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.load(text, Loader=LOADER)
        refuse_doubled_keys(yaml.compose(text, Loader=LOADER), path)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}; restore it with `git checkout {path.name}`."
        ) from error
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise UsageError(f"{path} is not valid YAML ({where}); mend that line.") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 text (byte {error.start}); "
            f"restore it with `git checkout {path.name}`."
        ) from error
    try:
        # Through JSON, where a list may stand for a tuple though types are otherwise strict.
        params = Params.model_validate_json(json.dumps(document, default=str), strict=True)
    except ValidationError as error:
        raise UsageError(_explain(error, text, path)) from error
    _check_names(params, text, path)
    return params


def _explain(error: ValidationError, text: str, path: Path) -> str:
    first = error.errors()[0]
    keys = [key for key in first["loc"] if key not in _TAGS]
    name = ".".join(map(str, keys)) or "the file"
    problem = {
        "extra_forbidden": "is not a known key",
        "missing": "is missing",
    }.get(first["type"], f"is wrong ({first['msg'].removeprefix('Value error, ')})")
    more = f" ({error.error_count() - 1} more behind it)" if error.error_count() > 1 else ""
    return (
        f"{path}, line {line_of(text, keys)}: {name} {problem}{more}; "
        "capsrepro/schema/ says what may stand there."
    )


def _check_names(params: Params, text: str, path: Path) -> None:
    """Every name that a protocol or an augmentation uses must be defined."""
    for dataset in params.augmentations:
        if dataset not in params.datasets:
            line = line_of(text, ["augmentations", dataset])
            raise UsageError(
                f"{path}, line {line}: augmentations names data set {dataset}, "
                f"which is not defined; known: {', '.join(params.datasets)}."
            )
    for name, protocol in params.protocols.items():
        named: list[tuple[str, str, Iterable[str]]] = [
            ("dataset", protocol.dataset, params.datasets),
            ("models", protocol.models, params.models),
        ]
        models = params.models.get(protocol.models, {})
        named += [("run_models", model, models) for model in protocol.run_models]
        rates = protocol.recipe.learning_rates
        named += [("recipe.learning_rates", model, models) for model in rates]
        for attack, asked in protocol.attacks.items():
            named += [(f"attacks.{attack}.models", model, models) for model in asked.models]
            if asked.source is not None:
                named.append((f"attacks.{attack}.source", asked.source, models))
        stop = protocol.recipe.stop
        if stop is not None and stop.accuracy_of is not None:
            named.append(("recipe.stop.accuracy_of", stop.accuracy_of, models))
            named.append(("recipe.stop.split", stop.split, protocol.measured or ["test"]))
        for key, value, known in named:
            if value not in known:
                line = line_of(text, ["protocols", name, *key.split(".")])
                raise UsageError(
                    f"{path}, line {line}: protocols.{name}.{key} names {value}, "
                    f"which is not defined; known: {', '.join(known)}."
                )


VALIDATION_IMAGES = 10_000
"""DR17-code, `--validate`: MNIST's training images 0 to 9,999."""


def _validating(name: str, params: Params) -> Protocol | None:
    """What `<protocol>-validate` means: train on the rest, test on the held-out images alone.

    The test set takes no part, so whatever is chosen this way is not chosen on it.
    """
    protocol = params.protocols.get(name.removesuffix("-validate"))
    if not name.endswith("-validate") or protocol is None:
        return None
    stop = protocol.recipe.stop
    if stop is not None:
        stop = stop.model_copy(update={"split": "validation"})
    changes = {"validation_images": VALIDATION_IMAGES, "stop": stop}
    recipe = protocol.recipe.model_copy(update=changes)
    return protocol.model_copy(
        update={
            "title": f"{protocol.title}, validation",
            "judged_as": None,
            "recipe": recipe,
            "measured": {"validation": "validation_error_pct"},
            "attacks": {},
            "evaluations": Evaluations(),
        }
    )


def resolve_run(params: Params, run: str) -> RunSpec:
    """Find what `protocol/model/seed-n` means.

    Raises:
        UsageError: The name has another form, or its protocol or model is unknown.
    """
    match = _RUN_NAME.match(run)
    if match is None:
        raise UsageError(
            f"{run!r} is no run name; write PROTOCOL/MODEL/seed-N, "
            "for example digits/capsnet-r3-recon/seed-0."
        )
    protocol_name, model_name = match["protocol"], match["model"]
    protocol = params.protocols.get(protocol_name) or _validating(protocol_name, params)
    if protocol is None:
        raise UsageError(
            f"unknown protocol {protocol_name!r} in {run!r}; "
            f"params.yaml has {', '.join(params.protocols)}, and each with -validate."
        )
    models = params.models[protocol.models]
    if model_name not in models:
        raise UsageError(
            f"unknown model {model_name!r} in {run!r}; "
            f"protocol {protocol_name} has {', '.join(models)}."
        )
    return _run_of(params, protocol_name, protocol, model_name, int(match["seed"]))


def _run_of(
    params: Params, protocol_name: str, protocol: Protocol, model_name: str, seed: int
) -> RunSpec:
    """A run with the one that it is matched to; that one's own training ends by no rule."""
    recipe, others = protocol.recipe, None
    rate = recipe.learning_rates.get(model_name, recipe.learning_rate)
    changes: dict[str, Any] = {"learning_rate": rate, "learning_rates": {}}
    if recipe.stop is not None and recipe.stop.accuracy_of == model_name:
        changes["stop"] = None
    elif recipe.stop is not None:
        others = recipe.stop.accuracy_of
    return RunSpec(
        protocol_name,
        model_name,
        seed,
        protocol.model_copy(update={"recipe": recipe.model_copy(update=changes)}),
        params.models[protocol.models][model_name],
        params.datasets[protocol.dataset],
        _run_of(params, protocol_name, protocol, others, seed) if others else None,
        _sources(params, protocol_name, protocol, seed),
    )


def _sources(
    params: Params, protocol_name: str, protocol: Protocol, seed: int
) -> dict[str, RunSpec]:
    """The runs that transferred attacks take their images from: of the next of `run_seeds`.

    So none is the run attacked itself, and all models of one seed see the images of the same run.
    """
    seeds = protocol.run_seeds
    place = seeds.index(seed) + 1 if seed in seeds else 0
    own = protocol.model_copy(update={"attacks": {}})
    return {
        name: _run_of(params, protocol_name, own, attack.source, seeds[place % len(seeds)])
        for name, attack in protocol.attacks.items()
        if attack.source is not None
    }


def requested_runs(params: Params) -> list[RunSpec]:
    """Every run that `params.yaml` asks for, protocol by protocol."""
    return [
        resolve_run(params, f"{name}/{model}/seed-{seed}")
        for name, protocol in params.protocols.items()
        for model in protocol.run_models
        for seed in protocol.run_seeds
    ]
