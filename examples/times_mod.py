"""A task of your own, from nothing to its inside: `a*b mod 97` on a 30 x 30 grid. A minute or two on a CPU.

As a script: python examples/times_mod.py [folder of runs] [training steps]
As a plugin: cri train --plugin examples/times_mod.py --task times_mod
"""

import sys
from pathlib import Path

import cri


@cri.task
class TimesMod(cri.SquareGrid):
    name = "times_mod"
    size: int = 30
    modulus: int = 97

    def question(self, a, b):
        return f"{a}*{b}="

    def value(self, a, b):
        return a * b % self.modulus

    @property
    def rule(self):
        return cri.rule(times_mod, modulus=self.modulus)


def times_mod(num1, num2, *, modulus):
    left = 0
    while num1:
        left = left * 10 + num1.pop(0)
    right = 0
    while num2:
        right = right * 10 + num2.pop(0)
    total = left * right % modulus
    return [total] if total < 10 else [total // 10, total % 10]


@cri.attribution_method
def shared_factor(question):
    train, query = (question.task.cases[ids] for ids in (question.train_ids, question.query_ids))
    return (train[:, None, :, None] == query[None, :, None, :]).any(-1).sum(-1)


def main(runs="runs", steps=2000):
    config = cri.recipe("times_mod", split_params={"half_side": 3}, steps=steps, batch_size=128)
    run = cri.load_run(cri.train_run(config, Path(runs)))
    case = run.case(15, 16)
    own, rule = run.influence(case, "shared_factor"), run.task.rule
    tables = [run.logit_lens(case), run.nearest(case, k=10), run.influence(case, "EK-FAC", target="true"), own]
    tables += [rule.trace(15, 16).tail(3), rule.edit((15, 16), "total", "7").tail(3)]
    print(run, *(table.to_string(index=False) for table in tables), sep="\n\n")
    run.map("correct").figure.savefig(Path(runs) / "map.png")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
