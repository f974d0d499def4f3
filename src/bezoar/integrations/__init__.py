"""bezoar inside other frameworks.

:mod:`bezoar.integrations.gate` and :mod:`bezoar.integrations.coordinator` know no framework: named arrays that
strangers sent go in, the next model and a verdict for every client come out. The adapters translate messages, and are
thin: :mod:`bezoar.integrations.flower`, :mod:`bezoar.integrations.nvflare`.
"""
