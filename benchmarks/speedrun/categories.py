"""What is to be reached, and how."""

from __future__ import annotations

from dataclasses import dataclass

PROGRAM_OF_ALL = ("python", "-m", "vgg_fast.train", "--fused", "--preset", "record")


@dataclass(frozen=True)
class Category:
    """A mean test accuracy to reach, and the recipe that reaches it in the least time known.

    Attributes:
        name: the accuracy, in percent.
        seeds: how many runs the mean is of.
        options: of the training program, over those of the preset "record".
    """

    name: str
    seeds: int
    options: tuple[str, ...] = ()

    @property
    def target(self) -> float:
        """The accuracy as a share."""
        return float(self.name) / 100

    def command(self, seeds: int) -> tuple[str, ...]:
        """What is to be typed, without where the results go."""
        return (*PROGRAM_OF_ALL, *self.options, "--seeds", str(seeds))


CATEGORIES = {
    category.name: category
    for category in (
        Category("94.5", 4, ("--arch", "2x32,2x64,3x128", "--epochs", "20")),
        Category("94.0", 20, ("--arch", "1x32,2x64,2x128", "--epochs", "12")),
        Category("93.0", 20, ("--epochs", "5")),
        Category("92.0", 20, ("--epochs", "3")),
    )
}
