"""How a head on frozen features is trained, and the arms that are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace

from finsent.config import ACTIVATIONS, CANDIDATES
from finsent.study.rows import StudyError

HEAD_ARMS = ("baseline", "restart", "dendritic", "matched")
"""`baseline`: a linear head. `restart`: the same, going back to its best state with a fresh
optimizer and a lower learning rate whenever the dendritic arm grows. `dendritic`: grows there.
`matched`: a hidden layer of as many parameters beside the linear path, with the same restarts."""


SCORES = ("nll", "accuracy")


CHOICES = ("validation", "training")


@dataclass(frozen=True)
class HeadRecipe:
    """How heads are trained. Arms of a recipe differ in what they grow, never in these."""

    epochs: int = 40
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    dendrites: int = 1
    """Growths: after equal shares of the epochs, one dendrite per class each time."""
    candidates: str = "refined"
    chosen_on: str = "validation"
    """Where refined candidates are stopped, chosen and scaled: `validation`, or a third of the
    training part (`training`) that they are not fitted on, which leaves validation untouched."""
    activation: str = "relu"
    init_scale: float = 0.1
    """Standard deviation of V in a random candidate."""
    learning_rate_factor: float = 0.5
    """Multiplies the scheduled learning rate from the first growth or restart on."""
    score: str = "nll"
    """What decides on validation which epoch is best: the lowest NLL or the highest accuracy."""
    prune: bool = True
    """Whether the best epoch may be one before the last growth: what a growth added and did not pay
    for is then dropped. The restart and matched arms may go back in the same way."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("candidates", self.candidates, CANDIDATES),
            ("chosen_on", self.chosen_on, CHOICES),
            ("activation", self.activation, ACTIVATIONS),
            ("score", self.score, SCORES),
        ):
            if value not in allowed:
                raise StudyError(f"{name} must be one of {allowed}, got {value!r}")
        if self.dendrites < 1 or self.epochs < 2 * (self.dendrites + 1):
            raise StudyError(
                f"{self.dendrites} growths in {self.epochs} epochs: at least one growth, and two "
                "epochs before and after each"
            )

    @property
    def growth_epochs(self) -> tuple[int, ...]:
        """Zero-based epochs at whose end something grows or restarts."""
        stages = self.dendrites + 1
        return tuple(round(self.epochs * i / stages) - 1 for i in range(1, stages))

    def with_(self, **changes: object) -> HeadRecipe:
        """The same with some settings changed."""
        return replace(self, **changes)  # type: ignore[arg-type]
