"""A griffe extension for the API reference: types of parameters come from the signature, where they are rendered.

Docstrings also give them in the style of transformers, as in "r (`int`, *optional*, defaults to 0):". griffe shows
that as plain text.
"""

import re
from typing import Any

import griffe

TYPED = re.compile(r"^( +[\w*, ]+?) \((?:`|\*optional).*?\):(?=\s|$)", re.MULTILINE)


class DocstringTypes(griffe.Extension):
    """Drop the types from parameters in docstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring when its object was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = TYPED.sub(r"\1:", obj.docstring.value)
