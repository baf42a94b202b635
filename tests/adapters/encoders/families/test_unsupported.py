"""Every vision or audio model type that transformers maps to a task has a row, or a reason why it has none."""

import pytest
import transformers
from packaging.version import Version
from transformers import CONFIG_MAPPING, SwinConfig, SwinModel
from transformers.models.auto import modeling_auto

from hf_tome import MergeConfig, UnsupportedModelError, __version__, apply
from hf_tome.adapters.dense.models import DENSE_MODELS
from hf_tome.adapters.dense.packed.rows import PACKED_FAMILIES
from hf_tome.adapters.dense.sam.family import WINDOW_FAMILIES
from hf_tome.adapters.dense.towers import DENSE_FAMILIES
from hf_tome.adapters.encoders import unsupported
from hf_tome.adapters.encoders.families.registry import FAMILIES, WRAPPERS
from hf_tome.adapters.encoders.unsupported import BY_REASON, CHECKED, UNSUPPORTED, why_unsupported
from hf_tome.adapters.vision_language.models import VISION_LANGUAGE

TASKS = (
    *("IMAGE", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "BACKBONE"),
    *("AUDIO_CLASSIFICATION", "AUDIO_FRAME_CLASSIFICATION", "AUDIO_XVECTOR"),
    *("OBJECT_DETECTION", "ZERO_SHOT_OBJECT_DETECTION", "KEYPOINT_DETECTION", "KEYPOINT_MATCHING"),
    *("SEMANTIC_SEGMENTATION", "INSTANCE_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "IMAGE_SEGMENTATION"),
    *("MASKED_IMAGE_MODELING", "CAUSAL_IMAGE_MODELING", "MASK_GENERATION", "IMAGE_MATTING", "IMAGE_TO_IMAGE"),
    *("DEPTH_ESTIMATION", "NORMAL_ESTIMATION", "POINTMAP_ESTIMATION", "POSE_ESTIMATION"),
    *("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "VISUAL_QUESTION_ANSWERING"),
)
SUPPORTED = {
    model_type
    for family in (*FAMILIES, *DENSE_FAMILIES, *PACKED_FAMILIES, *WINDOW_FAMILIES)
    for model_type in family.model_types
}


def mapped() -> dict[str, str]:
    """Return the model types of all tasks, each with the name of one of its classes."""
    types = {}
    for task in TASKS:
        types.update(getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES"))
    return {name: entry if isinstance(entry, str) else entry[0] for name, entry in types.items()}


def is_covered(model_type: str, class_name: str) -> bool:
    models = {**WRAPPERS, **VISION_LANGUAGE, **DENSE_MODELS}
    return model_type in SUPPORTED or model_type in UNSUPPORTED or class_name in models


def test_every_mapped_type_is_supported_or_has_a_reason():
    """Up to the version in `CHECKED`, of its own; what a later transformers adds gets the generic reason."""
    uncovered = [name for name, class_name in mapped().items() if not is_covered(name, class_name)]
    assert [name for name in uncovered if why_unsupported(name) is None] == []


def test_a_model_type_that_transformers_added_later(monkeypatch):
    model = SwinModel(SwinConfig(embed_dim=12, depths=[1, 1], num_heads=[1, 1]))
    monkeypatch.delitem(UNSUPPORTED, "swin")
    for checked, reason in (("4.0.0", r"hf_tome knows .* up to transformers 4.0.0"), ("99.0.0", "holds none of the")):
        monkeypatch.setattr(unsupported, "CHECKED", checked)
        with pytest.raises(UnsupportedModelError, match=rf"\(model type 'swin'\).*{reason}"):
            apply(model, MergeConfig(r=1))
    monkeypatch.setattr(unsupported, "CHECKED", "4.0.0")
    model.config.model_type = "a_type_of_my_own"
    with pytest.raises(UnsupportedModelError, match="holds none of the supported"):
        apply(model, MergeConfig(r=1))


def test_nothing_is_both():
    assert SUPPORTED & set(UNSUPPORTED) == set()


def test_each_type_stands_once():
    names = [name for types in BY_REASON.values() for name in types.split()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("model_type", sorted(UNSUPPORTED))
@pytest.mark.skipif(
    Version(transformers.__version__) < Version(CHECKED), reason="types that a later transformers adds"
)
def test_unsupported_types_exist(model_type):
    assert model_type in CONFIG_MAPPING


@pytest.mark.parametrize("reason", list(BY_REASON))
def test_a_reason_completes_a_sentence(reason):
    assert reason[0].islower()
    assert not reason.endswith(".")


def test_errors_name_the_versions():
    with pytest.raises(UnsupportedModelError, match=rf"hf_tome {__version__}, transformers \d+\.\d+"):
        apply(SwinModel(SwinConfig(embed_dim=12, depths=[1, 1], num_heads=[1, 1])), MergeConfig(r=1))
