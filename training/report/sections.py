"""The report's sections on a working directory: each function turns one kind of result into a section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.report.figures import Drawing, bar_chart, heat_map, line_chart, scatter_map
from training.report.page import Picture, Section, Table, number
from training.runs.metrics import read_steps

Result = Mapping[str, Any]
_MATCH_COLUMNS = (
    "train_cosine", "heldout_cosine", "heldout_wrong_cosine", "heldout_mean_teacher_cosine",
    "heldout_nearest_teacher_cosine", "train_weight_error", "heldout_weight_error", "base_forwards", "seconds",
)  # fmt: skip


def curves(workdir: Path, commands: Mapping[str, Sequence[str]]) -> list[Section]:
    """Loss curves, one section for each training command.

    Args:
        commands: command lines by command, for commands that have recorded an artefact.
    """
    by_command: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for path in sorted((workdir / "metrics").glob("*.jsonl")):
        command, _, series = path.stem.partition(".")
        points = [(line["step"], line["loss"]) for line in read_steps(path)]
        if points and not series.rpartition(".")[2].isdigit():  # NAME.1 is an earlier run that was set aside
            by_command.setdefault(command, {})[series or command] = points
    sections = []
    for command, runs in by_command.items():
        drawing = line_chart(runs, x="step", y="loss")
        rows = [(name, int(curve[-1][0]) + 1, curve[0][1], curve[-1][1]) for name, curve in runs.items()]
        content: list[Table | Picture] = [
            Picture(f"loss-{command}", drawing, f"Loss over steps, {len(runs)} runs of `{command}`"),
            Table(("run", "steps", "first loss", "last loss"), rows),
        ]
        lines_of = commands.get(command) or (f"python -m training {command}",)
        sections.append(Section(f"Loss: {command}", "Logged losses, not smoothed.", lines_of, content))
    return sections


def deltas(name: str, result: Result) -> Section:
    """Maps, silhouettes and norms of deltas."""
    labels = [adapter["family"] for adapter in result["adapters"]]
    content: list[Table | Picture] = [
        Picture(f"{name}-map-{kind.split()[0]}", scatter_map(places, labels, title=f"t-SNE of {kind}"),
        f"{len(labels)} adapters by family: {kind}") for kind, places in result["map"].items() if places
    ]  # fmt: skip
    rows = [(kind, result["silhouette"][kind], result["mean_cosine"][kind]) for kind in result["silhouette"]]
    content.append(Table(("of", "silhouette by family", "mean cosine of two adapters"), rows))
    drawing = heat_map(result["norm_map"], x="layer", title="norm of the product BA")
    content.append(Picture(f"{name}-norms", drawing, "Mean Frobenius norm by module and layer"))
    header = (
        "adapter",
        "family",
        *(f"layer {i}" for i in result["layers"]),
        *(f"relative, {i}" for i in result["layers"]),
    )
    content.append(
        Table(
            header,
            [(a["id"], a["family"], *a["norm"], *a["relative_norm"]) for a in result["adapters"]],
            "Norm of the mean delta, also relative to the base's activation",
        )
    )
    text = (
        f"Deltas on {len(result['probes'])} probes. A silhouette near 1 means that adapters of a family are near each "
        "other and far from others; near 0, that families do not separate."
    )
    return Section(f"Deltas: {name}", text, (result["command"],), content)


def matches(results: Mapping[str, Result]) -> Section:
    """All single fits in one table."""
    rows = [(name, *(r["metrics"].get(column) for column in _MATCH_COLUMNS)) for name, r in results.items()]
    content: list[Table | Picture] = [Table(("fit", *(c.replace("_", " ") for c in _MATCH_COLUMNS)), rows)]
    curves_of = {
        name: [(point["step"], point["heldout_cosine"]) for point in r["curve"] if "heldout_cosine" in point]
        for name, r in results.items()
    }
    curves_of = {name: points for name, points in curves_of.items() if points}
    if curves_of:
        drawing = line_chart(curves_of, x="step", y="delta cosine, held-out adapters", markers=True)
        content.append(Picture("match-heldout", drawing, "Held-out adapters while a generator is fitted"))
    text = (
        "Cosine of a generated adapter's delta with its teacher's, on descriptions that were never trained on. For "
        "comparison: the cosine with another task's teacher, and the cosines of two baselines, the mean delta of the "
        "training teachers and the delta of the teacher with the nearest description."
    )
    return Section("Matching teachers", text, [r["command"] for r in results.values()], content)


def ablation(result: Result) -> Section:
    """Losses with mean and standard deviation over seeds."""
    summary = result["summary"]
    metrics = [m for m in ("train_cosine", "heldout_cosine") if all(m in kind for kind in summary.values())]
    seeds = max(found[metrics[0]]["count"] for found in summary.values())
    columns = [c for c in _MATCH_COLUMNS if all(c in kind for kind in summary.values())]
    rows = [(kind, *(_spread(found[c]) for c in columns)) for kind, found in summary.items()]
    content: list[Table | Picture] = [
        Picture(
            "ablation", _bars(summary, metrics, x="delta cosine"), f"Mean and standard deviation over {seeds} seeds"
        ),
        Table(("loss", *(c.replace("_", " ") for c in columns)), rows),
    ]
    text = f"The same fit with each loss: {result['steps']} steps of {result['groups']} teachers."
    return Section("Ablation", text, (result["command"],), content)


def guided(result: Result) -> Section:
    """Cost of guided fits compared with the delta loss."""
    series = {
        row["name"]: [(point["base_forwards"], point["cosine"]) for point in row["curve"]] for row in result["rows"]
    }
    header = (
        "fit", "cosine", "minus delta-only", "base forwards", "times fewer", "with calibration, times fewer", "seconds",
        "equal cosine after steps", "forwards", "seconds",
    )  # fmt: skip
    rows = []
    for row in result["rows"]:
        reached = row["reached_at"] or {}
        rows.append(
            (
                row["name"], row["cosine"], row["cosine_minus_delta_only"], int(row["base_forwards"]),
                row["fewer_forwards"], row["fewer_passes"], row["seconds"], reached.get("steps"),
                reached.get("base_forwards"), reached.get("seconds"),
            )
        )  # fmt: skip
    drawing = line_chart(series, x="adapters run through the base", y="delta cosine, held-out", markers=True)
    content: list[Table | Picture] = [
        Picture("guided", drawing, "Held-out cosine by cost"),
        Table(header, rows),
    ]
    text = (
        f"Equal means at least {result['target_cosine']:.3f}: the final cosine of delta-only minus "
        f"{result['tolerance']}. Backward passes that calibrate a head are counted in addition to forwards."
    )
    return Section("Delta-guided", text, (result["command"],), content)


def composition(result: Result) -> Section:
    """Sums and differences of deltas and adapters."""
    pairs, mean = result["pairs"], result["mean"]
    names = [" + ".join(pair["pair"]) for pair in pairs]
    cosines = [
        (name, mean["delta_cosines"][name], *(pair["delta_cosines"][name] for pair in pairs))
        for name in mean["delta_cosines"]
    ]
    accuracy = [
        (name, mean["accuracy"][name], *(" / ".join(number(x) for x in pair["accuracy"][name]) for pair in pairs))
        for name in mean["accuracy"]
    ]
    content: list[Table | Picture] = [
        Picture("composition", bar_chart({k: {"mean": v} for k, v in mean["delta_cosines"].items()}, x="cosine"),
        "Cosines, mean over pairs"), Table(("cosine", "mean", *names), cosines), Table(("accuracy of", "mean",
        *names), accuracy, "Exact match on the first and on the second task"),
    ]  # fmt: skip
    text = "`x ~ y` is the cosine of x with y. An adapter's name stands for its delta, and d(A) is the delta of A."
    return Section("Composition", text, (result["command"],), content)


def scale(result: Result) -> Section:
    """Gradients, memory, cost."""
    gradients = [
        (row["preset"], label, f"{g['reached']} of {g['tensors']}", g["tokens"], g["seconds"], _mega(g["peak_bytes"]))
        for row in result["bases"]
        for label, g in row["gradients"].items()
    ]
    costs = [
        (
            row["preset"], row["storage"], _mega(row["base_bytes"]), _mega(row["adapter_bytes"]),
            row["forward_tokens_per_second"], row["forward_backward_tokens_per_second"], row["delta_seconds"],
            row["generators"][0]["generate_seconds"], row["load_seconds"],
        )
        for row in result["bases"]
    ]  # fmt: skip
    header = (
        "base",
        "storage",
        "base MB",
        "adapter MB",
        "forward tok/s",
        "both tok/s",
        "delta s",
        "generate s",
        "load s",
    )
    content: list[Table | Picture] = [
        Table(header, costs, "Cost"),
        Table(
            ("base", "activations", "A and B with gradients", "tokens", "seconds", "peak MB"), gradients, "Gradients"
        ),
    ]
    fits = [
        (row["preset"], f["steps"], f["first_loss"], f["last_loss"], f["step_seconds"],
         f["tokens_per_second"], f["seconds"], _mega(f["artefact_bytes"]))
        for row in result["bases"]
        if (f := row["fit"])
    ]  # fmt: skip
    fit_header = ("base", "steps", "first loss", "last loss", "s a step", "tok/s", "s of all steps", "artefact MB")
    content.append(Table(fit_header, fits, "Short fits, from task files to an adapter that was applied"))
    sizes = [
        (row["preset"], g["basis_rank"], g["parameters"], g["generate_seconds"])
        for row in result["bases"]
        for g in row["generators"]
    ]
    content.append(Table(("base", "basis rank", "parameters", "s an adapter"), sizes, "Sizes of the generator"))
    if both := result.get("parallel"):
        rows = [
            (i, a, b) for i, (a, b) in enumerate(zip(both["losses_of_one"], both["losses_of_several"], strict=True))
        ]
        difference = f"largest difference {both['largest_relative_difference']:.1e}"
        caption = f"Loss in 1 and in {both['processes']} processes, {difference}"
        content.append(Table(("step", "one process", f"{both['processes']} processes"), rows, caption))
    return Section("Scale and cost", "Measured on this machine, in this order.", (result["command"],), content)


def _bars(summary: Mapping[str, Any], metrics: Sequence[str], *, x: str) -> Drawing:
    """The metrics of each arm, mean and standard deviation over seeds."""

    def part(name: str) -> dict[str, dict[str, Any]]:
        return {arm: {_label(m): found[m][name] for m in metrics} for arm, found in summary.items()}

    return bar_chart(part("mean"), part("deviation"), x=x)


def _label(metric: str) -> str:
    """A metric's name for a legend, without its group."""
    return metric.rpartition(": ")[2].replace("_", " ")


def _spread(value: Mapping[str, Any]) -> str:
    deviation = value["deviation"]
    if deviation is None:
        return number(value["mean"])
    return f"{number(value['mean'])} ± {number(deviation) if deviation >= 1000 else f'{deviation:.3f}'}"


def _mega(size: int | None) -> float | None:
    return None if size is None else size / 1e6
