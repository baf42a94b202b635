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
        norm1, attention, norm2, mlp: of the block.
        dropout1, dropout2: of the block, what stands behind attention and MLP, if anything.
        channels_first: whether the grid is (B, C, H, W) rather than (B, H, W, C).
        gives_tuple: whether blocks give a tuple.
        qkv: one projection to queries, keys and values; `None` where there are three.
        query, key, value, out: projections.
        num_heads, scaling, dropout: the attention's attributes of these meanings.
        relative_positions: the attention's attribute that says whether it has tables of relative positions, or `None`.
        rotary: name of the function that turns queries and keys, with what the block's `rotary_emb` gives; or `None`.
        reads: what is given out of the tokens between the blocks: `"global"` for what global blocks give, in
            `intermediate_embeddings` of the tower, or `"hidden_states"` of its `encoder`; or `None`.
        convolutions: the block's attribute that says whether convolutions follow it, or `None`.
        proportional: what `proportional_attention="auto"` means for ToMe here.
    """

    model_types: tuple[str, ...]
    tower: str
    layers: str = "layers"
    norm1: str = "layer_norm1"
    attention: str = "attn"
    norm2: str = "layer_norm2"
    mlp: str = "mlp"
    dropout1: str | None = None
    dropout2: str | None = None
    channels_first: bool = False
    gives_tuple: bool = False
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
    reads: str | None = None
    convolutions: str | None = None
    proportional: bool = True
    library: str = "transformers"
    inputs: InputFormat = PACKED_IMAGES


SAM = WindowFamily(("sam", "deepseek_vl_hybrid"), "SamVisionEncoder")

VITDET = replace(
    SAM,
    model_types=("vitdet",),
    tower="VitDetModel",
    layers="encoder.layer",
    norm1="norm1",
    attention="attention",
    norm2="norm2",
    dropout1="drop_path",
    dropout2="drop_path",
    channels_first=True,
    gives_tuple=True,
    num_heads="num_heads",
    relative_positions="use_relative_position_embeddings",
    reads="hidden_states",
    convolutions="use_residual_block",
)

WINDOW_FAMILIES: tuple[WindowFamily, ...] = (
    SAM,
    replace(SAM, model_types=("sam_hq",), tower="SamHQVisionEncoder", reads="global"),
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
    VITDET,
    replace(VITDET, tower="VitDetBackbone"),
)

WINDOW_TOWERS: dict[str, WindowFamily] = {family.tower: family for family in WINDOW_FAMILIES}
"""The rows by the class name of the module that owns the blocks."""
