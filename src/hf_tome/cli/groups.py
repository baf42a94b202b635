"""Options in groups in a command's help: model, data, merging, output, run."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

GROUPS: dict[str, tuple[str, ...]] = {
    "Model": ("model", "task", "dtype", "device", "base_model"),
    "Data": (
        *("data", "split", "labels", "class_names", "templates", "clips", "crops", "prompt", "max_new_tokens"),
        *("limit", "seed", "streaming", "media_limits", "dataset"),
    ),
    "Output": (
        *("out", "format", "all_blocks", "heatmap", "follow", "push", "dry_run", "license", "force", "check"),
        "restart",
    ),
    "Run": ("batch_size", "rounds", "warmup", "clock", "debug", "help"),
}
"""By group, the names of its options; those that no group names say what is merged."""
MERGING = "Merging"
ORDER = ("Model", "Data", MERGING, "Output", "Run")


class GroupedCommand(TyperCommand):
    """A command whose help lists its options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options of each group under its name."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], **{name: [] for name in ORDER}}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups[_group_of(parameter)].append(record)
        for name, records in groups.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)


def _group_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return next((group for group, names in GROUPS.items() if parameter.name in names), MERGING)
