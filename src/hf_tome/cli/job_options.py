"""The options that eval, sweep and tune share: what is run, on what data, and how."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ..media.limits import parse_limits
from . import common
from .common import Dtype

if TYPE_CHECKING:
    from ..evaluation.job import Job
    from ..evaluation.options import JobOptions

NOT_OF_THE_JOB = ("task", "batch_size", "restart")
"""The options that `JobOptions` does not have."""
FIRST, LAST = ("model", "data", "task"), ("out", "restart", "format", "debug")


@dataclass(frozen=True)
class JobArguments:
    """What the options say; each field is one, with its help."""

    model: common.ModelOption
    data: Annotated[
        str,
        typer.Option(
            help="Hub id or folder of the data, or digits, which ship with scikit-learn. A folder holds "
            "<split>/<class>/<file>, WebDataset shards or Parquet; of clips and recordings also a CSV; "
            "of captions, questions, boxes and transcripts a JSON, JSONL or CSV file; of masks and depths "
            "<split>/images and <split>/masks or depths."
        ),
    ]
    task: Annotated[
        str,
        typer.Option(
            help="What to evaluate: image-classification, video-classification, zero-shot-image-classification, "
            "audio-classification, semantic-segmentation, depth-estimation, object-detection, "
            "zero-shot-object-detection, automatic-speech-recognition, image-to-text (captions), "
            "visual-question-answering or text-cache (text files)."
        ),
    ] = "image-classification"
    split: Annotated[
        str | None, typer.Option(help="Split of the data; else validation or test, whichever there is.")
    ] = None
    labels: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="CSV with columns label (or wnid), name and maybe index (the data's number): what the data's labels "
            "are called by the model; or a .txt with a name a line. classes.csv or classnames.txt beside the data is "
            "found by itself.",
        ),
    ] = None
    class_names: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="Zero-shot: what the classes are called, a line each or JSON, in the order of the labels.",
        ),
    ] = None
    templates: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="Zero-shot: sentences with {} for the name, a line each or JSON; they are averaged.",
        ),
    ] = None
    clips: Annotated[int, typer.Option(min=1, help="Video: views of a clip in time, whose scores are averaged.")] = 1
    crops: Annotated[int, typer.Option(min=1, help="Video: square views of a clip along its longer side.")] = 1
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Captions and answers: what the model is asked, {question} standing for the question and its "
            "options. The model's chat template comes around it, unless it holds the image token itself."
        ),
    ] = None
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Captions and answers: tokens to generate at most; else 64 and 16. Texts: tokens that follow the "
            "context; else 64.",
        ),
    ] = None
    context_tokens: Annotated[int | None, typer.Option(min=1, help="Texts: context tokens of each; else 640.")] = None
    depth_scale: Annotated[
        float | None,
        typer.Option(min=0.001, help="Depth: steps a metre in maps of integers; else 1000, which are millimetres."),
    ] = None
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Evaluate a random subset of N samples; a resumed run may raise it."),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the random subset of --limit.")] = 0
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read a Hub data set or shards without a copy on disk first.")
    ] = False
    media_limits: common.MediaLimitsOption = ""
    batch_size: common.BatchSizeOption = 16
    device: common.DeviceOption = "auto"
    dtype: common.DtypeOption = Dtype.float32
    restart: Annotated[bool, typer.Option("--restart", help="Discard what an earlier run left in --out.")] = False

    @contextmanager
    def build(
        self, out: Path | None, make: Callable[[str, JobOptions], Job] | None = None
    ) -> Iterator[tuple[Job, int]]:
        """Yield the job and the batch size, and keep other runs from writing to `out` meanwhile.

        `make` builds the job from the task's name and the options; by default the task does.

        With `--restart` the samples in `out` are thrown away.
        """
        from ..evaluation.options import JobOptions
        from ..evaluation.store.lock import lock_folder
        from ..evaluation.tasks.registry import build_job
        from ..hub.shipped import shipped_model

        device, is_main = common.pick_device(self.device), common.is_main_process()
        values = {name: value for name, value in asdict(self).items() if name not in NOT_OF_THE_JOB}
        values |= {
            "model": shipped_model(self.model),
            "device": device,
            "dtype": self.dtype.value,
            "media_limits": parse_limits(self.media_limits),
        }
        options = JobOptions(**values)
        with ExitStack() as stack:
            if out is not None and out.is_dir():  # a job that cannot be built leaves no new folder behind
                stack.enter_context(lock_folder(out, is_main))
            job = (make or build_job)(self.task, options)
            stack.enter_context(lock_folder(out, is_main))
            if self.restart:
                common.forget_samples(out)
            yield job, common.pick_batch_size(self.batch_size, device)


def takes_job(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `JobArguments` in place of its first parameter, which gets what they say.

    In its help the command's own options stand behind the first of these, and `LAST` at the end.
    """
    _, *own = inspect.signature(command).parameters.values()
    shared = inspect.signature(JobArguments).parameters
    hints = get_type_hints(command, include_extras=True) | get_type_hints(JobArguments, include_extras=True)

    def place(parameter: inspect.Parameter) -> int:
        return 0 if parameter.name in FIRST else 3 if parameter.name in LAST else 2 if parameter.name in shared else 1

    @wraps(command)
    def run(**values: Any) -> None:
        arguments = JobArguments(**{name: values.pop(name) for name in shared})
        command(arguments, **values)

    parameters = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in sorted((*shared.values(), *own), key=place)
    ]
    del run.__wrapped__  # type: ignore[attr-defined]  # where typer would look for the signature
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
