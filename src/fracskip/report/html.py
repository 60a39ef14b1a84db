"""Writes the page: reads the records, draws the figures, fills the template."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fracskip.errors import DataError
from fracskip.files import write_atomically
from fracskip.report import cascades, figures, sweeps, view, wording
from fracskip.report.cascade_view import cascaded
from fracskip.report.extras import report_extra
from fracskip.report.palette import css_colours
from fracskip.report.pixels import with_pictures
from fracskip.report.reading import RECORD_NAME, RecordFile, read_record_file
from fracskip.report.values import png_size

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Figure:
    """A figure in the two widths between which the page's style sheet chooses."""

    wide: Markup
    narrow: Markup


def write_report(records: Sequence[str | Path], out: str | Path, data: str = "") -> Path:
    """Turns records into one HTML file that needs nothing beside itself.

    The same records give the same bytes where the same images are at hand. The file is written
    beside its final place and moved there whole, so that a reader never sees half of it.

    Args:
        records: Paths of records of evaluations, sweeps, cascades or runs, or of run folders, in
            any mix; the page counts them in this order.
        out: Where to write; folders that are missing are made.
        data: A data set to take pictures of images from, beside the bundled sample and those in the
            cache: a name as in recipes, such as folder:PATH.

    Returns:
        The path of the page.

    Raises:
        DataError: if no record is given, one is malformed or foreign, or `out` cannot be written.
        MissingExtraError: if Jinja2 or matplotlib is not installed.
    """
    if isinstance(records, str | Path) or not records:
        raise DataError(f"a report needs a list of at least one record; got {records!r}")
    out = Path(out)
    if not out.name or os.path.isdir(out):
        raise DataError(f"the report {out} is a folder; name a file, such as report.html")
    paths = [Path(record) for record in records]
    if any(out.resolve() in (path.resolve(), (path / RECORD_NAME).resolve()) for path in paths):
        raise DataError(f"the report {out} would overwrite one of its records; name another file")
    sources = list({source.sha256: source for source in map(read_record_file, paths)}.values())
    write_atomically(out, _render(sources, data).encode("utf-8", "replace"), DataError)
    return out


@cache
def _environment() -> Environment:
    with report_extra():
        import matplotlib  # noqa: F401
        from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fracskip.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=wording.percent,
        cost=wording.cost,
        accuracy=wording.accuracy,
        accuracy_interval=wording.accuracy_interval,
        chain_words=wording.chain_words,
        counted_us=wording.counted_us,
        duration=wording.duration,
        option_words=wording.option_words,
        share_words=wording.share_words,
        allocation_words=wording.allocation_words,
        counted=wording.counted,
        listed=wording.listed,
        class_accuracy=view.class_accuracy,
        recipe_lines=view.recipe_lines,
        png_size=png_size,
    )
    return environment


def _figure(draw: Callable[..., str], *args: Any, ident: str) -> Figure:
    from markupsafe import Markup

    # Our own SVG: matplotlib has escaped what the records put into it.
    wide = Markup(draw(*args, ident=f"{ident}-wide"))
    narrow = Markup(draw(*args, ident=f"{ident}-narrow", narrow=True))
    return Figure(wide, narrow)


def _render(sources: Sequence[RecordFile], data: str) -> str:
    environment = _environment()
    chains = [
        (item, _figure(cascades.cascade_accuracy, item.record, ident=f"cascade-{number}"))
        for number, item in enumerate(cascaded(sources), 1)
    ]
    evaluations = view.measured(sources)
    runs = view.trained(sources)
    curves = view.swept(sources)
    plots = [
        (
            measured_on,
            items,
            [
                _figure(
                    figures.accuracy_cost,
                    [(item.label, item.record) for item in items],
                    measure,
                    ident=f"cost-{number}-{measure}",
                )
                for measure in ("cp", "bitops_ratio")
            ],
        )
        for number, (measured_on, items) in enumerate(view.by_data(evaluations), 1)
    ]
    blocks = [
        (
            item,
            _figure(
                figures.block_shares,
                item.record.blocks,
                item.record.checkpoint.options,
                wording.counted(item.record.escalation_rate),
                ident=f"blocks-{number}",
            ),
        )
        for number, item in enumerate(evaluations, 1)
        if item.record.blocks
    ]
    budgets = [
        (
            item,
            [
                _figure(draw, item.record, ident=f"budgets-{number}-{draw.__name__}")
                for draw in (sweeps.accuracy_budget, sweeps.option_shares)
            ],
            [
                _figure(
                    figures.block_shares,
                    point.blocks,
                    item.record.checkpoint.options,
                    wording.counted(point.escalation_rate),
                    ident=f"budget-{number}-{place}",
                )
                if point.blocks
                else None
                for place, point in enumerate(item.record.points, 1)
            ],
        )
        for number, item in enumerate(curves, 1)
    ]
    training = [
        (item, _figure(figures.training_curves, item.run, ident=f"run-{number}"))
        for number, item in enumerate(runs, 1)
        if item.run.epochs
    ]
    labels = view.option_labels([*evaluations, *curves])
    light, dark = css_colours(labels)
    return environment.get_template(TEMPLATE).render(
        sources=sources,
        cascades=[item for item, _ in chains],
        chains=chains,
        evaluations=evaluations,
        runs=runs,
        curves=curves,
        budgets=budgets,
        most_points=max((len(item.record.points) for item in curves), default=0),
        plots=plots,
        blocks=blocks,
        examples=[
            (item, *with_pictures(item.record, data))
            for item in evaluations
            if item.references_of("examples")
        ],
        classes=[item for item in evaluations if item.references_of("classes")],
        training=training,
        options=labels,
        light=light,
        dark=dark,
    )
