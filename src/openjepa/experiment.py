"""Every choice of a run as one frozen value, with JSON both ways."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from openjepa.data.augmentation import Augmentation, Preprocessing
from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.grid import sincos_widths
from openjepa.masking import MultiBlockMasking, RandomMasking, WholeMasking
from openjepa.masks import MultiBlockConfig
from openjepa.objectives.base import Objective
from openjepa.objectives.denoising import Denoising, DenoisingConfig
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig
from openjepa.objectives.mae import MAE, MAEConfig
from openjepa.settings import check_settings
from openjepa.training.distributed import Processes
from openjepa.training.optimizer import OptimizerConfig
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import TrainingConfig

T = TypeVar("T")
Method = Literal["ijepa", "mae", "denoising"]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole run: the same Experiment on the same data gives the same encoder.

    Attributes:
        recipe: name of the recipe that this began as.
        seed: of the initial weights, the order, the crops and the masks.
        mean, std: of each channel, in [0, 1] units, for normalisation.
        method: what is predicted from what: ``ijepa``, ``mae`` or ``denoising``.
        encoder, predictor: the networks; for ``mae`` and ``denoising`` the predictor is the decoder.
        masks, ijepa, mae, denoising: settings of the methods, of which the chosen one's count.
        augmentation, schedule, optimizer, training: how it is trained.
    """

    recipe: str = "custom"
    seed: int = 0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    method: Method = "ijepa"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    masks: MultiBlockConfig = field(default_factory=MultiBlockConfig)
    ijepa: IJEPAConfig = field(default_factory=IJEPAConfig)
    mae: MAEConfig = field(default_factory=MAEConfig)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        check_settings(self)
        if not len(self.mean) == len(self.std) == self.encoder.channels:
            raise ValueError(
                f"mean and std need one number for each of the {self.encoder.channels} channels of the encoder, "
                f"got {self.mean} and {self.std} (on the command line --channels sets all three)"
            )
        for width in (self.encoder.width, self.predictor.width):
            sincos_widths(self.encoder.grid, width)  # refuses what holds no positions
        self.ijepa.check_depths(self.encoder)
        if len(self.encoder.signal) != 2:
            raise ValueError(f"images have two axes, the encoder's signal has {self.encoder.signal}")

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the encoder's input, at evaluation and in use."""
        rows, columns = self.encoder.signal
        return Preprocessing(size=(rows, columns), channels=self.encoder.channels, mean=self.mean, std=self.std)

    def objective(self) -> Objective:
        """The objective with its initial weights, a function of the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.method == "mae":
            return MAE(self.encoder, self.predictor, self.mae, generator=generator)
        if self.method == "denoising":
            return Denoising(self.encoder, self.predictor, self.denoising, generator=generator)
        return IJEPA(self.encoder, self.predictor, self.ijepa, generator=generator)

    def masking(self) -> MultiBlockMasking | RandomMasking | WholeMasking:
        """The mask sampler of the method."""
        grid = self.encoder.grid
        if self.method == "mae":
            return RandomMasking(grid, self.mae.visible, seed=self.seed)
        if self.method == "denoising":
            return WholeMasking(grid, seed=self.seed)
        return MultiBlockMasking(grid, self.masks, seed=self.seed)

    def on(self, processes: Processes) -> "Experiment":
        """The experiment as these processes can have it: replicas and their threads are one CPU's."""
        if processes.one_cpu:
            return self
        training = dataclasses.replace(self.training, replicas=0, threads=0)
        return dataclasses.replace(self, training=training)

    def to_json(self) -> str:
        """As JSON text; :meth:`from_json` is the inverse."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str | Path) -> "Experiment":
        """Read JSON text, strictly.

        Raises:
            InputError: not JSON, an unknown name, or a value of the wrong type; the message names it and ``origin``.
        """
        try:
            found = json.loads(text)
        except ValueError as error:
            raise InputError(f"{origin} is not JSON: {error}") from error
        return _build(cls, found, str(origin))


def _build(kind: type[T], found: Any, where: str) -> T:
    """A dataclass from nested dictionaries; names that are missing keep their defaults."""
    if not isinstance(found, dict):
        raise InputError(f"{where} should be an object with the settings of {kind.__name__}, got {found!r}")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(found) - set(hints))
    if unknown:
        raise InputError(f"{where} has unknown settings {', '.join(unknown)}; {kind.__name__} knows {', '.join(hints)}")
    values = {name: _value(hints[name], value, f"{where}: {name}") for name, value in found.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)  # type: ignore[arg-type]
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in parts:
            return None
        return _value(next(part for part in parts if part is not type(None)), value, where)
    if origin is Literal:
        if value in parts:
            return value
        raise InputError(f"{where} is {value!r}, not one of {', '.join(map(repr, parts))}")
    if origin is tuple and isinstance(value, list):
        kinds = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
        if len(kinds) == len(value):
            return tuple(_value(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise InputError(f"{where} is {value!r}, which is not {hint}")
