"""A comparison from its options to its table."""

from collections.abc import Mapping

from checkpoints import places, store
from checkpoints.cli import UserError
from probes.compare import cells, costs, page
from probes.compare import plan as plans
from probes.compare import table as compare_table
from probes.compare.plan import CompareOptions, Plan
from probes.compare.table import Comparison


def compare(options: CompareOptions) -> Comparison:
    """Measure what is not measured yet, and write table.md, .csv, .tex and index.html into the output folder.

    Raises UserError where the options make no sense or nothing can be written; what a single measurement raises stands in the
    table's `failed`.
    """
    plan = plans.make(options)
    places.tried(options.out / "table.md")
    done = cells.run_all(plan, options.out, options.again)
    spent: Mapping[str, costs.Cost] = {
        model: cost for model in plan.models if (cost := costs.of(model, plan.protocol, options)) is not None
    }
    found = compare_table.build(plan.models, done, spent, plan.unfit, about(plan, options))
    write(found, options)
    return found


def about(plan: Plan, options: CompareOptions) -> str:
    """The protocol in words."""
    view = plan.protocol
    seen = "Each backbone's own view" if options.view == "own" else f"Shorter side {view.resize}, centre crop {view.crop} for all"
    parts = [f"{seen}; {options.precision}; the {options.key}."]
    if view.limit:
        parts.append(f"At most {view.limit} images of each part.")
    if view.seeds > 1:
        parts.append(f"{', '.join(plans.DRAWING)}: mean ± standard deviation of {view.seeds} seeds.")
    return " ".join([*parts, "In brackets 95 % intervals over the test images."])


def write(found: Comparison, options: CompareOptions) -> None:
    """All forms of the table. Raises UserError where they cannot be written."""
    forms = {"table.md": found.markdown, "table.csv": found.csv, "table.tex": found.latex, "index.html": lambda: page.page(found)}
    for name, form in forms.items():
        path = places.below(options.out, name)
        try:
            store.write_bytes(path, form().encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise UserError(f"cannot write to {path} ({error.strerror}): give another --out") from error
