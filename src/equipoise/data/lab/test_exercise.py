"""The six tests of the lab: ``python -m unittest -v``, in this folder."""

from __future__ import annotations

import unittest

from exercise import dropped, efficiency, expert_loads, imbalance, step_time

from equipoise.simulate.routers import hot_expert, sample_topk, uniform

EXPERTS = 8
TOKENS = 1600


def routed_fairly() -> list[int]:
    """Loads of 1,600 assignments by a router that prefers no expert."""
    choices = sample_topk(uniform(EXPERTS)[0], num_tokens=TOKENS, top_k=1, seed=0)
    return expert_loads(choices.tolist(), EXPERTS)


def routed_to_one() -> list[int]:
    """Loads of 1,600 assignments, 60 % of which are forced on expert 0."""
    choices = sample_topk(hot_expert(EXPERTS, share=0.6)[0], num_tokens=TOKENS, top_k=1, seed=0)
    return expert_loads(choices.tolist(), EXPERTS)


class LabTest(unittest.TestCase):
    """One test for each thing that the lab is about."""

    def test_counting(self) -> None:
        """Every (token, expert) pair is one assignment; a repeated expert counts twice."""
        self.assertEqual(expert_loads([[0, 1], [1, 2], [3, 3]], 5), [1, 2, 1, 2, 0])
        self.assertEqual(sum(routed_fairly()), TOKENS)

    def test_uniform(self) -> None:
        """A fair router is nearly balanced at 1,600 assignments."""
        self.assertEqual(imbalance([5, 5, 5]), 1)
        self.assertEqual(imbalance([6, 1, 1, 4]), 2)
        self.assertLess(imbalance(routed_fairly()), 1.3)

    def test_hot_expert(self) -> None:
        """A router that sends 60 % to one expert is far from it."""
        self.assertGreater(imbalance(routed_to_one()), 3)

    def test_max_device(self) -> None:
        """A step takes as long as its busiest device, whatever the total is."""
        self.assertEqual(step_time([4, 1, 1, 2], 2), 5)  # experts 0 and 2 share device 0
        self.assertEqual(step_time([4, 1, 1, 2], 2, [0, 1, 1, 1]), 4)
        fair, hot = routed_fairly(), routed_to_one()
        self.assertEqual(sum(fair), sum(hot))
        self.assertGreater(step_time(hot, 8), 2.5 * step_time(fair, 8))

    def test_efficiency(self) -> None:
        """Efficiency is the work over the time of all devices: sum / (devices x max)."""
        self.assertEqual(efficiency([4, 1, 1, 2], 2), 0.8)
        self.assertEqual(efficiency([3, 3, 3, 3], 2), 1)
        self.assertLess(efficiency(routed_to_one(), 8), 0.25)

    def test_capacity(self) -> None:
        """A capacity factor of 1 drops 68 of these 128; a large enough one drops none."""
        loads = [84, 16, 10, 7, 5, 3, 2, 1]
        self.assertEqual(sum(loads), 128)
        self.assertEqual(dropped(loads, 1), 68)
        self.assertEqual(dropped(loads, imbalance(loads)), 0)
        self.assertEqual(dropped([3, 2], 1), 0)  # a capacity of 2.5 is rounded up


if __name__ == "__main__":
    unittest.main()
