"""Registers the model `hf_tome` with lmms-eval, through its entry points `lmms_eval.models`."""

from lmms_eval.models.registry_v2 import ModelManifest

manifest = ModelManifest(
    model_id="hf_tome",
    chat_class_path="hf_tome_lmms_eval.model.HfTome",
    aliases=("llava_hf_tome",),
)
