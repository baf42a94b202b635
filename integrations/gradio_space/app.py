"""A page to try token merging on: `python app.py`, or a Hugging Face Space."""

from __future__ import annotations

import html
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import denoising
import gradio as gr
from examples import write_examples
from merging import BATCH_SIZE, COLUMNS, MEDIA_LIMITS, METHODS, ROUNDS, SCHEDULES, UNMERGED, in_words, load, merge
from space_models import embedded_models

from hf_tome.escaping import markdown_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from merging import Outcome

ABOUT = """# Token merging
[ToMe](https://arxiv.org/abs/2210.09461) and MaMe merge the redundant tokens of a vision transformer between attention
and MLP, without training: fewer tokens, fewer GFLOPs, faster batches. Pick a model and an input, and move the sliders.
"""
FOOT = f"""Tokens are those after the last block, with the class token and its like, which are never merged. GFLOPs
(multiply-adds) are those of one input. Times are medians of up to {ROUNDS} runs of {BATCH_SIZE} copies of the input on
this machine's processor; a small model with a single input can be slower merged. The models that ship with the page
know only digits: the CLIP and the SigLIP on photographs, the ViT on black. Models without classes (a CLIP from the
Hub, LLaVA) show no predictions. Digits: *Optical Recognition of Handwritten Digits* (E. Alpaydin, C. Kaynak, 1998,
CC BY 4.0); photographs by danielbuechele and vultilion (CC BY 2.0); all through scikit-learn. The landscape and the
sound are made by code."""
CSS = """
#merged img {padding-top: 30px}
.gradio-container {max-width: 1280px !important; margin: auto}
#problem, #problem-drawn {background: #fdecea; border-left: 4px solid #d93025; border-radius: 6px; padding: 12px 16px}
#problem *, #problem-drawn * {color: #611a15}
#foot {font-size: 13px}
.numbers {padding: 0 !important}
.numbers table {width: 100%; margin: 0 !important; border-collapse: collapse; font-variant-numeric: tabular-nums}
.numbers :is(table, thead, tbody, tr, th, td) {border: 0 solid #8886 !important}
.numbers :is(th, td) {border-bottom-width: 1px !important; padding: 6px !important; text-align: right}
.numbers :is(th, td):first-child {text-align: left}
@media (max-width: 640px) {.numbers :is(th, td) {padding: 6px 2px !important; font-size: 12px !important}}
"""
THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
COLOURS = {UNMERGED: "#9aa0a6", "ToMe": "#4a86e8", "MaMe": "#e8710a"}
IS_DARK = "() => document.body.classList.contains('dark')"
KINDS = ("image", "video", "audio")


def _as_dropped(component: Any) -> Any:
    """Hand the path of what was dropped on: gradio would open an image first, and fail without saying why."""
    component.preprocess = lambda payload: None if payload is None else payload.path
    return component


def pick_model(name: str) -> list[Any]:
    """Return the updates that follow a model: the input that it takes, and the range of r; `show` tells errors."""
    try:
        loaded = load(name)
    except Exception:
        return [gr.skip()] * (len(KINDS) + 1)
    shown = [gr.update(visible=loaded.kind == kind) for kind in KINDS]
    return [*shown, gr.update(maximum=loaded.largest_r, value=loaded.usual_r)]


def show(
    name: str,
    image: str | None,
    video: str | None,
    audio: str | None,
    method: str,
    r: float,
    schedule: str,
    threshold: float,
    dark: bool,
) -> list[Any]:
    """Return what the page shows: an error in words, the table, the picture, the classes and the plot."""
    try:
        given = dict(zip(KINDS, (image, video, audio)))
        outcome = merge(name, given[load(name).kind], method, r, schedule, threshold, dark)
    except Exception as error:  # a page says what is wrong, whatever it is
        return [_problem(error), None, None, *[gr.update(visible=False)] * 3, None]
    tops = [gr.update(value=outcome.top.get(name), visible=name in outcome.top) for name in COLOURS]
    return [_problem(None), number_table(COLUMNS, outcome.table()), outcome.picture, *tops, plot(outcome, dark)]


def plot(outcome: Outcome, dark: bool) -> Figure:
    """Plot the tokens after each block, a line a method, on the background of the page."""
    from matplotlib.figure import Figure

    figure, ink = Figure(figsize=(7, 2.6), layout="constrained", facecolor="none"), "white" if dark else "black"
    axes = figure.add_subplot(facecolor="none")
    for name, tokens in outcome.tokens.items():
        axes.plot(range(len(tokens)), tokens, color=COLOURS[name], label=name, linewidth=2, marker="o", markersize=4)
    axes.set(xlabel="blocks done", ylabel="tokens", ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(ink)
    axes.tick_params(colors=ink)
    axes.xaxis.label.set_color(ink)
    axes.yaxis.label.set_color(ink)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, loc="lower left", labelcolor=ink)
    return figure


def number_table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table as HTML: gradio's own is wider than a phone."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _problem(error: Exception | None) -> Any:
    # Names of files and models stand in errors, and the page would show their markup.
    return gr.update(value="" if error is None else markdown_text(in_words(error)), visible=error is not None)


def build(examples: dict[str, list[str]]) -> gr.Blocks:
    """Build the page, with the paths of examples by kind of input; the first image is shown to begin with."""
    with gr.Blocks(title="Token merging", analytics_enabled=False) as page:
        gr.Markdown(ABOUT)
        with gr.Tab("Pictures, clips, sounds"):
            with gr.Row():
                with gr.Column(scale=1, min_width=320):
                    model, sides, controls = _controls(examples)
                with gr.Column(scale=2, min_width=320):
                    shown = _results()
            gr.Markdown(FOOT, elem_id="foot")
        with gr.Tab("Diffusion"):
            _build_denoising()
        dark = gr.Checkbox(visible="hidden")
        r, run = controls[4], {"inputs": [model, *controls, dark], "outputs": shown, "show_progress_on": shown[2]}
        model.change(pick_model, model, [*sides, r]).then(show, **run)
        gr.on([control.change for control in controls], show, **run, trigger_mode="always_last")
        page.load(None, None, dark, js=IS_DARK).then(show, **run)
    return page


def show_drawn(digit: float, ratio: float, place: str, seed: float) -> list[Any]:
    """Return what the tab of diffusion shows: an error in words, both pictures and the table."""
    try:
        drawn = denoising.draw(int(digit), ratio, place, int(seed or 0))
    except Exception as error:
        return [_problem(error), None, None, None]
    return [_problem(None), drawn.unmerged, drawn.merged, number_table(denoising.COLUMNS, drawn.rows)]


def _build_denoising() -> None:
    """Build the tab of diffusion, which draws when it is told to."""
    gr.Markdown(denoising.ABOUT)
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            controls = [
                gr.Slider(0, 9, value=3, step=1, label="Digit", elem_id="digit"),
                gr.Slider(0, denoising.LARGEST, value=0.5, step=0.05, label="Share of the tokens that merge"),
                gr.Radio(list(denoising.PLACES), value=next(iter(denoising.PLACES)), label="Merged"),
                gr.Number(0, label="Seed of the noise", precision=0, minimum=0),
            ]
            button = gr.Button("Draw", variant="primary", elem_id="draw")
        with gr.Column(scale=2, min_width=320):
            problem = gr.Markdown(visible=False, elem_id="problem-drawn")
            with gr.Row():
                pictures = [
                    gr.Image(label=name, format="png", interactive=False, elem_id=f"drawn-{name}", buttons=[])
                    for name in ("unmerged", "merged")
                ]
            table = gr.HTML(elem_id="table-drawn", elem_classes="numbers", padding=False)
    shown = [problem, *pictures, table]
    button.click(show_drawn, controls, shown, show_progress_on=pictures[1], trigger_mode="once")


def _controls(examples: dict[str, list[str]]) -> tuple[Any, list[Any], list[Any]]:
    """Return the model, the column of each kind of input, and what else `show` takes, in its order."""
    models = list(embedded_models())
    first = load(models[0])
    model = gr.Dropdown(
        models,
        value=models[0],
        allow_custom_value=True,
        label="Model",
        info="Pick one, or type the Hub id of any supported model.",
        elem_id="model",
    )
    start = {kind: (examples.get(kind) or [None])[0] for kind in KINDS}
    makers = {
        "image": lambda: gr.Image(
            start["image"], label="Image", height=260, sources=["upload", "clipboard"], elem_id="image"
        ),
        "video": lambda: gr.Video(
            start["video"], label="Clip", sources=["upload"], include_audio=True, height=260, elem_id="video"
        ),
        "audio": lambda: gr.Audio(start["audio"], type="filepath", label="Sound", sources=["upload"], elem_id="audio"),
    }
    sides, inputs = [], []
    for kind in KINDS:
        with gr.Column(visible=kind == first.kind) as side:
            inputs.append(_as_dropped(makers[kind]()))
            if examples.get(kind):
                gr.Examples([[path] for path in examples[kind]], inputs=inputs[-1], label="Examples")
        sides.append(side)
    method = gr.Radio(METHODS, value=METHODS[-1], label="Method")
    r = gr.Slider(0, first.largest_r, value=first.usual_r, step=1, label="ToMe: r, tokens merged a block", elem_id="r")
    schedule = gr.Dropdown(list(SCHEDULES), label="ToMe: schedule of r")
    threshold = gr.Slider(0.3, 1, value=0.8, step=0.01, label="MaMe: threshold of similarity", elem_id="threshold")
    return model, sides, [*inputs, method, r, schedule, threshold]


def _results() -> list[Any]:
    """Return the components that `show` fills, in its order."""
    problem = gr.Markdown(visible=False, elem_id="problem")
    gr.Markdown("### Before and after")
    table = gr.HTML(elem_id="table", elem_classes="numbers", padding=False)
    gr.Markdown("### Merged patches: those of one colour and border are one token")
    picture = gr.Image(
        show_label=False, format="png", elem_id="merged", interactive=False, buttons=["download", "fullscreen"]
    )
    with gr.Row():
        tops = [
            gr.Label(label=f"Top 5, {name}", visible=False, show_heading=False, elem_id=f"top-{name.lower()}")
            for name in COLOURS
        ]
    gr.Markdown("### Tokens after each block")
    curve = gr.Plot(show_label=False, elem_id="curve")
    return [problem, table, picture, *tops, curve]


def main() -> None:
    """Serve the page; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say where."""
    with tempfile.TemporaryDirectory() as folder:
        page = build(write_examples(Path(folder)))
        page.launch(
            footer_links=["gradio"],
            css=CSS,
            theme=THEME,
            allowed_paths=[folder],
            max_file_size=MEDIA_LIMITS.file_bytes,
        )


if __name__ == "__main__":
    main()
