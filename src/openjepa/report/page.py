"""The page: sections put together, written in one piece."""

from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from openjepa._version import __version__
from openjepa.errors import InputError
from openjepa.files import write_whole
from openjepa.report.curves import curves_section
from openjepa.report.evaluation import evaluation_section
from openjepa.report.formats import called, count, escape
from openjepa.report.gallery import gallery_section
from openjepa.report.record import bad_images_section, cost_section, next_section, plan_section
from openjepa.report.run_folder import RunFolder, read_run
from openjepa.report.verdict import Answer, judge
from openjepa.report.watch import watch_section

_LINKS = (("evaluation", "How good"), ("pictures", "What it sees"), ("watch", "The watch"), ("curves", "Curves"),
          ("cost", "Cost"), ("plan", "Settings"), ("bad", "Images set aside"), ("next", "What next"))  # fmt: skip


def write_report(run: Path) -> Path:
    """Write ``report.html`` into the run folder and return its path.

    The page is self-contained and needs no network. It is written beside its place and then renamed, so a reader never
    sees half a page. Raises InputError where ``run`` is not a run folder or cannot be written to.
    """
    page = render(read_run(Path(run)))
    target = Path(run) / "report.html"
    try:
        write_whole(target, page)
    except OSError as error:
        raise InputError(
            f"{target} cannot be written ({error.strerror or error}). Make the folder writable, or make room."
        ) from error
    return target


def render(run: RunFolder) -> str:
    """The whole page as HTML."""
    verdict = judge(run)
    body = "".join(
        (
            evaluation_section(run),
            gallery_section(run),
            watch_section(run),
            curves_section(run),
            cost_section(run),
            plan_section(run),
            bad_images_section(run),
            next_section(run),
        )
    )
    links = "".join(f'<a href="#{name}">{text}</a>' for name, text in _LINKS if f'id="{name}"' in body)
    css = (files("openjepa.report") / "page.css").read_text(encoding="utf-8")
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    headline = escape(verdict.headline).replace("k-NN", '<span class="whole">k-NN</span>')
    name = escape(run.path.resolve().name or run.path)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}: openjepa report</title>\n<style>\n{css}</style></head>\n<body><main>"
        f'<p class="over"><b>{name}</b>{_subject(run)}</p>'
        f'<h1>{headline}</h1><p class="lede">{escape(verdict.qualification)}</p>'
        f'<section class="answers">{"".join(_tile(answer) for answer in verdict.answers)}</section>'
        f"{_notes(run)}<nav>{links}</nav>\n{body}"
        f"<footer>Written by openjepa {escape(__version__)} on {written} from {escape(run.path)}. "
        "All numbers are read from that folder.</footer></main></body></html>\n"
    )


def _subject(run: RunFolder) -> str:
    data = run.planned("data", "name")
    return f" · {escape(called(run.planned('objective') or 'encoder'))} trained on {escape(data)}" if data else ""


def _tile(answer: Answer) -> str:
    return (
        f'<div class="card {answer.standing}"><h2>{escape(answer.question)}</h2>'
        f"<strong>{escape(answer.answer)}</strong><p>{escape(answer.because)}</p></div>"
    )


def _records(number: int) -> str:
    return "1 record of an image" if number == 1 else f"{count(number)} records of images"


def _notes(run: RunFolder) -> str:
    notes = list(run.notes)
    if run.finished is False:
        steps = f"step {count(run.steps_done)} of {count(run.planned('steps'))}"
        ended = "It is still going on, or it was stopped."
        if run.stopped_by is not None:
            ended = f"A number that is not finite stopped it ({run.stopped_by}): "
            ended += "begin a new one, with a lower --schedule.lr."
        notes.insert(0, f"This run is not finished: {steps}. {ended}")
    if run.bad_images:
        notes.append(f"{_records(len(run.bad_images))} that could not be read: see images set aside.")
    return f'<div class="notes"><ul>{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul></div>' if notes else ""
