"""A family's row: what its blocks call their parts, which tokens are protected, and what its heads read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .inputs import IMAGE, InputFormat
from .sizes import PLAIN, Sizes


def one(config: Any) -> int:
    """A class token."""
    return 1


def two(config: Any) -> int:
    """A class and a distillation token."""
    return 2


def zero(config: Any) -> int:
    """No special token."""
    return 0


def class_tokens(config: Any) -> int:
    """As many class tokens as the config says."""
    return config.n_cls_tokens


def first_token(config: Any, tower: Any) -> int:
    """The class token alone, of several special tokens."""
    return 1


def class_and_registers(config: Any) -> int:
    """A class token and the registers behind it."""
    return 1 + config.num_register_tokens


def first_patch(config: Any, tower: Any) -> int:
    """The first patch, which a pooler reads in place of a class token."""
    return 1


def first_patch_if_pooled(config: Any, tower: Any) -> int:
    """The first patch, where the tower was built with a pooler, which reads it."""
    return int(getattr(tower, "pooler", None) is not None)


def first_patch_unless_mean(config: Any, tower: Any) -> int:
    """The first patch, which the classifier reads where it does not average them."""
    return int(not config.use_mean_pooling)


@dataclass(frozen=True)
class OutputAdapter:
    """How a model consumes the final tokens, and which submodule is patched for it.

    Attributes:
        mixin (`type`, *optional*): the subclass of `PatchedModule` that the submodule is patched with.
        target (`str`): dotted path of that submodule, from the model that has the row; "" is the model itself.
        description (`str`): how `report` puts it.
        unmerge (`bool`): whether the model needs every token, so that merging is undone after the last block.
        unmerge_reads (`bool`): whether it needs every token of the hidden states in `reads`, which the mixin unmerges
            one by one, while later blocks keep merging.
        when_unmerged (`bool`): whether the submodule is patched also where all tokens are unmerged.
        at_root (`bool`): whether it applies only to the model itself, not to one that another model holds.
        averages_prefix (`bool`): whether a mean that the model takes includes the tokens that are never merged.
        reads (`Callable`, *optional*): from the model and the number of blocks, the indices of the hidden states that
            it reads (0 = embeddings); empty where it reads the tower's output.
        reads_field (`str`): the setting that names these layers, for messages.
        reads_tokens (`bool`): whether it reads others than the special tokens.
        num_cropped (`Callable`, *optional*): from the model, how many leading tokens it cuts off.
    """

    mixin: type | None = None
    target: str = ""
    description: str = ""
    unmerge: bool = False
    unmerge_reads: bool = False
    when_unmerged: bool = False
    at_root: bool = False
    averages_prefix: bool = False
    reads: Callable[[Any, int], tuple[int, ...]] | None = None
    reads_field: str = "vision_feature_layer"
    num_cropped: Callable[[Any], int] | None = None
    reads_tokens: bool = True


CLASS_TOKEN = OutputAdapter(description="reads the special tokens, which are never merged", reads_tokens=False)
TOKENS = OutputAdapter(description="gives out the merged tokens (`restore=True` gives the full grid)", at_root=True)
UNMERGE = OutputAdapter(
    description="needs every token, so the full grid is restored after the last block", unmerge=True
)

# Why a class that owns the tower is unsupported.
PIXEL_DECODER = "its decoder puts masked patches back by position among the encoder's tokens, which merging reorders"


@dataclass(frozen=True)
class Family:
    """One family of encoders: everything that the shared block and attention forwards need to know.

    Paths are dotted names from the block, or from the attention where said so.

    Attributes:
        model_types: `config.model_type` of the module that owns the blocks (the tower), or of models around it.
        tower: class name of that module.
        layers: path from the tower to its list of blocks.
        norm1, attention, norm2: paths in the block; `attention` is the module whose outputs transformers records.
        after_attention, mlp: steps between attention and residual, and between norm2 and residual: modules are called,
            parameters and numbers multiply, and `"dropout()"` drops out by the block's attribute of that name.
        query, key, value, out: projections, from the attention module; `out` is `None` where it is a step of
            `after_attention`.
        query_norm, key_norm: norms of what `query` and `key` give, where there are any.
        norm_heads: whether these norms take each head by itself, rather than all heads at once.
        scales_query: whether queries are scaled before attention, which then scales nothing (Whisper).
        clamps_half: whether a block's output is clamped in half precision (Whisper).
        head_dim, scaling, dropout: the attention's attributes of these meanings.
        num_prefix_tokens: the special tokens before the patches, from the tower's config; they are never merged.
        heads: what is done with the tokens, by class name of the model that does it; a class that is not listed is
            unsupported, and so is one that maps to a string, the reason.
        proportional: what `proportional_attention="auto"` means for ToMe here.
        rotary: name of the function in the family's module that turns queries and keys, called with
            `position_embeddings`.
        position_bias: the attention mask is a bias per pair of positions, followed by token; blocks may hold their own
            module of this name.
        residual_first: whether the residual is the first operand of its sum, whose memory layout (that of embeddings
            may be transposed) the sum takes on.
        protected: the leading tokens that are never merged where those are others than the special ones, from the
            tower's config and the tower, which is `None` where only its config is known.
        class_tokens: the leading tokens whose attention tells what matters, from the tower's config and the tower;
            all special ones by default.
        inputs: what the tower takes, and how its patches lie on it: for example inputs and pictures.
        sizes: where the config keeps the sizes that the multiply-adds depend on.
        num_windows: into how many windows an image is cut, where these are rows of the batch, and `inputs` and `sizes`
            are those of one, from the tower's config.
        joined_blocks: the blocks that attend over all windows of an image, from the tower's config.
        attention_mixin, block_mixin: what attention and block are patched with, `MergedAttention` and `MergedBlock` by
            default.
        library: whose modules these are: `"transformers"`, or `"timm"`, whose attention has a forward of its own.
    """

    model_types: tuple[str, ...]
    tower: str
    num_prefix_tokens: Callable[[Any], int]
    heads: Mapping[str, tuple[OutputAdapter, ...] | str]
    layers: str = "layers"
    norm1: str = "layernorm_before"
    attention: str = "attention"
    after_attention: tuple[str, ...] = ("dropout",)
    norm2: str = "layernorm_after"
    mlp: tuple[str, ...] = ("mlp", "dropout")
    query: str = "q_proj"
    key: str = "k_proj"
    value: str = "v_proj"
    out: str | None = "o_proj"
    query_norm: str | None = None
    key_norm: str | None = None
    norm_heads: bool = False
    scales_query: bool = False
    clamps_half: bool = False
    head_dim: str = "head_dim"
    scaling: str = "scaling"
    dropout: str = "attention_dropout"
    proportional: bool = True
    rotary: str | None = None
    position_bias: str | None = None
    residual_first: bool = False
    protected: Callable[[Any, Any], int] | None = None
    class_tokens: Callable[[Any, Any], int] | None = None
    inputs: InputFormat = IMAGE
    sizes: Sizes = PLAIN
    num_windows: Callable[[Any], int] | None = None
    joined_blocks: Callable[[Any], tuple[int, ...]] | None = None
    attention_mixin: type | None = None
    block_mixin: type | None = None
    library: str = "transformers"

    def num_protected(self, config: Any, tower: Any = None) -> int:
        """Return the number of leading tokens that are never merged."""
        return self.num_prefix_tokens(config) if self.protected is None else self.protected(config, tower)

    def num_class_tokens(self, config: Any, tower: Any = None) -> int:
        """Return the number of leading tokens whose attention tells what matters."""
        return self.num_prefix_tokens(config) if self.class_tokens is None else self.class_tokens(config, tower)

    def check(self) -> None:
        """Raise a `ValueError` where an entry is not what it takes."""
        for name in ("num_prefix_tokens", "protected", "class_tokens"):
            if not (callable(getattr(self, name)) or (name != "num_prefix_tokens" and getattr(self, name) is None)):
                raise ValueError(f"`{name}` of {self.tower!r} is {getattr(self, name)!r}; it takes a function.")
        for name, kind in (("inputs", InputFormat), ("sizes", Sizes)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(
                    f"`{name}` of {self.tower!r} is {getattr(self, name)!r}; it takes an `{kind.__name__}` of "
                    "`hf_tome.adapters.encoders`."
                )
        for name in ("model_types", "after_attention", "mlp"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(entry, str) for entry in value):
                raise ValueError(f"`{name}` of {self.tower!r} is {value!r}; it takes a tuple of names.")
        for name in ("tower", "layers", "norm1", "attention", "norm2", "query", "key", "value", "library"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"`{name}` of {self.tower!r} is {getattr(self, name)!r}; it takes a name.")
        if self.library == "timm":
            raise ValueError("`library` is 'timm', whose VisionTransformers have rows; it takes another package.")
        for model, rows in self.heads.items():
            is_row = isinstance(rows, tuple) and all(isinstance(row, OutputAdapter) for row in rows)
            if not isinstance(model, str) or not (is_row or isinstance(rows, str)):
                raise ValueError(
                    f"`heads` of {self.tower!r} maps {model!r} to {rows!r}; it takes class names, each with a tuple "
                    "of `OutputAdapter`, or with the reason why that model is not supported."
                )

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Models that are merged pickle the name of the row; its functions may have none.
        from .registry import TOWERS, registered_family

        if TOWERS.get(self.tower) is self:
            return registered_family, (self.tower,)
        return super().__reduce_ex__(protocol)
