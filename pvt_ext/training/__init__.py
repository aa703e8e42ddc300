"""Training: ``pvt train`` and ``pvt eval``, on torchrun and DistributedDataParallel.

Read in this order: :mod:`.config` (what can be asked for), :mod:`.recipe` (learning rates, weight
decay), :mod:`.order` (which images, when), :mod:`.augment` and :mod:`.mix` (what is done to them),
:mod:`.learner` (one step), :mod:`.loop` (all of them), :mod:`.state` (what a crash leaves behind).

Needs the extra ``train`` of this package; importing :mod:`pvt_ext` imports none of it.
"""
