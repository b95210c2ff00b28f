"""Which limit stops a training step: its time by classes of operators, and its matrix products beside the best rate.

    python benchmarks/where.py [--sizes small vit-s vit-b clip] [--rounds 5] [--batch N] [--json FILE]

Our whole step as ``step.py`` has it, one replica on one thread of a CPU, under PyTorch's profiler: of every operator
its own time, without that of the operators that it calls, in the fastest of the steps. Optimiser and EMA are told by
where an operator is called from, the other classes by its name; "rest" is all else, Python and the profiler's own work
included.

Then every kind of matrix product that a step makes (operator, shapes, strides, precision) is measured alone, on the
same operands over and over, so from warm caches. The peak is the best rate of large square products
(``measure.gemm_peak``). Counted are the products that are really made: with attention in parts also those made again
for the gradient, which ``step.py`` does not count; not those inside a fused attention kernel.
"""

import argparse
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

import contenders
from measure import gemm_peaks, machine, precision, seconds
from openjepa.cli import suit_the_process
from openjepa.training.step import Step

LINEAR = "mkldnn::_linear_pointwise"  # with the bias, and GELU where it is asked for, inside
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", LINEAR)
MOVED, STEP, EMA, OPTIMISER = "optimiser and EMA", "a whole step", "EMA", "Optimizer."  # the last as PyTorch names it
CLASSES = {
    "matrix products": PRODUCTS,
    "attention, fused": (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "attention's softmax": ("_softmax", "_softmax_backward_data"),
    "LayerNorm": ("native_layer_norm", "native_layer_norm_backward"),
    "GELU": ("gelu", "gelu_backward"),
    "copies and casts": (
        "copy_",
        "cat",
        "clone",
        "_to_copy",
        "gather",
        "index",
        "index_select",
        "index_copy_",
        "repeat",
    ),
    "additions and multiplications": ("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "sum", "mean"),
}
ROWS = (*CLASSES, MOVED, "rest")
CPU = torch.device("cpu")
ROOM = 2**29  # numbers of four bytes


@dataclass(frozen=True)
class Product:
    """A kind of matrix product: the operator, and shape, strides and precision of each of its operands."""

    operator: Any
    operands: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]
    others: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def key(self) -> str:
        """Operator and shapes, which is what the profiler knows of it."""
        return told(named(self.operator), (shape for shape, *_ in self.operands))

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiplication and an addition being two."""
        shapes = [shape for shape, *_ in self.operands]
        if named(self.operator) == LINEAR:
            return 2 * math.prod(shapes[0]) * shapes[1][0]
        return 2 * math.prod(shapes[-2]) * shapes[-1][-1]

    def alone(self, rounds: int) -> float:
        """The fewest seconds that it takes, of some rounds of three."""
        operands = []
        for shape, strides, dtype in self.operands:
            room = 1 + sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True))
            operands.append(torch.randn(room, dtype=dtype).as_strided(shape, strides))
        call = partial(self.operator, *operands, *self.others, **dict(self.options))
        return min(seconds(call, CPU, 3) for _ in range(rounds + 2))


class Products(TorchDispatchMode):
    """Counts the matrix products that are made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[Product] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if named(func) in PRODUCTS:
            tensors = [each for each in args if isinstance(each, Tensor)]
            operands = tuple((tuple(each.shape), tuple(each.stride()), each.dtype) for each in tensors)
            others = tuple(tuple(each) if isinstance(each, list) else each for each in args[len(tensors) :])
            self.found[Product(func, operands, others, tuple((kwargs or {}).items()))] += 1
        return func(*args, **(kwargs or {}))


def named(operator: Any) -> str:
    """An operator's name as the tables have it: without PyTorch's own namespace."""
    return str(operator.overloadpacket).replace(".", "::").removeprefix("aten::")


def told(operator: str, shapes: Iterable[Iterable[int]]) -> str:
    """An operator and what it is given, as ``mm 512x96 96x384``."""
    return " ".join([operator, *("x".join(map(str, shape)) for shape in shapes)])


def class_of(event: FunctionEvent, callers: list[FunctionEvent]) -> str:
    """The class to which an operator's own time counts."""
    if any(each.name == EMA or each.name.startswith(OPTIMISER) for each in (event, *callers)):
        return MOVED
    name = event.name.removeprefix("aten::")
    return next((kind for kind, names in CLASSES.items() if name in names), "rest")


def callers_of(event: FunctionEvent) -> list[FunctionEvent]:
    """What an operator was called from, the outermost last."""
    found: list[FunctionEvent] = []
    caller = event.cpu_parent
    while caller is not None:
        found.append(caller)
        caller = caller.cpu_parent
    return found


def profiled(step: Step, task: contenders.Task, rounds: int) -> tuple[dict[str, float], Counter[str]]:
    """Seconds of a step by class, under the profiler, and by operator and shapes of the products."""
    step.objective.after_step = record_function(EMA)(step.objective.after_step)
    torch.ones(ROOM)  # and given back: touched pages for the profiler's records, which take the step's free blocks
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        for number in range(rounds):
            with record_function(STEP):
                step(task.x, task.masks, number)
    events = list(record.events() or [])
    steps = sorted((event for event in events if event.name == STEP), key=lambda event: event.cpu_time_total)
    chosen = steps[0]
    classes, products = dict.fromkeys(ROWS, 0.0), Counter()
    for event in events:
        callers = callers_of(event)
        if callers and callers[-1] is chosen:
            own = event.self_cpu_time_total / 1e6
            classes[class_of(event, callers)] += own
            name = event.name.removeprefix("aten::")
            if name in PRODUCTS:
                products[told(name, filter(None, event.input_shapes))] += own
    classes["rest"] += chosen.self_cpu_time_total / 1e6
    unseen = [kind for kind in ("matrix products", "LayerNorm", "GELU", MOVED) if not classes[kind]]
    if unseen:
        raise SystemExit(f"the profiler saw nothing of {', '.join(unseen)}: these have other names in this PyTorch")
    return classes, products


def measure(task: contenders.Task, peak: float, rounds: int) -> dict[str, Any]:
    """Everything about a step of one size."""
    step = contenders.trainers_step(task)
    for number in range(2):
        step(task.x, task.masks, number)
    took = statistics.median(seconds(lambda: step(task.x, task.masks, 0), CPU) for _ in range(rounds))
    with Products() as made:
        step(task.x, task.masks, 0)
    classes, inside = profiled(step, task, rounds)
    products: dict[str, dict[str, float]] = {}
    for product, count in made.found.items():
        if product.key not in inside:
            raise SystemExit(f"the step makes {product.key}, and the profiler has nothing of that name")
        begun = {"times": 0, "flops": 0, "alone": 0.0, "in the step": inside[product.key]}
        row = products.setdefault(product.key, begun)
        row["times"] += count
        row["flops"] += count * product.flops
        row["alone"] += count * product.alone(rounds)
    whole, flops = sum(classes.values()), sum(row["flops"] for row in products.values())
    spent, least = classes["matrix products"], flops / peak
    return {
        "seconds": took,
        "seconds under the profiler": whole,
        "shares": {kind: own / whole for kind, own in classes.items()},
        "flops": flops,
        "peak": peak,
        "of the peak": least / took,
        "of the peak if all but products were free": least / spent,
        "of the peak if all but products were free and these as fast as alone": (
            least / sum(row["alone"] for row in products.values())
        ),
        "of the peak if products were at the peak": least / (took - spent + least),
        "products": products,
    }


def show(sizes: dict[str, dict[str, Any]], most: int) -> None:
    """Print tables as Markdown: the classes of all sizes, and of each size the products that take the most time."""
    rows = list(sizes.values())

    def line(name: str, cells: Iterable[str]) -> None:
        print(f"| {name} | {' | '.join(cells)} |")

    line("", (row["name"] for row in rows))
    line("---", ("---" for _ in rows))
    for name in ("seconds", "seconds under the profiler"):
        line(name.replace("seconds", "milliseconds"), (f"{1000 * row[name]:,.1f}" for row in rows))
    for kind in [kind for kind in ROWS if any(row["shares"][kind] for row in rows)]:
        line(kind, (f"{row['shares'][kind]:.1%}" for row in rows))
    for name in [name for name in rows[0] if name.startswith("of the peak")]:
        line(name, (f"{row[name]:.0%}" for row in rows))
    for row in rows:
        print(f"\n| {row['name']} | in a step | of the step | GFLOP/s in it | alone | of the peak |\n|{'---|' * 6}")
        longest = sorted(row["products"].items(), key=lambda item: -item[1]["in the step"])[:most]
        for key, found in longest:
            share = found["in the step"] / row["seconds under the profiler"]
            inside, alone = (found["flops"] / found[where] for where in ("in the step", "alone"))
            rates = f"{inside / 1e9:,.0f} | {alone / 1e9:,.0f} | {alone / row['peak']:.0%}"
            line(key, (f"{found['times']} x", f"{share:.1%}", rates))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("small", "vit-s", "vit-b", "clip")
    parser.add_argument("--sizes", nargs="+", choices=names, default=list(names))
    parser.add_argument("--rounds", type=int, default=5, help="timed steps, and as many under the profiler")
    parser.add_argument("--batch", type=int, help="images of a step; default: the size's own")
    parser.add_argument("--most", type=int, default=12, help="products of a size that the table shows; JSON has all")
    parser.add_argument("--json", type=Path, help="write the numbers there, after every size")
    options = parser.parse_args()
    suit_the_process()
    torch.set_num_threads(1)
    peaks = gemm_peaks(CPU)
    dtype = precision(peaks, "auto")
    results: dict[str, Any] = {"machine": machine(CPU), "peaks": peaks, "dtype": dtype, "sizes": {}}
    for key in options.sizes:
        size = contenders.sized(key, options.batch)
        found = measure(contenders.Task(size, CPU, dtype), peaks[dtype], options.rounds)
        results["sizes"][key] = {"name": size.name, "batch": size.batch, **found}
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    show(results["sizes"], options.most)


if __name__ == "__main__":
    main()
