"""A row of a tower of SAM's kind: what its blocks call their parts; and the rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...encoders.families.inputs import InputFormat
from ..packed.family import PACKED_IMAGES


@dataclass(frozen=True)
class WindowFamily:
    """One family of towers whose blocks attend in windows. Names are attributes of the block, or of the attention.

    Attributes:
        model_types: `config.model_type` of the models with this tower.
        tower: class name of the module that owns the blocks.
        layers: path from the tower to its list of blocks.
        norm1, attention, norm2, mlp, dropout2: of the block; `dropout2` is what stands behind the MLP, if anything.
        qkv: one projection to queries, keys and values; `None` where there are three.
        query, key, value, out: projections.
        num_heads, scaling, dropout: the attention's attributes of these meanings.
        relative_positions: the attention's attribute that says whether it has tables of relative positions, or `None`.
        rotary: name of the function that turns queries and keys, with what the block's `rotary_emb` gives; or `None`.
        reads_global: whether the tower gives out what its global blocks do.
        proportional: what `proportional_attention="auto"` means for ToMe here.
    """

    model_types: tuple[str, ...]
    tower: str
    layers: str = "layers"
    norm1: str = "layer_norm1"
    attention: str = "attn"
    norm2: str = "layer_norm2"
    mlp: str = "mlp"
    dropout2: str | None = None
    qkv: str | None = "qkv"
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    out: str = "proj"
    num_heads: str = "num_attention_heads"
    scaling: str = "scale"
    dropout: str = "dropout"
    relative_positions: str | None = "use_rel_pos"
    rotary: str | None = None
    reads_global: bool = False
    proportional: bool = True
    library: str = "transformers"
    inputs: InputFormat = PACKED_IMAGES


SAM = WindowFamily(("sam", "deepseek_vl_hybrid"), "SamVisionEncoder")

WINDOW_FAMILIES: tuple[WindowFamily, ...] = (
    SAM,
    replace(SAM, model_types=("sam_hq",), tower="SamHQVisionEncoder", reads_global=True),
    replace(SAM, model_types=("got_ocr2", "pp_chart2table"), tower="GotOcr2VisionEncoder"),
    replace(SAM, model_types=("deepseek_ocr2",), tower="DeepseekOcr2SamVisionEncoder"),
    replace(SAM, model_types=("unlimited_ocr",), tower="UnlimitedOcrSamVisionEncoder"),
    replace(SAM, model_types=("pp_formulanet",), tower="PPFormulaNetVisionModel"),
    replace(SAM, model_types=("slanext",), tower="SLANeXtVisionEncoder"),
    replace(
        SAM,
        model_types=("sam3", "sam3_tracker", "sam3_video"),
        tower="Sam3ViTModel",
        attention="attention",
        dropout2="dropout",
        qkv=None,
        out="o_proj",
        scaling="scaling",
        dropout="attention_dropout",
        relative_positions=None,
        rotary="apply_rotary_pos_emb_2d",
    ),
)

WINDOW_TOWERS: dict[str, WindowFamily] = {family.tower: family for family in WINDOW_FAMILIES}
"""The rows by the class name of the module that owns the blocks."""
