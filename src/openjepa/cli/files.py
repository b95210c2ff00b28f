"""The verbs that turn folders and files into others: report and import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from openjepa.cli.parsing import parse
from openjepa.files import expanded


def report_verb(arguments: list[str]) -> int:
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Report:
        """Write RUN/report.html: one file that opens offline.

        Attributes:
            run: the run's folder.
        """

        run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]

    given = parse(Report, "report", arguments)
    from openjepa.report import write_report

    print(write_report(expanded(given.run)))
    return 0


def import_verb(arguments: list[str]) -> int:
    import tyro

    @dataclass(frozen=True, kw_only=True)
    class Import:
        """Turn a published checkpoint into a folder: I-JEPA's .pth.tar (three networks), or MAE's .pth (the encoder).

        Attributes:
            checkpoint: the file.
            out: the folder to make, which must be new.
            num_heads: attention heads of the encoder, where its width is not a published one.
            predictor_heads: attention heads of the predictor, where they are not the encoder's.
        """

        checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
        out: Path
        num_heads: int | None = None
        predictor_heads: int | None = None

    given = parse(Import, "import", arguments)
    from openjepa.interop.imported import import_checkpoint

    path, out = expanded(given.checkpoint), expanded(given.out)
    facts = import_checkpoint(path, out, heads=given.num_heads, predictor_heads=given.predictor_heads)
    for name, value in facts.items():
        print(f"{name}: {value}")
    print(f"written: {out} (openjepa.load({str(out)!r}) reads it)")
    return 0
