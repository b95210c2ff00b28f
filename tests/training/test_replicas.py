"""Threads that share a step: the same step as one thread's, the same bits every time, and no hanging when one fails."""

import threading
import weakref

import pytest
import torch

from openjepa.encoder import EncoderConfig, PredictorConfig
from openjepa.errors import InputError
from openjepa.masking import MultiBlockMasking, RandomMasking
from openjepa.masks import MultiBlockConfig
from openjepa.objectives.base import Objective
from openjepa.objectives.ijepa import IJEPA, IJEPAConfig
from openjepa.objectives.mae import MAE
from openjepa.training.distributed import Processes
from openjepa.training.optimizer import OptimizerConfig, build_optimizers, part_of, set_schedule
from openjepa.training.replicas import Replicas
from openjepa.training.schedules import ScheduleConfig
from openjepa.training.step import Step, TrainingConfig
from openjepa.transformer import Block

ENCODER = EncoderConfig(signal=(16, 16), patch=(4, 4), channels=1, width=24, depth=2, heads=2)
PREDICTOR = PredictorConfig(width=16, depth=1, heads=2)
ALONE = Processes(0, 1, torch.device("cpu"))


def ijepa() -> IJEPA:
    config = IJEPAConfig(target_norm="whiten", variance_covariance=0.5, position_noise=0.25, momentum=(0.9, 1.0))
    return IJEPA(ENCODER, PREDICTOR, config, generator=torch.Generator().manual_seed(0)).train()


def mae() -> MAE:
    return MAE(ENCODER, PREDICTOR, generator=torch.Generator().manual_seed(0)).train()


def trained(objective, *, steps=3, **training):
    """The objective after some steps, and what each of them told."""
    step = Step(
        objective,
        schedule=ScheduleConfig(lr=1e-3),
        optimizer=OptimizerConfig(clip=1.0),
        training=TrainingConfig(**{"steps": 10, "batch": 16, "precision": "float32"} | training),
        processes=ALONE,
    )
    if isinstance(objective, IJEPA):
        masking = MultiBlockMasking(ENCODER.grid, MultiBlockConfig(targets=2))
    else:
        masking = RandomMasking(ENCODER.grid, 0.25)
    told = []
    for number in range(steps):
        x = torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(number))
        told.append(step(x, masking(torch.arange(16), number), number))
    return objective, told


@pytest.mark.parametrize("make", [ijepa, mae])
@pytest.mark.parametrize(("replicas", "accumulate"), [(2, 1), (4, 1), (2, 2)])
def test_replicas_take_the_same_steps_as_one(make, replicas, accumulate):
    one, alone = trained(make())
    many, shared = trained(make(), replicas=replicas, accumulate=accumulate)
    for a, b in zip(alone, shared, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)
    states = one.state_dict(), many.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=2e-3, atol=2e-4, msg=name)


def test_the_same_replicas_give_the_same_bits():
    one, first = trained(ijepa(), replicas=4, steps=5)
    two, second = trained(ijepa(), replicas=4, steps=5)
    assert first == second
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [ijepa, mae])
def test_weights_that_replicas_share_in_bfloat16_change_no_bit(make, monkeypatch):
    shared, told = trained(make(), replicas=2, precision="bf16", steps=5)

    class Uncopied(Replicas):
        def __init__(self, objective, count, *, products):
            assert products == torch.bfloat16
            super().__init__(objective, count)

    monkeypatch.setattr("openjepa.training.step.Replicas", Uncopied)
    cast, expected = trained(make(), replicas=2, precision="bf16", steps=5)
    assert told == expected
    for name, value in cast.state_dict().items():
        assert torch.equal(shared.state_dict()[name], value), name


def test_micro_batches_of_replicas_add_up_in_float32():
    objective = ijepa()
    seen = set()
    for accumulate in (1, 2):
        step = Step(
            objective,
            schedule=ScheduleConfig(),
            optimizer=OptimizerConfig(),
            training=TrainingConfig(batch=16, replicas=2, accumulate=accumulate),
            processes=ALONE,
        )
        for parts in step.replicas(lambda replica, _: [*replica.modules()]):
            linears = [part for part in parts if isinstance(part, torch.nn.Linear)]
            seen |= {(accumulate, parameter.dtype) for part in linears for parameter in part.parameters()}
    assert seen == {(1, torch.bfloat16), (2, torch.float32)}


def step_of(optimizers, parameters):
    for optimizer in optimizers:
        part_of(optimizer, parameters).step()


@pytest.mark.parametrize(("matrices", "states"), [("adamw", 12 * 3), ("muon", 8 * 3 + 4)])
def test_the_work_between_the_passes_is_divided_evenly_and_changes_no_bit(matrices, states):
    replicas = Replicas(ijepa(), 3)
    shares = replicas.shares([900, 10, 300, 20, 500, 30])
    assert sorted(place for own in shares for place in own) == list(range(6))
    assert [sum([900, 10, 300, 20, 500, 30][place] for place in own) for own in shares] == [900, 500, 360]
    assert replicas.shares([7]) == [[0], [], []]

    meeting, met = threading.Barrier(3, timeout=60), set()

    def meet(own):
        meeting.wait()
        met.add((threading.get_ident(), torch.is_grad_enabled(), *own))

    replicas.divide([1, 1, 1], meet)
    assert len({thread for thread, *_ in met}) == 3
    assert {(gradients, own) for _, gradients, own in met} == {(False, 0), (False, 1), (False, 2)}

    def stepped(divide):
        layers = Block(16, 2, mlp_ratio=4.0, qkv_bias=True, norm_eps=1e-6)
        parameters = [*layers.parameters()]
        optimizers = build_optimizers(layers, OptimizerConfig(matrices=matrices), bf16=True)
        for number in range(6):
            if number == 3:  # as when a run goes on from a checkpoint
                for optimizer in optimizers:
                    optimizer.load_state_dict(optimizer.state_dict())
            set_schedule(optimizers, ScheduleConfig(), number, 6)
            for place, parameter in enumerate(parameters):
                draws = torch.Generator().manual_seed(10 * number + place)
                parameter.data = torch.randn(parameter.shape, generator=draws) if number == 0 else parameter.data
                parameter.grad = torch.randn(parameter.shape, generator=draws)
            divide(
                [parameter.numel() for parameter in parameters],
                lambda own: step_of(optimizers, {parameters[place] for place in own}),
            )
        each = [optimizer.state[p] for p in parameters for optimizer in optimizers if p in optimizer.state]
        moments = [state[name] for state in each for name in sorted(state)]
        assert len(moments) == states
        return parameters + moments

    for whole, divided in zip(stepped(Objective.undivided), stepped(replicas.divide), strict=True):
        assert torch.equal(whole, divided)


def test_an_objective_outlives_its_replicas_and_does_not_keep_them():
    objective = ijepa()
    replicas = Replicas(objective, 2)
    gone = weakref.ref(replicas)
    del replicas
    assert gone() is None
    done = []
    objective.divide([3, 1], done.append)
    assert done == [[0, 1]]
    objective, gone = None, weakref.ref(objective)
    assert gone() is None


def test_an_error_in_one_replica_is_raised_and_the_others_do_not_wait_for_ever():
    replicas = Replicas(ijepa(), 3)
    main = threading.get_ident()

    def failing(replica, place):
        if place == 1:
            raise ZeroDivisionError("one of them fails")
        replica.add_up([torch.ones(1)])

    def meeting(replica, place):
        number = torch.full((2,), float(place + 1))
        replica.add_up([number])
        return number[0].item(), threading.get_ident() == main

    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="one of them"):
            replicas(failing)
        assert replicas(meeting) == [(6.0, True), (6.0, False), (6.0, False)]


def test_a_step_after_an_error_in_one_replica_is_as_if_there_had_been_none():
    objective = ijepa()
    replicas = Replicas(objective, 2)

    def work(bad):
        def own(replica, place):
            x = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(place))
            replica.standardise(replica._features(x))
            sum(parameter.sum() for parameter in replica.parameters() if parameter.requires_grad).backward()
            if place == bad:
                raise ZeroDivisionError

        return own

    for bad in (0, 1):
        with pytest.raises(ZeroDivisionError):
            replicas(work(bad))
    objective.predictor.mask_token.requires_grad_(False)
    replicas(work(None))
    replicas.gather()
    gradients = {name: parameter.grad for name, parameter in objective.named_parameters()}
    assert gradients.pop("predictor.mask_token") is None  # frozen meanwhile, as the target encoder always is
    assert all((gradient is None) == name.startswith("target") for name, gradient in gradients.items())
    assert all(
        torch.equal(gradient, torch.full_like(gradient, 2)) for gradient in gradients.values() if gradient is not None
    )
    assert (objective.standardise.sums[0] == 16).all()


def test_replicas_are_refused_where_they_cannot_be():
    with pytest.raises(ValueError, match="16 images cannot be shared evenly by 3 replicas"):
        TrainingConfig(batch=16, replicas=3)
    with pytest.raises(ValueError, match="compile"):
        TrainingConfig(batch=16, replicas=2, compile=True)
    with pytest.raises(ValueError, match="2 replicas cannot be called through a Sequential"):
        Step(
            objective := ijepa(),
            schedule=ScheduleConfig(),
            optimizer=OptimizerConfig(),
            training=TrainingConfig(batch=16, replicas=2),
            processes=ALONE,
            call=torch.nn.Sequential(objective),
        )
    with pytest.raises(InputError, match="one process on a CPU"):
        Step(
            ijepa(),
            schedule=ScheduleConfig(),
            optimizer=OptimizerConfig(),
            training=TrainingConfig(batch=16, replicas=2),
            processes=Processes(0, 2, torch.device("cpu")),
        )
