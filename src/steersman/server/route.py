"""What a table of routes decided for one prompt, and why. Knows nothing of how."""

from __future__ import annotations

from pydantic import JsonValue

from steersman.facts import fact


@fact
class Route:
    """What was decided for one prompt."""

    name: str
    """Of the route."""
    recipe: str
    strength: float
    score: float
    """Cosine, or activation."""
    threshold: float
    why: str
    """In words."""
    ms: float
    """What the decision took."""

    def to_json(self) -> dict[str, JsonValue]:
        """As a response shows it."""
        return {
            "name": self.name,
            "recipe": self.recipe,
            "strength": self.strength,
            "score": round(self.score, 4),
            "threshold": round(self.threshold, 4),
            "why": self.why,
            "ms": round(self.ms, 2),
        }
