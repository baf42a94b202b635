"""Model types that are refused."""

REFUSED: dict[str, str] = {}
