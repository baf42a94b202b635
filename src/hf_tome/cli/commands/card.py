"""`hf-tome card`: a model card for the Hub from the results of `hf-tome eval` or `sweep`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..common import DebugOption, Format, FormatOption, example
from ..tables import file_row, write_rows

EXAMPLE = example(
    "hf-tome card results/ --config r=8 --base-model facebook/deit-tiny-patch16-224 --dataset ILSVRC/imagenet-1k \\\n"
    "    --out card/ --push me/deit-tiny-r8 --dry-run",
    "writes README.md, merge_config.json, results.json, pareto.png and, for results on a whole split from the Hub, "
    ".eval_results/*.yaml to card/ from results/results.json, and lists them, their sizes and where they would be "
    "pushed. Without --dry-run it pushes them.",
)


def card_command(
    results: Annotated[Path, typer.Argument(help="results.json, or the folder that --out named.", exists=True)],
    config: Annotated[
        str | None, typer.Option(help="The merge config that the card is about; not needed where there is only one.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Hub id of the model, where the results name a folder.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Hub id of the data, where the results name a folder.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write the files to.")] = Path("card"),
    push: Annotated[str | None, typer.Option(help="Hub id of the repository to push the files to.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --push: only list the files.")] = False,
    license: Annotated[str | None, typer.Option(help="The Hub's name of the base model's license.")] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Write model-index and .eval_results even of a part of the data or a local folder."
        ),
    ] = False,
    format: FormatOption = Format.table,
    debug: DebugOption = False,
) -> None:
    """Write a model card from measured results, with `model-index` and `.eval_results`, and list its files.

    Results with --limit, of a local folder, or of too few samples are no benchmark: without --force they get neither,
    and the card's first lines say so.
    """
    from ...evaluation.reporting import model_card as results_card

    evaluation = results_card.read_results(results)
    row = results_card.choose_row(evaluation, config)
    plot = (results if results.is_dir() else results.parent) / results_card.PLOT
    files = results_card.write_results_card(
        evaluation,
        row,
        out,
        base_model=base_model,
        dataset=dataset,
        plot=plot if plot.is_file() else None,
        license=license,
        force=force,
        **({"repository": push} if push else {}),
    )
    for doubt in results_card.doubts_of_publishing(evaluation, row, dataset or evaluation.data["id"]):
        print(f"{'forced' if force else 'no benchmark results'}: {doubt}", file=sys.stderr)
    names = [str(file.relative_to(out)) for file in files]
    if push and not dry_run:
        _push(push, out, names)
    rows = [file_row(file, name if push else None) for file, name in zip(files, names)]
    write_rows([{**row, "repository": push} if push else row for row in rows], format)


def _push(repository: str, folder: Path, files: list[str]) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    api.upload_folder(
        repo_id=repository, folder_path=folder, allow_patterns=files, commit_message="Add measured results"
    )
