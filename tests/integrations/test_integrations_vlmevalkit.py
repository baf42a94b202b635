"""VLMEvalKit's model class: messages, questions and answers, on a stand-in for the kit's base class."""

import sys
import types
from pathlib import Path

import pytest
import small
import speaking

FOLDER = Path(__file__).resolve().parents[2] / "integrations" / "vlmevalkit"


class BaseModel:
    """What the kit's base class does with the model's methods: paths and texts in a list become items with a type."""

    def set_dump_image(self, function):
        self.dump = function

    def dump_image(self, line, dataset):
        return self.dump(line)

    def generate(self, message, dataset=None):
        items = [
            item if isinstance(item, dict) else {"type": "image" if Path(item).is_file() else "text", "value": item}
            for item in message
        ]
        return self.generate_inner(items, dataset)


@pytest.fixture
def kit(monkeypatch):
    """A package `vlmeval` with what the class imports of it."""
    modules = {
        name: types.ModuleType(name) for name in ("vlmeval", "vlmeval.vlm", "vlmeval.vlm.base", "vlmeval.dataset")
    }
    modules["vlmeval"].vlm = modules["vlmeval.vlm"]
    modules["vlmeval.vlm.base"].BaseModel = BaseModel
    modules["vlmeval.dataset"].DATASET_TYPE = lambda name: "Y/N" if name == "MME" else "MCQ"
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("hf_tome_vlm", "hf_tome_chat", "run"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield modules["vlmeval.vlm"]
    for name in ("hf_tome_vlm", "hf_tome_chat", "run"):
        sys.modules.pop(name, None)


@pytest.fixture
def chat(kit):
    import hf_tome_chat

    return hf_tome_chat


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return speaking.llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture
def image(tmp_path):
    small.picture().save(tmp_path / "0.png")
    return str(tmp_path / "0.png")


def test_messages_become_turns(chat, image):
    (turn,) = chat.to_turns([{"type": "image", "value": image}, {"type": "text", "value": "what ?"}])
    assert turn["role"] == "user"
    assert turn["content"][0]["image"].size == (48, 48)
    assert turn["content"][1] == {"type": "text", "text": "what ?"}
    with pytest.raises(ValueError, match="item of type 'video'; this model takes image and text"):
        chat.to_turns([{"type": "video", "value": "a.mp4"}])


def test_questions_with_options(chat):
    row = {"question": "what is it ?", "A": "cat", "B": 0, "C": float("nan"), "D": None, "hint": "an animal"}
    assert chat.multiple_choice(row) == f"an animal\nwhat is it ?\nA. cat\nB. 0\n{chat.CHOOSE}"
    assert chat.multiple_choice({"question": "what ?"}) == "what ?\nAnswer the question directly."


def test_the_model_answers_merged_and_unmerged(kit, folder, image):
    import hf_tome_vlm

    hf_tome_vlm.register()
    lengths = {}
    for merge in ("", "r=8"):
        built = kit.HfTomeVlm(str(folder), merge=merge, dtype="float32", device="cpu", max_new_tokens=4)
        seen = lengths[merge] = []
        built.model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        said = built.generate([image, "what is it ?"])
        assert 0 < len(said.split()) <= 4
        assert built.generate([image, image, "what is it ?"])  # two images in one message
        assert built.generate(["what is it ?"])
    first, *_ = lengths[""]
    assert first - lengths["r=8"][0] == 16  # two of three blocks merge eight each


def test_prompts_of_the_kit(kit, folder, image):
    import hf_tome_vlm

    built = hf_tome_vlm.HfTomeVlm(str(folder), dtype="float32", device="cpu", max_new_tokens=2)
    assert built.use_custom_prompt("MMStar")
    assert not built.use_custom_prompt("MME")
    built.set_dump_image(lambda line: [image])
    message = built.build_prompt({"question": "what ?", "A": "cat", "B": "dog"}, "MMStar")
    assert message[0] == {"type": "image", "value": image}
    assert message[1]["value"].startswith("what ?\nA. cat\nB. dog\nAnswer")
    assert isinstance(built.generate(message, dataset="MMStar"), str)
    with pytest.raises(ValueError, match="takes key=value"):
        hf_tome_vlm.HfTomeVlm(str(folder), merge="8")


def test_the_kits_script_runs_with_the_model(kit, tmp_path, monkeypatch):
    import run

    script = tmp_path / "kit.py"
    script.write_text("import sys, vlmeval.vlm\nvlmeval.vlm.seen = sys.argv, vlmeval.vlm.HfTomeVlm.__name__\n")
    monkeypatch.setattr(sys, "argv", ["run.py"])
    run.main([str(script), "--config", "llava.json"])
    assert kit.seen == ([str(script), "--config", "llava.json"], "HfTomeVlm")
    with pytest.raises(SystemExit, match=r"path of VLMEvalKit's run\.py"):
        run.main(["absent.py"])
