"""Write ``docs/images/schedules.svg``: the pruning ratio over the epochs of training, by schedule.

    python docs/make_schedule_picture.py

Needs what ``pip install ".[docs]"`` installs; takes some seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drawing import BLUE, GREEN, GREY, PURPLE, RED, panels, plain, save

from lightning_coreset.schedule import pruning_events

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EPOCHS, RATIO = 20, 0.8


def steps(axes: Axes, label: str, colour: str, **options: object) -> None:
    """Draw the ratio reached at each epoch, with a point at every event."""
    events = pruning_events(options.pop("schedule"), RATIO, length=EPOCHS, **options)
    epochs, ratios = [0, *events, EPOCHS], [0.0, *events.values(), max(events.values())]
    axes.step(epochs, ratios, where="post", color=colour, linewidth=1.5, label=label)
    axes.plot(list(events), list(events.values()), "o", color=colour, markersize=3.5)


def main() -> None:
    """Draw the named schedules, and examples of ``every``, a mapping and a callable."""
    figure, (names, others) = panels(2, height=3.8, sharey=True)
    for schedule, colour in zip(("one_shot", "linear", "cubic", "cosine"), (GREY, BLUE, GREEN, PURPLE), strict=True):
        steps(names, f'schedule="{schedule}"', colour, schedule=schedule)
    steps(others, 'schedule="cubic", every=4', GREEN, schedule="cubic", every=4)
    steps(others, "schedule={4: 0.3, 9: 0.6, 14: 0.8}", RED, schedule={4: 0.3, 9: 0.6, 14: 0.8})
    steps(others, "schedule=lambda t: t**2, end=0.9", BLUE, schedule=lambda t: t**2, end=0.9)
    for axes in (names, others):
        plain(axes)
        axes.set(xlabel="epoch", xlim=(0, EPOCHS), ylim=(0, 0.83), xticks=range(0, EPOCHS + 1, 2))
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1), borderaxespad=0.2)
    names.set_ylabel("fraction of the original model that is gone")
    save(figure, "schedules.svg")


if __name__ == "__main__":
    main()
