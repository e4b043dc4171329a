"""Prove, on production's own traffic, whether a small model can replace a big one.

The way of the data: ``stores`` -> ``records`` -> ``datasets`` / ``curation`` -> ``trials``
(``methods``, ``serving``, ``inference``) -> ``scoring`` / ``judging`` -> ``leaderboard`` ->
``report`` / ``tracking``. ``pipeline.run`` is those steps in order.

Importing this package is cheap: Ray, torch, vLLM, MLflow and Elasticsearch are imported only by
the modules that need them.
"""

__version__ = "0.1.0"
