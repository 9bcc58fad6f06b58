"""``python -m tools.gpu``: build, test and measure the kernels on the GPU of this machine, and write one summary.

``docs/gpu.md`` says what each stage does and what to decide from its figures. The parts:

- :mod:`~tools.gpu.machine`: what this machine has, what is missing, and how to get it.
- :mod:`~tools.gpu.runner`: runs stages, each with a time limit and a log. :mod:`~tools.gpu.stages` lists them,
  :mod:`~tools.gpu.checks` and :mod:`~tools.gpu.measurements` define them.
- :mod:`~tools.gpu.summary`: writes ``summary.md`` and ``summary.json``, with the tables of :mod:`~tools.gpu.tables`.
- :mod:`~tools.gpu.kernel_times`, :mod:`~tools.gpu.tiles`, :mod:`~tools.gpu.sanitize_target` and
  :mod:`~tools.gpu.profile_target`: what the stages run, each a command of its own.
- :mod:`~tools.gpu.pack`: packs what is missing on a machine without a network.

Nothing here changes a setting of the GPU: no clocks, no partitions, no reset.
"""
