"""lmms-eval runs a merged LLaVA: the plugin's model on a small random one and a task of our own."""

import json
import sys
from pathlib import Path

import pytest
import small
import speaking

lmms_eval = pytest.importorskip("lmms_eval", reason="needs lmms-eval; see integrations/lmms_eval/README.md")
pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval lacks packages that it imports")

PLUGIN = Path(__file__).resolve().parents[2] / "integrations" / "lmms_eval"
TASK = """\
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/questions.jsonl
task: tiny_vqa
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  max_new_tokens: 4
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
UTILS = """\
from PIL import Image


def visual(doc):
    return [Image.open(path) for path in doc["images"]]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return speaking.llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Five questions with an image and one without."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for index in range(6):
        small.picture(index).save(folder / f"{index}.png")
        images = [str(folder / f"{index}.png")] if index else []
        rows.append({"images": images, "question": f"what is it {'big ' * index}?", "answer": "dog"})
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "utils.py").write_text(UTILS)
    (folder / "tiny_vqa.yaml").write_text(TASK.format(folder=folder))
    return folder


@pytest.fixture
def plugin(monkeypatch):
    """The plugin as its entry point registers it."""
    from lmms_eval.models import MODEL_REGISTRY_V2

    monkeypatch.syspath_prepend(str(PLUGIN))
    import hf_tome_lmms_eval

    MODEL_REGISTRY_V2.register_manifest(hf_tome_lmms_eval.manifest, overwrite=True)
    yield hf_tome_lmms_eval
    sys.modules.pop("hf_tome_lmms_eval.model", None)


def run(model, tasks, batch_size=1, **arguments):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    settings = {"pretrained": str(model), "dtype": "float32", **arguments}
    return simple_evaluate(
        model="hf_tome",
        model_args=",".join(f"{name}={value}" for name, value in settings.items()),
        tasks=["tiny_vqa"],
        batch_size=batch_size,
        device="cpu",
        task_manager=TaskManager(include_path=str(tasks)),
        bootstrap_iters=0,
        process_docs_parallel=1,
    )


def answers(results):
    return [sample["filtered_resps"] for sample in results["samples"]["tiny_vqa"]]


@pytest.mark.parametrize("merge", ["", "r=8", "method=mame;threshold=0.7"])
def test_a_task_runs_from_its_file_to_its_metric(plugin, model, tasks, merge, monkeypatch):
    seen = []
    from hf_tome_lmms_eval.model import HfTome

    answer = HfTome._answer

    def spy(self, conversations, settings):
        seen.append(len(conversations))
        return answer(self, conversations, settings)

    monkeypatch.setattr(HfTome, "_answer", spy)
    results = run(model, tasks, merge=merge, batch_size=3)
    assert len(answers(results)) == 6
    assert 0 <= results["results"]["tiny_vqa"]["exact_match,none"] <= 1
    assert sorted(seen) == [1, 2, 3]  # the question without an image by itself


def test_merging_reaches_the_language_model(plugin, model):
    from hf_tome_lmms_eval.model import HfTome

    lengths = {}
    for merge in ("", "r=8"):
        built = HfTome(str(model), merge=merge, dtype="float32", device="cpu")
        decoder = built.model.get_decoder()
        seen = []
        decoder.register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        content = [{"type": "image", "image": small.picture()}, {"type": "text", "text": "what is it ?"}]
        built._answer([[{"role": "user", "content": content}]], {"max_new_tokens": 2})
        lengths[merge] = seen[0]
    assert lengths[""] - lengths["r=8"] == 16  # two of three blocks merge eight each


def test_the_same_answers_as_hf_tome_itself(plugin, model, tasks):
    from PIL import Image

    from hf_tome import MergeConfig
    from hf_tome.evaluation.options import JobOptions
    from hf_tome.evaluation.running.runner import evaluate
    from hf_tome.evaluation.tasks.registry import build_job

    rows = [json.loads(line) for line in (tasks / "questions.jsonl").read_text().splitlines()][1:]
    own = tasks / "own"
    own.mkdir(exist_ok=True)
    for row in rows:
        Image.open(row["images"][0]).save(own / Path(row["images"][0]).name)
        row["image"] = Path(row["images"][0]).name
    (own / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = JobOptions(str(model), str(own), prompt="{question}", max_new_tokens=4)
    evaluate(build_job("visual-question-answering", options), [MergeConfig(r=8)], out=own / "out")
    records = [json.loads(line) for line in (own / "out" / "samples.jsonl").read_text().splitlines()]
    expected = [record["text"] for record in records if record.get("variant") == "r=8" and "text" in record]
    assert answers(run(model, tasks, merge="r=8"))[1:] == [[text] for text in expected]


def test_what_is_wrong_is_said(plugin, model):
    from hf_tome_lmms_eval.model import HfTome, _before, _generation

    with pytest.raises(ValueError, match="Unknown --model_args conv_template"):
        HfTome(str(model), conv_template="vicuna")
    with pytest.raises(ValueError, match="takes key=value"):
        HfTome(str(model), merge="8")
    with pytest.raises(NotImplementedError, match="generate_until"):
        HfTome(str(model), device="cpu").loglikelihood([])
    assert _before("a dog\n\nQ", ["\n\n", ""]) == "a dog"
    assert _generation({"temperature": 0, "top_p": 1.0, "until": ["x"]}) == {
        "max_new_tokens": 1024,
        "do_sample": False,
        "temperature": None,
        "top_p": None,
    }
    assert _generation({"temperature": 0.5, "max_new_tokens": 3})["do_sample"]
