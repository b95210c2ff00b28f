"""What is printed: the plan of a run, and what was measured."""

import math
from typing import Any


def console() -> Any:
    """Standard output, on which every word is printed as it is: names of files and classes may hold [brackets]."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def _say(sentence: str) -> None:
    """Print a sentence, in lines of the terminal's width; in one line where there is none, to be searched."""
    out = console()
    out.print(sentence, soft_wrap=not out.is_terminal)


def print_plan(facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from openjepa.report.formats import counted_threads

    data, masks, estimate = facts["data"], facts["masks"], facts["estimate"]
    about = "about " if masks["shape"] in ("packed", "reference") else ""
    processes = f"{facts['processes']} processes of " if facts["processes"] > 1 else ""
    blocks = "1 block" if masks["target_blocks"] == 1 else f"{masks['target_blocks']} blocks"
    among = f", {facts['batch'] // facts['processes']} in each process" if facts["processes"] > 1 else ""
    noticed = {"flat": data["flat"]} if data["flat"] else {}
    if data["remarks"]:
        noticed["reading"] = "; ".join(data["remarks"])
    rows = {
        "images": f"{data['images']:,} to train on ({data['name']}). {data['split']}",
        "skipped": _skipped(data),
        "sizes": f"{data['sizes']} px (height x width), {data['channels']} channel{'s' * (data['channels'] != 1)}"
        + (f"; smaller than a patch, and enlarged: {data['tiny']}" if data["tiny"] else ""),
        "values": _values(**data["values"]),
        **noticed,
        "labels": _labels(data),
        "recipe": f"{facts['recipe']['name']}: {facts['recipe']['why']}",
        "input": f"{times(facts['image'])} px in patches of {times(facts['patch'])}: {times(facts['grid'])} tokens",
        "masks": f"{masks['shape']}: {about}{masks['context_tokens']} of {math.prod(facts['grid'])} tokens seen, "
        f"{blocks} of {masks['target_tokens']} tokens asked",
        "parameters": f"{facts['parameters']['encoder']:,} encoder, {facts['parameters']['predictor']:,} predictor",
        "length": f"{facts['steps']:,} step{'s' * (facts['steps'] != 1)} of {facts['batch']} images{among}, "
        f"{facts['epochs']:.1f} epochs",
        "learning rate": f"{facts['learning_rate']:.3g} at its highest, for batches of {facts['batch']} images"
        + ("; Muon moves the blocks' matrices" if facts["matrices_moved_by"] == "muon" else ""),
        "machine": f"{facts['device']}, {facts['precision']}, {processes}{counted_threads(facts['threads'])}",
        "loader": _loader(**facts["loader"]),
        "estimate": f"{duration(estimate['seconds'])} of training (then the evaluation) and "
        f"{estimate['memory'] / 2**30:.1f} GiB, from a few real steps",
    }
    if not console().is_terminal:
        for name, value in rows.items():
            _say(f"{name:13}  {value}")
        return
    table = Table(show_header=False, box=None, padding=(0, 1))
    for name, value in rows.items():
        table.add_row(Text(name, "bold"), value)
    console().print(table)


def _values(bits: int, low: float, high: float, white: float, mean: list[float], std: list[float]) -> str:
    from openjepa.report.formats import listed

    kind = f"{bits} bits" if bits < 32 else "floats"
    said = f"{kind}, {low:,.5g} to {high:,.5g}" + ("" if high == white else f" (white is {white:,g})")
    means, spreads = (listed([f"{100 * value:.3g}" for value in values]) for values in (mean, std))
    if len(mean) > 4:
        means, spreads = (f"{100 * min(values):.3g} to {100 * max(values):.3g}" for values in (mean, std))
    return f"{said}; in % of white the mean is {means}, the spread {spreads}"


def _loader(workers: int, batch_seconds: float, waits: float, copies_help: bool) -> str:
    each = f"{1000 * batch_seconds:,.0f} ms"
    said = f"in this process, {each} a batch"
    if workers:
        said = f"{workers} process{'es' if workers > 1 else ''}, {each} a batch for one of them"
    if waits > 0.1:
        said += f"; reading the images will take {100 * waits:.0f}% of the time"
        said += ": --cache keeps small copies that are read faster" if copies_help else ""
    return said


def _labels(data: dict[str, Any]) -> str:
    return f"{data['classes']} classes, for evaluation only" if data["labelled"] else f"none ({data['unlabelled']})"


def _skipped(data: dict[str, Any]) -> str:
    files, bad = data["skipped"], data["unreadable"]
    said = f"{files:,} files" + (f" (for example {data['skipped_example']})" if files else "")
    said += f"; {bad:,} of the {data['looked_at']:,} images looked at cannot be read"
    return said + (f" (for example {data['unreadable_example']})" if bad else "")


def print_evaluation(found: dict[str, Any]) -> None:
    """One table of every measure, task by task, and the sentences that sum up."""
    from rich.table import Table
    from rich.text import Text

    out = console()
    learn, test = found["train_images"], found["test_images"]
    if learn and not test:  # no labels
        _say(found["split"])
        for name, measures in found["spectrum"].items():
            _say(f"RankMe of {name}: {measures['rankme']:.1f}")
    if found["rows"]:
        counts = f"{found['data']}: {_counts(found)}" if test else None
        table = Table(title=counts)
        for heading in ("evaluator", "features", "measure", "value", "95% interval", "width"):
            # On a narrow terminal long names of evaluators break, and the numbers stay in one piece.
            left = heading in ("evaluator", "features", "measure")
            whole = heading not in ("evaluator", "measure")
            table.add_column(heading, justify="left" if left else "right", no_wrap=whole)
        tasks = dict.fromkeys(row["task"] for row in found["rows"])
        for task in tasks:
            if list(tasks) != ["classes"]:
                table.add_section()
                table.add_row(Text(task, "bold"))
                table.add_section()
            _add_task(table, [row for row in found["rows"] if row["task"] == task])
        out.print(table)
        if test:
            _say(found["split"])
    for name, facts in found.get("tasks", {}).items():
        chance = "".join(f" Always the commonest: {100 * v:.1f}% ({k})." for k, v in facts.get("chance", {}).items())
        _say(f"{name}: {facts['data']}, {_counts(facts)}. {facts['split']}{chance} {facts['summary']}")
    for sentence in (found["summary"], *found.get("notes", ())):
        if sentence:
            _say(sentence)


def _counts(facts: dict[str, Any]) -> str:
    """How many images were learned on and tested on; in folds they are the same ones."""
    learn, test = f"{facts['train_images']:,} images to learn on", f"{facts['test_images']:,} to test"
    return f"{learn} in each of {facts['folds']} folds, {test} in all" if facts.get("folds") else f"{learn}, {test}"


def _add_task(table: Any, found: list[dict[str, Any]]) -> None:
    """The rows of one task, the measures of an evaluator together."""
    evaluators = list(dict.fromkeys(row["evaluator"] for row in found))
    measures = dict.fromkeys((row["evaluator"], row["metric"]) for row in found)
    before = None
    for evaluator, metric in sorted(measures, key=lambda one: evaluators.index(one[0])):
        if before not in (None, evaluator):
            table.add_section()
        rows = [row for row in found if (row["evaluator"], row["metric"]) == (evaluator, metric)]
        for number, row in enumerate(rows):
            name = evaluator if before != evaluator and number == 0 else ""
            interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
            shown = metric if number == 0 else ""
            table.add_row(name, row["features"], shown, f"{100 * row['value']:.1f}%", interval, str(row["dimensions"]))
        before = evaluator


def times(extents: list[int]) -> str:
    return "x".join(map(str, extents))


def duration(seconds: float) -> str:
    if seconds < 90:
        return "1 second" if round(seconds) == 1 else f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
