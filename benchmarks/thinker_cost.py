"""CPU time of the thinker of ThinkJEPA for one episode, under plans.

python -m benchmarks.thinker_cost --episodes 16
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from vtoken.bench.machine import describe
from vtoken.qa.load import load
from vtoken.thinkjepa.episodes import Timeline, source
from vtoken.thinkjepa.features import listen
from vtoken.thinkjepa.recipe import NOW, SPARSE, THINKER_WEIGHTS, Recipe

PLANS = ("none", "grt", "grt:hold=off")


def main() -> None:
    """The command."""
    form = argparse.RawDescriptionHelpFormatter
    to = argparse.ArgumentParser("benchmarks.thinker_cost", description=__doc__, formatter_class=form)
    to.add_argument("--episodes", type=int, default=16)
    given = to.parse_args()
    torch.set_num_threads(1)
    episodes = source(Recipe())[0]["test"][: given.episodes]
    frames = [Timeline(episode()).frames(range(0, NOW, SPARSE)) for episode in episodes]
    model, words = load(str(THINKER_WEIGHTS), "cpu")
    print(f"{len(frames)} test episodes of the hand set; {describe('cpu')}")
    for plan in PLANS:
        recipe, spent, tokens = Recipe(plan=plan), [], []
        listen(model, words, frames[0], recipe)  # warm up
        for one in frames:
            start = time.process_time()
            _, cost = listen(model, words, one, recipe)
            spent.append(time.process_time() - start)
            tokens.append(cost[1])
        mean = statistics.mean(tokens)
        print(f"{plan:14} {1e3 * statistics.median(spent):5.0f} ms CPU time, median; {mean:.0f} visual tokens")


if __name__ == "__main__":
    main()
